"""The most that a step of a GPU's size holds, by shapes: no GPU is asked, and nothing is computed.

Tensors are torch's fake ones, which know their shape, type and device and have no numbers. What an
allocator adds, and what libraries take for themselves while they work, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from u2pl.bench.memory import LiveBytes
from u2pl.bench.steps import KINDS, NUM_CLASSES, Steps, step_config
from u2pl.engine.recorded import tensors_of


def step_peaks(overrides: dict[str, Any], *, num_classes: int = NUM_CLASSES) -> dict[str, int]:
    """The most bytes that steps of each kind hold, beyond what is there before and after them.

    Args:
        overrides: of what :func:`~u2pl.bench.steps.step_config` gives a GPU, in bfloat16.
        num_classes: C.

    Returns:
        ``method``, ``networks`` and ``bare``; see :func:`~u2pl.bench.steps.step_kinds`.
    """
    config = step_config(torch.device("cuda")).with_overrides(
        {"train.precision": "bf16-mixed", **overrides}
    )
    here = torch.device("cpu")
    return {
        name: _peak(make(config, here, num_classes=num_classes)) for name, make in KINDS.items()
    }


def _peak(steps: Steps) -> int:
    """Of the second step: the first one makes what an optimiser keeps."""
    with _without_numbers(steps):
        steps.step()
        live = LiveBytes(_tensors_of(steps))
        with live:
            steps.step()
    return live.peak


def _without_numbers(steps: Steps) -> FakeTensorMode:
    """Put fake tensors in place of all that a step reads and writes."""
    mode, state = FakeTensorMode(allow_non_fake_inputs=True), steps.state
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the real one too, so that its id stays its own

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            made[id(tensor)] = mode.from_tensor(tensor), tensor
        return made[id(tensor)][0]

    for module in _modules_of(steps):
        for held in (module._parameters, module._buffers):
            there: dict[str, Any] = {name: t for name, t in held.items() if t is not None}
            held.update({name: fake(tensor) for name, tensor in there.items()})
    for group in state.optimizer.param_groups:
        group["params"] = [fake(parameter) for parameter in group["params"]]
    state.num_skipped = fake(state.num_skipped)
    steps.batch = steps.batch.map(fake)
    return mode


def _modules_of(steps: Steps) -> Iterable[nn.Module]:
    state = steps.state
    for whole in (state.student, state.teacher, state.queues, state.prototypes):
        yield from whole.modules()


def _tensors_of(steps: Steps) -> list[Tensor]:
    """All that is there between two steps."""
    held: list[Any] = list(steps.state.optimizer.state.values())
    for module in _modules_of(steps):
        held += [module._parameters, module._buffers]
    leaves = [*tree_leaves(held), *tensors_of(steps.batch)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
