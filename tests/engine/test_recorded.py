"""Steps that are recorded once and then replayed learn what other steps learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tiny import IGNORE, NUM_CLASSES, tiny_batch, tiny_config, tiny_state
from u2pl.config import Config
from u2pl.engine.recorded import (
    WARM_UP,
    RecordedGradients,
    Recording,
    gradients_of,
    record,
    tensors_of,
)
from u2pl.engine.state import TrainState, initial_state
from u2pl.engine.step import compute_gradients, training_step
from u2pl.engine.world import World
from variants import VARIANTS
from waiting import waiting_is_an_error

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Tape:
    """Stands for CUDA's recording where there is no GPU: a replay calls the function again.

    Attributes:
        generators: of each recording, in order.
        num_replays: of all of them.
    """

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []
        self.num_replays = 0

    def record(self, function: Callable[[], Any], generator: torch.Generator) -> Recording:
        """Keep the function; like CUDA's, it is not called yet, and its results have one place."""
        self.generators.append(generator)
        values: list[Any] = []

        def replay() -> None:
            self.num_replays += 1
            values[:] = function()

        return Recording(replay, values)


def both_ways(config: Config, tape: Tape, batches: list[Any]) -> tuple[list[Any], list[TrainState]]:
    """Train as usual and by a tape; return the rows of values and the states, usual ones first."""
    rows, states = [], []
    for gradients in (None, RecordedGradients(make_recording=tape.record)):
        fabric, state = tiny_state(config)
        rows.append([training_step(fabric, state, b, config, gradients=gradients) for b in batches])
        states.append(state)
    return rows, states


