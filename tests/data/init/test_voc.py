"""VOC's tree as its development kit lays it out: palette PNGs, 255 around objects, lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl.data.class_tables import VOC
from u2pl.data.init import init_dataset
from u2pl.data.sources import default_colors
from u2pl.errors import UserError

PALETTE = [value for color in default_colors(256) for value in color]


def voc_tree(root: Path, *, ids: tuple[int, ...] = (0, 5, 20, 255)) -> Path:
    generator = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for place in range(8):
        pixels = generator.integers(0, 256, (40, 56, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/2007_{place:06d}.jpg")
        if place < 5:
            mask = Image.fromarray(np.resize(np.array(ids, np.uint8), (40, 56)))
            mask.putpalette(PALETTE)
            mask.save(root / f"SegmentationClass/2007_{place:06d}.png")
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("2007_000003\n2007_000001\n")
    (lists / "val.txt").write_text("2007_000000\n")
    (lists / "trainval.txt").write_text("2007_000003\n2007_000001\n2007_000000\n")
    return root


def test_tree_is_read_by_its_lists_and_the_rest_is_unlabelled(tmp_path: Path) -> None:
    result = init_dataset(voc_tree(tmp_path))
    data = result.dataset
    assert result.format == "voc"
    assert [s.name for s in data.labeled] == ["2007_000003", "2007_000001"]
    assert [s.name for s in data.val] == ["2007_000000"]
    assert sorted(s.name[-1] for s in data.unlabeled) == ["2", "4", "5", "6", "7"]
    assert data.classes == VOC
    assert data.colors == default_colors(21)
    assert np.unique(data.read_mask(data.val[0])).tolist() == [0, 5, 20, 255]


def test_tree_of_other_classes_is_not_given_the_names_of_voc(tmp_path: Path) -> None:
    data = init_dataset(voc_tree(tmp_path, ids=(0, 1, 2, 255))).dataset
    assert data.classes == ("class_0", "class_1", "class_2")
    (tmp_path / "classes.txt").write_text("ground\nwall\ntree\n")
    assert init_dataset(tmp_path, overwrite=True).dataset.classes == ("ground", "wall", "tree")


def test_tree_without_lists_labels_what_has_a_mask(tmp_path: Path) -> None:
    voc_tree(tmp_path)
    for path in (tmp_path / "ImageSets/Segmentation").iterdir():
        path.unlink()
    data = init_dataset(tmp_path, val="1").dataset
    assert (len(data.labeled), len(data.val), len(data.unlabeled)) == (4, 1, 3)


def test_list_of_a_missing_mask_is_refused(tmp_path: Path) -> None:
    voc_tree(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000001\n2007_000006\n")
    with pytest.raises(UserError, match=r"1 of 2 names have no mask in SegmentationClass/: 2007"):
        init_dataset(tmp_path)
