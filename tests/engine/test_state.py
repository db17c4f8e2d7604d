from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import IGNORE, tiny_batch, tiny_config, tiny_state
from u2pl.engine.state import initial_state, queue_capacities
from u2pl.engine.step import training_step
from u2pl.errors import UserError


def test_background_class_has_the_longer_queue() -> None:
    config = tiny_config(method__background_class=1, method__background_queue_size=99)
    assert queue_capacities(config, 3) == [64, 99, 64]
    assert queue_capacities(tiny_config(), 3) == [64, 64, 64]


def test_without_contrast_no_memory_is_spent() -> None:
    config = tiny_config(method__contrastive_weight=0, method__background_class=1)
    assert queue_capacities(config, 3) == [1, 1, 1]


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = tiny_state(tiny_config())[1].student.state_dict()
    torch.manual_seed(2)
    second = tiny_state(tiny_config())[1].student.state_dict()
    other = tiny_state(tiny_config(train__seed=1))[1].student.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(
        first["encoder.stages.0.0.0.weight"], other["encoder.stages.0.0.0.weight"]
    )


def test_no_weights_are_fetched_where_a_checkpoint_brings_them(tmp_path: Path) -> None:
    config = tiny_config(
        model__encoder="test_efficientnet",
        model__pretrained=True,
        model__weights=str(tmp_path / "gone.safetensors"),
    )
    device = torch.device("cpu")
    state = initial_state(config, 3, IGNORE, device, load_pretrained=False)
    assert sum(p.numel() for p in state.student.parameters()) > 100_000
    with pytest.raises(UserError, match="there is no file"):
        initial_state(config, 3, IGNORE, device)


def test_teacher_is_a_frozen_copy_in_evaluation_mode() -> None:
    state = tiny_state(tiny_config())[1]
    assert not state.teacher.training
    assert not any(p.requires_grad for p in state.teacher.parameters())
    assert all(p.requires_grad for p in state.student.parameters())
    ours, theirs = state.teacher.state_dict(), state.student.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_memory_starts_empty_with_the_configured_sizes() -> None:
    config = tiny_config(method__queue_dtype="bfloat16", method__prototype_momentum=0.5)
    state = initial_state(config, 3, IGNORE, torch.device("cpu"))
    assert state.queues.keys.shape == (3 * 64, 8)
    assert state.queues.keys.dtype == torch.bfloat16
    assert not state.queues.num_keys.any()
    assert state.prototypes.vectors.shape == (3, 8)
    assert state.prototypes.momentum == 0.5
    assert state.step == 0


def test_channels_last_is_a_setting() -> None:
    for wanted in (True, False):
        state = initial_state(
            tiny_config(train__channels_last=wanted), 3, IGNORE, torch.device("cpu")
        )
        weights = [p for p in state.student.parameters() if p.ndim == 4 and p.shape[2] == 3]
        found = all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
        assert found is wanted


def test_state_dict_restores_everything_a_step_changes() -> None:
    config = tiny_config()
    fabric, state = tiny_state(config)
    for seed in range(2):
        training_step(fabric, state, tiny_batch(seed=seed), config)
    _, other = tiny_state(config)
    state.num_skipped += 3
    other.load_state_dict(state.state_dict())
    assert (other.step, int(other.num_skipped)) == (2, 3)
    for name in ("student", "teacher", "queues", "prototypes"):
        ours, theirs = getattr(state, name).state_dict(), getattr(other, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    moments = [s["exp_avg"] for s in other.optimizer.state_dict()["state"].values()]
    expected = [s["exp_avg"] for s in state.optimizer.state_dict()["state"].values()]
    assert len(moments) > 20
    assert all(torch.equal(a, b) for a, b in zip(moments, expected, strict=True))


def test_moments_of_another_shape_are_refused() -> None:
    config = tiny_config()
    fabric, state = tiny_state(config)
    training_step(fabric, state, tiny_batch(), config)
    saved = state.state_dict()
    first = saved["optimizer"]["state"][0]
    first["exp_avg"] = torch.zeros(3)
    _, other = tiny_state(config)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("step", [-1, "x"])
def test_step_that_no_run_can_be_at_is_refused(step: Any) -> None:
    _, state = tiny_state(tiny_config())
    with pytest.raises(ValueError, match=r"step -1|invalid literal"):
        state.load_state_dict(state.state_dict() | {"step": step})
