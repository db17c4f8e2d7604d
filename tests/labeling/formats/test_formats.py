"""Pseudo-labels in every format, read by the format's own readers or by rules written here."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from annotators import unpack_rgba
from u2pl.data.images import write_mask
from u2pl.errors import UserError
from u2pl.labeling.formats import FORMATS, Entry, Wishes, format_named, write_format
from u2pl.labeling.formats.entry import distinct_colors

SIZE = (40, 56)
OLD_ARRAYS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' decoder knows numpy 2's protocol not yet."""
CLASSES = ("road", 'a "sign" <é>', "car")
WISHES = Wishes(
    classes=CLASSES,
    colors=((0, 0, 0), (200, 0, 0), (200, 0, 0)),
    ignore_index=255,
    simplify=0.0,
    min_area=0.0,
)


def true_mask(seed: int) -> np.ndarray:
    """Blocks of the three classes and of unreliable pixels."""
    blocks = np.random.default_rng(seed).integers(0, 4, (5, 7))
    return np.array([0, 1, 2, 255])[blocks].repeat(8, 0).repeat(8, 1)


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    rows = []
    for number, image in enumerate(("sub/a b.jpg", "sub/c.d.png", "empty.png")):
        mask = true_mask(number) if image != "empty.png" else np.full(SIZE, 255)
        path = tmp_path / "masks" / f"{number}.png"
        write_mask(path, mask, colors=WISHES.colors)
        rows.append(Entry(image, SIZE, path, float((mask != 255).mean())))
    return rows


def written(name: str, tmp_path: Path, entries: list[Entry], wishes: Wishes = WISHES) -> Path:
    out = tmp_path / "out"
    files = write_format(name, out, entries, wishes)
    assert all(file.exists() for file in files)
    return out


def test_png_is_the_index_mask_and_a_list_of_classes(tmp_path: Path, entries: list[Entry]) -> None:
    folder = written("png", tmp_path, entries) / "png"
    with Image.open(folder / "sub/c.d.png") as image:
        assert np.array_equal(np.asarray(image), true_mask(1))
    rows = json.loads((folder / "classes.json").read_text())
    assert rows[1] == {"id": 1, "name": CLASSES[1], "color": [200, 0, 0]}


def test_folder_of_an_earlier_call_is_emptied_and_anothers_is_not(
    tmp_path: Path, entries: list[Entry]
) -> None:
    for name in ("png", "yolo"):
        folder = written(name, tmp_path, entries) / name
        written(name, tmp_path, entries[:1])
        left = {path.stem for path in folder.rglob("*") if path.suffix in (".png", ".txt")}
        assert left == {"a b"} | ({"train"} if name == "yolo" else set())
        (folder / ".made-by-u2pl").unlink()
        with pytest.raises(UserError, match="is there and not of u2pl"):
            written(name, tmp_path, entries)
        assert folder.exists()


@OLD_ARRAYS
def test_rle_is_read_by_pycocotools(tmp_path: Path, entries: list[Entry]) -> None:
    for index, mask in coco_masks(written("coco", tmp_path, entries) / "coco.json").items():
        assert np.array_equal(mask, true_mask(index))


@OLD_ARRAYS
def test_polygons_are_read_by_pycocotools(tmp_path: Path, entries: list[Entry]) -> None:
    found = coco_masks(written("coco", tmp_path, entries) / "coco-polygons.json")
    for index, mask in found.items():
        assert np.array_equal(mask, true_mask(index))


def coco_masks(path: Path) -> dict[int, np.ndarray]:
    """What pycocotools makes of the first two images; the third has no annotation."""
    coco_module = pytest.importorskip("pycocotools.coco")
    coco = coco_module.COCO()
    coco.dataset = json.loads(path.read_text())
    coco.createIndex()
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getAnnIds(imgIds=[3]) == []
    masks = {}
    for index in (0, 1):
        assert coco.imgs[index + 1]["file_name"] == ("sub/a b.jpg", "sub/c.d.png")[index]
        masks[index] = np.full(SIZE, 255)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=[index + 1])):
            shape = coco.annToMask(row).astype(bool)
            x, y, width, height = row["bbox"]
            rows, columns = np.nonzero(shape)
            assert abs(row["area"] - shape.sum()) <= 2  # corners are cut
            assert x <= columns.min() + 0.5
            assert x + width >= columns.max() + 0.5
            assert y <= rows.min() + 0.5
            assert y + height >= rows.max() + 0.5
            assert (masks[index][shape] == 255).all()  # shapes do not overlap
            masks[index][shape] = row["category_id"] - 1
    return masks


def cvat_archive(out: Path) -> tuple[dict[str, tuple[int, int, int]], dict[str, np.ndarray]]:
    """Labels with their colours, and pictures by member, as CVAT's documentation says."""
    pictures: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(out / "cvat.zip") as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()
        assert lines[0] == "# label:color_rgb:parts:actions"
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split("\n")[0] == (
            "sub/a b"
        )
        for name in archive.namelist():
            if name.endswith(".png"):
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    assert image.mode == "RGB"
                    pictures[name] = np.asarray(image)
    labels: dict[str, tuple[int, int, int]] = {}
    for line in lines[1:]:
        name, color, parts, actions = line.split(":")
        red, green, blue = map(int, color.split(","))
        labels[name] = (red, green, blue)
        assert (parts, actions) == ("", "")
    return labels, pictures


