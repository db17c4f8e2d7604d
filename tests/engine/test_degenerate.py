"""Whole trainings on data that hardly are any: each stays finite, and ends with a usable run.

Single steps on such batches are in test_public_faults.py (fault 10) and test_step.py.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from factories import write_dataset
from tiny import tiny_overrides
from u2pl import UserError, load, train
from u2pl.engine.checkpoint import load_weights
from u2pl.engine.run_folder import RunFolder, read_metrics

WEAK = {
    "weak__batch_size": 2,
    "weak__output_stride": 8,
    "weak__cam_scales": [0.5, 1.0],
    "weak__refine_iterations": 1,
    "weak__refine_dilations": [1, 2],
}
MIXINGS = ("cutmix", "cutout", "classmix", "classmix_labeled", "none")


def train_on(
    dataset: Path, out: Path, *, setting: str = "semi", **changes: Any
) -> list[dict[str, Any]]:
    """Train three steps; everything that is left must be finite, and the run must predict."""
    overrides = tiny_overrides(**{"train__steps": 3, "train__eval_every": 2} | changes)
    result = train(dataset, recipe="demo", out=out, setting=setting, overrides=overrides)
    assert result["finished"]
    folder = RunFolder(out)
    for name in ("ema", "student"):
        for key, tensor in load_weights(folder.weights(name)).items():
            assert torch.isfinite(tensor).all(), key
    rows = [row for row in read_metrics(folder.metrics) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        # the threshold of a step without a pixel to judge is none
        assert {key for key, value in row.items() if value is None} <= {"entropy_threshold"}
    mask, entropy, _ = load(out).predict(np.zeros((5, 7, 3), np.uint8))
    assert mask.shape == entropy.shape == (5, 7)
    assert np.isfinite(entropy).all()
    return rows


def fill_masks(folder: Path, value: int) -> None:
    """Give every mask of a folder one value."""
    files = sorted(folder.glob("*.png"))
    assert files
    for file in files:
        with Image.open(file) as mask:
            size = mask.size
        Image.new("L", size, value).save(file)


def test_masks_that_are_all_ignore_train_the_unlabelled_half_alone(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    fill_masks(tmp_path / "data/masks", 255)
    rows = train_on(dataset, tmp_path / "run")
    assert [row["loss_s"] for row in rows] == [0, 0, 0]
    assert rows[-1]["unsupervised_weight"] > 0


def test_masks_that_are_all_ignore_train_nothing_where_labels_are_alone(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    fill_masks(tmp_path / "data/masks", 255)
    rows = train_on(dataset, tmp_path / "run", setting="supervised")
    assert [row["loss"] for row in rows] == [0, 0, 0]


@pytest.mark.parametrize("mixing", MIXINGS)
def test_labels_of_a_single_class_can_be_trained_on(tmp_path: Path, mixing: str) -> None:
    dataset = write_dataset(tmp_path / "data")
    fill_masks(tmp_path / "data/masks", 1)
    rows = train_on(dataset, tmp_path / "run", method__mixing=mixing)
    assert rows[0]["loss_s"] > 0
    assert rows[0]["active_classes"] <= 1 + rows[0]["reliable_share"] * 3


def test_val_masks_that_are_all_ignore_have_no_score_and_end_no_run(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    fill_masks(tmp_path / "data/val/masks", 255)
    train_on(dataset, tmp_path / "run")
    scores = json.loads(RunFolder(tmp_path / "run").result.read_text())
    assert scores["ema"]["miou"] is None
    assert set(scores["ema"]["iou"].values()) == {None}
    assert not RunFolder(tmp_path / "run").checkpoint("best").exists()


def test_run_without_any_anchor_has_no_contrast(tmp_path: Path) -> None:
    rows = train_on(
        write_dataset(tmp_path / "data"), tmp_path / "run", method__anchor_threshold=0.999999
    )
    assert [row["loss_c"] for row in rows] == [0, 0, 0]
    assert [row["active_classes"] for row in rows] == [0, 0, 0]


def test_run_whose_queues_hold_one_key_is_finite(tmp_path: Path) -> None:
    rows = train_on(
        write_dataset(tmp_path / "data"),
        tmp_path / "run",
        method__queue_size=1,
        method__keys_per_step=1,
        method__num_negatives=1,
        method__num_anchors=1,
    )
    assert rows[-1]["queue_fill"] <= 1


@pytest.mark.parametrize(("num_labeled", "num_unlabeled"), [(1, 1), (1, 5), (3, 1)])
def test_fewer_images_than_a_batch_holds_repeat_in_it(
    tmp_path: Path, num_labeled: int, num_unlabeled: int
) -> None:
    """A single labelled image, and more labelled than unlabelled ones, among them."""
    dataset = write_dataset(
        tmp_path / "data", num_labeled=num_labeled, num_unlabeled=num_unlabeled, num_val=1
    )
    rows = train_on(dataset, tmp_path / "run", data__batch_labeled=4, data__batch_unlabeled=6)
    assert all(row["loss_s"] > 0 for row in rows)


@pytest.mark.parametrize("setting", ["semi", "adapt"])
def test_run_without_unlabelled_images_says_so_and_is_supervised(
    tmp_path: Path, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_dataset(tmp_path / "data", num_unlabeled=0)
    with caplog.at_level(logging.WARNING):
        rows = train_on(dataset, tmp_path / "run", setting=setting, train__supervised_steps=1)
    said = f"{dataset} has no unlabelled images: training sees the labels alone."
    assert said in caplog.messages
    for row in rows:  # the contrast of labelled pixels stays
        assert row["loss_u"] == 0
        assert row["loss"] == pytest.approx(row["loss_s"] + 0.1 * row["loss_c"], rel=1e-5)
        assert "reliable_share" not in row


@pytest.mark.parametrize("mixing", MIXINGS)
def test_two_classes_train_with_each_mixing(tmp_path: Path, mixing: str) -> None:
    dataset = write_dataset(tmp_path / "data", num_classes=2, mask_format="binary")
    rows = train_on(dataset, tmp_path / "run", method__mixing=mixing)
    assert all(row["loss_s"] > 0 for row in rows)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (5, 7), (31, 31)])
@pytest.mark.parametrize("resize", [None, 16])
def test_images_smaller_than_the_crop_are_padded_down_to_one_pixel(
    tmp_path: Path, size: tuple[int, int], resize: int | None
) -> None:
    dataset = shrunk(write_dataset(tmp_path / "data", num_labeled=2, num_unlabeled=2), size)
    train_on(dataset, tmp_path / "run", data__resize=resize)


@pytest.mark.parametrize("protocol", ["whole", "slide"])
def test_images_of_one_pixel_are_scored_and_predicted(tmp_path: Path, protocol: str) -> None:
    dataset = shrunk(write_dataset(tmp_path / "data"), (1, 1))
    train_on(dataset, tmp_path / "run", evaluation__protocol=protocol)
    prediction = load(tmp_path / "run").predict(tmp_path / "data/unlabeled/unlabeled_0.png")
    assert prediction.mask.shape == (1, 1)


def shrunk(dataset: Path, size: tuple[int, int]) -> Path:
    """Resize all images and masks of a data set to (height, width)."""
    for file in dataset.parent.rglob("*.png"):
        with Image.open(file) as image:
            small = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
        small.save(file)
    return dataset


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("setting", ["semi", "supervised"])
def test_smallest_crop_trains_with_two_images(
    tmp_path: Path, accumulation: int, setting: str
) -> None:
    """The encoder's last grid is a single cell then."""
    train_on(
        write_dataset(tmp_path / "data", num_labeled=1, num_unlabeled=1),
        tmp_path / "run",
        setting=setting,
        data__crop=[8, 8],
        data__batch_labeled=2 * accumulation,
        data__batch_unlabeled=2 * accumulation,
        train__accumulation=accumulation,
    )


