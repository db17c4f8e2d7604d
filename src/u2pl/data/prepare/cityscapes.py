"""Cityscapes' fine annotations."""

from __future__ import annotations

import glob
from pathlib import Path

from u2pl.data.class_tables import CITYSCAPES
from u2pl.data.init.draft import Encoding, list_images
from u2pl.data.prepare.job import Benchmark, Draft, Job, Part, Section, require_pairs

_PAGE = "https://www.cityscapes-dataset.com/downloads/"
_PLACES = ("", "cityscapes", "Cityscapes")
_IMAGES = Part(
    name="leftImg8bit",
    archives=("leftImg8bit_trainvaltest.zip",),
    page=_PAGE,
    holds=("leftImg8bit/train", "leftImg8bit/val"),
    places=_PLACES,
)
_MASKS = Part(
    name="gtFine",
    archives=("gtFine_trainvaltest.zip",),
    page=_PAGE,
    holds=("gtFine/train", "gtFine/val"),
    places=_PLACES,
)
_IMAGE_TAIL = "_leftImg8bit.png"
_TAILS = ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png")
_SPLITS = {"labeled": "train", "val": "val"}


def encoding() -> Encoding:
    """Return the 19 classes with their colours."""
    return Encoding(
        classes=tuple(name for _, name, _ in CITYSCAPES),
        colors=tuple(color for _, _, color in CITYSCAPES),
    )


def _draft(job: Job) -> Draft:
    images, masks = job.tree(_IMAGES) / "leftImg8bit", job.tree(_MASKS) / "gtFine"
    # others hand the masks on with train ids alone
    tail = next((t for t in _TAILS if _keys(masks / "train", t)), _TAILS[0])
    ids = [label for label, _, _ in CITYSCAPES] if tail == _TAILS[0] else range(len(CITYSCAPES))
    id_map = {label: name for label, (_, name, _) in zip(ids, CITYSCAPES, strict=True)}
    draft = Draft(encoding())
    draft.notes.append(f"Masks: *{tail} through an id_map; all other ids are ignored.")
    for section, split in _SPLITS.items():
        names = _keys(images / split, _IMAGE_TAIL)
        there = frozenset(_keys(masks / split, tail))
        require_pairs(_MASKS, names, there, where=masks / split)
        keys = {
            "images": f"{glob.escape(job.spell(images / split))}/*/*{_IMAGE_TAIL}",
            "masks": f"{glob.escape(job.spell(masks / split))}/*/*{tail}",
            "id_map": dict(id_map),
        }
        draft.sections[section] = Section(keys, len(names), _IMAGES)
    return draft


def _keys(folder: Path, tail: str) -> list[str]:
    """Return city and name of each file with a tail, in order."""
    files = list_images(folder, (".png",)) if folder.is_dir() else []
    return [file.removesuffix(tail) for file in files if file.endswith(tail)]


BENCHMARK = Benchmark(
    name="cityscapes",
    title="Cityscapes, fine annotations",
    variants={},
    counts={"": {"labeled": 2975, "val": 500}},
    parts=(_IMAGES, _MASKS),
    licence=(
        "Cityscapes: its own licence, for non-commercial use after registration "
        "(https://www.cityscapes-dataset.com/license/). Cite Cordts et al., CVPR 2016."
    ),
    draft=_draft,
)
