from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tiny import IGNORE, NUM_CLASSES, SIZE, tiny_batch, tiny_config, tiny_state
from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch
from u2pl.engine import backward, targets
from u2pl.engine import pairs as pairs_module
from u2pl.engine import step as step_module
from u2pl.engine.state import TrainState
from u2pl.engine.step import training_step
from u2pl.engine.targets import PseudoLabels, StepNumbers, TeacherView, pseudo_label
from u2pl.losses import contrastive_loss
from u2pl.mixing import on_grid
from u2pl.models import upsample
from u2pl.partition import prediction_entropy, restrict_logits_to_tags, restrict_to_tags


def run(
    config: Config, *, steps: int = 2, batch: Batch | None = None
) -> tuple[TrainState, list[dict[str, float]]]:
    """Make some steps; the state and each step's numbers."""
    fabric, state = tiny_state(config)
    rows = []
    for t in range(steps):
        values = training_step(fabric, state, batch or tiny_batch(seed=t), config)
        rows.append({name: value.item() for name, value in values.items()})
    return state, rows


def spy(
    monkeypatch: pytest.MonkeyPatch, name: str, *, module: ModuleType = step_module
) -> list[tuple[dict[str, Any], Any]]:
    """Record arguments and result of each call of one of the step's functions."""
    original: Callable[..., Any] = getattr(module, name)
    signature, calls = inspect.signature(original), []

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((dict(signature.bind(*args, **kwargs).arguments), result))
        return result

    monkeypatch.setattr(module, name, recording)
    return calls


def with_unlabeled(batch: Batch, **changes: Any) -> Batch:
    assert batch.unlabeled is not None
    return Batch(batch.labeled, dataclasses.replace(batch.unlabeled, **changes))


# what is optimised is what is returned