@pytest.mark.parametrize("crop", [[24, 24], [8, 24]])
def test_single_images_train_where_the_grid_has_two_cells(tmp_path: Path, crop: list[int]) -> None:
    train_on(
        write_dataset(tmp_path / "data", num_labeled=1, num_unlabeled=1),
        tmp_path / "run",
        setting="supervised",
        data__crop=crop,
        data__batch_labeled=1,
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (24, 24)])
def test_single_tagged_image_gives_seeds_and_a_run(tmp_path: Path, size: tuple[int, int]) -> None:
    dataset = write_dataset(tmp_path / "data", num_labeled=0, num_unlabeled=1, num_val=1, tags=True)
    train_on(shrunk(dataset, size), tmp_path / "run", setting="weak", weak__steps=2, **WEAK)
    seed = RunFolder(tmp_path / "run").path / "seeds/unlabeled_0.png"
    with Image.open(seed) as mask:
        assert (mask.height, mask.width) == size


def test_labels_that_are_all_ignore_are_refused_where_classes_are_drawn(tmp_path: Path) -> None:
    """Rare-class sampling draws a class first, and there is none."""
    dataset = write_dataset(tmp_path / "data")
    fill_masks(tmp_path / "data/masks", 255)
    with pytest.raises(UserError, match="needs labelled pixels"):
        train_on(dataset, tmp_path / "run", data__rare_class_temperature=0.01)


def test_most_classes_of_a_data_set_may_have_no_pixel(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", num_classes=3)
    tree = yaml.safe_load(dataset.read_text())
    tree["classes"] += [f"absent {i}" for i in range(40)]
    dataset.write_text(yaml.safe_dump(tree))
    train_on(dataset, tmp_path / "run")
    scores = json.loads(RunFolder(tmp_path / "run").result.read_text())
    assert scores["ema"]["iou"]["absent 7"] is None
