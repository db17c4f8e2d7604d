"""Pseudo-labels of a small run: what they hold, what is left out, and how work is resumed."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import u2pl
from factories import write_dataset
from tiny import tiny_overrides
from u2pl import UserError, label
from u2pl.data.transforms import eval_image
from u2pl.data.windows import ArrayWindows
from u2pl.engine import tiles
from u2pl.engine.predict import Job, Small
from u2pl.labeling.label import class_iou
from u2pl.labeling.pseudo import (
    PseudoLabeling,
    Summary,
    labels_of,
    small_copy,
    summarize,
    summary_of_text,
    within_crop,
)
from u2pl.models import SegmentationOutput


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``data`` and a run in ``run``."""
    root = tmp_path_factory.mktemp("label")
    dataset = write_dataset(root / "data")
    u2pl.train(dataset, recipe="demo", out=root / "run", overrides=tiny_overrides())
    return root


def handed_out(trained: Path, out: Path, **options: Any) -> dict[str, Any]:
    return label(trained / "run", trained / "data/unlabeled", out=out, **options)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_labels_are_the_teachers_where_the_run_is_sure(trained: Path, tmp_path: Path) -> None:
    result = handed_out(trained, tmp_path / "out")
    model, shares = u2pl.load(trained / "run"), []
    assert result["max_entropy"] == model.card.reliable_entropy
    for image in sorted((trained / "data/unlabeled").iterdir()):
        mask, _, reliable = model.predict(image)
        with Image.open(tmp_path / "out/masks" / image.name) as found:
            labels = np.asarray(found)
        assert np.array_equal(labels[reliable], mask[reliable])
        assert (labels[~reliable] == 255).all()
        assert np.array_equal(labels, np.asarray(Image.open(tmp_path / "out/png" / image.name)))
        shares.append(reliable.mean())
    assert result["reliable_share"] == pytest.approx(np.mean(shares))
    assert 0 < result["reliable_share"] < 1


def test_threshold_may_be_the_users(trained: Path, tmp_path: Path) -> None:
    everything = handed_out(trained, tmp_path / "all", max_entropy=math.log(3) + 0.01)
    assert everything["reliable_share"] == 1
    nothing = handed_out(trained, tmp_path / "none", max_entropy=0.0)
    assert (nothing["reliable_share"], nothing["max_entropy"]) == (0, 0.0)


def test_ranking_holds_all_images_and_annotations_the_first(trained: Path, tmp_path: Path) -> None:
    result = handed_out(trained, tmp_path / "out", top=2)
    rows = table(tmp_path / "out")
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 7)]
    assert {row["image"] for row in rows} == {f"unlabeled_{n}.png" for n in range(6)}
    assert result["top"] == [row["image"] for row in rows[:2]]
    assert {path.name for path in (tmp_path / "out/png").glob("*.png")} == {*result["top"]}
    assert len(list((tmp_path / "out/masks").iterdir())) == 6
    assert rows[0]["score"] == max(row["score"] for row in rows)


