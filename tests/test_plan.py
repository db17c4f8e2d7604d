from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from factories import write_dataset
from tiny import tiny_config
from u2pl import UserError, make_config, plan
from u2pl.config import load_config
from u2pl.data.sources import load_dataset
from u2pl.engine.state import initial_state
from u2pl.engine.trial import Trial
from u2pl.plan import Choice, Fingerprint, derive, make_plan, queue_bytes, write_plan


def fingerprint(
    *,
    classes: int = 21,
    labeled: int = 100,
    unlabeled: int = 10_000,
    size: tuple[int, int] = (500, 700),
) -> Fingerprint:
    images = {"labeled": labeled, "unlabeled": unlabeled, "val": 50, "test": 0}
    return Fingerprint(classes, images, size, size, size, device="cpu", memory=0)


def derived(**changes: Any) -> dict[str, Any]:
    return {choice.key: choice.value for choice in derive(make_config(), fingerprint(**changes))}


def test_hundred_labels_and_ten_thousand_images_keep_the_recipe() -> None:
    config = make_config()
    values = derived()
    assert values["data.crop"] == (512, 512)
    assert values["data.resize"] is None
    assert values["data.batch_labeled"] == config.data.batch_labeled
    assert values["optimizer.lr"] == config.optimizer.lr
    assert values["train.steps"] == 40_000  # 80 passes would be 100 000
    assert values["train.supervised_steps"] == 1_000  # the recipe's 500 of 20 000


def test_few_images_give_few_steps_within_bounds() -> None:
    assert derived(unlabeled=400)["train.steps"] == 4_000  # 80 passes in steps of 8
    assert derived(unlabeled=10)["train.steps"] == 2_000


def test_without_unlabeled_images_the_labelled_ones_count() -> None:
    assert derived(labeled=800, unlabeled=0)["train.steps"] == 8_000


def test_crop_is_not_larger_than_the_images() -> None:
    assert derived(size=(180, 240))["data.crop"] == (192, 240)  # whole cells of 16 pixels
    assert derived(size=(20, 2000))["data.crop"] == (32, 512)


def test_large_photographs_are_brought_to_three_crops() -> None:
    values = derived(size=(3000, 4000))
    assert values["data.resize"] == 3 * 512
    assert values["data.crop"] == (512, 512)


def test_own_resize_is_kept() -> None:
    config = make_config(overrides={"data.resize": 360})
    values = {c.key: c.value for c in derive(config, fingerprint(size=(3000, 4000)))}
    assert values["data.resize"] == 360
    assert values["data.crop"] == (368, 480)


def test_learning_rate_follows_the_batch() -> None:
    values = derived(labeled=4)
    assert values["data.batch_labeled"] == 4
    assert values["optimizer.lr"] == pytest.approx(make_config().optimizer.lr / 2)


@given(
    classes=st.integers(2, 300),
    labeled=st.integers(1, 5_000),
    unlabeled=st.integers(0, 10**6),
    size=st.tuples(st.integers(8, 9_000), st.integers(8, 9_000)),
)
def test_whatever_the_images_the_plan_is_a_valid_configuration_with_queues_that_fit(
    classes: int, labeled: int, unlabeled: int, size: tuple[int, int]
) -> None:
    values = derived(classes=classes, labeled=labeled, unlabeled=unlabeled, size=size)
    config = make_config(overrides=values)
    assert queue_bytes(config, classes) <= config.method.queue_megabytes * 10**6
    assert config.train.supervised_steps <= config.train.steps
    assert all(side % config.model.output_stride == 0 for side in config.data.crop)


def test_queues_of_many_classes_are_in_bfloat16_rather_than_cut_short() -> None:
    assert derived(classes=150)["method.queue_dtype"] == "bfloat16"
    assert derived(classes=71)["method.queue_dtype"] == "float32"  # 2.18 GB
    assert derived(classes=72)["method.queue_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_queue_bytes_are_those_of_the_real_queues(dtype: str) -> None:
    config = tiny_config(method__queue_dtype=dtype, method__background_class=1)
    state = initial_state(config, 4, 255, torch.device("cpu"))
    assert queue_bytes(config, 4) == state.queues.keys.untyped_storage().nbytes()


def test_plan_leaves_what_was_given(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    config = tiny_config(train__steps=7)
    result = make_plan(config, dataset, given=("train.steps", "data.crop"), measure=False)
    assert result.config.train.steps == 7
    assert result.config.data.crop == (32, 32)
    assert "train.steps" not in {choice.key for choice in result.choices}
    assert result.hours is None


def test_plan_counts_and_measures(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    tried: list[int] = []
    result = make_plan(tiny_config(), dataset, on_trial=tried.append)
    found = result.fingerprint
    assert found.images["labeled"] == len(dataset.labeled)
    assert found.size == (40, 56)
    assert tried == [1]
    assert result.trial is not None
    assert result.trial.seconds_semi > 0
    assert result.trial.memory > 10_000_000  # a process with torch is larger than that
    assert result.hours is not None
    assert result.hours > 0
    assert result.to_json()["measured"]["hours"] == result.hours


def test_hours_are_the_sum_of_both_kinds_of_step(tmp_path: Path) -> None:
    config = tiny_config(train__steps=7200, train__supervised_steps=3600)
    trial = Trial(seconds_supervised=1.0, seconds_semi=3.0, memory=0)
    result = plan.Plan(config, (), fingerprint(), trial, queue_bytes=0)
    assert result.hours == 4.0


def test_batch_is_split_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(config: Any, dataset: Any) -> Trial:
        if config.train.accumulation == 1:
            raise torch.OutOfMemoryError
        return Trial(0.1, 0.2, memory=1600 // config.train.accumulation)

    monkeypatch.setattr(plan, "try_steps", trial)
    dataset = load_dataset(write_dataset(tmp_path))
    config = tiny_config(data__batch_labeled=8)
    tried: list[int] = []
    split, result = plan.fit_into_memory(config, dataset, 500, tried.append)
    assert tried == [1, 2, 4]  # 1 raises, 2 takes 800 of 500 bytes, 4 takes 400
    assert split.train.accumulation == 4
    assert result.memory == 400
    unchanged = {"accumulation": 1}
    assert split.model_copy(update={"train": split.train.model_copy(update=unchanged)}) == config


def test_batch_that_never_fits_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "try_steps", lambda *_: Trial(0.1, 0.2, memory=600))
    dataset = load_dataset(write_dataset(tmp_path))
    with pytest.raises(UserError, match=r"Not even single images fit .* lower data\.crop"):
        plan.fit_into_memory(tiny_config(), dataset, 500, lambda _: None)


def test_written_plan_is_read_back_as_the_same_configuration(tmp_path: Path) -> None:
    config = tiny_config(weak__cam_scales=[0.5, 1.0])
    choices = (Choice("train.steps", 4, "few images: that is all"),)
    path = tmp_path / "deep/plan.yaml"
    write_plan(plan.Plan(config, choices, fingerprint(), None, queue_bytes=0), path)
    assert load_config(path) == config
    assert "  steps: 4  # few images: that is all\n" in path.read_text()
    assert yaml.safe_load(path.read_text())["recipe"] == "demo"
