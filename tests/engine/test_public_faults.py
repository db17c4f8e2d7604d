"""The faults of the method's public code that only whole steps can show absent."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factories import write_dataset
from tiny import IGNORE, NUM_CLASSES, SIZE, tiny_batch, tiny_config, tiny_overrides, tiny_state
from u2pl import train
from u2pl.data.batch import Batch, LabeledBatch
from u2pl.engine import step as step_module
from u2pl.engine.evaluate import class_iou
from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.engine.state import TrainState
from u2pl.engine.step import training_step
from u2pl.models import upsample


def freeze_batchnorm(state: TrainState) -> None:
    """Let the student's BatchNorm use its running statistics, which no part of a batch changes."""
    for module in state.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def gradients(num_parts: int, **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and losses of the third step, made in some number of parts."""
    config = tiny_config(
        model__dropout=0.0, data__batch_labeled=4, optimizer__name="sgd", **changes
    )
    fabric, state = tiny_state(config)
    for module in state.student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    freeze_batchnorm(state)
    batches = [tiny_batch(num_labeled=4, num_unlabeled=3, seed=seed) for seed in range(3)]
    for batch in batches[:2]:  # so that queues and prototypes hold something
        training_step(fabric, state, batch, config)
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        named = state.student.named_parameters()
        found.update({n: p.grad.clone() for n, p in named if p.grad is not None})

    state.optimizer.step = keep  # type: ignore[method-assign]
    split = config.with_overrides({"train.accumulation": num_parts})
    values = training_step(fabric, state, batches[2], split)
    return found, {name: values[name] for name in ("loss", "loss_s", "loss_u", "loss_c")}


@pytest.mark.parametrize("num_parts", [2, 3, 4])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(num_parts: int) -> None:
    """Fault 5: no term of the loss shrinks with the number of its parts."""
    whole, losses = gradients(1)
    parts, others = gradients(num_parts)
    assert losses["loss_c"] > 0
    for name, value in losses.items():
        torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-6)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        scale = gradient.abs().max().item() + 1e-7
        assert (parts[name] - gradient).abs().max().item() < 1e-4 * scale + 1e-7, name


def test_contrast_alone_has_the_gradient_that_its_weight_says() -> None:
    """Fault 5: λ_c is λ_c; its gradient on g doubles with it."""
    once, _ = gradients(1, method__contrastive_weight=0.1)
    twice, _ = gradients(1, method__contrastive_weight=0.2)
    (name,) = [n for n in once if n.endswith("representation_head.3.weight")]  # L_c's alone
    ratio = twice[name].norm() / once[name].norm()
    assert 1.5 < ratio < 2.5  # the two steps before it have parted a little


def test_teacher_predicts_the_weak_view_once_in_evaluation_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault 7: entropy, pseudo-label, rank and key come from one pass."""
    config = tiny_config()
    fabric, state = tiny_state(config)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    seen: list[Tensor] = []
    modes: list[bool] = []
    state.teacher.register_forward_pre_hook(
        lambda module, inputs: (seen.append(inputs[0].clone()), modes.append(module.training))[0]
    )
    monkeypatch.setattr(step_module, "follow", lambda *_, **__: None)
    before = copy.deepcopy(state.teacher.state_dict())
    training_step(fabric, state, batch, config)
    assert modes == [False]
    assert torch.equal(seen[0], torch.cat([batch.labeled.images, batch.unlabeled.weak]))
    after = state.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module.training for module in state.teacher.modules())


def test_pseudo_label_is_the_argmax_of_what_the_entropy_is_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault 7: where a label is kept, the same distribution's entropy is below the threshold."""
    config = tiny_config(method__mixing="none", method__denoise_temperature=None)
    fabric, state = tiny_state(config)
    batch = tiny_batch()
    assert batch.unlabeled is not None
    with torch.no_grad():
        logits = state.teacher(torch.cat([batch.labeled.images, batch.unlabeled.weak])).logits
    probs = upsample(logits[2:], SIZE).softmax(dim=1)
    entropy = -(probs * probs.log()).sum(dim=1)
    kept: list[Tensor] = []
    original = step_module.pseudo_label
    monkeypatch.setattr(
        step_module,
        "pseudo_label",
        lambda *args: (result := original(*args), kept.append(result.labels))[0],
    )
    threshold = training_step(fabric, state, batch, config)["entropy_threshold"]
    reliable = kept[0] != IGNORE
    assert torch.equal(kept[0][reliable], probs.argmax(dim=1)[reliable])
    assert entropy[reliable].max() <= threshold + 1e-5
    assert entropy[~reliable].min() >= threshold - 1e-5