def assert_alike(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Compare two nested states or rows of values."""
    if isinstance(ours, Tensor):
        torch.testing.assert_close(ours.double(), theirs.double(), **tolerance)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key, value in ours.items():
            assert_alike(value, theirs[key], **tolerance)
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other, **tolerance)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", VARIANTS)
def test_replayed_steps_are_the_usual_ones_to_the_last_bit(name: str) -> None:
    config = tiny_config(**VARIANTS[name], train__steps=12)
    tape = Tape()
    given = {"context": config.data.context}
    batches = [tiny_batch(seed=n, **given) for n in range(WARM_UP + 5)]
    rows, states = both_ways(config, tape, batches)
    assert_alike(*rows, rtol=0.0, atol=0.0)
    assert_alike(*(state.state_dict() for state in states), rtol=0.0, atol=0.0)
    assert tape.num_replays == (2 + 5 - 4 if name == "warm-up" else 5)


def test_first_step_with_unlabelled_images_begins_anew() -> None:
    config = tiny_config(train__supervised_steps=WARM_UP + 2, train__steps=20)
    tape = Tape()
    both_ways(config, tape, [tiny_batch(seed=n) for n in range(2 * WARM_UP + 5)])
    assert len(tape.generators) == 2
    assert tape.num_replays == 2 + 3


def test_batch_of_another_size_is_made_as_usual() -> None:
    config = tiny_config(train__steps=20)
    tape, steps = Tape(), WARM_UP + 2
    batches = [tiny_batch(seed=n) for n in range(steps)]
    wide = copy.deepcopy(batches[0])
    wide = wide.map(
        lambda tensor: tensor.repeat_interleave(2, dim=-1) if tensor.ndim > 2 else tensor
    )
    rows, _ = both_ways(config, tape, [*batches, wide])
    assert tape.num_replays == 2
    assert_alike(*rows, rtol=0.0, atol=0.0)


def test_values_of_a_step_outlive_the_next_one() -> None:
    config, tape = tiny_config(train__steps=20), Tape()
    fabric, state = tiny_state(config)
    gradients = RecordedGradients(make_recording=tape.record)
    kept = [
        training_step(fabric, state, tiny_batch(seed=n), config, gradients=gradients)
        for n in range(WARM_UP + 3)
    ]
    assert len({row["loss"].item() for row in kept}) == len(kept)


def test_step_that_cannot_be_recorded_is_made_as_usual_and_said_once() -> None:
    def refuse(*_: Any) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    config = tiny_config(train__steps=20)
    fabric, state = tiny_state(config)
    other_fabric, other = tiny_state(config)
    gradients = RecordedGradients(make_recording=refuse)
    for n in range(WARM_UP):
        training_step(fabric, state, tiny_batch(seed=n), config, gradients=gradients)
        training_step(other_fabric, other, tiny_batch(seed=n), config)
    with pytest.warns(UserWarning, match=r"without \(operation not permitted when stream is capt"):
        training_step(fabric, state, tiny_batch(seed=7), config, gradients=gradients)
    training_step(fabric, state, tiny_batch(seed=8), config, gradients=gradients)
    for n in (7, 8):
        training_step(other_fabric, other, tiny_batch(seed=n), config)
    assert_alike(state.state_dict(), other.state_dict(), rtol=0.0, atol=0.0)


def test_only_a_single_process_with_a_gpu_records() -> None:
    config = tiny_config()
    fabric, state = tiny_state(config)
    assert gradients_of(config, fabric, state) is compute_gradients

    class OnGpu:
        device = torch.device("cuda")
        strategy = fabric.strategy

    gpu: Any = OnGpu()
    assert isinstance(gradients_of(config, gpu, state), RecordedGradients)
    off = tiny_config(train__cuda_graph=False)
    assert gradients_of(off, gpu, state) is compute_gradients
    state.world = World(rank=0, size=2)
    assert gradients_of(config, gpu, state) is compute_gradients


def test_all_tensors_of_a_batch_are_found() -> None:
    batch = tiny_batch()
    assert batch.unlabeled is not None
    assert {id(each) for each in tensors_of(batch)} == {
        id(batch.labeled.images),
        id(batch.labeled.labels),
        id(batch.unlabeled.weak),
        id(batch.unlabeled.valid),
        id(batch.unlabeled.possible_classes),
        *(id(view) for view in batch.unlabeled.strong),
    }


# on a GPU


def gpu_state(config: Config) -> tuple[Fabric, TrainState]:
    """A state on the GPU, set up as training does it."""
    fabric = Fabric(accelerator="cuda", devices=1, precision="32-true")
    state = initial_state(config, NUM_CLASSES, IGNORE, fabric.device)
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    return fabric, state


@needs_gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_gpu_replays_what_it_would_do_as_usual(name: str, recwarn: pytest.WarningsRecorder) -> None:
    """From one state; a pixel at a threshold may be decided by the order of atomic additions."""
    config = tiny_config(**VARIANTS[name], train__steps=20, model__dropout=0.1)
    fabric, state = gpu_state(config)
    gradients = RecordedGradients()
    given = {"context": config.data.context}
    batches = [tiny_batch(seed=n, **given).to(fabric.device) for n in range(WARM_UP + 4)]
    for batch in batches[:-1]:
        training_step(fabric, state, batch, config, gradients=gradients)
    assert gradients._step is not None
    other_fabric, other = gpu_state(config)
    other.load_state_dict(copy.deepcopy(state.state_dict()))
    replayed = training_step(fabric, state, batches[-1], config, gradients=gradients)
    usual = training_step(other_fabric, other, batches[-1], config)
    assert_alike(usual, replayed, rtol=2e-3, atol=1e-4)
    for name in ("prototypes", "queues"):
        ours, theirs = (getattr(each, name).state_dict() for each in (other, state))
        assert_alike(ours, theirs, rtol=1e-3, atol=1e-4)
    for one, two in zip(other.student.parameters(), state.student.parameters(), strict=True):
        assert (one - two).abs().mean() < 1e-4  # AdamW's first steps are as large as the rate
    assert not [w for w in recwarn if "cannot be recorded" in str(w.message)]


@needs_gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_gpu_waits_for_nothing_in_a_replayed_step(name: str) -> None:
    config = tiny_config(**VARIANTS[name], train__steps=20)
    fabric, state = gpu_state(config)
    gradients = RecordedGradients()
    given = {"context": config.data.context}
    batches = [tiny_batch(seed=n, **given).to(fabric.device) for n in range(WARM_UP + 6)]
    for batch in batches[:-2]:
        training_step(fabric, state, batch, config, gradients=gradients)
    with waiting_is_an_error():
        for batch in batches[-2:]:
            training_step(fabric, state, batch, config, gradients=gradients)


@needs_gpu
def test_gpu_that_cannot_record_goes_on(recwarn: pytest.WarningsRecorder) -> None:
    def waits(*given: Any) -> dict[str, Tensor]:
        values = compute_gradients(*given)
        values["loss"].item()
        return values

    config = tiny_config(train__steps=20)
    fabric, state = gpu_state(config)
    gradients = RecordedGradients(waits)
    values = [
        training_step(fabric, state, tiny_batch(seed=n).to("cuda"), config, gradients=gradients)
        for n in range(WARM_UP + 3)
    ]
    assert [w for w in recwarn if "cannot be recorded" in str(w.message)]
    assert all(row["loss"].isfinite() for row in values)


@needs_gpu
def test_gpu_draws_anew_in_each_replay() -> None:
    generator = torch.Generator("cuda")
    place = torch.zeros(4, device="cuda")
    recording = record(
        lambda: place.copy_(torch.rand(4, generator=generator, device="cuda")), generator
    )
    found = []
    for seed in (1, 2, 1):
        generator.manual_seed(seed)
        recording.replay()
        found.append(place.clone())
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    again = torch.rand(4, generator=torch.Generator("cuda").manual_seed(2), device="cuda")
    assert torch.equal(found[1], again)
