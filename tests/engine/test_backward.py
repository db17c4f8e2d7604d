"""The student's gradients: head by head and some images at a time, but those of the whole loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import IGNORE, SIZE, tiny_batch, tiny_config, tiny_state
from u2pl.config import Config
from u2pl.data.batch import Batch
from u2pl.engine import backward, targets
from u2pl.engine.backward import (
    anchors_of_part,
    backward_in_parts,
    factors_of,
    supervised_loss,
    unsupervised_loss,
)
from u2pl.engine.pairs import ContrastPairs, contrast_of_part
from u2pl.engine.state import TrainState
from u2pl.engine.step import make_targets, step_numbers, training_step
from u2pl.engine.targets import PseudoLabels
from u2pl.models import upsample
from variants import VARIANTS

CHANGES: list[dict[str, Any]] = [
    {},
    {"method__strong_views": 2, "method__feature_dropout": "complementary"},
    {"method__symmetric_weight": 0.1, "method__labeled_symmetric_weight": 0.2},
    {"model__auxiliary_weight": 0.4},
    {"train__ohem": True, "train__ohem_min_kept": 50, "model__auxiliary_weight": 0.4},
    {"method__soft_pseudo_labels": True},
]


def prepared(
    changes: dict[str, Any],
) -> tuple[Config, Fabric, TrainState, Batch, PseudoLabels, ContrastPairs]:
    """A state after two steps, and the targets of the next."""
    config = tiny_config(model__dropout=0.0, method__anchor_threshold=0.0, **changes)
    fabric, state = tiny_state(config)
    for seed in range(3):
        batch = tiny_batch(num_labeled=3, num_unlabeled=4, seed=seed)
        assert batch.unlabeled is not None
        views = tuple(scale * batch.unlabeled.weak for scale in (0.8, 0.9))
        views = views[: config.method.strong_views]
        batch = Batch(batch.labeled, dataclasses.replace(batch.unlabeled, strong=views))
        if seed < 2:
            training_step(fabric, state, batch, config)
    numbers = step_numbers(state, config, torch.device("cpu"))
    pseudo, pairs = make_targets(fabric, state, batch, numbers, config)
    assert pseudo is not None
    assert pairs is not None
    assert pairs.active.any()
    return config, fabric, state, batch, pseudo, pairs


def gradients_of(state: TrainState) -> dict[str, Tensor | None]:
    """Take the student's gradients away."""
    found = {name: p.grad for name, p in state.student.module.named_parameters()}
    state.optimizer.zero_grad(set_to_none=True)
    return found


def joint_loss(
    state: TrainState, batch: Batch, pseudo: PseudoLabels, pairs: ContrastPairs, config: Config
) -> Tensor:
    """The whole loss in one graph, every map at full size at once."""
    student, labels, streams = state.student.module, batch.labeled.labels, pseudo.streams
    split, auxiliary_weight = len(labels), config.model.auxiliary_weight
    grid, auxiliary = student.decode(
        torch.cat([batch.labeled.images, *(stream.images for stream in streams)]),
        channel_factors=factors_of(streams, split),
        num_auxiliary=split if auxiliary_weight else 0,
    )
    count = (labels != IGNORE).sum()
    full = upsample(student.segmentation_head(grid), SIZE)
    loss = supervised_loss(full[:split], labels, count, state, config)
    if auxiliary is not None:
        coarse = upsample(auxiliary, SIZE)
        loss = loss + auxiliary_weight * supervised_loss(coarse, labels, count, state, config)
    each = torch.split(full[split:], [len(stream.images) for stream in streams])
    for said, stream in zip(each, streams, strict=True):
        loss = loss + unsupervised_loss(said, stream, IGNORE, config)
    wanted = anchors_of_part(state, pairs, batch.labeled, pseudo, slice(None))
    anchors = student.features_at(grid, wanted.cells).view(*wanted.here.shape, -1)
    contrast = contrast_of_part(pairs, state.queues.keys, anchors, wanted.here, config)
    return loss + config.method.contrastive_weight * contrast


@pytest.mark.parametrize("numbers_at_once", [1, 2**23])
@pytest.mark.parametrize("changes", CHANGES)
def test_heads_one_by_one_have_the_gradient_of_the_whole_loss(
    changes: dict[str, Any], numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "NUMBERS_AT_ONCE", numbers_at_once)
    config, fabric, state, batch, pseudo, pairs = prepared(changes)
    terms = backward_in_parts(fabric, state, batch.labeled, pseudo, pairs, config)
    ours = gradients_of(state)
    loss = joint_loss(state, batch, pseudo, pairs, config)
    loss.backward()
    torch.testing.assert_close(terms["loss"], loss.detach())
    for name, expected in gradients_of(state).items():
        found = ours[name]
        assert found is not None, name
        assert expected is not None, name
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name)


def test_scaled_backward_passes_scale_all_gradients_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for float16, whose small gradients would be lost."""
    config, fabric, state, batch, pseudo, pairs = prepared({"model__auxiliary_weight": 0.4})
    backward_in_parts(fabric, state, batch.labeled, pseudo, pairs, config)
    plain = gradients_of(state)
    monkeypatch.setattr(fabric, "backward", lambda loss: (1024 * loss).backward())
    backward_in_parts(fabric, state, batch.labeled, pseudo, pairs, config)
    for name, scaled in gradients_of(state).items():
        expected = plain[name]
        assert scaled is not None
        assert expected is not None
        torch.testing.assert_close(scaled / 1024, expected, msg=name)


class MapsOfSeveral(TorchDispatchMode):
    """Notes new maps of floats for several images, all classes and all pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.found: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if (
                isinstance(tensor, Tensor)
                and tensor.is_floating_point()
                and tensor.shape[1:] == (self.num_classes, *SIZE)
                and len(tensor) > 1
            ):
                self.found.append((func.__name__, tensor.shape))
        return made


def maps_of_a_step(**changes: Any) -> list[tuple[str, torch.Size]]:
    """Maps of floats for several images, all of seven classes and all pixels."""
    config = tiny_config(model__auxiliary_weight=0.4, **changes)
    fabric, state = tiny_state(config, num_classes=7)
    batch = tiny_batch(num_classes=7, context=config.data.context)
    with MapsOfSeveral(7) as maps:
        training_step(fabric, state, batch, config)
    return maps.found


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_makes_no_map_of_all_classes_and_pixels_for_several_images(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for OHEM, which ranks the pixels of all labelled images."""
    monkeypatch.setattr(backward, "NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr(targets, "_PIXELS_AT_ONCE", 1)  # of refinement
    found = maps_of_a_step(**VARIANTS[variant])
    if variant == "ohem":
        assert {shape[0] for _, shape in found} == {2}
    else:
        assert found == []


def test_such_maps_would_be_noticed() -> None:
    """As here, where there is room for those of all images."""
    assert maps_of_a_step()


def test_part_without_an_unlabelled_image_is_as_good_as_any() -> None:
    config = tiny_config(train__accumulation=3)
    fabric, state = tiny_state(config)
    values = training_step(fabric, state, tiny_batch(num_labeled=3, num_unlabeled=1), config)
    assert values["loss_u"] > 0
    assert torch.isfinite(values["loss"])
