"""CVAT's "Segmentation mask 1.1", laid out as its documentation says."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl.data.init import init_dataset
from u2pl.errors import UserError

LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
car:112,32,96::
road:128,64,128::
"""
COLORS = np.array([(0, 0, 0), (112, 32, 96), (128, 64, 128)], np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def members(*, with_images: bool = True) -> dict[str, bytes]:
    """taskname.zip: labelmap.txt, ImageSets, SegmentationClass, SegmentationObject, JPEGImages."""
    files = {
        "labelmap.txt": LABELMAP.encode(),
        "ImageSets/Segmentation/default.txt": b"frame_000000\nframe_000001\nframe_000002\n",
    }
    for place in range(3):
        ids = np.resize(np.array([0, 1, 2, place], np.uint8), (40, 56))
        mask = png(COLORS[ids])
        files[f"SegmentationClass/frame_00000{place}.png"] = mask
        files[f"SegmentationObject/frame_00000{place}.png"] = mask
        if with_images:
            image = np.random.default_rng(place).integers(0, 256, (40, 56, 3), np.uint8)
            files[f"JPEGImages/frame_00000{place}.png"] = png(image)
    return files


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_archive_is_unpacked_beside_and_read_by_its_labelmap(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "task.zip", members())
    before = archive.read_bytes()
    result = init_dataset(archive, val="1")
    data = result.dataset
    assert result.format == "cvat"
    assert (data.classes, data.colors) == (
        ("background", "car", "road"),
        tuple(tuple(color) for color in COLORS.tolist()),
    )
    assert (len(data.labeled), len(data.val)) == (2, 1)
    image = next(s for s in (*data.labeled, *data.val) if s.name == "frame_000002")
    expected = np.resize(np.array([0, 1, 2, 2]), (40, 56))
    assert np.array_equal(data.read_mask(image), expected)
    assert archive.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "task.zip", "dataset.yaml", "dataset-files"
    }  # fmt: skip
    assert not list(tmp_path.rglob("SegmentationObject"))


def test_unpacked_export_is_read_where_it_lies(tmp_path: Path) -> None:
    for name, content in members().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    result = init_dataset(tmp_path, val="1")
    assert result.format == "cvat"
    assert result.dataset.labeled[0].mask is not None
    assert result.dataset.labeled[0].mask.parent == tmp_path.resolve() / "SegmentationClass"


def test_images_that_were_not_exported_are_taken_from_elsewhere(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "task.zip", members(with_images=False))
    with pytest.raises(UserError, match=r"images of 3 masks.*export with 'Save images', or name"):
        init_dataset(archive, val="1")
    (tmp_path / "photos").mkdir()
    for place in range(5):
        Image.new("RGB", (56, 40)).save(tmp_path / f"photos/frame_00000{place}.jpg")
    data = init_dataset(archive, val="1", images=tmp_path / "photos").dataset
    assert (len(data.labeled), len(data.val), len(data.unlabeled)) == (2, 1, 2)


def test_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "task.zip", {"annotations.xml": b"<annotations/>"})
    with pytest.raises(UserError, match=r"export the task as 'Segmentation mask 1\.1'"):
        init_dataset(archive)
    assert [path.name for path in tmp_path.iterdir()] == ["task.zip"]


def test_member_that_leads_outside_writes_nothing(tmp_path: Path) -> None:
    evil = members() | {"SegmentationClass/../../../evil.png": b"x"}
    (tmp_path / "in").mkdir()
    archive = write_zip(tmp_path / "in" / "task.zip", evil)
    with pytest.raises(UserError, match="would be written outside of"):
        init_dataset(archive, val="1")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]
