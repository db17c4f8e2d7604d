"""Masks of published data sets, one file at a time: what is no such mask is a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import published
from published import SIZE
from u2pl.data.images import write_image
from u2pl.data.prepare import prepare_dataset
from u2pl.data.prepare.camvid import read_colors
from u2pl.data.prepare.idd import paint_polygons
from u2pl.data.prepare.synthia import read_labels
from u2pl.data.prepare.voc import read_sbd
from u2pl.errors import UserError


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.full((5, 3), 21, np.uint8), "expected ids 0 to 20"),
        (np.zeros((5, 3, 2), np.uint8), "no array of two dimensions"),
    ],
)
def test_mat_with_other_labels_is_told(labels: np.ndarray, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "2008_000002.mat"
    path.write_bytes(published.mat_file(labels))
    with pytest.raises(UserError, match=f"2008_000002.mat: .*{sentence}"):
        read_sbd(path)


def test_list_of_voc_with_a_path_or_a_name_twice_is_refused(tmp_path: Path) -> None:
    published.write_voc(tmp_path / "source")
    (path,) = (tmp_path / "source").rglob("val.txt")
    for text, shown in (("../../x\n", r"got \.\./\.\./x"), ("2007_000033\n" * 2, "each once")):
        path.write_text(text)
        with pytest.raises(UserError, match=shown):
            prepare_dataset("voc", tmp_path / "source", out=tmp_path / "out", variant="fine")


@pytest.mark.parametrize("value", [23, 256, 65535])
def test_id_that_synthia_does_not_have_is_told_whatever_its_upper_byte(
    value: int, tmp_path: Path
) -> None:
    pixels = np.zeros((*SIZE, 3), np.uint16)
    pixels[3, 4, 0] = value
    published.write_png_of_16_bits(tmp_path / "0.png", pixels)
    with pytest.raises(UserError, match=f"0 to 22 in the first channel, got {value}; unpack"):
        read_labels(tmp_path / "0.png")


def test_picture_in_place_of_a_mask_of_camvid_is_told(tmp_path: Path) -> None:
    published.write_image(tmp_path / "x_L.png")
    with pytest.raises(UserError, match="100 % of its pixels have none of CamVid's 32 colours"):
        read_colors(tmp_path / "x_L.png")
    write_image(tmp_path / "y_L.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(UserError, match="is not a mask in colours"):
        read_colors(tmp_path / "y_L.png")


def test_frame_of_camvid_without_a_number_is_told(tmp_path: Path) -> None:
    published.write_camvid_in_color(tmp_path / "source")
    for name in ("701_StillsRaw_full/photo.png", "LabeledApproved_full/photo_L.png"):
        published.write_image(tmp_path / "source" / name)
    with pytest.raises(UserError, match=r"photo.png: expected a name such as 0016E5_07959.png"):
        prepare_dataset("camvid", tmp_path / "source", out=tmp_path / "out", variant="full")


POLYGONS: dict[str, Any] = {"imgHeight": SIZE[0], "imgWidth": SIZE[1]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objects": [{"label": "ufo", "polygon": []}]}, "with the unknown label 'ufo'"),
        ({"objects": [{"label": "car", "polygon": [[1, float("nan")]]}]}, "with the corner"),
        ({"objects": [{"label": "car", "polygon": [[1, 1e300]]}]}, "with the corner"),
        ({"objects": [{"label": ["car"], "polygon": []}]}, "TypeError"),
        ({"objects": [{"polygon": []}]}, "KeyError 'label'"),
        ({"objects": None}, "TypeError"),
        ({"objects": [], "imgWidth": 9}, "it is not of the size of"),
    ],
)
def test_polygons_that_are_not_of_idd_are_told(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "5_gtFine_polygons.json"
    published.write_image(tmp_path / "5_leftImg8bit.png")
    path.write_text(json.dumps({**POLYGONS, **change}))
    with pytest.raises(UserError, match=f"5_gtFine_polygons.json: .*{sentence}"):
        paint_polygons(path, tmp_path / "5_leftImg8bit.png")


def test_frame_without_a_polygon_is_all_ignored(tmp_path: Path) -> None:
    published.write_image(tmp_path / "5_leftImg8bit.png")
    row = {"label": "car", "polygon": [[4, 4]], "deleted": 0}
    for objects in ([], [row]):
        (tmp_path / "5.json").write_text(json.dumps({**POLYGONS, "objects": objects}))
        labels = paint_polygons(tmp_path / "5.json", tmp_path / "5_leftImg8bit.png")
        assert np.array_equal(labels, np.full(SIZE, 255))


def test_categories_of_another_set_are_not_taken_for_coco(tmp_path: Path) -> None:
    published.write_coco_with_instances(tmp_path / "source")
    path = tmp_path / "source/annotations/instances_train2017.json"
    tree = json.loads(path.read_text())
    tree["categories"][0]["name"] = "human"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="expected COCO's 80 categories, got 80, human, bicycle"):
        prepare_dataset("coco", tmp_path / "source", out=tmp_path / "out", variant="instances")


def test_image_that_the_instances_do_not_name_is_told(tmp_path: Path) -> None:
    published.write_coco_with_instances(tmp_path / "source")
    Image.new("RGB", (9, 9)).save(tmp_path / "source/train2017/000000000034.jpg")
    with pytest.raises(UserError, match="1 of 4 images are not named there: 000000000034; unpack"):
        prepare_dataset("coco", tmp_path / "source", out=tmp_path / "out", variant="instances")
