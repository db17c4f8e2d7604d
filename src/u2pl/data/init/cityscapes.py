"""Cityscapes' tree: leftImg8bit/ and gtFine/, by split and city."""

from __future__ import annotations

from pathlib import Path

from u2pl.data.class_tables import CITYSCAPES
from u2pl.data.init.draft import Draft, Encoding, Request, list_images
from u2pl.errors import UserError

NAME = "cityscapes"

_SPLITS = {"train": "labeled", "val": "val"}


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like Cityscapes' tree, or None."""
    if (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir():
        return "leftImg8bit/ and gtFine/"
    return None


def draft(request: Request) -> Draft:
    """Return what Cityscapes' tree says; its test split has no labels and is left out.

    Raises:
        UserError: where there are no masks with ids, or other classes are asked for.
    """
    root = request.root
    if request.classes is not None:
        raise UserError("Cityscapes' ids have classes of their own; leave --classes out.")
    result = Draft(NAME, _encoding())
    result.conclusions.append(
        f"Classes: the {len(CITYSCAPES)} of Cityscapes that are scored, from the ids in "
        "*_labelIds.png by an id_map; all other ids are ignored."
    )
    for split, section in _SPLITS.items():
        images = _count(root / "leftImg8bit" / split, "_leftImg8bit.png")
        masks = _count(root / "gtFine" / split, "_gtFine_labelIds.png")
        if images and not masks:
            raise UserError(
                f"Expected *_gtFine_labelIds.png in {root / 'gtFine' / split}, found none; unpack "
                "gtFine_trainvaltest.zip there."
            )
        if images:
            result.sections[section] = {
                "images": f"leftImg8bit/{split}/*/*_leftImg8bit.png",
                "masks": f"gtFine/{split}/*/*_gtFine_labelIds.png",
            }
            result.conclusions.append(f"{section}: {images} images of leftImg8bit/{split}/.")
    extra = _count(root / "leftImg8bit" / "train_extra", "_leftImg8bit.png")
    if extra:
        result.sections["unlabeled"] = {"images": "leftImg8bit/train_extra/*/*_leftImg8bit.png"}
        result.conclusions.append(
            f"unlabeled: {extra} images of leftImg8bit/train_extra/, without their coarse masks."
        )
    else:
        result.conclusions.append("unlabeled: none; `u2pl data split` can make some.")
    return result


def _encoding() -> Encoding:
    return Encoding(
        classes=tuple(name for _, name, _ in CITYSCAPES),
        colors=tuple(color for _, _, color in CITYSCAPES),
        id_map={label: name for label, name, _ in CITYSCAPES},
    )


def _count(folder: Path, end: str) -> int:
    return sum(file.endswith(end) for file in list_images(folder)) if folder.is_dir() else 0
