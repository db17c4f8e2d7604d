"""The teacher: an exponential moving average of the student, BatchNorm's statistics included."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """Make a copy of a student that only :func:`follow` moves.

    A copy and not another name: the authors' code lets both be one network at first.

    Args:
        student: left as it is, on its device.

    Returns:
        A network of the same class and weights, in evaluation mode, without gradients. Keep it
        there: a loop that calls ``train()`` on a module that holds the teacher must call
        ``eval()`` on the teacher afterwards.

    >>> teacher = make_teacher(nn.Linear(2, 3))
    >>> teacher.training, teacher.weight.requires_grad
    (False, False)
    """
    return copy.deepcopy(student).eval().requires_grad_(False)


def teacher_decay(step: int, *, maximum: float = 0.99) -> float:
    """Decay after a step: ``min(1 - 1/(step + 1), maximum)`` [C].

    Counted from the first step of the run [R], so that the teacher is already an average when its
    first pseudo-labels are asked for. (The authors' code counts from the first semi-supervised
    step: after a supervised warm-up the teacher begins as the student of that very step.)

    Args:
        step: counted from 0.
        maximum: in [0, 1).

    >>> [round(teacher_decay(step), 3) for step in (0, 1, 3, 1000)]
    [0.0, 0.5, 0.75, 0.99]
    """
    return min(1 - 1 / (step + 1), maximum)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, decay: float) -> None:
    """Move the teacher's weights to ``decay · teacher + (1 - decay) · student``.

    Floating buffers (BatchNorm's running statistics) are averaged like weights [R; the authors'
    code leaves them out]; counters are copied.

    Args:
        teacher: changed in place.
        student: a network of the same shape.
        decay: in [0, 1]; 0 copies.
    """
    ours = [*teacher.parameters(), *teacher.buffers()]
    theirs = [*student.parameters(), *student.buffers()]
    moving = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
    torch._foreach_lerp_([ours[i] for i in moving], [theirs[i] for i in moving], 1 - decay)
    counters = [i for i, tensor in enumerate(ours) if not tensor.is_floating_point()]
    if counters:
        torch._foreach_copy_([ours[i] for i in counters], [theirs[i] for i in counters])


@contextmanager
def statistics_at_rest(student: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm still normalises by the batch, but its running averages do not move."""
    norms = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
