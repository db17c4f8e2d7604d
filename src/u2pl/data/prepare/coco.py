"""COCO 2017 as 81 classes: the background and 80 kinds of things."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from u2pl.data.class_tables import COCO
from u2pl.data.init.coco import Instances, decode, read_instances
from u2pl.data.init.draft import Encoding, list_images, name_of, some
from u2pl.data.prepare.job import Benchmark, Draft, Job, Labels, Part, Section, require_pairs
from u2pl.errors import UserError

_PAGE = "https://cocodataset.org/#download"
_PLACES = ("", "images", "coco", "coco/images")
_SPLITS = {"labeled": "train2017", "val": "val2017"}
_IMAGES = {
    split: Part(
        name=split,
        archives=(f"{split}.zip",),
        page=_PAGE,
        holds=(f"{split}/*.jpg",),
        places=_PLACES,
    )
    for split in _SPLITS.values()
}
_MASKS = Part(
    name="masks",
    archives=("masks.zip",),
    page="https://github.com/LiheYoung/UniMatch",
    holds=("masks/*.png",),
    places=("", "coco"),
)
_ANNOTATIONS = Part(
    name="annotations",
    archives=("annotations_trainval2017.zip",),
    page=_PAGE,
    holds=tuple(f"annotations/instances_{split}.json" for split in _SPLITS.values()),
    places=("", "coco"),
)


def _draft(job: Job) -> Draft:
    images = {split: job.tree(part) / split for split, part in _IMAGES.items()}
    draft = Draft(Encoding(("background", *COCO)))
    is_ready = job.variant == "unimatch"
    source = job.tree(_MASKS) / "masks" if is_ready else job.tree(_ANNOTATIONS) / "annotations"
    for section, split in _SPLITS.items():
        names = [name_of(file) for file in list_images(images[split], (".jpg",))]
        if is_ready:
            place = source
            there = frozenset(name_of(file) for file in list_images(place, (".png",)))
            require_pairs(_MASKS, names, there, where=place)
        else:
            place = job.out / "masks" / split
            _paint(draft, source / f"instances_{split}.json", names, place)
        keys = {"images": job.spell(images[split]), "masks": job.spell(place)}
        draft.sections[section] = Section(keys, len(names), _IMAGES[split])
    draft.notes.append(
        f"Masks: those of {source}, as they are."
        if is_ready
        else "Masks: painted of the instances, small things over large ones; an image without one "
        "is all background, and a crowd is of its class."
    )
    return draft


def _paint(draft: Draft, path: Path, names: list[str], folder: Path) -> None:
    """Have the instances of one file painted, a mask for each image."""
    file = read_instances(path)
    labels = [file.categories[key] for key in sorted(file.categories)]
    if labels != [*COCO]:
        raise UserError(
            f"{path}: expected COCO's 80 categories, got {len(labels)}, {some(labels)}; unpack "
            f"{_ANNOTATIONS.archives[0]} again."
        )
    keys = {name_of(name): key for key, (name, _) in file.images.items()}
    missing = [name for name in names if name not in keys]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(names)} images are not named there: {some(missing)}; "
            f"unpack {_ANNOTATIONS.archives[0]} again."
        )
    ids = {key: place for place, key in enumerate(sorted(file.categories), start=1)}
    for name in names:
        draft.masks[folder / f"{name}.png"] = partial(paint_image, file, keys[name], ids)


def paint_image(file: Instances, key: int, ids: dict[int, int]) -> Labels:
    """Return the class ids [H, W] of one image; 0 where no instance lies.

    Args:
        file: the instances.
        key: the image's id in it.
        ids: class id by category id.

    Raises:
        UserError: where a shape does not fit the image, or pycocotools is not installed.
    """
    _, size = file.images[key]
    rows: list[dict[str, Any]] = file.annotations.get(key, [])
    shapes = [
        (ids[int(row["category_id"])], decode(row["segmentation"], size, file.path)) for row in rows
    ]
    labels = np.zeros(size, np.uint8)
    for class_id, shape in sorted(shapes, key=lambda item: -int(item[1].sum())):
        labels[shape] = class_id
    return labels


BENCHMARK = Benchmark(
    name="coco",
    title="COCO 2017, 80 things and the background",
    variants={
        "unimatch": "the ready masks of PseudoSeg's and UniMatch's protocol",
        "instances": "masks painted of COCO's own instances",
    },
    counts={name: {"labeled": 118287, "val": 5000} for name in ("unimatch", "instances")},
    parts=(*_IMAGES.values(), _MASKS, _ANNOTATIONS),
    licence=(
        "COCO: annotations under CC BY 4.0; the images are from Flickr, and Flickr's terms of use "
        "hold for them (https://cocodataset.org/#termsofuse). Cite Lin et al., ECCV 2014."
    ),
    draft=_draft,
)
