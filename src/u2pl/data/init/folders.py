"""Plain folders: images/ beside masks/, with unlabeled/, val/, test/ and tags.csv."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from u2pl.data.init.draft import Draft, Request, child, list_images, some
from u2pl.data.init.masks import conclude, examine
from u2pl.data.init.names import find_names
from u2pl.data.init.pairs import Pairs, pair_folders, section_of, unlabeled_section
from u2pl.errors import UserError

NAME = "folders"

_PARTS = {
    "labeled": ("", "labeled", "labelled", "train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "annotations", "annotation", "gt", "labelmaps")
_BESIDE = ("annot", "_annot", "_labels", "_masks", "_mask")  # camvid has train/ and trainannot/
_UNLABELED = ("unlabeled", "unlabelled", "images/unlabeled", "images/unlabelled")


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like plain folders of images and masks, or None."""
    found = _find(folder)
    if not found:
        return None
    return "; ".join(
        f"{images.relative_to(folder).as_posix()}/ with {masks.relative_to(folder).as_posix()}/"
        for images, masks in found.values()
    )


def draft(request: Request) -> Draft:
    """Return what plain folders say.

    Raises:
        UserError: where masks do not go with images or classes, or the folders can be read in
            more than one way.
    """
    root = request.root
    places = _find(root)
    pairs = {section: pair_folders(*place) for section, place in places.items()}
    names, said = find_names(root, request.classes)
    facts = examine([file for pair in pairs.values() for file in pair.files])
    encoding, more = conclude(facts, names)
    result = Draft(NAME, encoding, conclusions=said + more)
    bare: list[Path] = []
    for section, pair in pairs.items():
        list_file = request.made / f"{section}.txt" if pair.bare else None
        result.sections[section] = section_of(request, pair, list_file)
        result.conclusions += _describe(section, pair, root)
        if section == "labeled":
            bare = [pair.images / file for file in pair.bare]
    _add_unlabeled(request, result, bare)
    return result


def _find(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of masks of each section that has some."""
    found = {section: list(_candidates(root, section)) for section in _PARTS}
    inner = [images for pairs in found.values() for images, _ in pairs]
    result = {}
    for section, pairs in found.items():
        # images/ stands for itself unless images/train is there, which it would swallow.
        own = [pair for pair in pairs if not any(pair[0] in images.parents for images in inner)]
        if len(own) > 1:
            texts = [f"{a.relative_to(root)} with {b.relative_to(root)}" for a, b in own]
            raise UserError(
                f"{root} has {len(own)} pairs of folders for '{section}': {some(texts)}; move one "
                "of them elsewhere, or write dataset.yaml by hand."
            )
        if own:
            result[section] = own[0]
    return result


def _candidates(root: Path, section: str) -> Iterator[tuple[Path, Path]]:
    """Yield pairs of folders that may be a section, with images in one and masks in the other."""
    seen = set()
    for images, masks in _spellings(section):
        pair = child(root, images), child(root, masks)
        if pair[0] is None or pair[1] is None or pair in seen or pair[0] == pair[1]:
            continue
        seen.add(pair)
        if list_images(pair[0]) and list_images(pair[1]):
            yield pair[0], pair[1]


def _spellings(section: str) -> Iterator[tuple[str, str]]:
    for part in _PARTS[section]:
        for images, masks in itertools.product(_IMAGES, _MASKS):
            if part:
                yield f"{part}/{images}", f"{part}/{masks}"
                yield f"{images}/{part}", f"{masks}/{part}"
            else:
                yield images, masks
        if part:
            for tail in _BESIDE:
                yield part, f"{part}{tail}"


def _describe(section: str, pair: Pairs, root: Path) -> list[str]:
    images, masks = (
        pair.images.relative_to(root).as_posix(),
        pair.masks.relative_to(root).as_posix(),
    )
    tail = f", whose names end in '{pair.tail}'" if pair.tail else ""
    said = [f"{section}: {len(pair.masked)} images of {images}/ with masks of {masks}/{tail}."]
    if pair.bare and section == "labeled":
        said.append(f"{len(pair.bare)} images of {images}/ have no mask: unlabeled.")
    elif pair.bare:
        said.append(f"{len(pair.bare)} images of {images}/ have no mask and are left out.")
    if pair.orphans:
        said.append(f"{len(pair.orphans)} masks of {masks}/ have no image: {some(pair.orphans)}.")
    return said


def _unlabeled(root: Path) -> Path | None:
    for name in _UNLABELED:
        folder = child(root, name)
        if folder is not None:
            inner = next((f for word in _IMAGES if (f := child(folder, word))), None)
            return inner or folder
    return None


def _add_unlabeled(request: Request, result: Draft, bare: list[Path]) -> None:
    """Add the section of unlabelled images, and their tags."""
    folder = _unlabeled(request.root)
    if folder is None and "labeled" not in result.sections:  # tagged images and no mask
        folder = child(request.root, "images")
    if folder is not None and not list_images(folder):
        folder = None
    section = unlabeled_section(request, folder, bare, request.made / "unlabeled.txt")
    if section is None:
        result.conclusions.append("unlabeled: none; `u2pl data split` can make some.")
        return
    result.sections["unlabeled"] = section
    if folder is not None:
        count = len(list_images(folder))
        result.conclusions.append(f"unlabeled: {count} images of {request.spell(folder)}/.")
    if (request.root / "tags.csv").is_file():
        result.tags = request.spell(request.root / "tags.csv")
        result.conclusions.append("tags.csv says which classes an unlabelled image may hold.")
