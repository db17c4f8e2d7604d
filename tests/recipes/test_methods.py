"""Each baseline's loss on unlabelled images, again by its paper's equation, pixel by pixel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from reference.losses import softmax
from tiny import SIZE, tiny_batch, tiny_config, tiny_overrides, tiny_state
from u2pl import make_config
from u2pl.config import Config
from u2pl.data.batch import Batch
from u2pl.engine import step as step_module
from u2pl.engine.step import training_step
from u2pl.engine.targets import PseudoLabels
from u2pl.errors import UserError
from u2pl.models import upsample
from u2pl.recipes import METHODS, SETTINGS, get_method

WARM_UP = 30  # steps, for a teacher that is surer of some pixels than of others


class Seen(NamedTuple):
    """One step: its numbers, the teacher's and the student's full-size logits, and the targets.

    About half of the teacher's pixels reach the threshold: a teacher so young has no 0.95.
    """

    values: dict[str, Tensor]
    teacher: Tensor
    student: Tensor
    pseudo: PseudoLabels
    batch: Batch
    threshold: float


def one_step(
    monkeypatch: pytest.MonkeyPatch, method: str, *, num_strong: int = 1, **changes: Any
) -> Seen:
    config = method_config(method, **changes)
    fabric, state = tiny_state(config)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    views = tuple((0.8 - 0.2 * i) * batch.unlabeled.weak for i in range(num_strong))
    batch = Batch(batch.labeled, vars_with(batch.unlabeled, strong=views))
    for _ in range(WARM_UP):
        training_step(fabric, state, batch, config)
    with torch.no_grad():
        logits = upsample(state.teacher(batch.unlabeled.weak).logits, SIZE)
    threshold = clear_threshold(logits.softmax(dim=1).amax(dim=1))
    if (config.method.pseudo_threshold or 0.0) > 0.5:  # elsewhere it lets every pixel through
        config = config.with_overrides({"method.pseudo_threshold": threshold})
    said: dict[str, list[Any]] = {"teacher": [], "student": [], "pseudo": []}
    state.teacher.register_forward_hook(lambda *call: said["teacher"].append(call[2].logits))
    head = state.student.module.segmentation_head
    head.register_forward_hook(lambda *call: said["student"].append(call[2]))
    original = step_module.pseudo_label

    def recording(*args: Any) -> PseudoLabels:
        said["pseudo"].append(original(*args))
        result: PseudoLabels = said["pseudo"][-1]
        return result

    monkeypatch.setattr(step_module, "pseudo_label", recording)
    values = training_step(fabric, state, batch, config)
    assert [len(calls) for calls in said.values()] == [1, 1, 1]
    teacher, student = (upsample(said[who][0].detach(), SIZE) for who in ("teacher", "student"))
    return Seen(values, teacher, student[2:], said["pseudo"][0], batch, threshold)


def clear_threshold(confidence: Tensor) -> float:
    """A threshold near the median that no pixel is so near that rounding could decide."""
    ordered = confidence.flatten().sort().values
    middle = ordered[int(0.4 * len(ordered)) : int(0.6 * len(ordered))]
    widest = int(middle.diff().argmax())
    return middle[widest : widest + 2].mean().item()


def vars_with(unlabeled: Any, **changes: Any) -> Any:
    return type(unlabeled)(**{**vars(unlabeled), **changes})


def method_config(method: str, **changes: Any) -> Config:
    overrides = tiny_overrides(
        method__mix_probability=1.0,
        model__dropout=0.0,
        train__supervised_steps=WARM_UP,
        train__steps=WARM_UP + 2,
    )
    overrides |= {key.replace("__", "."): value for key, value in changes.items()}
    del overrides["method.initial_unreliable_fraction"]  # which some methods set
    return make_config("demo", method=method, overrides=overrides)


def pixels_of(view: Tensor) -> list[list[float]]:
    """[B, C, H, W] to the probabilities of each pixel, image after image."""
    return [softmax(scores) for scores in view.movedim(1, -1).flatten(0, 2).tolist()]


def taken_pixels(seen: Seen, strong: Tensor, mixed: Tensor) -> list[int]:
    """For each pixel of a mixed view the place in the batch of the pixel it shows."""
    own = (mixed == strong).all(dim=1)
    other = (mixed == strong.flip(0)).all(dim=1)
    assert (own | other).all()
    places = torch.arange(own.numel()).view(own.shape)
    return torch.where(own, places, places.flip(0)).flatten().tolist()


def fixmatch_loss(
    teacher: list[list[float]], student: list[list[float]], threshold: float
) -> float:
    """Mean over all pixels of 1[max p >= τ] · -log q(argmax p)."""
    total = 0.0
    for p, q in zip(teacher, student, strict=True):
        if max(p) >= threshold:
            total -= math.log(q[p.index(max(p))])
    return total / len(teacher)


def strong_losses(seen: Seen, num_strong: int) -> list[float]:
    """FixMatch's loss of each mixed strong view."""
    assert seen.batch.unlabeled is not None
    teacher, found = pixels_of(seen.teacher), []
    for i, student in enumerate(seen.student.split(2)[:num_strong]):
        strong, mixed = seen.batch.unlabeled.strong[i], seen.pseudo.streams[i].images
        order = taken_pixels(seen, strong, mixed)
        assert order != list(range(len(order)))
        mixed_teacher = [teacher[place] for place in order]
        found.append(fixmatch_loss(mixed_teacher, pixels_of(student), seen.threshold))
    return found


