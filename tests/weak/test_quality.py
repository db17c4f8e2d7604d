from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from u2pl.data.images import write_mask
from u2pl.data.sources import Dataset, Sample
from u2pl.errors import UserError
from u2pl.weak.quality import count_pixels, seed_quality

COLORS = ((0, 0, 0), (9, 9, 9), (99, 99, 99))


def write(path: Path, *rows: list[int]) -> Path:
    write_mask(path, np.array(rows), colors=COLORS)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path, ("sky", "car", "dog"), COLORS)


def seed(name: str, path: Path) -> Sample:
    return Sample(name, Path(f"{name}.jpg"), path)


def test_worked_quality(dataset: Dataset, tmp_path: Path) -> None:
    """Six known pixels: sky sky | car car car | one sky unsure; a void pixel counts nowhere."""
    truth = write(tmp_path / "t.png", [0, 0, 0, 1], [1, 1, 255, 255])
    seeds = write(tmp_path / "s.png", [0, 0, 255, 1], [1, 0, 1, 255])
    found = seed_quality([seed("a", seeds)], {Path("a.jpg"): seed("a", truth)}, dataset)
    assert found == {
        "images": 1,
        "labeled_share": pytest.approx(100 * 6 / 8),
        "scored_images": 1,
        "miou": pytest.approx((100 * 2 / 4 + 100 * 2 / 3) / 2),
        "miou_sure": pytest.approx(100 * 2 / 3),
        "precision": pytest.approx(100 * 4 / 5),
        "iou": {"sky": pytest.approx(50), "car": pytest.approx(100 * 2 / 3), "dog": None},
        "iou_sure": {
            "sky": pytest.approx(100 * 2 / 3),
            "car": pytest.approx(100 * 2 / 3),
            "dog": None,
        },
    }


def test_pixels_of_all_images_are_counted_together(dataset: Dataset, tmp_path: Path) -> None:
    big = write(tmp_path / "big.png", *[[0] * 10] * 9)
    small = write(tmp_path / "small.png", [0])
    wrong = write(tmp_path / "wrong.png", [1])
    found = seed_quality(
        [seed("a", big), seed("b", wrong)],
        {Path("a.jpg"): seed("a", big), Path("b.jpg"): seed("b", small)},
        dataset,
    )
    assert found["precision"] == pytest.approx(100 * 90 / 91)


def test_image_without_a_true_mask_counts_in_the_share_alone(
    dataset: Dataset, tmp_path: Path
) -> None:
    full, empty = write(tmp_path / "f.png", [1, 1]), write(tmp_path / "e.png", [255, 255])
    found = seed_quality(
        [seed("a", full), seed("b", empty)], {Path("a.jpg"): seed("a", full)}, dataset
    )
    assert (found["images"], found["scored_images"]) == (2, 1)
    assert (found["labeled_share"], found["miou"]) == (50, 100)


def test_without_any_truth_scores_are_none(dataset: Dataset, tmp_path: Path) -> None:
    found = seed_quality([seed("a", write(tmp_path / "s.png", [1, 255]))], {}, dataset)
    assert found["labeled_share"] == 50
    assert [found[key] for key in ("miou", "miou_sure", "precision")] == [None] * 3
    assert found["iou"] == dict.fromkeys(dataset.classes)


def test_pixel_whose_truth_is_unknown_counts_nowhere() -> None:
    counts = count_pixels(torch.tensor([255, 255]), torch.tensor([255, 1]), 2, 255)
    assert torch.equal(counts, torch.zeros(3, 3, dtype=torch.int64))


def test_true_mask_of_another_size_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    seeds, truth = write(tmp_path / "s.png", [1, 1]), write(tmp_path / "t.png", [1])
    with pytest.raises(UserError, match=r"a\.jpg: the image is 2 x 1 .* its mask 1 x 1"):
        seed_quality([seed("a", seeds)], {Path("a.jpg"): seed("a", truth)}, dataset)