def test_teacher_is_never_an_alias_of_the_student() -> None:
    """Fault 8: an average from the second step on, warm-up or not, in tensors of its own."""
    config = tiny_config(train__steps=6, train__supervised_steps=2)
    fabric, state = tiny_state(config)
    for step in range(5):
        training_step(fabric, state, tiny_batch(seed=step), config)
        ours, theirs = state.teacher.state_dict(), state.student.state_dict()
        assert {t.data_ptr() for t in ours.values() if t.numel()}.isdisjoint(
            {t.data_ptr() for t in theirs.values() if t.numel()}
        )
        same = all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert same is (step == 0)
        assert not any(p.requires_grad or p.grad is not None for p in state.teacher.parameters())


@pytest.mark.parametrize("supervised_steps", [0, 2])
def test_teacher_is_behind_the_student_by_the_decay(supervised_steps: int) -> None:
    """Fault 8: after the second step it stands half way, be it a supervised one or not."""
    config = tiny_config(train__supervised_steps=supervised_steps)
    fabric, state = tiny_state(config)
    training_step(fabric, state, tiny_batch(), config)
    before = copy.deepcopy(state.teacher.state_dict())
    training_step(fabric, state, tiny_batch(seed=1), config)
    for key, tensor in state.teacher.state_dict().items():
        if tensor.is_floating_point():
            middle = (before[key] + state.student.state_dict()[key]) / 2
            torch.testing.assert_close(tensor, middle)


# fault 9: resuming

# the student is scored where a run stops, so here wherever the teacher is
RUN = tiny_overrides(
    train__steps=6, train__supervised_steps=1, train__eval_every=3, train__eval_student=True
)


def checkpoint_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(RunFolder(folder).checkpoint("last"), weights_only=True)
    return state


def same_values(ours: Any, theirs: Any) -> bool:
    """Whether two trees of tensors and plain values are equal bit for bit."""
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same_values(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same_values, ours, theirs))
    return bool(ours == theirs)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """The same run in one piece, and in two."""
    root = tmp_path_factory.mktemp("resume")
    dataset = write_dataset(root / "data")
    train(dataset, recipe="demo", out=root / "whole", overrides=RUN)
    train(dataset, recipe="demo", out=root / "parts", overrides={**RUN, "train.stop_after": 3})
    middle = checkpoint_of(root / "parts")
    torch.manual_seed(123)  # as another process would have it
    train(dataset, out=root / "parts", resume=True)
    return root / "whole", root / "parts", middle


@pytest.mark.parametrize("part", ["student", "teacher", "optimizer", "queues", "prototypes"])
def test_resumed_run_ends_bit_for_bit_like_the_whole_one(
    part: str, runs: tuple[Path, Path, dict[str, Any]]
) -> None:
    """Fault 9: nothing that training depends on is missing from a checkpoint."""
    whole, parts, middle = checkpoint_of(runs[0]), checkpoint_of(runs[1]), runs[2]
    assert (whole["step"], parts["step"], middle["step"]) == (6, 6, 3)
    assert same_values(whole[part], parts[part])
    assert not same_values(whole[part], middle[part])


def test_queues_and_prototypes_of_a_checkpoint_hold_something(
    runs: tuple[Path, Path, dict[str, Any]],
) -> None:
    """Fault 9."""
    assert runs[2]["queues"]["num_keys"].sum() > 0
    assert runs[2]["queues"]["keys"].any()
    assert runs[2]["prototypes"]["vectors"].any()
    assert len(runs[2]["optimizer"]["state"]) > 20


def test_resumed_run_writes_the_same_metrics(runs: tuple[Path, Path, dict[str, Any]]) -> None:
    """Fault 9: the learning rate among them."""
    whole, parts = (timeless(read_metrics(run / "metrics.jsonl")) for run in runs[:2])
    assert whole == parts
    assert [(row["kind"], row["step"]) for row in whole] == [
        *[("train", step) for step in (1, 2, 3)],
        ("val", 3),
        *[("train", step) for step in (4, 5, 6)],
        ("val", 6),
    ]


def test_learning_rate_goes_on_moving_after_a_resume(
    runs: tuple[Path, Path, dict[str, Any]],
) -> None:
    """Fault 9."""
    rows = [row for row in read_metrics(runs[1] / "metrics.jsonl") if row["kind"] == "train"]
    rates = [row["lr"] for row in rows]
    assert rates == pytest.approx([2e-3 * (1 - t / 6) ** 0.9 for t in range(6)])


