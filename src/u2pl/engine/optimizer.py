"""Optimiser groups and the learning rate's course."""

from __future__ import annotations

import torch
from torch import nn

from u2pl.config import OptimizerSettings


def build_optimizer(
    student: nn.Module, settings: OptimizerSettings, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """One optimiser with the encoder at ``lr`` and all else at ``lr * head_lr_factor``.

    AdamW leaves vectors (biases, normalisation) without weight decay, as transformers are
    trained; SGD decays everything, as the papers do [P].

    Args:
        student: has an ``encoder``.
        settings: rates and decays.
        scaled: the loss is scaled for float16.

    Returns:
        An optimiser whose groups carry ``base_lr``, the rate before the schedule.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        in_encoder = name.startswith("encoder.")
        decayed = settings.name == "sgd" or parameter.ndim > 1
        groups.setdefault((in_encoder, decayed), []).append(parameter)
    parameters = [
        {
            "params": members,
            "base_lr": settings.lr * (1 if in_encoder else settings.head_lr_factor),
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (in_encoder, decayed), members in groups.items()
    ]
    # one kernel for all weights, which can leave them alone without asking the device; with a
    # scaled loss it undoes the scale inside the step, which leaves no place for clipping before it
    fused = settings.max_grad_norm is None or not scaled
    if settings.name == "sgd":
        optimizer = torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, fused=fused
        )
        if settings.momentum > 0:
            # the fused kernel cannot begin with some weights later than with others, as a head
            # without a loss in the warm-up asks for; from 0 the first step is the same
            for members in groups.values():
                for parameter in members:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(parameters, lr=settings.lr, fused=fused)


def learning_rate_factor(
    step: int, total_steps: int, *, power: float = 0.9, warmup_steps: int = 0
) -> float:
    """The poly schedule [P], after an optional linear rise: ``(1 - t/T)^power``.

    A function of the step alone, so that a resumed run goes on where it was.

    Args:
        step: t, from 0 to T - 1.
        total_steps: T.
        power: exponent.
        warmup_steps: the factor is multiplied by (t + 1) / warmup_steps before that step.

    >>> learning_rate_factor(0, 100), learning_rate_factor(50, 100, power=1.0)
    (1.0, 0.5)
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return float(rise * (1 - step / total_steps) ** power)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to ``base_lr * factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
