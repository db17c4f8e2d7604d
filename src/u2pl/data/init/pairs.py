"""Which mask belongs to which image, and how a dataset.yaml says so."""

from __future__ import annotations

import glob
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2pl.data.images import write_whole
from u2pl.data.init.draft import Request, list_images, name_of, some
from u2pl.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """Images of a folder and their masks.

    Attributes:
        images: the images' folder.
        masks: the masks' folder.
        masked: relative paths of images that have a mask.
        bare: those of images that have none.
        files: the masks of ``masked``, in the same order.
        tail: what mask names have behind the image's name.
        suffix: of the mask files, with its dot.
        orphans: names of masks without an image.
    """

    images: Path
    masks: Path
    masked: tuple[str, ...]
    bare: tuple[str, ...]
    files: tuple[Path, ...]
    tail: str
    suffix: str
    orphans: tuple[str, ...]


def pair_folders(images: Path, masks: Path) -> Pairs:
    """Pair the images of one folder with the masks of another by their names.

    A mask has its image's relative path and one tail for all, such as ``_mask`` or none.

    Raises:
        UserError: where masks have the wrong suffix, or none belongs to an image.
    """
    names: dict[str, str] = {}
    for file in list_images(images):
        if name_of(file) in names:
            raise UserError(
                f"{images}: '{names[name_of(file)]}' and '{file}' have the same name, so a mask "
                "would belong to both; rename one, or move masks out of this folder."
            )
        names[name_of(file)] = file
    found = list_images(masks)
    suffix = _suffix(masks, found)
    mask_names = [name_of(file) for file in found if file.lower().endswith(suffix)]
    tails = Counter(tail for name in mask_names if (tail := _tail(name, names)) is not None)
    if not tails:
        raise UserError(
            f"Expected masks named like their images, got {some(mask_names)} in {masks} and "
            f"{some(names)} in {images}; rename one side."
        )
    # Equal names are the rule where they occur; a tail that fits more files wins over them.
    tail = max(tails, key=lambda item: (tails[item], -len(item)))
    by_image = {
        name.removesuffix(tail): file
        for name, file in zip(
            mask_names, (f for f in found if f.lower().endswith(suffix)), strict=True
        )
        if name.endswith(tail)
    }
    masked = [name for name in names if name in by_image]
    return Pairs(
        images=images,
        masks=masks,
        masked=tuple(names[name] for name in masked),
        bare=tuple(file for name, file in names.items() if name not in by_image),
        files=tuple(masks / by_image[name] for name in masked),
        tail=tail,
        suffix=suffix,
        orphans=tuple(name for name in mask_names if name.removesuffix(tail) not in names),
    )


def _suffix(masks: Path, found: list[str]) -> str:
    """Return the suffix of mask files: .png where there are any, else one that keeps values."""
    suffixes = Counter(Path(file).suffix.lower() for file in found)
    for suffix in (".png", ".tif", ".tiff", ".bmp"):
        if suffixes[suffix]:
            return suffix
    raise UserError(
        f"Expected masks as PNG in {masks}, got {some(suffixes) or 'no image'}; JPEG changes the "
        "ids in them: export the masks again as PNG."
    )


def _tail(mask: str, images: dict[str, str]) -> str | None:
    """Return what a mask's name has behind an image's name; None where no image fits."""
    if mask in images:
        return ""
    for place in range(len(mask) - 1, 0, -1):
        if mask[place] in "_-. " and mask[:place] in images:
            return mask[place:]
    return None


def section_of(request: Request, pairs: Pairs, list_file: Path | None) -> dict[str, Any]:
    """Return the keys of a section that reads these pairs.

    Args:
        request: where the paths count from.
        pairs: the images and masks.
        list_file: where to write the names of the images with masks; None needs no list.
    """
    images: str = request.spell(pairs.images)
    masks: str = request.spell(pairs.masks)
    if pairs.tail or pairs.suffix != ".png":
        is_deep = any("/" in file for file in pairs.masked)
        inside = "**/" if is_deep else ""
        images = f"{glob.escape(images)}/{inside}*"
        masks = f"{glob.escape(masks)}/{inside}*{glob.escape(pairs.tail)}{pairs.suffix}"
    section: dict[str, Any] = {"images": images, "masks": masks}
    if list_file is not None:
        write_lines(list_file, [name_of(file) for file in pairs.masked])
        section["list"] = request.spell(list_file)
    return section


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file, a line an item, whole or not at all."""
    text = "".join(f"{line}\n" for line in lines)
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def unlabeled_section(
    request: Request, folder: Path | None, bare: list[Path], list_file: Path
) -> dict[str, Any] | None:
    """Return the section of images without masks: of a folder, of single files, or of both.

    Args:
        request: where the paths count from.
        folder: of unlabelled images.
        bare: images without a mask that lie elsewhere.
        list_file: where to write their paths, if there are any.
    """
    if not bare:
        return None if folder is None else {"images": request.spell(folder)}
    files = [] if folder is None else [folder / file for file in list_images(folder)]
    write_lines(list_file, [request.spell(file) for file in [*files, *bare]])
    return {"images": request.spell(list_file)}