def test_page_holds_its_pictures_and_no_name_is_markup(trained: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    source = trained / "data/unlabeled/unlabeled_0.png"
    shutil.copy(source, photos / "<b onclick=x>&.png")
    shutil.copy(source, photos / "plain.png")
    label(trained / "run", photos, out=tmp_path / "out")
    page = (tmp_path / "out/ranking.html").read_text()
    assert "<b onclick" not in page
    assert "&lt;b onclick=x&gt;&amp;.png" in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_resumed_work_labels_only_what_is_left_and_ranks_the_same(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handed_out(trained, out)
    expected, page = (out / "ranking.csv").read_bytes(), (out / "ranking.html").read_bytes()
    lines = (out / "manifest.jsonl").read_text().splitlines()
    row = json.loads(lines[2]) | {"summary": "AAAA"}  # not as we write it: made again
    torn = [lines[0], lines[1], json.dumps(row), lines[3], lines[4][:50]]
    (out / "manifest.jsonl").write_text("\n".join(torn))
    (out / "masks/unlabeled_2.png").unlink()
    result = handed_out(trained, out, resume=True, format="yolo")
    assert (result["images"], result["skipped"]) == (5, 1)
    assert (out / "ranking.csv").read_bytes() == expected
    assert (out / "ranking.html").read_bytes() == page
    again = handed_out(trained, out, resume=True)
    assert (again["images"], again["skipped"]) == (0, 6)
    with pytest.raises(UserError, match="tells of results of another model"):
        handed_out(trained, out, resume=True, max_entropy=0.5)  # other labels


def test_images_that_have_masks_are_left_out(trained: Path, tmp_path: Path) -> None:
    photos = tmp_path / "list.txt"
    images = [*(trained / "data/unlabeled").iterdir(), *(trained / "data/images").iterdir()]
    images += (trained / "data/val/images").iterdir()
    photos.write_text("\n".join(map(str, images)))
    result = label(trained / "run", photos, out=tmp_path / "out")
    assert (result["total"], result["left_out"]) == (6, 7)
    assert {row["image"].split("/")[0] for row in table(tmp_path / "out")} == {"unlabeled"}
    with pytest.raises(UserError, match=r"All 3 images of .* stand in labeled, val or test"):
        label(trained / "run", trained / "data/val/images", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_run_whose_data_are_gone_still_labels(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (run / "dataset.yaml").unlink()
    (run / "eval/val.json").write_text("{")
    assert class_iou(run, ("a", "b")) == [None, None]
    result = label(run, trained / "data/unlabeled", out=tmp_path / "out")
    assert (result["images"], result["left_out"]) == (6, 0)


def test_iou_of_a_run_is_a_share_and_odd_values_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    iou = {"a": 50.0, "b": None, "c": "x", "d": -3, "e": float("nan")}
    (tmp_path / "eval/val.json").write_text(json.dumps({"ema": {"iou": iou}}))
    assert class_iou(tmp_path, (*"abcdef",)) == [0.5, None, None, None, None, None]


def test_damaged_images_are_counted_where_that_is_asked_for(trained: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(trained / "data/unlabeled", tmp_path / "photos")
    (photos / "unlabeled_3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"unlabeled_3\.png"):
        label(trained / "run", photos, out=tmp_path / "out")
    result = label(trained / "run", photos, out=tmp_path / "out", skip_damaged=True)
    assert (result["images"], result["damaged"], result["handed_out"]) == (5, 1, 5)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"top": 0}, "Expected --top of 1 or more, got 0"),
        ({"max_entropy": -1.0}, "Expected --max-entropy of 0 or more"),
        ({"simplify": math.nan}, "Expected --simplify of 0 or more"),
        ({"format": "bmp"}, "Expected a format of png, coco, cvat, labelstudio, yolo"),
    ],
)
def test_malformed_requests_are_told_before_any_work(
    trained: Path, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what) as caught:
        handed_out(trained, tmp_path / "out", **options)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_videos_are_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "drive.mp4").touch()
    with pytest.raises(UserError, match="write its frames as images first"):
        label(trained / "run", tmp_path / "drive.mp4", out=tmp_path / "out")


def test_links_in_the_output_folder_are_not_followed_out_of_it(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    for name in ("masks", "png"):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        (out / name).symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match="where results go; take out the link"):
            handed_out(trained, out)
    assert not list((tmp_path / "secret").iterdir())


def test_large_images_are_labelled_in_tiles(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = u2pl.load(trained / "run")
    tiling = tiles.Tiling(size=64, overlap=32, whole=1)
    labeling = PseudoLabeling(model, tmp_path, ("masks",), tiling, None, False)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    job = Job("a.png", tmp_path / "a.png", Path("a.png"), [0, 0])
    with torch.inference_mode():
        row = labeling.in_tiles(job, ArrayWindows(pixels))
        bands = [band for _, band in tiles.predict_bands(model, ArrayWindows(pixels), tiling)]
    expected = np.concatenate([labels_of(band, 255) for band in bands])
    with Image.open(tmp_path / "masks/a.png") as found:
        assert np.array_equal(np.asarray(found), expected)
    assert row["reliable_share"] == pytest.approx((expected != 255).mean())
    assert summary_of_text(row["summary"], 3, 8) is not None


def test_summary_is_the_expected_share_of_each_class() -> None:
    """Two sure cells of class 0, two that may be either of 1 and 2."""
    logits = torch.full((1, 3, 2, 2), -50.0)
    logits[0, 0, 0] = 50.0
    logits[0, 1:, 1] = 50.0
    features = torch.arange(8.0).view(1, 2, 2, 2)
    found = summarize(SegmentationOutput(logits, features), 0.5)(0)
    assert found.shares == pytest.approx([0.5, 0.25, 0.25])
    assert found.unsure == pytest.approx([0.0, 0.25, 0.25])
    assert found.features == pytest.approx([1.5, 5.5])
    back = summary_of_text(found.to_text(), 3, 2)
    assert back is not None
    for kept, part in zip(back, found, strict=True):
        assert kept == pytest.approx(part, rel=1e-3, abs=1e-6)  # of float16


@pytest.mark.parametrize("text", [None, 3, "", "!", "AAAA", "é"])
def test_text_that_is_no_summary_is_none(text: object) -> None:
    assert summary_of_text(text, 3, 2) is None
    nan = Summary(*(np.full(n, np.nan, np.float32) for n in (3, 3, 2))).to_text()
    assert summary_of_text(nan, 3, 2) is None


def test_images_of_a_sliding_run_are_summed_up_within_its_window(trained: Path) -> None:
    model = u2pl.load(trained / "run")
    images = torch.rand(1, 3, 100, 64)
    assert within_crop(model, images) is images
    model.card = replace(model.card, protocol="slide", crop=(50, 50))
    assert within_crop(model, images).shape == (1, 3, 50, 32)


@pytest.mark.parametrize("protocol", ["whole", "slide"])
def test_images_seen_together_have_each_its_own_labels_and_summary(
    trained: Path, tmp_path: Path, protocol: Literal["whole", "slide"]
) -> None:
    """As on a GPU."""
    model = u2pl.load(trained / "run")
    model.card = replace(model.card, protocol=protocol, crop=(24, 24))
    labeling = PseudoLabeling(model, tmp_path, ("masks",), tiles.Tiling(), None, False)
    rng, small = np.random.default_rng(0), []
    for index in range(3):
        pixels = rng.integers(0, 256, (40, 36, 3), np.uint8)
        job = Job(f"{index}.png", tmp_path / "x.png", Path(f"{index}.png"), [0, 0])
        small.append(Small(job, pixels, eval_image(pixels, resize=None, file=job.file)))
    with torch.inference_mode():
        together = labeling.ask(small)
        for image, answer in zip(small, together, strict=True):
            (alone,) = labeling.ask([image])
            ours, theirs = answer.prediction(), alone.prediction()
            np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=1e-5)
            assert (ours.mask == theirs.mask).mean() > 0.99  # a batch may round otherwise
            for part, expected in zip(answer.summary(), alone.summary(), strict=True):
                np.testing.assert_allclose(part, expected, atol=1e-5)


def test_small_copy_is_made_band_by_band() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 30, 3), np.uint8)
    assert np.array_equal(small_copy(ArrayWindows(pixels)), pixels[::3, ::3])
