"""PASCAL VOC's tree: JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/.

CVAT exports "Segmentation mask 1.1" as the same tree with a labelmap.txt and one list, default.txt.
"""

from __future__ import annotations

import os
from pathlib import Path

from u2pl.data.class_tables import VOC
from u2pl.data.init.draft import Draft, Request, list_images, name_of, some
from u2pl.data.init.masks import MaskFacts, conclude, examine
from u2pl.data.init.names import Names, find_names
from u2pl.data.init.pairs import unlabeled_section, write_lines
from u2pl.errors import UserError
from u2pl.plain_files import read_text

NAME = "voc"

MASKS = "SegmentationClass"
LISTS = "ImageSets/Segmentation"
_SECTIONS = {"train": "labeled", "default": "labeled", "val": "val", "test": "test"}


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like VOC's tree, or None."""
    if (folder / "JPEGImages").is_dir() and (folder / MASKS).is_dir():
        return f"JPEGImages/ and {MASKS}/"
    return None


def draft(request: Request) -> Draft:
    """Return what VOC's tree says.

    Raises:
        UserError: where masks do not go with classes, or a list names images that are not there.
    """
    root = request.root
    images = {name_of(file): file for file in list_images(root / "JPEGImages")}
    masks = {name_of(file): file for file in list_images(root / MASKS, (".png",))}
    names, said = find_names(root, request.classes)
    facts = examine([root / MASKS / file for file in masks.values()])
    if names is None:
        names, more = _known_classes(facts)
        said += more
    encoding, more = conclude(facts, names)
    result = Draft(NAME, encoding, conclusions=said + more)
    listed = _lists(root / LISTS)
    if not listed:
        both = [name for name in images if name in masks]
        write_lines(request.made / "labeled.txt", both)
        listed = {"labeled": (request.made / "labeled.txt", both)}
        result.conclusions.append(f"No list in {LISTS}/: every image with a mask is labelled.")
    taken: set[str] = set()
    for section, (path, members) in listed.items():
        _require_files(path, members, images, masks)
        result.sections[section] = {
            "images": "JPEGImages", "masks": MASKS, "list": request.spell(path)
        }  # fmt: skip
        result.conclusions.append(f"{section}: {len(members)} images of {request.spell(path)}.")
        taken.update(members)
    rest = [root / "JPEGImages" / file for name, file in images.items() if name not in taken]
    unlabeled = unlabeled_section(request, None, rest, request.made / "unlabeled.txt")
    if unlabeled is not None:
        result.sections["unlabeled"] = unlabeled
        result.conclusions.append(f"unlabeled: {len(rest)} images that no list names.")
    if (root / f"{MASKS}Aug").is_dir():
        result.conclusions.append(f"{MASKS}Aug/ is there, too, and was not looked at.")
    return result


def _known_classes(facts: MaskFacts) -> tuple[Names | None, list[str]]:
    """Return VOC's own classes where the masks cannot be of another data set with fewer."""
    if facts.in_color or not {len(VOC) - 1} <= {*facts.values} <= {*range(len(VOC)), 255}:
        return None, []
    said = [
        f"Classes: PASCAL VOC's {len(VOC)}, since the ids go to {len(VOC) - 1} and nothing "
        "here names others."
    ]
    return Names("PASCAL VOC", VOC, tuple(range(len(VOC)))), said


def _lists(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Return, by section, the list file and the names in it."""
    found: dict[str, tuple[Path, list[str]]] = {}
    for stem, section in _SECTIONS.items():
        path = folder / f"{stem}.txt"
        if not path.is_file() or section in found:
            continue
        try:
            names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        except (OSError, ValueError):
            raise UserError(f"{path} is not a text file; give it one name a line.") from None
        if names:
            found[section] = (path, names)
    return found


def _require_files(
    path: Path, members: list[str], images: dict[str, str], masks: dict[str, str]
) -> None:
    for what, there in (("image", images), ("mask", masks)):
        missing = [name for name in members if name not in there]
        if missing:
            folder = "JPEGImages" if what == "image" else MASKS
            raise UserError(
                f"{path}: {len(missing)} of {len(members)} names have no {what} in "
                f"{folder}{os.sep}: {some(missing)}; add them, or take the names out of the list."
            )
