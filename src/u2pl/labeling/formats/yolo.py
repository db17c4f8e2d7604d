"""Ultralytics YOLO segmentation: a text file of polygons an image, and data.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from u2pl.data.images import refuse_way_out, write_whole
from u2pl.data.outlines import outlines
from u2pl.labeling.formats.entry import Entry, Wishes, class_masks
from u2pl.labeling.formats.place import fresh_folder

NAME = "yolo"

_SUBSET = "train"


def check(classes: Sequence[str]) -> None:
    """Every name can stand in YAML."""


def write(out: Path, entries: Sequence[Entry], wishes: Wishes) -> list[Path]:
    """Write ``yolo/data.yaml``, ``yolo/train.txt`` and ``yolo/labels/train/NAME.txt``.

    A class's parts are polygons of their own; unreliable pixels have none. The images belong in
    ``yolo/images/train``.
    """
    folder = fresh_folder(out, "yolo")
    names = dict(enumerate(wishes.classes))
    head = {"path": ".", _SUBSET: f"{_SUBSET}.txt", "names": names}
    texts = {
        folder / "data.yaml": yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        folder / f"{_SUBSET}.txt": "".join(f"images/{_SUBSET}/{e.image}\n" for e in entries),
    }
    for path, text in texts.items():
        _write(path, text)
    for entry in entries:
        path = folder / "labels" / _SUBSET / f"{entry.name}.txt"
        refuse_way_out(folder, path)
        _write(path, "".join(f"{line}\n" for line in _lines(entry, wishes)))
    return [folder]


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def _lines(entry: Entry, wishes: Wishes) -> list[str]:
    """A line a polygon: the class id, then x and y of each corner as shares of the sides."""
    sides = np.array([entry.size[1], entry.size[0]], np.float64)
    lines = []
    for class_id, mask in class_masks(entry.labels(wishes), len(wishes.classes)):
        for corners in outlines(mask, tolerance=wishes.simplify, min_area=wishes.min_area):
            shares = (corners / sides).clip(0, 1).ravel()
            lines.append(" ".join([str(class_id), *(f"{share:.6f}" for share in shares)]))
    return lines
