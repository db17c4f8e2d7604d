"""BatchNorm over the batch of all processes together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from u2pl.engine.world import World


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalises by mean and variance over all processes; for CPUs, which torch's own refuses.

    Two passes, as for one process: the variance is that of what is left after the mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, H, W] to the same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return super().forward(x)
        count = _sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        if count == 1:  # the pooled features of one image have no spread
            mean, var = self.running_mean, self.running_var
        else:
            mean = _sum(x.sum(dim=(0, 2, 3))) / count
            var = _sum((x - _wide(mean)).square().sum(dim=(0, 2, 3))) / count
            momentum = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * count / (count - 1), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        out = (x - _wide(mean)) * _wide((var + self.eps).rsqrt())
        return out if self.weight is None else out * _wide(self.weight) + _wide(self.bias)


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
        device: of the network; on a GPU the layers become torch's ``SyncBatchNorm``.

    Returns:
        The network.
    """
    if world.size == 1:
        return network
    if device.type == "cuda":
        shared: nn.Module
        shared = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return shared
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SharedBatchNorm  # the same parameters, which the optimiser knows
    return network