def test_resumed_run_gives_the_same_weights_and_scores(
    runs: tuple[Path, Path, dict[str, Any]],
) -> None:
    """Fault 9: also in what a user takes out of the run folder."""
    for file in ("weights/ema.safetensors", "weights/student.safetensors", "eval/val.json"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    models = [json.loads((run / "model.json").read_text()) for run in runs[:2]]
    assert models[0] == models[1]


# fault 10: nothing there


def step_on(batch: Batch, **changes: Any) -> tuple[TrainState, dict[str, float]]:
    config = tiny_config(**changes)
    fabric, state = tiny_state(config)
    for _ in range(2):
        values = training_step(fabric, state, batch, config)
    tensors = [*state.student.state_dict().values(), *state.teacher.state_dict().values()]
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    row = {name: value.item() for name, value in values.items()}
    assert all(math.isfinite(v) for name, v in row.items() if name.startswith("loss"))
    return state, row


@pytest.mark.parametrize("ohem", [False, True])
def test_labelled_batch_that_is_all_ignore_is_finite(ohem: bool) -> None:
    """Fault 10."""
    batch = tiny_batch()
    nothing = torch.full_like(batch.labeled.labels, IGNORE)
    batch = Batch(LabeledBatch(batch.labeled.images, nothing), batch.unlabeled)
    _, row = step_on(batch, train__ohem=ohem)
    assert row["loss_s"] == 0


def test_unlabelled_batch_without_a_valid_pixel_is_finite() -> None:
    """Fault 10."""
    batch = tiny_batch()
    assert batch.unlabeled is not None
    nothing = torch.zeros_like(batch.unlabeled.valid)
    batch = Batch(batch.labeled, dataclasses.replace(batch.unlabeled, valid=nothing))
    _, row = step_on(batch)
    assert row["loss_u"] == 0
    assert row["reliable_share"] == 0
    assert row["unsupervised_weight"] == 0


def test_batch_without_anything_known_is_finite() -> None:
    """Fault 10: no anchor, no negative, no label at all."""
    batch = tiny_batch()
    assert batch.unlabeled is not None
    batch = Batch(
        LabeledBatch(batch.labeled.images, torch.full_like(batch.labeled.labels, IGNORE)),
        dataclasses.replace(batch.unlabeled, valid=torch.zeros_like(batch.unlabeled.valid)),
    )
    state, row = step_on(batch)
    assert row["loss"] == 0
    assert row["active_classes"] == 0
    assert not state.queues.num_keys.any()


def test_constant_entropy_keeps_every_pixel() -> None:
    """Fault 10: a teacher that says the same everywhere still gives labels."""
    config = tiny_config(method__denoise_temperature=None)
    fabric, state = tiny_state(config)
    last = state.teacher.segmentation_head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    values = training_step(fabric, state, tiny_batch(), config)
    assert values["reliable_share"] == 1
    assert torch.isfinite(values["loss"])


@pytest.mark.parametrize("mixing", ["cutmix", "classmix"])
def test_single_unlabelled_image_is_not_mixed_with_another(mixing: str) -> None:
    """Fault 10: at batch 1 the image stays as it is, and the step is finite."""
    batch = tiny_batch(num_labeled=1, num_unlabeled=1)
    images: list[Tensor] = []
    config = tiny_config(method__mixing=mixing, method__mix_probability=1.0)
    fabric, state = tiny_state(config)
    student = state.student.module
    student.encoder.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    values = training_step(fabric, state, batch, config)
    assert batch.unlabeled is not None
    seen = images[0] * student.std + student.mean
    torch.testing.assert_close(seen[1:], batch.unlabeled.strong[0])
    assert torch.isfinite(values["loss"])


def test_single_labelled_image_can_be_trained_on_alone() -> None:
    """Fault 10: batch 1 in the warm-up, where no unlabelled image stands beside it."""
    _, row = step_on(tiny_batch(num_labeled=1, num_unlabeled=None))
    assert row["loss_s"] > 0


def test_batch_can_be_split_into_single_images() -> None:
    """Fault 10: the same for a part of a batch in the warm-up."""
    _, row = step_on(tiny_batch(num_unlabeled=None), train__accumulation=2)
    assert row["loss_s"] > 0


def test_class_absent_from_the_data_is_left_out_of_the_mean() -> None:
    """Fault 10."""
    confusion = torch.tensor([[6, 2, 0], [0, 8, 0], [0, 0, 0]])
    iou = class_iou(confusion)
    assert iou[:2].tolist() == pytest.approx([75, 80])
    assert iou[2].isnan()
    assert len(iou) == NUM_CLASSES
