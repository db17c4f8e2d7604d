"""India Driving Dataset (IDD), segmentation, at level 3 of its labels."""

from __future__ import annotations

import glob
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from u2pl.data.class_tables import IDD, IDD_IGNORED
from u2pl.data.images import FileError, image_size
from u2pl.data.init.draft import Encoding, list_images, read_json
from u2pl.data.prepare.job import Benchmark, Draft, Job, Labels, Part, Section, require_pairs
from u2pl.errors import shown

_PAGE = "https://idd.insaan.iiit.ac.in/"
_PARTS = {
    "1": Part(
        name="idd-1",
        archives=("idd-segmentation.tar.gz",),
        page=_PAGE,
        holds=("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"),
        places=("IDD_Segmentation", "", "idd-segmentation/IDD_Segmentation"),
    ),
    "2": Part(
        name="idd-2",
        archives=("idd-20k-II.tar.gz",),
        page=_PAGE,
        holds=("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"),
        places=("idd20kII", "", "idd-20k-II/idd20kII"),
    ),
}
_IMAGE_TAIL, _JSON_TAIL = "_leftImg8bit", "_gtFine_polygons.json"
_MASK_TAIL = "_gtFine_labellevel3Ids.png"  # as AutoNUE's createLabels.py names what it paints
_SPLITS = {"labeled": "train", "val": "val"}
_IGNORE = 255
_IDS = {
    label: place for place, (name, _, others) in enumerate(IDD) for label in (name, *others)
} | dict.fromkeys(IDD_IGNORED, _IGNORE)


def _draft(job: Job) -> Draft:
    part = _PARTS[job.variant]
    root = job.tree(part)
    draft = Draft(Encoding(tuple(name for name, *_ in IDD), tuple(color for _, color, _ in IDD)))
    ready = {split: _keys(root / "gtFine" / split, _MASK_TAIL) for split in _SPLITS.values()}
    is_ready = all(ready.values())
    for section, split in _SPLITS.items():
        images, gt = root / "leftImg8bit" / split, root / "gtFine" / split
        files = {
            file.rpartition(_IMAGE_TAIL)[0]: images / file
            for file in list_images(images)
            if Path(file).stem.endswith(_IMAGE_TAIL)
        }
        there = ready[split] if is_ready else _keys(gt, _JSON_TAIL)
        require_pairs(part, [*files], frozenset(there), where=gt)
        masks = gt if is_ready else job.out / "masks" / split
        if not is_ready:
            for key, image in files.items():
                make = partial(paint_polygons, gt / f"{key}{_JSON_TAIL}", image)
                draft.masks[masks / f"{key}{_MASK_TAIL}"] = make
        keys = {
            "images": f"{glob.escape(job.spell(images))}/*/*{_IMAGE_TAIL}.*",
            "masks": f"{glob.escape(job.spell(masks))}/*/*{_MASK_TAIL}",
        }
        draft.sections[section] = Section(keys, len(files), part)
    draft.notes.append(
        f"Masks: the *{_MASK_TAIL} that are there."
        if is_ready
        else "Masks: painted of the polygons as AutoNUE's createLabels.py does, with the ids of "
        "level 3."
    )
    return draft


def _keys(folder: Path, tail: str) -> list[str]:
    """Return sequence and frame of each file with a tail."""
    files = list_images(folder, (Path(tail).suffix,))
    return [file.removesuffix(tail) for file in files if file.endswith(tail)]


def paint_polygons(path: Path, image: Path) -> Labels:
    """Return the polygons of a frame as class ids [H, W]; 255 where none lies.

    They are painted in their order, later ones over earlier ones; deleted ones are left out, and a
    group, such as ``cargroup``, counts as what it is a group of.

    Args:
        path: the JSON file.
        image: whose size it must have.

    Raises:
        UserError: where the file is no such JSON, has an unknown label, or is of another image.
    """
    tree = read_json(path)
    try:
        size = int(tree["imgHeight"]), int(tree["imgWidth"])
        shapes = [
            (_id_of(row["label"]), [_corner(corner) for corner in row["polygon"]])
            for row in tree["objects"]
            if not row.get("deleted")
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"it is not as IDD's polygons are ({type(error).__name__} {error})"
        raise FileError(path, what, "unpack its archive again") from None
    if size != image_size(image):
        raise FileError(path, f"it is not of the size of {image}", "unpack its archive again")
    canvas = Image.new("L", size[::-1], _IGNORE)
    draw = ImageDraw.Draw(canvas)
    for class_id, corners in shapes:
        if len(corners) > 1:
            draw.polygon(corners, fill=class_id)
    return np.array(canvas)


def _id_of(label: Any) -> int:
    """Return the class id of a polygon's label."""
    name = label if label in _IDS else str(label).removesuffix("group")
    if name not in _IDS:
        raise ValueError(f"with the unknown label {shown(label)}")
    return _IDS[name]


def _corner(value: Any) -> tuple[float, float]:
    x, y = (float(number) for number in value)
    if not (math.isfinite(x) and math.isfinite(y) and max(abs(x), abs(y)) < 1e6):
        raise ValueError(f"with the corner {shown(value)}")
    return x, y


BENCHMARK = Benchmark(
    name="idd",
    title="IDD segmentation, level 3",
    variants={"1": "IDD 20k, part I", "2": "IDD 20k, part II"},
    counts={"1": {"labeled": 6993, "val": 981}, "2": {"labeled": 7034, "val": 1055}},
    parts=tuple(_PARTS.values()),
    licence=(
        "IDD: terms of its own, accepted at registration (https://idd.insaan.iiit.ac.in/). Cite "
        "Varma et al., WACV 2019."
    ),
    draft=_draft,
)
