"""Label Studio's JSON. ``label_studio.json`` was written by label-studio-sdk 2.1.2.

Its brushes are of ``label_studio_sdk.converter.brush.image2annotation``, from the two masks that
are computed below; a polygon and a box were added as the export's schema has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from u2pl.data.init import init_dataset
from u2pl.data.init.label_studio import decode_brush
from u2pl.errors import UserError

FILE = Path(__file__).parent / "label_studio.json"
SIZE = (40, 56)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
DISK = (ROWS - 20) ** 2 + (COLUMNS - 20) ** 2 < 100
DOTS = ((ROWS * 7 + COLUMNS * 3) % 11 == 0) & (COLUMNS > 30)


def brush(task: int) -> list[int]:
    annotation = json.loads(FILE.read_text())[task]["annotations"][0]
    rle: list[int] = annotation["result"][0]["value"]["rle"]
    return rle


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for place in range(5):
        image = Image.new("RGB", (SIZE[1], SIZE[0]), (place, 0, 0))
        image.save(tmp_path / f"images/labeled_{place}.png")
    (tmp_path / "export.json").write_bytes(FILE.read_bytes())
    return tmp_path


def edit(project: Path, change: Any) -> None:
    tree = json.loads((project / "export.json").read_text())
    change(tree)
    (project / "export.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(("task", "mask"), [(0, DISK), (1, DOTS)])
def test_brush_of_the_sdk_decodes_to_its_mask(task: int, mask: np.ndarray) -> None:
    assert np.array_equal(decode_brush(brush(task), SIZE, Path("x.json")), mask)


def test_brushes_and_polygons_are_painted_in_their_order(project: Path) -> None:
    result = init_dataset(project, val="1")
    data = result.dataset
    assert result.format == "labelstudio"
    assert data.classes == ("background", "tree", "wall")
    assert (len(data.labeled), len(data.val), len(data.unlabeled)) == (1, 1, 3)
    by_name = {s.name: data.read_mask(s) for s in (*data.labeled, *data.val)}
    first = np.zeros(SIZE, int)
    first[DISK], first[20:, 28:] = 2, 1  # the polygon, 50 to 100 %, was drawn later
    assert np.array_equal(by_name["labeled_0"], first)
    assert np.array_equal(by_name["labeled_1"], DOTS.astype(int))
    assert "Left out, since they are no masks: 1 'rectanglelabels'." in result.conclusions


def test_images_beside_the_export_are_found_and_masks_are_no_images(project: Path) -> None:
    for file in (project / "images").iterdir():
        file.rename(project / file.name)
    (project / "images").rmdir()
    data = init_dataset(project, val="1").dataset
    assert {s.name for s in data.unlabeled} == {f"labeled_{i}" for i in (2, 3, 4)}


def test_classes_have_the_order_that_was_given(project: Path) -> None:
    data = init_dataset(project, val="1", classes=("wall", "tree"), uncovered="ignore").dataset
    assert data.classes == ("wall", "tree")
    with pytest.raises(UserError, match="has labels that --classes does not name: tree"):
        init_dataset(project, val="1", classes=("wall",), overwrite=True)


def test_ground_truth_wins_and_cancelled_annotations_do_not_count(project: Path) -> None:
    def change(tree: Any) -> None:
        good = tree[1]["annotations"][0] | {"ground_truth": True}
        other = {"result": [good["result"][0] | {"original_width": 9}], "was_cancelled": True}
        tree[1]["annotations"] = [other, {"result": []}, good]
        tree[0]["annotations"][0]["was_cancelled"] = True

    edit(project, change)
    edit(project, lambda tree: tree.append(tree[1] | {"data": {"image": "labeled_3.png"}}))
    data = init_dataset(project, val="1").dataset
    assert {s.name for s in (*data.labeled, *data.val)} == {"labeled_1", "labeled_3"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t[0]["data"].update(image="no.png"), "the image of task 1 in .*/images"),
        (lambda t: t[1]["data"].update(image="labeled_0.png"), "two tasks are of the image"),
        (lambda t: shape(t).update(original_width=9), "9 x 40"),
        (lambda t: shape(t).update(original_width="9"), "one label and its image's size"),
        (lambda t: shape(t).update(image_rotation=90), "task 1 are of a turned image"),
        (lambda t: shape(t)["value"].update(brushlabels=["a", "b"]), "one label"),
        (lambda t: shape(t)["value"].update(rle=[1, 2]), "a brush's RLE that fits its image"),
        (lambda t: shape(t)["value"].update(rle=10**12), "a brush's RLE that fits its image"),
        (lambda t: shape(t)["value"].update(rle=brush(0)[:-9]), "a brush's RLE that fits"),
        (lambda t: shape(t, 1)["value"].update(points=[[0, 0], [1, 1]]), "a polygon of three"),
        (lambda t: shape(t, 1)["value"].update(points=[[0, 0], [1, 1], [1e9, 0]]), "a polygon of"),
        (lambda t: [row.update(annotations=[]) for row in t], "names no class"),
    ],
)
def test_faulty_exports_are_a_sentence(project: Path, change: Any, what: str) -> None:
    edit(project, change)
    with pytest.raises(UserError, match=what):
        init_dataset(project, val="1")
    assert not (project / "dataset-files").exists()


def shape(tree: Any, place: int = 0) -> Any:
    return tree[0]["annotations"][0]["result"][place]


def test_export_of_another_kind_is_refused(project: Path) -> None:
    edit(project, lambda tree: tree.append({"image": "x.png", "tag": []}))
    with pytest.raises(UserError, match="export it as JSON"):
        init_dataset(project / "export.json", val="1")
