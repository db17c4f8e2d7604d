"""BatchNorm over the batch of all processes together."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from u2pl.engine.world import World


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

    Two passes, as for one process: the variance is that of what is left after the mean.

    Args:
        norm: its running averages move.
        x: [B, K, H, W], this process's part.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    count = _sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    if count == 1:  # the pooled features of one image have no spread
        mean, var = norm.running_mean, norm.running_var
    else:
        mean = _sum(x.sum(dim=(0, 2, 3))) / count
        var = _sum((x - _wide(mean)).square().sum(dim=(0, 2, 3))) / count
        momentum = 0.1 if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(var * count / (count - 1), momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
    out = (x - _wide(mean)) * _wide((var + norm.eps).rsqrt())
    return out if norm.weight is None else out * _wide(norm.weight) + _wide(norm.bias)


class _SumOverProcesses(torch.autograd.Function):
    """Each process's loss depends on every process's summand, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    """Over the processes, with a gradient."""
    total: Tensor = _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]
    return total


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
