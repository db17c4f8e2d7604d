"""CVAT's export "Segmentation mask 1.1": a .zip, or what is in it."""

from __future__ import annotations

from pathlib import Path

from u2pl.data.init.archive import unpack
from u2pl.data.init.draft import Draft, Request, list_images, name_of, some
from u2pl.data.init.masks import conclude, examine
from u2pl.data.init.names import find_names
from u2pl.data.init.pairs import unlabeled_section, write_lines
from u2pl.data.init.voc import LISTS, MASKS
from u2pl.errors import UserError
from u2pl.plain_files import read_text

NAME = "cvat"

_KEPT = (f"{MASKS}/", "JPEGImages/", f"{LISTS}/")


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like CVAT's export, or None."""
    if (folder / "labelmap.txt").is_file() and (folder / MASKS).is_dir():
        return f"labelmap.txt and {MASKS}/"
    return None


def draft(request: Request) -> Draft:
    """Return what CVAT's export says; a .zip is unpacked into the folder of made files.

    Images that are not in the export are looked for in ``request.images``, and in ``images/``
    beside the archive.

    Raises:
        UserError: where the archive is faulty, or masks have no image or no class.
    """
    tree = request.source
    if tree.suffix.lower() == ".zip":
        tree = request.made / "cvat"
        names = unpack(
            request.source, tree, wanted=lambda n: n.startswith(_KEPT) or n == "labelmap.txt"
        )
        if not any(name.startswith(f"{MASKS}/") for name in names):
            raise UserError(
                f"Expected {MASKS}/ in {request.source}, got no such folder; export the task as "
                "'Segmentation mask 1.1', or unpack the archive and name its folder."
            )
    masks = {name_of(file): tree / MASKS / file for file in list_images(tree / MASKS, (".png",))}
    images = _images(request, tree, masks)
    known, said = find_names(tree, request.classes)
    encoding, more = conclude(examine([*masks.values()]), known)
    result = Draft(NAME, encoding, conclusions=said + more)
    if request.source != tree:
        result.conclusions.insert(0, f"Unpacked {request.source.name} to {request.spell(tree)}/.")
    listed = _listed(tree, masks)
    write_lines(request.made / "labeled.txt", listed)
    result.sections["labeled"] = {
        "images": request.spell(images),
        "masks": request.spell(tree / MASKS),
        "list": request.spell(request.made / "labeled.txt"),
    }
    result.conclusions.append(
        f"labeled: {len(listed)} images of {request.spell(images)}/. Pixels that nobody has marked "
        f"are '{encoding.classes[0]}', as CVAT writes them."
    )
    rest = [images / file for file in list_images(images) if name_of(file) not in masks]
    unlabeled = unlabeled_section(request, None, rest, request.made / "unlabeled.txt")
    if unlabeled is not None:
        result.sections["unlabeled"] = unlabeled
        result.conclusions.append(f"unlabeled: {len(rest)} images beside them that have no mask.")
    return result


def _images(request: Request, tree: Path, masks: dict[str, Path]) -> Path:
    """Return the folder that holds the image of every mask."""
    if not masks:
        raise UserError(f"Expected masks in {tree / MASKS}, found none; label some images first.")
    places = [request.images] if request.images else [tree / "JPEGImages", request.root / "images"]
    for place in places:
        if place.is_dir() and {*masks} <= {name_of(file) for file in list_images(place)}:
            return place
    raise UserError(
        f"Expected the images of {len(masks)} masks, such as '{some(masks, most=1)}', in "
        f"{some(places)}; export with 'Save images', or name their folder by --images."
    )


def _listed(tree: Path, masks: dict[str, Path]) -> list[str]:
    """Return the names that the export lists; all masks where it has no list."""
    names = []
    for path in sorted((tree / LISTS).glob("*.txt")):
        try:
            names += [line.strip() for line in read_text(path).splitlines() if line.strip()]
        except (OSError, ValueError):
            raise UserError(f"{path} is not a text file; export the task again.") from None
    # CVAT lists every frame of a task; those without a shape have no mask.
    return [name for name in dict.fromkeys(names) if name in masks] or [*masks]