@pytest.mark.parametrize("method", ["fixmatch", "augseg"])
def test_fixmatch_is_the_mean_over_all_pixels_of_the_confident_ones(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = one_step(monkeypatch, method)
    (expected,) = strong_losses(seen, 1)
    assert seen.values["loss_u"].item() == pytest.approx(expected, rel=1e-4)
    assert 0 < seen.values["reliable_share"].item() < 1
    assert seen.values["loss_c"].item() == 0


def test_fixmatch_teaches_itself() -> None:
    config = method_config("fixmatch", train__supervised_steps=0)
    fabric, state = tiny_state(config)
    training_step(fabric, state, tiny_batch(), config)
    ours, theirs = state.teacher.state_dict(), state.student.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_unimatch_is_half_two_strong_views_and_half_a_weak_one_without_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = one_step(monkeypatch, "unimatch", num_strong=2)
    assert seen.batch.unlabeled is not None
    first, second = strong_losses(seen, 2)
    weak = seen.pseudo.streams[2]
    assert torch.equal(weak.images, seen.batch.unlabeled.weak)
    assert weak.channel_factors is not None
    assert all(s.channel_factors is None for s in seen.pseudo.streams[:2])
    perturbed = fixmatch_loss(pixels_of(seen.teacher), pixels_of(seen.student[4:]), seen.threshold)
    expected = 0.25 * first + 0.25 * second + 0.5 * perturbed
    assert seen.values["loss_u"].item() == pytest.approx(expected, rel=1e-4)
    # each view is mixed by a draw of its own
    masks = [
        (stream.images == strong).all(dim=1)
        for stream, strong in zip(seen.pseudo.streams[:2], seen.batch.unlabeled.strong, strict=True)
    ]
    assert not torch.equal(*masks)


def test_unimatch_v2_is_the_mean_of_two_views_with_complementary_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = one_step(monkeypatch, "unimatch-v2", num_strong=2)
    expected = sum(strong_losses(seen, 2)) / 2
    assert seen.values["loss_u"].item() == pytest.approx(expected, rel=1e-4)
    factors = [stream.channel_factors for stream in seen.pseudo.streams]
    assert factors[0] is not None
    assert factors[1] is not None
    for one, other in zip(*factors, strict=True):
        torch.testing.assert_close(one + other, torch.full_like(one, 2.0))


@pytest.mark.parametrize("method", ["mean-teacher", "cutmix"])
def test_every_pixel_counts_by_the_confident_share(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CutMix-Seg's weight, the share of pixels with a probability of at least 0.968 (DACS')."""
    monkeypatch.setattr(
        step_module.partition, "confident_share", lambda *_, **__: torch.tensor(0.25)
    )
    seen = one_step(monkeypatch, method)
    teacher = pixels_of(seen.teacher)
    assert seen.batch.unlabeled is not None
    strong = seen.batch.unlabeled.strong[0]
    order = taken_pixels(seen, strong, seen.pseudo.streams[0].images)
    assert (order == list(range(len(order)))) is (method == "mean-teacher")
    total = 0.0
    for place, q in zip(order, pixels_of(seen.student), strict=True):
        total -= 0.25 * math.log(q[teacher[place].index(max(teacher[place]))])
    assert seen.values["loss_u"].item() == pytest.approx(total / len(order), rel=1e-4)
    assert seen.values["reliable_share"].item() == 1


def test_u2pl_lacks_what_u2pl_plus_adds() -> None:
    plain, plus = (method_config(name).method for name in ("u2pl", "u2pl-plus"))
    assert (plain.prototype_momentum, plain.denoise_temperature, plain.symmetric_weight) == (
        0,
        None,
        0,
    )
    assert plus == method_config("u2pl-plus").method
    assert min(plus.prototype_momentum, plus.denoise_temperature or 0, plus.symmetric_weight) > 0
    assert plain.contrastive_weight == plus.contrastive_weight


def test_cutmix_u2pl_plus_is_cutmix_on_unlabelled_images_and_u2pl_plus_in_its_contrast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its loss is CutMix's where nothing cleans the teacher's word, and L_c comes on top."""
    monkeypatch.setattr(
        step_module.partition, "confident_share", lambda *_, **__: torch.tensor(0.25)
    )
    seen = one_step(monkeypatch, "cutmix-u2pl-plus", method__denoise_temperature=None)
    teacher = pixels_of(seen.teacher[2:])
    assert seen.batch.unlabeled is not None
    order = taken_pixels(seen, seen.batch.unlabeled.strong[0], seen.pseudo.streams[0].images)
    total = 0.0
    for place, q in zip(order, pixels_of(seen.student), strict=True):
        total -= 0.25 * math.log(q[teacher[place].index(max(teacher[place]))])
    assert seen.values["loss_u"].item() == pytest.approx(total / len(order), rel=1e-4)
    assert seen.values["reliable_share"].item() == 1
    assert seen.values["loss_c"].item() > 0
    assert seen.pseudo.unreliable.any()  # there is a pseudo-label on these pixels too
    ours, plus = (method_config(name).method for name in ("cutmix-u2pl-plus", "u2pl-plus"))
    of_contrast = ("contrastive_weight", "initial_unreliable_fraction", "negatives_from", "mixing")
    assert all(getattr(ours, name) == getattr(plus, name) for name in of_contrast)
    assert ours.denoise_temperature == plus.denoise_temperature


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_method_makes_finite_steps(method: str, accumulation: int) -> None:
    config = method_config(method, train__accumulation=accumulation, train__supervised_steps=0)
    fabric, state = tiny_state(config)
    for seed in range(2):
        batch = tiny_batch(seed=seed)
        assert batch.unlabeled is not None
        views = batch.unlabeled.strong * config.method.strong_views
        batch = Batch(batch.labeled, vars_with(batch.unlabeled, strong=views))
        values = training_step(fabric, state, batch, config)
        assert all(value.isfinite() for value in values.values())


def test_augseg_has_a_teacher_of_its_own_and_three_changes_of_colour() -> None:
    config = method_config("augseg")
    assert config.method.ema_decay > 0
    assert config.data.intensities == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_method_changes_settings_of_the_method_alone(method: str) -> None:
    of_the_data = {"dacs": {"data.rare_class_temperature"}, "augseg": {"data.intensities"}}
    others = {key for key in get_method(method) if not key.startswith("method.")}
    assert others == of_the_data.get(method, set())


@pytest.mark.parametrize("setting", SETTINGS)
def test_method_stands_beside_the_setting_and_below_single_numbers(setting: str) -> None:
    if setting == "supervised":
        with pytest.raises(UserError, match="leave --method out"):
            make_config("demo", setting=setting, method="cutmix")
        return
    config = make_config(
        "demo", setting=setting, method="unimatch", overrides={"method.pseudo_threshold": 0.8}
    )
    assert config.setting == setting
    assert config.method.strong_views == 2
    assert config.method.pseudo_threshold == 0.8


def test_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no method 'unimach'.*unimatch") as error:
        get_method("unimach")
    assert error.value.exit_code == 2


def test_complementary_channels_need_two_views() -> None:
    with pytest.raises(UserError, match=r"set method\.strong_views=2"):
        tiny_config(method__feature_dropout="complementary")