def test_cvat_has_a_color_a_label_and_black_where_unreliable(
    tmp_path: Path, entries: list[Entry]
) -> None:
    out = written("cvat", tmp_path, entries)
    labels, pictures = cvat_archive(out)
    assert list(labels) == ["background", *CLASSES]
    assert labels["background"] == (0, 0, 0)
    assert len({*labels.values()}) == 4
    table = {color: place - 1 for place, color in enumerate(labels.values())}
    for index, name in enumerate(("sub/a b", "sub/c.d")):
        picture = pictures[f"SegmentationClass/{name}.png"]
        ids = np.array([[table[tuple(p)] for p in row] for row in picture.tolist()])
        assert np.array_equal(np.where(ids < 0, 255, ids), true_mask(index))
        objects = pictures[f"SegmentationObject/{name}.png"]
        assert np.array_equal((objects == 0).all(axis=2), ids < 0)
    raw = json.loads((out / "cvat-labels.json").read_text())
    assert [row["name"] for row in raw] == list(CLASSES)
    assert all(row["color"] != "#000000" for row in raw)


def test_cvat_gives_unreliable_pixels_a_label_where_black_is_a_class(
    tmp_path: Path, entries: list[Entry]
) -> None:
    wishes = Wishes(("background", "wall", "car"), WISHES.colors, 255)
    out = written("cvat", tmp_path, entries, wishes)
    labels, pictures = cvat_archive(out)
    assert list(labels) == ["background", "wall", "car", "ignore"]
    picture, mask = pictures["SegmentationClass/sub/a b.png"], true_mask(0)
    assert np.array_equal((picture == 0).all(axis=2), mask == 0)
    assert np.array_equal((picture == labels["ignore"]).all(axis=2), mask == 255)
    raw = [row["name"] for row in json.loads((out / "cvat-labels.json").read_text())]
    assert raw == ["wall", "car", "ignore"]


@pytest.mark.parametrize("name", ["a:b", "#a", " a"])
def test_cvat_refuses_names_that_its_list_cannot_hold(name: str) -> None:
    with pytest.raises(UserError, match=r"labelmap\.txt cannot hold the class"):
        FORMATS["cvat"].check([name])


def test_equal_labels_make_equal_archives(tmp_path: Path, entries: list[Entry]) -> None:
    first = (written("cvat", tmp_path, entries) / "cvat.zip").read_bytes()
    assert (written("cvat", tmp_path, entries) / "cvat.zip").read_bytes() == first


def test_label_studio_has_a_prediction_of_brushes(tmp_path: Path, entries: list[Entry]) -> None:
    out = written("labelstudio", tmp_path, entries)
    tasks = json.loads((out / "label-studio.json").read_text())
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=sub/a%20b.jpg"}
    interface = ElementTree.fromstring((out / "label-studio.xml").read_text())
    assert [label.attrib["value"] for label in interface.iter("Label")] == list(CLASSES)
    (brush,), (picture,) = interface.iter("BrushLabels"), interface.iter("Image")
    assert brush.attrib["toName"] == picture.attrib["name"]
    for index in (0, 1):
        (prediction,) = tasks[index]["predictions"]
        mask = np.full(SIZE, 255)
        for region in prediction["result"]:
            assert region["type"] == "brushlabels"
            assert region["from_name"] == brush.attrib["name"]
            assert region["to_name"] == picture.attrib["name"]
            assert (region["original_height"], region["original_width"]) == SIZE
            (label,) = region["value"]["brushlabels"]
            mask[unpack_rgba(region["value"]["rle"], SIZE)] = CLASSES.index(label)
        assert np.array_equal(mask, true_mask(index))
    assert tasks[2]["predictions"][0]["result"] == []


def test_yolo_polygons_paint_the_mask(tmp_path: Path, entries: list[Entry]) -> None:
    """Painted by Pillow at eight times the size, whose rule for borders is another one."""
    folder = written("yolo", tmp_path, entries) / "yolo"
    head: dict[str, Any] = yaml.safe_load((folder / "data.yaml").read_text())
    assert head["names"] == dict(enumerate(CLASSES))
    assert (folder / head["train"]).read_text().splitlines()[0] == "images/train/sub/a b.jpg"
    assert (folder / "labels/train/empty.txt").read_text() == ""
    for index, name in enumerate(("sub/a b", "sub/c.d")):
        large = Image.new("L", (SIZE[1] * 8, SIZE[0] * 8), 255)
        for line in (folder / f"labels/train/{name}.txt").read_text().splitlines():
            key, *values = line.split()
            shares = np.array(values, float).reshape(-1, 2)
            assert len(shares) >= 3
            assert ((shares >= 0) & (shares <= 1)).all()
            corners = (shares * (large.width, large.height)).ravel().tolist()
            ImageDraw.Draw(large).polygon(corners, fill=int(key))
        found = np.asarray(large)[4::8, 4::8]
        assert (found == true_mask(index)).mean() > 0.95  # a hole's cut is a line to Pillow


def test_formats_are_named_with_or_without_a_hyphen() -> None:
    assert format_named("label-studio") == format_named("labelstudio") == "labelstudio"
    with pytest.raises(UserError, match=r"got 'cvta'\. Did you mean 'cvat'\?"):
        format_named("cvta")


def test_colors_are_kept_where_they_are_free() -> None:
    given = [(1, 2, 3), (0, 0, 0), (1, 2, 3), (9, 9, 9)]
    found = distinct_colors(given)
    assert (found[0], found[3]) == ((1, 2, 3), (9, 9, 9))
    assert len({*found, (0, 0, 0)}) == 5
    assert len({*distinct_colors([(0, 0, 0)] * 200)}) == 200
