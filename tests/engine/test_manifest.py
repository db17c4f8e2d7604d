from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.test_inputs import write_video
from data.test_windows import write_tiff
from tiny import tiny_config
from u2pl.engine.manifest import read_manifest
from u2pl.engine.predict import SegmentationModel, predict_images
from u2pl.engine.tiles import Tiling
from u2pl.engine.trained import ModelCard
from u2pl.engine.world import World
from u2pl.errors import UserError
from u2pl.models import Segmenter

KINDS = ("masks", "colors", "overlays", "entropy", "reliable")
COLORS = ((10, 20, 30), (200, 0, 0), (0, 200, 0))


def make_model(*, resize: int | None = None, seed: int = 0) -> SegmentationModel:
    """An untrained network: which classes it sees does not matter here, that they vary does."""
    torch.manual_seed(seed)
    network = Segmenter(tiny_config().model, 3).eval().requires_grad_(False)
    last = network.segmentation_head[3]
    torch.nn.init.normal_(last.weight, std=3.0)
    images = torch.rand(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    logits = network(images, with_features=False).logits
    last.bias -= logits.mean(dim=(0, 2, 3))
    last.weight *= 3 / logits.std(dim=(0, 2, 3)).view(-1, 1, 1, 1)
    last.bias *= 3 / logits.std(dim=(0, 2, 3))
    card = ModelCard(("a", "b", "c"), COLORS, resize, "whole", (32, 32), 0.75, 1.0, 5, 255, "demo")
    return SegmentationModel(network, card)


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return make_model()


def write_images(folder: Path, count: int, *, size: tuple[int, int] = (20, 24)) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def label(model: SegmentationModel, source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return predict_images(model, source, out, **{"kinds": ("masks",), "manifest": True} | options)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_manifest(out / "manifest.jsonl") if "source" in row]


def times(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.rglob("*.png")}


# the manifest, and going on


def test_manifest_has_a_line_for_each_image_that_is_whole(
    model: SegmentationModel, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", 3)
    result = label(model, source, tmp_path / "out", kinds=KINDS)
    found = rows(tmp_path / "out")
    assert [row["source"] for row in found] == ["0.png", "1.png", "2.png"]
    for row in found:
        assert row["size"] == [20, 24]
        assert set(row["outputs"]) == set(KINDS)
        for entry in row["outputs"].values():
            assert (tmp_path / "out" / entry["file"]).stat().st_size == entry["bytes"]
    shares = [row["reliable_share"] for row in found]
    assert result["reliable_share"] == pytest.approx(np.mean(shares))
    assert (result["images"], result["skipped"], result["total"]) == (3, 0, 3)


def test_resume_makes_only_what_is_not_whole(model: SegmentationModel, tmp_path: Path) -> None:
    source, out = write_images(tmp_path / "in", 6), tmp_path / "out"
    label(model, source, out)
    whole = {name: (out / "masks" / name).read_bytes() for name in os.listdir(out / "masks")}
    before = times(out)
    (out / "masks/1.png").unlink()
    os.truncate(out / "masks/2.png", 30)  # half a file, as after a loss of power
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(source / "3.png")  # another image now
    text = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    (out / "manifest.jsonl").write_text("".join(text[:-1]) + text[-1][:40])  # 5.png's line is torn
    seen: list[tuple[int, int]] = []
    result = label(model, source, out, resume=True, on_image=lambda *n: seen.append(n))
    assert (result["images"], result["skipped"]) == (4, 2)
    assert seen == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    after = times(out)
    assert {name for name in after if after[name] == before[name]} == {"0.png", "4.png"}
    for name in ("0.png", "1.png", "2.png", "4.png", "5.png"):
        assert (out / "masks" / name).read_bytes() == whole[name]
    again = label(model, source, out, resume=True)
    assert (again["images"], again["skipped"]) == (0, 6)
    assert again["reliable_share"] == pytest.approx(result["reliable_share"])


def test_another_kind_of_picture_is_not_there_yet(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 2)
    label(model, source, tmp_path / "out")
    result = label(model, source, tmp_path / "out", kinds=("masks", "colors"), resume=True)
    assert (result["images"], result["skipped"]) == (2, 0)


def test_results_of_another_model_are_not_gone_on_with(
    model: SegmentationModel, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", 1)
    label(model, source, tmp_path / "out")
    other = make_model(seed=1)
    with pytest.raises(UserError, match="results of another model; choose another folder"):
        label(other, source, tmp_path / "out", resume=True)
    assert label(other, source, tmp_path / "out")["images"] == 1  # without --resume: anew


def test_manifest_is_not_followed_out_of_its_folder(
    model: SegmentationModel, tmp_path: Path
) -> None:
    """A line that anybody has written names a file elsewhere; it vouches for nothing."""
    source, out = write_images(tmp_path / "in", 1), tmp_path / "out"
    label(model, source, out)
    row = rows(out)[0]
    secret = tmp_path / "secret.png"
    secret.write_bytes((out / "masks/0.png").read_bytes())
    row["outputs"]["masks"]["file"] = "../secret.png"
    (out / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    (out / "masks/0.png").unlink()
    (tmp_path / "aside").write_text("kept")
    assert label(model, source, out, resume=True)["images"] == 1
    link = out / "manifest.jsonl"
    link.unlink()
    link.symlink_to(tmp_path / "aside")
    label(model, source, out)
    assert (tmp_path / "aside").read_text() == "kept"


@pytest.mark.parametrize(
    "line",
    ["[]", "3", '{"source": 3}', '{"source": "0.png"}', '{"source": "0.png", "outputs": []}',
     '{"source": "0.png", "outputs": {"masks": 3}}', "[" * 9000],
)  # fmt: skip
def test_odd_line_of_a_manifest_vouches_for_nothing(
    model: SegmentationModel, tmp_path: Path, line: str
) -> None:
    source, out = write_images(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / "manifest.jsonl").write_text(line + "\n")
    assert label(model, source, out, resume=True)["images"] == 1


def test_damaged_image_is_named_in_the_manifest_where_it_is_to_be_skipped(
    model: SegmentationModel, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", 3)
    os.truncate(source / "1.png", 300)
    result = label(model, source, tmp_path / "out", skip_damaged=True)
    assert (result["images"], result["damaged"]) == (2, 1)
    errors = {row["source"]: row["error"] for row in rows(tmp_path / "out") if "error" in row}
    assert list(errors) == ["1.png"]
    assert "cannot be decoded" in errors["1.png"]
    with pytest.raises(UserError, match=r"1\.png: the file cannot be decoded"):
        label(model, source, tmp_path / "out", resume=True)


# several processes


def test_processes_label_each_image_once_and_go_on_as_one(
    model: SegmentationModel, tmp_path: Path
) -> None:
    source, out = write_images(tmp_path / "in", 7), tmp_path / "out"
    shares = [label(model, source, out, world=World(rank=r, size=3)) for r in range(3)]
    assert [share["images"] for share in shares] == [3, 2, 2]
    assert {share["total"] for share in shares} == {7}
    sources = [
        row["source"]
        for path in sorted(out.glob("manifest-*-of-3.jsonl"))
        for row in read_manifest(path)
        if "source" in row
    ]
    assert sorted(sources) == [f"{number}.png" for number in range(7)]
    alone = label(model, source, out, resume=True)
    assert (alone["images"], alone["skipped"]) == (0, 7)
    label(model, source, out)
    assert [path.name for path in out.glob("manifest*")] == ["manifest.jsonl"]


# large images


def test_large_image_is_labelled_as_it_is_at_once(tmp_path: Path) -> None:
    """Through PNG, TIFF windows and memory, the masks agree away from the tiles' own views."""
    model = make_model()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC))
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    write_tiff(tmp_path / "in/b.tif", image, photometric="RGB", tiled=True, blockxsize=16,
               blockysize=16)  # fmt: skip
    tiling = Tiling(size=64, overlap=32, whole=1000)
    result = label(model, tmp_path / "in", tmp_path / "out", kinds=KINDS, tiling=tiling)
    assert result["images"] == 2
    for kind in KINDS:
        with Image.open(tmp_path / f"out/{kind}/a.png") as first:
            assert first.size == (90, 70)
            with Image.open(tmp_path / f"out/{kind}/b.png") as second:
                assert np.array_equal(np.asarray(first), np.asarray(second)), kind
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.mode == "P"
        pixels = np.asarray(mask)
        assert np.array_equal(np.asarray(mask.convert("RGB")), np.array(COLORS)[pixels])
    whole = model.predict(image).mask
    assert len(np.unique(whole)) > 1
    # the pyramid pools over all that it sees, so a tile is not quite the whole
    assert (pixels == whole).mean() > 0.8
    with Image.open(tmp_path / "out/colors/a.png") as colors:
        assert np.array_equal(np.asarray(colors), np.array(COLORS)[pixels])


def test_large_image_of_a_run_that_resizes_is_labelled_at_its_own_size(tmp_path: Path) -> None:
    """The network sees the small image at once; only its answer is brought up in bands."""
    model = make_model(resize=32)
    source = write_images(tmp_path / "in", 1, size=(80, 120))
    label(model, source, tmp_path / "out", tiling=Tiling(size=64, overlap=32, whole=5000))
    expected = model.predict(source / "0.png").mask
    with Image.open(tmp_path / "out/masks/0.png") as mask:
        assert (np.asarray(mask) == expected).mean() > 0.999


def test_tiff_that_breaks_off_is_told_and_leaves_no_half_picture(
    model: SegmentationModel, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = write_tiff(tmp_path / "in/a.tif", photometric="RGB", tiled=True, blockxsize=32,
                      blockysize=32, compress="deflate")  # fmt: skip
    os.truncate(path, path.stat().st_size * 3 // 4)
    tiling = Tiling(size=64, overlap=32, whole=100)
    with pytest.raises(UserError, match=r"a\.tif: "):
        label(model, tmp_path / "in", tmp_path / "out", tiling=tiling)
    result = label(model, tmp_path / "in", tmp_path / "out", tiling=tiling, skip_damaged=True)
    assert (result["images"], result["damaged"]) == (0, 1)
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == [
        "manifest.jsonl"
    ]


# videos


def test_frames_of_a_video_are_labelled_and_gone_on_with(
    model: SegmentationModel, tmp_path: Path
) -> None:
    video, out = write_video(tmp_path / "drive.mp4", count=9), tmp_path / "out"
    result = label(model, video, out, every=2)
    names = [f"{number:06d}.png" for number in (0, 2, 4, 6, 8)]
    assert sorted(os.listdir(out / "masks/drive")) == names
    assert (result["images"], result["total"]) == (5, None)
    assert rows(out)[1]["source"] == "drive.mp4#2"
    (out / "masks/drive/000004.png").unlink()
    again = label(model, video, out, every=2, resume=True)
    assert (again["images"], again["skipped"]) == (1, 4)
    both = [label(model, video, out, world=World(rank=r, size=2))["images"] for r in range(2)]
    assert both == [5, 4]