@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_loss_is_the_sum_of_the_returned_terms(weight: float) -> None:
    _, rows = run(tiny_config(method__contrastive_weight=weight), steps=3)
    for row in rows:
        total = row["loss_s"] + row["loss_u"] + weight * row["loss_c"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert min(row["loss_s"], row["loss_u"], row["loss_c"]) > 0


@pytest.mark.parametrize(
    "changes", [{}, {"train__separate_statistics": True}, {"train__ohem": True}]
)
def test_auxiliary_head_is_taught_by_the_labels_alone(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen = spy(monkeypatch, "look", module=backward)
    losses_of = spy(monkeypatch, "supervised_loss", module=backward)
    batch = tiny_batch()
    state, rows = run(tiny_config(model__auxiliary_weight=0.4, **changes), steps=1, batch=batch)
    (_, said), ((_, main), (given, auxiliary)) = seen[0], losses_of
    assert said.auxiliary.shape[0] == len(batch.labeled.images)
    assert torch.equal(given["logits"], upsample(said.auxiliary, SIZE))
    assert given["labels"] is not None
    assert rows[0]["loss_s"] == pytest.approx(main.item() + 0.4 * auxiliary.item(), rel=1e-6)
    memory = state.optimizer.state[next(state.student.auxiliary_head.parameters())]
    assert memory["exp_avg"].abs().max() > 0


def test_loss_given_to_backward_is_the_returned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(train__accumulation=2)
    fabric, state = tiny_state(config)
    parts: list[Tensor] = []
    backward = fabric.backward

    def recording(loss: Tensor) -> None:
        parts.append(loss.detach().clone())
        backward(loss)

    monkeypatch.setattr(fabric, "backward", recording)
    values = training_step(fabric, state, tiny_batch(), config)
    # of each part of the batch: the contrast, the labels, the pseudo-labels
    torch.testing.assert_close(values["loss"], sum(parts))
    for first, name in enumerate(("loss_c", "loss_s", "loss_u")):
        weight = 0.1 if name == "loss_c" else 1
        torch.testing.assert_close(weight * values[name], parts[first] + parts[first + 3])


def test_unsupervised_weight_multiplies_the_mean_over_kept_pixels() -> None:
    rows = [run(tiny_config(method__unsupervised_weight=eta), steps=1)[1][0] for eta in (1, 3)]
    assert rows[1]["loss_u"] == pytest.approx(3 * rows[0]["loss_u"], rel=1e-5)
    assert rows[0]["unsupervised_weight"] == pytest.approx(1 / rows[0]["reliable_share"], rel=1e-5)


def test_symmetric_weight_0_is_plain_cross_entropy() -> None:
    plain, both = (
        run(tiny_config(method__symmetric_weight=weight), steps=1)[1][0]["loss_u"]
        for weight in (0.0, 0.1)
    )
    assert 0 < plain < both


def test_reverse_cross_entropy_of_labels_is_added_with_its_weight() -> None:
    # of the same weights and images: the second term grows with ξ, the first stays
    losses = [
        run(tiny_config(method__labeled_symmetric_weight=weight), steps=1)[1][0]["loss_s"]
        for weight in (0.0, 0.1, 0.2)
    ]
    assert losses[1] > losses[0]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_steps_bring_the_supervised_loss_down() -> None:
    _, rows = run(tiny_config(train__steps=30), steps=30, batch=tiny_batch())
    assert rows[-1]["loss_s"] < 0.75 * rows[0]["loss_s"]


# one step leaves everything where it should be


def test_step_moves_state_forward_and_leaves_no_gradient() -> None:
    state, rows = run(tiny_config(), steps=2)
    assert state.step == 2
    assert all(p.grad is None for p in state.student.parameters())
    assert state.queues.num_keys.sum() > 0
    assert state.prototypes.seen.any()
    assert 0 < rows[-1]["queue_fill"] <= 1
    assert rows[-1]["active_classes"] <= NUM_CLASSES


def test_same_seed_gives_the_same_step_whatever_the_global_generator() -> None:
    config = tiny_config()
    torch.manual_seed(1)
    first, rows = run(config)
    torch.manual_seed(2)
    second, others = run(config)
    assert rows == others
    ours, theirs = first.student.state_dict(), second.student.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_other_seed_gives_another_step() -> None:
    (first,), (second,) = (run(tiny_config(train__seed=s), steps=1)[1] for s in (0, 1))
    assert first["loss"] != second["loss"]


def test_partition_tightens_over_the_semi_supervised_steps() -> None:
    config = tiny_config(train__steps=6, train__supervised_steps=2)
    _, rows = run(config, steps=6)
    alphas = [row["unreliable_fraction"] for row in rows[2:]]
    assert alphas == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert [row["reliable_share"] for row in rows[2:]] == pytest.approx(
        [0.8, 0.85, 0.9, 0.95], abs=0.01
    )


def test_gradients_are_clipped_to_the_norm() -> None:
    config = tiny_config(
        optimizer__max_grad_norm=1e-3,
        optimizer__name="sgd",
        optimizer__momentum=0.0,
        optimizer__weight_decay=0.0,
        optimizer__lr=1.0,
        optimizer__head_lr_factor=1.0,
    )
    fabric, state = tiny_state(config)
    before = [p.detach().clone() for p in state.student.parameters()]
    training_step(fabric, state, tiny_batch(), config)
    moved = [(p - q).norm() for p, q in zip(state.student.parameters(), before, strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(1e-3, rel=0.02)


# the halves of the batch


def test_warm_up_sees_labelled_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    _, rows = run(tiny_config(train__supervised_steps=2), steps=3)
    assert [row["loss_u"] for row in rows[:2]] == [0, 0]
    assert [row["loss_c"] for row in rows[:2]] == [0, 0]
    assert "reliable_share" not in rows[1]
    assert rows[2]["loss_u"] > 0
    assert len(calls) == 1


def test_warm_up_does_not_depend_on_the_unlabelled_images() -> None:
    config = tiny_config(train__supervised_steps=1)
    batch = tiny_batch()
    dark = with_unlabeled(batch, weak=torch.zeros(2, 3, *SIZE), strong=(torch.zeros(2, 3, *SIZE),))
    weights = [run(config, steps=1, batch=b)[0].student.state_dict() for b in (batch, dark)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_batch_without_unlabelled_images_still_contrasts() -> None:
    state, rows = run(tiny_config(), batch=tiny_batch(num_unlabeled=None))
    assert [row["loss_u"] for row in rows] == [0, 0]
    assert rows[1]["loss_c"] > 0
    assert state.queues.num_keys.sum() > 0


def test_without_contrast_queues_and_prototypes_stay_empty() -> None:
    state, rows = run(tiny_config(method__contrastive_weight=0.0))
    assert [row["loss_c"] for row in rows] == [0, 0]
    assert not state.queues.num_keys.any()
    assert not state.prototypes.seen.any()
    assert "queue_fill" not in rows[0]
    assert rows[0]["loss_u"] > 0


def test_halves_may_have_different_sizes() -> None:
    for num_labeled, num_unlabeled in ((3, 1), (1, 3)):
        batch = tiny_batch(num_labeled=num_labeled, num_unlabeled=num_unlabeled)
        _, rows = run(tiny_config(), batch=batch)
        assert all(math.isfinite(value) for value in rows[-1].values())


# mixing


@pytest.mark.parametrize("mixing", ["cutmix", "cutout", "classmix", "none"])
def test_each_mixing_keeps_images_and_targets_together(
    mixing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    config = tiny_config(
        method__mixing=mixing, method__mix_probability=1.0, method__initial_unreliable_fraction=0.0
    )
    fabric, state = tiny_state(config)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    training_step(fabric, state, batch, config)
    (arguments, pseudo) = calls[0]
    strong = batch.unlabeled.strong[0]
    own = (pseudo.pixels.images == strong).all(dim=1)
    other = (pseudo.pixels.images == strong.flip(0)).all(dim=1)
    logits = upsample(arguments["view_u"].logits, SIZE)
    predictions = logits.argmax(dim=1)
    if mixing == "none":
        assert own.all()
    elif mixing == "cutout":
        assert torch.equal(pseudo.pixels.valid, own)
        assert not pseudo.pixels.images.movedim(1, -1)[~own].any()
        assert (pseudo.labels[~own] == IGNORE).all()
    else:
        assert (own | other).all()
        assert not own.all()
        torch.testing.assert_close(pseudo.labels[~own], predictions.flip(0)[~own])
    torch.testing.assert_close(pseudo.labels[own], predictions[own])


def test_entropy_and_keys_are_mixed_with_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    config = tiny_config(
        method__mix_probability=1.0,
        method__initial_unreliable_fraction=0.4,
        method__denoise_temperature=None,
    )
    batch = tiny_batch()
    assert batch.unlabeled is not None
    run(config, steps=1, batch=batch)
    arguments, pseudo = calls[0]
    own = (pseudo.pixels.images == batch.unlabeled.strong[0]).all(dim=1)
    assert not own.all()
    view = arguments["view_u"]
    entropy = prediction_entropy(upsample(view.logits, SIZE).softmax(1))
    mixed = torch.where(own, entropy, entropy.flip(0))
    assert torch.equal(pseudo.labels == IGNORE, mixed > pseudo.threshold)
    assert (mixed > pseudo.threshold).float().mean().item() == pytest.approx(0.4, abs=0.01)
    centre = own[:, 2::4, 2::4]  # of each cell of the feature grid
    assert torch.equal(pseudo.unreliable, (mixed > pseudo.threshold)[:, 2::4, 2::4])
    keys = torch.where(centre.unsqueeze(1), view.features, view.features.flip(0))
    assert torch.equal(pseudo.pixels.features, keys)


LABELED_MIX = {
    "method__mixing": "classmix_labeled",
    "method__mix_probability": 1.0,
    "method__denoise_temperature": None,
}


def test_labelled_objects_are_pasted_with_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    batch = tiny_batch(num_labeled=3)
    labels = batch.labeled.labels.clone()
    labels[:, :8] = IGNORE
    strong = 1 - batch.labeled.images
    batch = Batch(LabeledBatch(batch.labeled.images, labels, strong), batch.unlabeled)
    config = tiny_config(method__initial_unreliable_fraction=0.4, **LABELED_MIX)
    run(config, steps=1, batch=batch)
    arguments, pseudo = calls[0]
    pixels, view_l = pseudo.pixels, arguments["view_l"]
    pasted = pixels.valid & ~pixels.judged
    for image in range(2):
        donors = [
            d for d in range(3) if (strong[d] == pixels.images[image]).all(0)[pasted[image]].all()
        ]
        assert len(donors) == 1
        donor = donors[0]
        assert torch.equal(pseudo.labels[image][pasted[image]], labels[donor][pasted[image]])
        assert not pasted[image][labels[donor] == IGNORE].any()
        pasted_cells = pasted[image, 2::4, 2::4]
        keys = pixels.features[image][:, pasted_cells]
        assert torch.equal(keys, view_l.features[donor][:, pasted_cells])
    assert 0 < pasted.float().mean() < 1
    assert not pseudo.unreliable[pasted[:, 2::4, 2::4]].any()


def test_threshold_is_about_the_teachers_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(method__initial_unreliable_fraction=0.4, **LABELED_MIX), steps=1)
    pseudo = calls[0][1]
    judged = pseudo.pixels.judged
    unsure = pseudo.pixels.entropy > pseudo.threshold
    assert not judged.all()
    assert unsure[judged].float().mean().item() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_labelled_objects_are_pasted_with_and_without_contrast(weight: float) -> None:
    _, rows = run(tiny_config(method__contrastive_weight=weight, **LABELED_MIX), steps=2)
    assert rows[-1]["loss_u"] > 0
    assert (rows[-1]["loss_c"] > 0) == (weight > 0)


def test_labelled_images_without_a_strong_view_are_pasted_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    batch = tiny_batch()
    run(tiny_config(**LABELED_MIX), steps=1, batch=batch)
    pixels = calls[0][1].pixels
    images = batch.labeled.images
    same = torch.stack([(pixels.images == image).all(1) for image in images]).any(0)
    assert same[~pixels.judged].all()


def test_confident_share_weighs_the_teachers_pixels_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    monkeypatch.setattr(targets.partition, "confident_share", lambda *_, **__: torch.tensor(0.25))
    config = tiny_config(method__pixel_weighting="confident_share", **LABELED_MIX)
    run(config, steps=1)
    pseudo = calls[0][1]
    judged = pseudo.pixels.judged
    assert (pseudo.streams[0].pixel_weights[judged] == 0.25).all()
    assert (pseudo.streams[0].pixel_weights[~judged] == 1).all()


def test_confident_share_scales_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.partition, "confident_share", lambda *_, **__: torch.tensor(0.25))
    even, weighted = (
        run(tiny_config(method__pixel_weighting=kind), steps=1)[1][0]["loss_u"]
        for kind in ("even", "confident_share")
    )
    assert weighted == pytest.approx(0.25 * even, rel=1e-5)


def test_each_step_mixes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "choose_mix", module=targets)
    run(tiny_config(method__mix_probability=1.0), steps=3, batch=tiny_batch())
    first, second, third = (mix.mask for _, mix in calls)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_padding_of_unlabelled_images_gets_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, :, 20:] = False
    run(tiny_config(method__mixing="none"), batch=with_unlabeled(tiny_batch(), valid=valid))
    for _, pseudo in calls:
        assert (pseudo.labels[~valid] == IGNORE).all()
        assert not pseudo.unreliable[..., 5:].any()
        assert pseudo.pixels.valid.sum() == valid.sum()


# tags


def tagged(absent: int) -> Batch:
    batch = tiny_batch()
    assert batch.unlabeled is not None
    possible = batch.unlabeled.possible_classes.clone()
    possible[:, absent] = False
    return with_unlabeled(batch, possible_classes=possible)


@pytest.mark.parametrize("absent", range(NUM_CLASSES))
def test_class_that_the_tags_rule_out_is_never_a_pseudo_label(
    absent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(), steps=3, batch=tagged(absent))
    for _, pseudo in calls:
        assert (pseudo.labels != absent).all()
        assert not pseudo.pixels.probs[:, absent].any()
        torch.testing.assert_close(
            pseudo.pixels.probs.sum(1), torch.ones_like(pseudo.pixels.probs[:, 0])
        )


def test_certain_negatives_of_an_absent_class_are_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    pseudo = spy(monkeypatch, "pseudo_label")
    pairs = spy(monkeypatch, "contrast_pairs")
    # all labelled pixels are ignored and none is unreliable, so that the tags are the only source
    batch = tagged(absent=1)
    nothing = torch.full_like(batch.labeled.labels, IGNORE)
    batch = Batch(dataclasses.replace(batch.labeled, labels=nothing), batch.unlabeled)
    config = tiny_config(method__initial_unreliable_fraction=0.0, method__low_rank=2)
    config = config.with_overrides({"method.high_rank": 3})
    state, _ = run(config, steps=1, batch=batch)
    certain: Tensor = pseudo[0][1].pixels.certain_negatives
    assert certain[:, 1].any()
    assert not certain[:, [0, 2]].any()
    assert pairs[0][1].num_negatives.tolist() == [0, certain.sum().item(), 0]
    assert state.queues.num_keys.tolist() == [0, min(8, int(certain.sum())), 0]


def test_without_tags_there_is_no_certain_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config())
    assert not any(pseudo.pixels.certain_negatives.any() for _, pseudo in calls)


# statistics of the two halves


def running_means(network: torch.nn.Module) -> list[Tensor]:
    return [
        module.running_mean.clone()
        for module in network.modules()
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None
    ]


@pytest.mark.parametrize("changed", ["labeled", "unlabeled"])
def test_separate_statistics_are_those_of_the_mixed_images(changed: str) -> None:
    """Darker labelled images leave the running averages alone; darker unlabelled ones do not."""
    config = tiny_config(train__separate_statistics=True)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    darker = Batch(
        dataclasses.replace(batch.labeled, images=0.3 * batch.labeled.images), batch.unlabeled
    )
    if changed == "unlabeled":
        darker = with_unlabeled(batch, strong=(0.3 * batch.unlabeled.strong[0],))
    means = [running_means(run(config, steps=1, batch=b)[0].student) for b in (batch, darker)]
    same = all(torch.equal(a, b) for a, b in zip(*means, strict=True))
    assert same == (changed == "labeled")


def test_separate_halves_are_normalised_by_themselves() -> None:
    """Without contrast L_s does not see the unlabelled images; in one batch it does."""
    batch = tiny_batch()
    assert batch.unlabeled is not None
    darker = with_unlabeled(batch, strong=(0.3 * batch.unlabeled.strong[0],))
    for separate in (True, False):
        config = tiny_config(
            train__separate_statistics=separate, method__contrastive_weight=0.0, model__dropout=0.0
        )
        first, second = (run(config, steps=1, batch=b)[1][0]["loss_s"] for b in (batch, darker))
        assert (first == second) == separate


def test_warm_up_moves_the_statistics_by_the_labelled_images() -> None:
    config = tiny_config(train__separate_statistics=True, train__supervised_steps=1)
    _, fresh = tiny_state(config)
    after = run(config, steps=1)[0]
    moved = zip(running_means(fresh.student), running_means(after.student), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_separate_statistics_go_with_contrast_and_accumulation() -> None:
    config = tiny_config(train__separate_statistics=True, train__accumulation=2)
    _, rows = run(config, steps=2)
    assert min(rows[-1][name] for name in ("loss_s", "loss_u", "loss_c")) > 0


# context


def test_teacher_judges_the_weak_view_by_what_lies_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    batch = tiny_batch()
    assert batch.unlabeled is not None
    around = torch.rand(2, 3, SIZE[0] + 16, SIZE[1] + 8, generator=torch.Generator().manual_seed(3))
    places = [(4, 0), (16, 8)]
    for image, (top, left) in enumerate(places):
        window = around[image, :, top : top + SIZE[0], left : left + SIZE[1]]
        window.copy_(batch.unlabeled.weak[image])
    wide = with_unlabeled(batch, context=around, offsets=torch.tensor(places))
    state, _ = run(tiny_config(), steps=1, batch=wide)
    view_l, view = calls[0][0]["view_l"], calls[0][0]["view_u"]
    _, fresh = tiny_state(tiny_config())
    said = fresh.teacher(around)
    height, width = SIZE[0] // 4, SIZE[1] // 4
    for image, (top, left) in enumerate(places):
        rows, columns = slice(top // 4, top // 4 + height), slice(left // 4, left // 4 + width)
        cells = (image, slice(None), rows, columns)
        torch.testing.assert_close(view.logits[image], said.logits[cells])
        torch.testing.assert_close(view.features[image], said.features[cells])
    torch.testing.assert_close(view_l.logits, fresh.teacher(batch.labeled.images).logits)
    alone = fresh.teacher(batch.unlabeled.weak).logits
    assert (view.logits - alone).abs().max() > 1e-3
    assert state.step == 1


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_context_of_nothing_more_changes_nothing(weight: float) -> None:
    config = tiny_config(method__contrastive_weight=weight)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    same = with_unlabeled(
        batch, context=batch.unlabeled.weak, offsets=torch.zeros(2, 2, dtype=torch.int64)
    )
    _, plain = run(config, batch=batch)
    _, around = run(config, batch=same)
    for one, other in zip(plain, around, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


# denoising, contrast


def test_denoising_starts_with_the_first_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(method__denoise_temperature=0.001, method__mixing="none"))
    raw = [arguments["view_u"].logits.softmax(1) for arguments, _ in calls]
    torch.testing.assert_close(calls[0][1].pixels.probs, raw[0])
    assert (calls[1][1].pixels.probs - raw[1]).abs().max() > 1e-3


def test_no_denoising_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(method__denoise_temperature=None, method__mixing="none"))
    for arguments, pseudo in calls:
        torch.testing.assert_close(pseudo.pixels.probs, arguments["view_u"].logits.softmax(1))


def test_pixels_are_judged_alike_one_image_at_a_time_and_all_at_once() -> None:
    logits = 3 * torch.randn(3, 5, 8, 6, generator=torch.Generator().manual_seed(0))
    found = targets.judge_pixels(logits, (31, 22))
    probs = upsample(logits, (31, 22)).softmax(dim=1)
    confidence, predictions = probs.max(dim=1)
    for one, other in zip(found, (predictions, prediction_entropy(probs), confidence), strict=True):
        assert torch.equal(one, other)


def test_pseudo_labels_follow_the_edges_of_the_images() -> None:
    """Two halves of two colours; the teacher puts their border two pixels beside the edge."""
    images = torch.zeros(1, 3, 8, 16)
    images[..., 8:] = 1.0
    logits = torch.full((1, 2, 2, 4), -4.0)
    logits[:, 0, :, :2], logits[:, 1, :, 2:] = 4.0, 4.0
    logits = torch.cat([logits[..., :1], logits[..., :3]], dim=3)  # a cell to the right
    plain = targets.judge_pixels(logits, (8, 16))
    everywhere = torch.ones(1, 8, 16, dtype=torch.bool)
    refined = targets.judge_pixels(logits, (8, 16), targets.Edges(images, everywhere, 20, (1, 2)))
    right = (torch.arange(16) >= 8).expand(1, 8, 16)
    assert (plain[0] != right).any()
    assert (refined[0] == right).all()


def test_refinement_is_of_weak_views_and_valid_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, judged = (
        spy(monkeypatch, "pseudo_label"),
        spy(monkeypatch, "refine_maps", module=targets),
    )
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, :, 20:] = False
    batch = with_unlabeled(tiny_batch(), valid=valid)
    assert batch.unlabeled is not None
    config = tiny_config(
        method__mixing="none", method__refine_iterations=3, method__refine_dilations=(1, 3)
    )
    run(config, steps=1, batch=batch)
    (arguments, probs), (_, pseudo) = judged[0], calls[0]
    assert torch.equal(arguments["images"], batch.unlabeled.weak)
    assert torch.equal(arguments["valid"], valid)
    assert (arguments["iterations"], arguments["dilations"]) == (3, (1, 3))
    assert torch.equal(pseudo.pixels.predictions, probs.argmax(dim=1))
    torch.testing.assert_close(pseudo.pixels.entropy, prediction_entropy(probs))


def test_soft_pseudo_labels_are_refined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    config = tiny_config(
        method__mixing="none", method__refine_iterations=2, method__soft_pseudo_labels=True
    )
    run(config, steps=1)
    pseudo = calls[0][1]
    assert torch.equal(pseudo.streams[0].soft.argmax(dim=1), pseudo.pixels.predictions)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_refined_pixels_are_judged_alike_one_image_at_a_time(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 5, 8, 6, generator=generator)
    images = torch.rand(3, 3, 31, 22, generator=generator)
    valid = torch.rand(3, 31, 22, generator=generator) < 0.8
    edges = targets.Edges(images, valid, 2, (1, 3))
    whole = targets.judge_pixels(logits, (31, 22), edges)
    monkeypatch.setattr(targets, "_PIXELS_AT_ONCE", at_once * 31 * 22)
    for one, other in zip(targets.judge_pixels(logits, (31, 22), edges), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_tags_on_the_grid_are_tags_on_the_pixels() -> None:
    logits = 3 * torch.randn(3, 5, 8, 6, generator=torch.Generator().manual_seed(0))
    possible = torch.ones(3, 5, dtype=torch.bool)
    possible[1, 2:] = False
    restricted = restrict_logits_to_tags(logits, possible)
    predictions, entropy, _ = targets.judge_pixels(restricted, (31, 22))
    plain = upsample(logits, (31, 22)).softmax(dim=1)
    expected = restrict_to_tags(plain, possible)
    assert torch.equal(predictions, expected.argmax(dim=1))
    torch.testing.assert_close(entropy, prediction_entropy(expected))


def test_pairs_point_to_pixels_of_their_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "contrast_pairs")
    config = tiny_config(method__anchor_threshold=0.0)
    batch = tiny_batch()
    run(config, batch=batch)
    for arguments, pairs in calls:
        pseudo: PseudoLabels = arguments["pseudo"]
        labels = torch.cat([batch.labeled.labels, pseudo.labels])
        cells = on_grid(labels, (8, 8)).flatten()
        for class_id in range(NUM_CLASSES):
            if pairs.active[class_id]:
                assert (cells[pairs.anchors[class_id]] == class_id).all()
        assert pairs.anchors.shape == (NUM_CLASSES, 8)
        assert pairs.negatives.shape == (NUM_CLASSES, 8, 5)


@pytest.mark.parametrize("num_labeled", [1, 2, 3])
def test_contrast_is_that_of_the_students_features_at_the_anchors(
    num_labeled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anchors in unlabelled images count like those in labelled ones."""
    calls, looks = spy(monkeypatch, "contrast_pairs"), spy(monkeypatch, "look", module=backward)
    config = tiny_config(method__anchor_threshold=0.0)
    fabric, state = tiny_state(config)
    for seed in range(2):
        batch = tiny_batch(num_labeled=num_labeled, seed=seed)
        student = copy.deepcopy(state.student.module)  # before the update
        values = training_step(fabric, state, batch, config)
        (_, pairs), (_, said) = calls[-1], looks[-1]
        with torch.no_grad():  # of every pixel
            features = F.normalize(student.representation_head(said.maps[0]), dim=1)
        pixels = features.movedim(1, -1).flatten(0, 2)
        negatives = state.queues.keys[pairs.negatives]
        expected = contrastive_loss(
            pixels[pairs.anchors], pairs.positives, negatives, pairs.active, temperature=0.5
        )
        torch.testing.assert_close(values["loss_c"], expected)
    assert (pairs.anchors[pairs.active] >= num_labeled * 64).any()
    assert (pairs.anchors[pairs.active] < num_labeled * 64).any()


def test_keys_pushed_in_a_step_are_bounded() -> None:
    state, _ = run(tiny_config(method__keys_per_step=3), steps=2)
    assert state.queues.num_keys.max() <= 6


# the supervised loss


def test_ohem_runs_and_counts_hard_pixels_alone() -> None:
    plain = run(tiny_config(), steps=1)[1][0]
    everything = run(tiny_config(train__ohem=True, train__ohem_threshold=1.0), steps=1)[1][0]
    hard = run(
        tiny_config(train__ohem=True, train__ohem_threshold=0.01, train__ohem_min_kept=16),
        steps=1,
    )[1][0]
    assert everything["loss_s"] == pytest.approx(plain["loss_s"], rel=1e-4)
    assert hard["loss_s"] > plain["loss_s"]


def test_ohem_keeps_a_pixel_in_every_part() -> None:
    config = tiny_config(
        train__ohem=True, train__ohem_min_kept=1, train__ohem_threshold=0.01, train__accumulation=2
    )
    assert run(config, steps=1)[1][0]["loss_s"] > 0


def test_entropy_threshold_is_that_of_the_teachers_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    config = tiny_config(method__mixing="none", method__denoise_temperature=None)
    _, rows = run(config, steps=1)
    probs = upsample(calls[0][0]["view_u"].logits, SIZE).softmax(1)
    expected = prediction_entropy(probs).flatten().quantile(0.8)
    assert rows[0]["entropy_threshold"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("word", [".item()", ".cpu()", ".tolist()", ".numpy()", "nonzero"])
def test_step_never_waits_for_the_device(word: str) -> None:
    for module in (step_module, targets, pairs_module):
        assert word not in inspect.getsource(module)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_every_optimizer_passes_from_the_warm_up_to_the_method(name: str) -> None:
    """The representation head has no gradient before."""
    config = tiny_config(train__supervised_steps=2, optimizer__name=name)
    fabric, state = tiny_state(config)
    head = next(state.student.module.representation_head.parameters())
    before = head.detach().clone()
    for step in range(4):
        training_step(fabric, state, tiny_batch(seed=step), config)
        assert torch.equal(head, before) is (step < 2)


def test_weight_of_pseudo_labels_rises_from_the_first_semi_supervised_step_on() -> None:
    config = tiny_config(train__supervised_steps=1, method__unsupervised_ramp_steps=4)
    plain = tiny_config(train__supervised_steps=1)
    weights = []
    for each in (config, plain):
        fabric, state = tiny_state(each)
        rows = [training_step(fabric, state, tiny_batch(seed=n), each) for n in range(3)]
        weights.append([row["unsupervised_weight"].item() for row in rows[1:]])
    assert weights[0][0] == pytest.approx(weights[1][0] / 4)
    assert weights[0][1] < weights[1][1]


# ablations


def test_partition_stays_where_it_is_told_to() -> None:
    _, rows = run(tiny_config(method__adaptive_partition=False, train__steps=3), steps=3)
    assert [row["unreliable_fraction"] for row in rows] == pytest.approx([0.2, 0.2, 0.2])


def test_each_class_keeps_the_same_share_of_its_pixels() -> None:
    config = tiny_config(
        method__partition_by="class", method__mix_probability=0.0, method__denoise_temperature=None
    )
    _, state = tiny_state(config)
    batch, generator = tiny_batch(), torch.Generator().manual_seed(0)
    numbers = StepNumbers(torch.tensor(0.4).double(), torch.tensor(1.0), True, generator)
    logits = torch.randn(2, NUM_CLASSES, 8, 8, generator=generator)
    logits[:, 0] += 1.0  # a class that is more frequent and surer than others
    view = TeacherView(logits, torch.zeros(2, 8, 8, 8))
    pseudo = pseudo_label(state, view, view, batch, numbers, config)
    probs = upsample(logits, SIZE).softmax(1)
    predictions, entropy = probs.argmax(dim=1), prediction_entropy(probs)
    thresholds = []
    for class_id in range(NUM_CLASSES):
        own = predictions == class_id
        thresholds.append(entropy[own].quantile(0.6).item())
        kept = pseudo.labels[own] != IGNORE
        assert kept.float().mean().item() == pytest.approx(0.6, abs=0.02)
        assert torch.equal(kept, entropy[own] <= thresholds[-1])
    assert max(thresholds) > 1.1 * min(thresholds)
    assert pseudo.threshold.item() == pytest.approx(sum(thresholds) / NUM_CLASSES)
    assert torch.equal(pseudo.unreliable, (pseudo.labels == IGNORE)[:, 2::4, 2::4])


@pytest.mark.parametrize("source", ["unreliable", "reliable", "all"])
def test_negatives_of_unlabelled_images_come_from_the_asked_pixels(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = spy(monkeypatch, "contrast_masks", module=pairs_module)
    config = tiny_config(
        method__negatives_from=source,
        method__initial_unreliable_fraction=0.4,
        method__labeled_negatives=False,
    )
    run(config, steps=1)
    (arguments, (_, negative, _)) = masks[0]
    pseudo: PseudoLabels = arguments["pseudo"]
    unreliable = (pseudo.pixels.entropy > pseudo.threshold)[:, 2::4, 2::4]
    asked = {"unreliable": unreliable, "reliable": ~unreliable, "all": unreliable | True}[source]
    found = negative.any(dim=1)
    assert not found[:2].any()  # of the labelled images
    assert torch.equal(found[2:], asked)


def test_labels_pasted_onto_an_image_are_no_reliable_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(method__negatives_from="all", **LABELED_MIX), steps=1)
    pseudo = calls[0][1]
    assert torch.equal(pseudo.undecided, pseudo.pixels.judged[:, 2::4, 2::4])
    assert not pseudo.undecided.all()


def test_queues_that_keep_nothing_hold_the_keys_of_one_step() -> None:
    kept, _ = run(tiny_config(), steps=3)
    fresh, _ = run(tiny_config(method__keep_keys=False), steps=3)
    assert kept.queues.num_keys.max() > 8
    assert 0 < fresh.queues.num_keys.max() <= 8


def test_soft_pseudo_labels_are_the_teachers_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    settings = {"method__mix_probability": 1.0, "method__denoise_temperature": None}
    config = tiny_config(method__soft_pseudo_labels=True, **settings)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    _, soft = run(config, steps=1, batch=batch)
    arguments, pseudo = calls[0]
    stream = pseudo.streams[0]
    probs = upsample(arguments["view_u"].logits, SIZE).softmax(1)
    own = (stream.images == batch.unlabeled.strong[0]).all(dim=1, keepdim=True)
    torch.testing.assert_close(stream.soft, torch.where(own, probs, probs.flip(0)))
    _, hard = run(tiny_config(**settings), steps=1)
    assert soft[0]["loss_u"] != pytest.approx(hard[0]["loss_u"], rel=1e-3)


def test_soft_pseudo_labels_of_pasted_objects_are_their_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(method__soft_pseudo_labels=True, **LABELED_MIX), steps=1)
    pseudo = calls[0][1]
    pasted = ~pseudo.pixels.judged
    soft = pseudo.streams[0].soft.movedim(1, -1)[pasted]
    assert torch.equal(soft.argmax(dim=1), pseudo.labels[pasted])
    assert (soft.amax(dim=1) == 1).all()


def test_confident_pixels_may_take_the_place_of_reliable_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy(monkeypatch, "pseudo_label")
    run(tiny_config(method__pseudo_threshold=1.0), steps=1)
    pseudo = calls[0][1]
    assert (pseudo.labels == IGNORE).all()
    assert pseudo.unreliable.any()  # contrast goes on with the pixels above the threshold


def test_more_strong_views_leave_the_first_ones_contrast_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The draws for the first view, and for its pairs' pixels, come before all others."""
    calls = spy(monkeypatch, "pseudo_label")
    batch = tiny_batch()
    assert batch.unlabeled is not None
    strong = batch.unlabeled.strong[0]
    for views in (1, 2):
        both = with_unlabeled(batch, strong=(strong, 0.5 * strong)[:views])
        run(tiny_config(method__strong_views=views), steps=1, batch=both)
    first, second = (call[1] for call in calls)
    assert [len(pseudo.streams) for pseudo in (first, second)] == [1, 2]
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.pixels.features, second.pixels.features)
    assert first.streams[0].weight == first.weight
    assert second.streams[0].weight == second.weight / 2


@pytest.mark.parametrize("kind", ["stream", "complementary"])
def test_dropped_channels_go_with_separate_statistics(kind: str) -> None:
    config = tiny_config(
        method__feature_dropout=kind, method__strong_views=2, train__separate_statistics=True
    )
    batch = tiny_batch()
    assert batch.unlabeled is not None
    batch = with_unlabeled(batch, strong=batch.unlabeled.strong * 2)
    _, rows = run(config, batch=batch)
    assert rows[-1]["loss_u"] > 0
    assert rows[-1]["loss_c"] > 0
