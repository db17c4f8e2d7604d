"""GTA5 (Playing for Data), the source of an adaptation to Cityscapes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from u2pl.data.class_counts import num_threads
from u2pl.data.class_tables import CITYSCAPES
from u2pl.data.images import image_size, pixel_mode, read_mask, read_raw_mask
from u2pl.data.init.draft import list_images, name_of, some
from u2pl.data.prepare.cityscapes import encoding
from u2pl.data.prepare.job import (
    Benchmark,
    Draft,
    Job,
    Labels,
    Part,
    Section,
    lines,
    require_pairs,
    spell,
)
from u2pl.data.prepare.target import add_target, target_root

_PAGE = "https://download.visinf.tu-darmstadt.de/data/from_games/"
_PLACES = ("", "gta5", "GTA5", "gta")
_IMAGES = Part(
    name="images",
    archives=tuple(f"{number:02}_images.zip" for number in range(1, 11)),
    page=_PAGE,
    holds=("images/*.png",),
    places=_PLACES,
)
_MASKS = Part(
    name="labels",
    archives=tuple(f"{number:02}_labels.zip" for number in range(1, 11)),
    page=_PAGE,
    holds=("labels/*.png",),
    places=_PLACES,
)
_ID_MAP = {label: place for place, (label, _, _) in enumerate(CITYSCAPES)}
_COLORS = {color: place for place, (_, _, color) in enumerate(CITYSCAPES)}
_IGNORE = 255


def _draft(job: Job) -> Draft:
    images, masks = job.tree(_IMAGES) / "images", job.tree(_MASKS) / "labels"
    names = [name_of(file) for file in list_images(images, (".png",))]
    there = frozenset(name_of(file) for file in list_images(masks, (".png",)))
    require_pairs(_MASKS, names, there, where=masks)
    root = target_root(job)
    kept, left_out, in_color = _look(images, masks, names)
    draft = Draft(encoding())
    keys: dict[str, Any] = {
        "images": spell(images, root),
        "masks": spell(masks, root),
        "list": spell(job.out / "labeled.txt", root),
    }
    if in_color:
        made = job.out / "masks"
        draft.masks = {made / f"{n}.png": partial(read_labels, masks / f"{n}.png") for n in kept}
        keys["masks"] = spell(made, root)
        draft.notes.append(
            "Masks: they are in colours, and were converted to train ids; licence plates have the "
            "colour of cars and count as such."
        )
    else:
        keys["id_map"] = {label: name for label, name, _ in CITYSCAPES}
        draft.notes.append("Masks: Cityscapes' ids through an id_map; all other ids are ignored.")
    draft.files[job.out / "labeled.txt"] = lines(kept)
    if left_out:
        draft.files[job.out / "left-out.txt"] = lines(left_out)
        draft.notes.append(
            f"Left out: {len(left_out)} images whose masks have another size, {some(left_out)}; "
            "left-out.txt names them."
        )
    draft.sections["labeled"] = Section(keys, len(names), _IMAGES, num_left_out=len(left_out))
    add_target(job, draft)
    return draft


def _look(images: Path, masks: Path, names: list[str]) -> tuple[list[str], list[str], bool]:
    """Return names whose mask fits, names whose mask does not, and whether any is in colours.

    The set has a few masks of another size than their image. How they lie on it is not known, so
    they are not stretched. Headers alone are read.
    """

    def facts(name: str) -> tuple[bool, bool]:
        mask = masks / f"{name}.png"
        return image_size(images / f"{name}.png") == image_size(mask), pixel_mode(mask) not in (
            "P",
            "L",
        )

    with ThreadPoolExecutor(num_threads()) as pool:
        found = list(pool.map(facts, names))
    kept = [name for name, (fits, _) in zip(names, found, strict=True) if fits]
    left_out = [name for name, (fits, _) in zip(names, found, strict=True) if not fits]
    return kept, left_out, any(in_color for _, in_color in found)


def read_labels(path: Path) -> Labels:
    """Return a mask [H, W] as train ids 0 to 18, and 255 where it has none.

    Args:
        path: a PNG of Cityscapes' ids, or of Cityscapes' colours.

    Raises:
        UserError: where it cannot be read.
    """
    _, pixels, _ = read_raw_mask(path)
    if pixels.ndim == 2:
        return read_mask(path, num_classes=len(CITYSCAPES), id_map=_ID_MAP)
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    codes = red << 16 | green << 8 | blue
    labels = np.full(codes.shape, _IGNORE, np.uint8)
    for (r, g, b), place in _COLORS.items():
        labels[codes == (r << 16 | g << 8 | b)] = place
    return labels


BENCHMARK = Benchmark(
    name="gta5",
    title="GTA5 (Playing for Data)",
    variants={},
    counts={"": {"labeled": 24966}},
    parts=(_IMAGES, _MASKS),
    licence=(
        "GTA5: for research and educational use alone, says its page "
        "(https://download.visinf.tu-darmstadt.de/data/from_games/). Cite Richter et al., ECCV "
        "2016."
    ),
    draft=_draft,
    needs_target=True,
)
