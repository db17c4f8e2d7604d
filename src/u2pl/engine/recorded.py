"""A step's gradients as one CUDA graph: the CPU asks once for what were thousands of kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl.config import Config
from u2pl.data.batch import Batch
from u2pl.engine.guard import has_scaler
from u2pl.engine.state import TrainState
from u2pl.engine.step import Gradients, compute_gradients
from u2pl.engine.targets import StepNumbers

WARM_UP = 3
"""Steps of a kind that are made as usual before one is recorded: kernels are loaded and chosen."""


@dataclass(frozen=True)
class Recording:
    """A function's kernels, to be asked for again at the same addresses.

    Attributes:
        replay: asks for them.
        values: what the function returned; each replay writes it anew.
    """

    replay: Callable[[], Any]
    values: Any


def record(function: Callable[[], Any], generator: torch.Generator) -> Recording:
    """Record a function's work on a GPU without doing it.

    Args:
        function: reads and writes tensors at fixed addresses, and waits for nothing.
        generator: that it draws from; each replay draws from the state that it is in then.

    Raises:
        RuntimeError: for a function that does what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    # other threads, a loader's among them, may go on to ask for memory
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        values = function()
    return Recording(graph.replay, values)


def forget_recording(device: torch.device, *generators: torch.Generator) -> None:
    """Let generators draw again after a recording that failed, which leaves them waiting for it."""
    if device.type == "cuda":
        for each in (*generators, torch.cuda.default_generators[device.index or 0]):
            each.graphsafe_set_state(each.clone_state())


def gradients_of(
    config: Config, fabric: Fabric, state: TrainState, compute: Gradients = compute_gradients
) -> Gradients:
    """The way of a run to compute gradients: recorded where it asks for that and it can be."""
    can_be_recorded = fabric.device.type == "cuda" and state.world.size == 1
    if config.train.cuda_graph and can_be_recorded and not has_scaler(fabric):
        return RecordedGradients(compute)
    return compute


class RecordedGradients:
    """:func:`~u2pl.engine.step.compute_gradients`, recorded after a few steps and then replayed.

    The numbers are those of the usual way. Steps of another kind (the first with unlabelled
    images; other sizes) begin anew. A step that cannot be recorded is made as usual, and a warning
    says so.

    Args:
        compute: what to record.
        make_recording: how.
    """

    def __init__(
        self,
        compute: Gradients = compute_gradients,
        make_recording: Callable[[Callable[[], Any], torch.Generator], Recording] = record,
    ) -> None:
        self._compute, self._make_recording = compute, make_recording
        self._kind: Any = None
        self._steps_of_kind = 0
        self._step: _RecordedStep | None = None
        self._gave_up = False

    def __call__(
        self,
        fabric: Fabric,
        state: TrainState,
        batch: Batch,
        numbers: StepNumbers,
        config: Config,
    ) -> dict[str, Tensor]:
        """Compute the gradients of a step; see :func:`~u2pl.engine.step.compute_gradients`.

        Returns:
            The same scalars, as float64.
        """
        kind = (numbers.contrasted, *((each.shape, each.dtype) for each in tensors_of(batch)))
        if kind != self._kind:
            self._kind, self._steps_of_kind, self._step = kind, 0, None
        self._steps_of_kind += 1
        if self._step is None and self._steps_of_kind > WARM_UP and not self._gave_up:
            self._step = self._recorded(_RecordedStep(batch, numbers, state), fabric, config)
        if self._step is not None:
            return self._step.replay(batch, numbers)
        with on_another_stream(fabric.device):
            return self._compute(fabric, state, batch, numbers, config)

    def _recorded(
        self, step: _RecordedStep, fabric: Fabric, config: Config
    ) -> _RecordedStep | None:
        """The step, recorded; None where that is not possible."""
        try:
            step.recording = self._make_recording(
                lambda: step.compute(self._compute, fabric, config), step.numbers.generator
            )
        except RuntimeError as error:
            self._gave_up = True
            step.state.optimizer.zero_grad(set_to_none=True)
            forget_recording(fabric.device, step.numbers.generator)
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"This step cannot be recorded as a CUDA graph; it is made without ({reason}).",
                stacklevel=2,
            )
            return None
        return step


class _RecordedStep:
    """One kind of step with inputs of its own, where the graph reads them."""

    recording: Recording

    def __init__(self, batch: Batch, numbers: StepNumbers, state: TrainState) -> None:
        self.state = state
        self.parameters = list(state.student.parameters())
        self.batch = batch.map(torch.clone)
        self.numbers = numbers._replace(
            alpha=numbers.alpha.clone(),
            eta=numbers.eta.clone(),
            generator=torch.Generator(device=numbers.generator.device),
        )
        self.names: list[str] = []
        state.optimizer.zero_grad(set_to_none=True)  # the graph makes its own

    def compute(
        self, compute: Gradients, fabric: Fabric, config: Config
    ) -> tuple[Tensor, list[Tensor | None]]:
        """All scalars as one tensor, which is copied at once, and the gradients."""
        terms = compute(fabric, self.state, self.batch, self.numbers, config)
        self.names = list(terms)
        values = torch.stack([term.detach().double() for term in terms.values()])
        return values, [parameter.grad for parameter in self.parameters]

    def replay(self, batch: Batch, numbers: StepNumbers) -> dict[str, Tensor]:
        """Compute this batch's gradients."""
        for ours, theirs in zip(tensors_of(self.batch), tensors_of(batch), strict=True):
            ours.copy_(theirs)
        self.numbers.alpha.copy_(numbers.alpha)
        self.numbers.eta.copy_(numbers.eta)
        self.numbers.generator.manual_seed(numbers.generator.initial_seed())
        self.recording.replay()
        values, gradients = self.recording.values
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return dict(zip(self.names, values.clone().unbind(), strict=True))


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, in one order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(keep)
    return found


@contextmanager
def on_another_stream(device: torch.device) -> Iterator[None]:
    """Inside, a GPU's work goes to another stream, as the work that is recorded will."""
    if device.type != "cuda":
        yield
        return
    current, other = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    other.wait_stream(current)
    with torch.cuda.stream(other):
        yield
    current.wait_stream(other)
