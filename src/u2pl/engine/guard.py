"""Numbers that are not finite: no update is made of them, and the first is remembered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

WATCHED = ("loss_s", "loss_u", "loss_c", "loss", "grad_norm")
"""What a step's values may hold that must be finite, causes before their effects."""


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar on their device.

    Args:
        parameters: those without a gradient do not count.

    Returns:
        The norm; not finite where any gradient is not. 0 where there is no gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
    return norm


def are_finite(values: Mapping[str, Tensor]) -> Tensor:
    """Whether all watched values of a step are finite, a bool scalar on their device."""
    watched = [values[name].float() for name in WATCHED if name in values]
    return torch.stack(watched).isfinite().all()


def has_scaler(fabric: Fabric) -> bool:
    """Whether the loss is scaled for float16: gradients then overflow now and then, by design."""
    return getattr(fabric.strategy.precision, "scaler", None) is not None


class FirstFailure:
    """Remembers, without waiting for the device, the first step that was not finite.

    Args:
        device: where the steps' values lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._values = torch.zeros(len(WATCHED), device=device)

    def look(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take note of a step's values.

        Args:
            step: the number of the step, from 1.
            values: scalars; watched ones may be missing.
        """
        zero = torch.zeros((), device=self._values.device)
        vector = torch.stack([values.get(name, zero).float() for name in WATCHED])
        is_first = (self._step < 0) & ~vector.isfinite().all()
        self._step = torch.where(is_first, step, self._step)
        self._values = torch.where(is_first, vector, self._values)

    def found(self) -> tuple[int, dict[str, float]] | None:
        """The step and its values that were not finite, or None; waits for the device."""
        step = int(self._step)
        if step < 0:
            return None
        numbers = dict(zip(WATCHED, self._values.tolist(), strict=True))
        return step, {name: value for name, value in numbers.items() if not math.isfinite(value)}
