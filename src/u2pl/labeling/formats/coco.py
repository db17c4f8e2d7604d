"""COCO's instances: one file of RLE, which is exact, and one of polygons, which are editable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.data.init.coco import runs_of, text_of_runs
from u2pl.data.outlines import area, outlines
from u2pl.labeling.formats.entry import Entry, Wishes, class_masks
from u2pl.labeling.formats.place import JsonList, text_file

NAME = "coco"

_Shape = dict[str, Any]
_Spell = Callable[[npt.NDArray[np.bool_], Wishes], Iterator[_Shape]]


def check(classes: Sequence[str]) -> None:
    """Every name can stand in JSON."""


def write(out: Path, entries: Sequence[Entry], wishes: Wishes) -> list[Path]:
    """Write ``coco.json`` and ``coco-polygons.json``; category ids are class ids plus 1."""
    files = [out / "coco.json", out / "coco-polygons.json"]
    for path, spell in zip(files, (_as_rle, _as_polygons), strict=True):
        _write(path, entries, wishes, spell)
    return files


def _write(path: Path, entries: Sequence[Entry], wishes: Wishes, spell: _Spell) -> None:
    categories = [
        {"id": place + 1, "name": name, "supercategory": ""}
        for place, name in enumerate(wishes.classes)
    ]
    info = {"description": f"Pseudo-labels of {wishes.model}"}
    with text_file(path) as file:
        file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n')
        file.write(f'"categories": {json.dumps(categories, ensure_ascii=False)},\n"images": ')
        images = JsonList(file)
        for number, entry in enumerate(entries, start=1):
            size = {"height": entry.size[0], "width": entry.size[1]}
            images.add({"id": number, "file_name": entry.image, **size})
        images.end()
        file.write(',\n"annotations": ')
        annotations, count = JsonList(file), 0
        for number, entry in enumerate(entries, start=1):
            for class_id, mask in class_masks(entry.labels(wishes), len(wishes.classes)):
                for shape in spell(mask, wishes):
                    count += 1
                    ids = {"id": count, "image_id": number, "category_id": class_id + 1}
                    annotations.add({**ids, "iscrowd": 0, **shape})
        annotations.end()
        file.write("}\n")


def _as_rle(mask: npt.NDArray[np.bool_], _: Wishes) -> Iterator[_Shape]:
    """A class's pixels as one shape."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    counts = text_of_runs(runs_of(mask))
    yield {
        "segmentation": {"size": [mask.shape[0], mask.shape[1]], "counts": counts},
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
    }


def _as_polygons(mask: npt.NDArray[np.bool_], wishes: Wishes) -> Iterator[_Shape]:
    """Each connected part as a shape of its own."""
    for corners in outlines(mask, tolerance=wishes.simplify, min_area=wishes.min_area):
        low, high = corners.min(axis=0), corners.max(axis=0)
        yield {
            "segmentation": [corners.ravel().round(2).tolist()],
            "area": round(abs(area(corners)), 2),
            "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        }
