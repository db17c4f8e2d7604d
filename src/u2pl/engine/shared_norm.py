"""BatchNorm over the batch of all processes together."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from u2pl.engine.world import World, of_all, sum_of_all


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalises by mean and variance over all processes; for CPUs, which torch's own refuses."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, H, W] to the same shape."""
        return normalize_over_processes(self, x) if self.training else super().forward(x)


class SharedBatchNormAct(BatchNormAct2d):
    """The same with the activation that timm's layer of this kind has inside."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, H, W] to the same shape."""
        if self.training:
            activated: Tensor = self.act(self.drop(normalize_over_processes(self, x)))
        else:
            activated = super().forward(x)  # type: ignore[no-untyped-call]
        return activated


def normalize_over_processes(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm in training, by the batch of all processes together.

    One message forward and one backward. In between torch's own kernels work, as for one process.

    Args:
        norm: its running averages move.
        x: [B, K, H, W], this process's part.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = x.float()  # as autocast has it; the same tensor without
    mean, var, count = statistics_over_processes(wide.detach())
    if count == 1:  # the pooled features of one image have no spread
        mean, var = norm.running_mean, norm.running_var
        out = F.batch_norm(wide, mean, var, norm.weight, norm.bias, eps=norm.eps)
        return out.to(x.dtype)
    momentum = 0.1 if norm.momentum is None else norm.momentum
    with torch.no_grad():
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(var * (count / (count - 1)), momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
    normalized: Tensor = _Normalized.apply(  # type: ignore[no-untyped-call]
        wide, norm.weight, norm.bias, mean, var, count, norm.eps
    )
    return normalized.to(x.dtype)


def statistics_over_processes(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and variance of each channel, [K], over all processes, and the values that they are of.

    Each process's part of the sum of squares is about its own mean, so nothing cancels (Chan,
    Golub and LeVeque, 1983).

    Args:
        x: [B, K, H, W] float32, this process's part.
    """
    mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
    count = x.numel() // x.shape[1]
    ours = torch.cat([mean, var, mean.new_tensor([count])])
    each = torch.stack(of_all(ours)).double()
    means, variances, counts = torch.split(each, [len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean_of_all = (counts * means).sum(0) / total
    squares = counts * (variances + (means - mean_of_all).square())
    return mean_of_all.to(x.dtype), (squares.sum(0) / total).to(x.dtype), int(total)


class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, of which mean and variance depend on all x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: int,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        # of this process's part: the sums of pull · (x - mean) / sqrt(var + eps), and of pull
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            pull, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        along, level = sum_of_all(torch.stack([of_weight, of_bias])) / ctx.count
        slope = (var + ctx.eps).rsqrt()
        scale = slope if weight is None else slope * weight
        # scale * (pull - level - (x - mean) * slope * along), in two passes
        offset = scale * (mean * slope * along - level)
        of_x = torch.addcmul(_wide(offset), x, _wide(-scale * slope * along))
        of_x.addcmul_(pull, _wide(scale))
        if weight is None:
            return of_x, None, None, None, None, None, None
        return of_x, of_weight, of_bias, None, None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def share_statistics(network: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Let a network's BatchNorms see the batch of all processes; weights and buffers stay.

    Args:
        network: changed in place.
        world: where it is of one process, nothing changes.
        device: of the network; on a GPU the layers become torch's ``SyncBatchNorm``, by timm's
            conversion: torch's own would leave out the activation inside timm's layers.

    Returns:
        The network.
    """
    if world.size == 1:
        return network
    if device.type == "cuda":
        shared: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return shared
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            has_activation = isinstance(module, BatchNormAct2d)
            # the same parameters, which the optimiser knows
            module.__class__ = SharedBatchNormAct if has_activation else SharedBatchNorm
    return network
