"""Cityscapes' tree as its archives unpack: labelIds by split and city."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl.data.init import init_dataset
from u2pl.errors import UserError


def cityscapes_tree(root: Path, *, kind: str = "labelIds", extra: bool = True) -> Path:
    splits = {"train": ["aachen", "bochum"], "val": ["lindau"], "test": ["berlin"]}
    if extra:
        splits["train_extra"] = ["bayreuth"]
    for split, cities in splits.items():
        for city in cities:
            stem = f"{city}_000000_000019"
            image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            image.parent.mkdir(parents=True)
            Image.new("RGB", (56, 40)).save(image)
            if split == "train_extra":
                continue
            ids = np.resize(np.array([0, 3, 7, 26, 33], np.uint8), (40, 56))
            folder = root / "gtFine" / split / city
            folder.mkdir(parents=True)
            Image.fromarray(ids).save(folder / f"{stem}_gtFine_{kind}.png")
            Image.fromarray(ids).save(folder / f"{stem}_gtFine_instanceIds.png")
    return root


def test_label_ids_become_the_19_classes_and_the_test_split_is_left_out(tmp_path: Path) -> None:
    result = init_dataset(cityscapes_tree(tmp_path))
    data = result.dataset
    assert result.format == "cityscapes"
    assert [s.name for s in data.labeled] == [
        "aachen/aachen_000000_000019_leftImg8bit", "bochum/bochum_000000_000019_leftImg8bit"
    ]  # fmt: skip
    assert (len(data.val), len(data.unlabeled), len(data.test)) == (1, 1, 0)
    assert len(data.classes) == 19
    labels = data.read_mask(data.labeled[0])
    assert np.unique(labels).tolist() == [0, 13, 18, 255]
    assert [data.classes[i] for i in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert (labels == 255).mean() == pytest.approx(2 / 5, abs=0.01)


def test_tree_without_label_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected \*_gtFine_labelIds\.png in .*train, found none"):
        init_dataset(cityscapes_tree(tmp_path, kind="color"))
    with pytest.raises(UserError, match="have classes of their own"):
        init_dataset(tmp_path, classes=("a",))


def test_tree_without_extra_images_has_no_unlabelled_ones(tmp_path: Path) -> None:
    result = init_dataset(cityscapes_tree(tmp_path, extra=False))
    assert result.dataset.unlabeled == ()
    assert "unlabeled: none; `u2pl data split` can make some." in result.conclusions
