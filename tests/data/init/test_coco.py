"""COCO's JSON, written with pycocotools' own encoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from u2pl.data.init import init_dataset
from u2pl.data.init.coco import decode
from u2pl.errors import UserError

coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is an extra")

SIZE = (40, 56)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """pycocotools' own RLE, its counts as text, as JSON has it."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Runs down the columns, of zeros first, as crowd regions have them."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def disk(y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


LARGE, SMALL = disk(20, 20, 15), disk(20, 20, 5)


def write_json(path: Path, annotations: list[dict[str, Any]], *, first: int = 0) -> Path:
    """Three images, ``first`` on; categories with ids of their own."""
    tree = {
        "images": [
            {"id": 7 + i, "file_name": f"{first + i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in range(3)
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": i, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1, **row}
            for i, row in enumerate(annotations)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def write_images(folder: Path, *numbers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / f"{number:012d}.jpg")


SHAPES = [
    {"image_id": 7, "category_id": 18, "segmentation": compressed(SMALL)},
    {"image_id": 7, "category_id": 3, "segmentation": uncompressed(LARGE), "iscrowd": 1},
    {"image_id": 8, "category_id": 3, "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]},
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """annotations/instances_*.json beside train2017/, val2017/ and unlabeled2017/."""
    write_json(tmp_path / "annotations/instances_train2017.json", SHAPES)
    write_json(tmp_path / "annotations/instances_val2017.json", SHAPES, first=100)
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    write_images(tmp_path / "train2017", 0, 1, 2, 3)
    write_images(tmp_path / "val2017", 100, 101, 102)
    write_images(tmp_path / "unlabeled2017", 200, 201)
    return tmp_path


def test_polygons_and_both_kinds_of_rle_are_painted(tree: Path) -> None:
    result = init_dataset(tree)
    data = result.dataset
    assert result.format == "coco"
    assert data.classes == ("background", "car", "dog")
    first = np.zeros(SIZE, int)
    first[LARGE], first[SMALL] = 1, 2  # the smaller one lies before, whatever their order
    assert np.array_equal(data.read_mask(data.labeled[0]), first)
    second = np.zeros(SIZE, int)
    second[10:20, 10:30] = 1
    assert np.array_equal(data.read_mask(data.labeled[1]), second)
    assert [s.name for s in data.val] == [f"{n:012d}" for n in (100, 101)]


def test_images_without_a_shape_are_unlabelled_and_told(tree: Path) -> None:
    result = init_dataset(tree)
    names = {s.name for s in result.dataset.unlabeled}
    assert names == {
        f"{folder}/{n:012d}" for folder, n in
        [("train2017", 2), ("train2017", 3), ("unlabeled2017", 200), ("unlabeled2017", 201)]
    }  # fmt: skip
    assert any(
        "2 images without a shape. They may hold nothing, or" in t for t in result.conclusions
    )


def test_uncovered_pixels_are_background_or_ignored_and_it_is_said(tree: Path) -> None:
    said = " ".join(init_dataset(tree).conclusions)
    uncovered = 100 * (1 - (LARGE.sum() + 200) / (2 * LARGE.size))
    assert f"{uncovered:.1f} % of the pixels are covered by no shape: 'background'." in said
    assert f"{100 * SMALL.sum() / (2 * SMALL.size):.2f} % are covered by shapes of more" in said
    result = init_dataset(tree, uncovered="ignore", overwrite=True)
    assert result.dataset.classes == ("car", "dog")
    labels = result.dataset.read_mask(result.dataset.labeled[0])
    assert np.unique(labels).tolist() == [0, 1, 255]


def test_source_is_left_as_it_was(tree: Path) -> None:
    before = {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    init_dataset(tree)
    after = {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    assert before.items() <= after.items()
    new = {p.relative_to(tree).parts[0] for p in set(after) - set(before)}
    assert new == {"dataset.yaml", "dataset-files"}


def test_one_file_beside_its_images_is_read(tmp_path: Path) -> None:
    path = write_json(tmp_path / "export.json", SHAPES)
    write_images(tmp_path / "images", 0, 1, 2)
    data = init_dataset(path, val="1").dataset
    assert (len(data.labeled), len(data.val), len(data.unlabeled)) == (1, 1, 1)


def test_folders_of_roboflow_are_read(tmp_path: Path) -> None:
    for folder, first in (("train", 0), ("valid", 100)):
        write_json(tmp_path / folder / "_annotations.coco.json", SHAPES, first=first)
        write_images(tmp_path / folder, *range(first, first + 3))
    data = init_dataset(tmp_path).dataset
    assert (len(data.labeled), len(data.val), len(data.unlabeled)) == (2, 2, 1)


def test_images_elsewhere_are_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a/export.json", SHAPES)
    write_images(tmp_path / "b", 0, 1)
    with pytest.raises(UserError, match=r"the 2 images of export\.json below one folder.*--images"):
        init_dataset(path, val="1")
    assert init_dataset(path, val="1", images=tmp_path / "b").dataset.labeled


@pytest.mark.parametrize("mask", [LARGE, ~LARGE, LARGE & False, LARGE | True, disk(0, 0, 9)])
def test_rle_of_pycocotools_decodes_to_its_mask(mask: np.ndarray) -> None:
    for rle in (compressed(mask), uncompressed(mask)):
        assert np.array_equal(decode(rle, SIZE, Path("x.json")), mask)


def test_polygons_need_pycocotools_and_rle_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'u2pl\[coco\]'"):
        decode([[0, 0, 9, 0, 9, 9]], SIZE, Path("x.json"))
    assert decode(uncompressed(LARGE), SIZE, Path("x.json")).any()


def test_rle_of_noise_decodes_to_its_mask() -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random(SIZE) < 0.5
        assert np.array_equal(decode(compressed(mask), SIZE, Path("x.json")), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        ["x"],
        "text",
        {"size": [9, 9], "counts": [81]},
        {"size": list(SIZE), "counts": [9]},
        {"size": list(SIZE), "counts": [40 * 56 + 1, -1]},
        {"size": list(SIZE), "counts": "~~~~"},
        {"size": list(SIZE), "counts": "PPPPPPPPPPPPPPPPPPPPPPPPPPPP"},
        {"size": list(SIZE), "counts": "\u2028"},
        {"size": list(SIZE)},
    ],
    ids=str,
)
def test_faulty_shapes_are_a_sentence(segmentation: Any) -> None:
    with pytest.raises(UserError, match="expected polygons or RLE that fit their image"):
        decode(segmentation, SIZE, Path("x.json"))


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "x.txt", "C:/x.jpg", 3]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: Any) -> None:
    path = write_json(tmp_path / "export.json", SHAPES)
    tree = json.loads(path.read_text())
    tree["images"][0]["file_name"] = name
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="the name of an image below its folder"):
        init_dataset(path, val="1")
    assert [p.name for p in tmp_path.iterdir()] == ["export.json"]


def test_image_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "export.json", SHAPES)
    write_images(tmp_path, 0, 1, 2)
    Image.new("RGB", (9, 9)).save(tmp_path / f"{1:012d}.jpg")
    with pytest.raises(UserError, match=r"the image is 9 x 9 pixels .*export\.json says 56 x 40"):
        init_dataset(path, val="1")


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.pop("images"),
        lambda tree: tree["images"][0].pop("id"),
        lambda tree: tree["images"][0].update(height="x"),
        lambda tree: tree["images"][0].update(height=10**9),
        lambda tree: tree["annotations"][0].update(category_id=99),
        lambda tree: tree["annotations"].append(7),
        lambda tree: tree["categories"].append({"id": 5, "name": "car"}),
        lambda tree: tree.update(annotations=[]),
    ],
)
def test_faulty_json_is_a_sentence(tmp_path: Path, change: Any) -> None:
    path = write_json(tmp_path / "export.json", SHAPES)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    write_images(tmp_path, 0, 1, 2)
    with pytest.raises(UserError, match=r"export\.json"):
        init_dataset(path, val="1")
    path.write_text("{")
    with pytest.raises(UserError, match="is not a JSON file"):
        init_dataset(path, val="1")
