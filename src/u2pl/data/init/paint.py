"""Annotations painted as index masks: what annotations of shapes have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from u2pl.data.images import FileError, image_size, refuse_way_out, write_mask
from u2pl.data.init.draft import Encoding, Request, list_images, name_of, some
from u2pl.data.init.pairs import write_lines
from u2pl.data.sources import IMAGE_SUFFIXES, default_colors
from u2pl.errors import UserError, is_clean, shown

BACKGROUND = "background"
IGNORE = 255


@dataclass
class Canvas:
    """Paints index masks and keeps count of what no shape covers, or more than one.

    Attributes:
        classes: names in the order of ids.
        fill: the id of pixels that no shape covers: the background's, or ignore.
        folder: where masks go.
        names: the images painted so far.
        covered: pixels that a shape covers.
        contested: pixels that shapes of different classes cover.
        total: pixels of all masks.
    """

    classes: tuple[str, ...]
    fill: int
    folder: Path
    names: list[str] = field(default_factory=list)
    covered: int = 0
    contested: int = 0
    total: int = 0

    def paint(
        self,
        name: str,
        size: tuple[int, int],
        shapes: Iterable[tuple[int, npt.NDArray[np.bool_]]],
    ) -> None:
        """Write the mask of one image; later shapes lie over earlier ones.

        Args:
            name: of the image, without suffix.
            size: height and width.
            shapes: class ids with boolean masks [H, W].
        """
        mask, covered, contested = painted(size, shapes, fill=self.fill)
        self.covered += int(covered.sum())
        self.contested += int(contested.sum())
        self.total += mask.size
        self.names.append(name)
        path = self.folder / f"{name}.png"
        refuse_way_out(self.folder, path)
        write_mask(path, mask, colors=default_colors(len(self.classes)))

    def conclusions(self) -> list[str]:
        """Return sentences about what was painted."""
        uncovered = 100 * (1 - self.covered / max(self.total, 1))
        text = f"{uncovered:.1f} % of the pixels are covered by no shape: "
        if self.fill == IGNORE:
            said = [text + "ignored, as --uncovered ignore says."]
        else:
            what = f"'{self.classes[self.fill]}'"
            said = [text + f"{what}. If they may be anything, give --uncovered ignore."]
        if self.contested:
            share = 100 * self.contested / max(self.total, 1)
            said.append(f"{share:.2f} % are covered by shapes of more than one class.")
        return said


def painted(
    size: tuple[int, int], shapes: Iterable[tuple[int, npt.NDArray[np.bool_]]], *, fill: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Paint shapes over one another.

    Args:
        size: height and width.
        shapes: class ids with masks [H, W]; later ones lie over earlier ones.
        fill: the id of pixels that none covers.

    Returns:
        Class ids [H, W]; where any shape is; where shapes of different classes are.
    """
    mask = np.full(size, fill, np.uint16)
    covered, contested = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    for class_id, shape in shapes:
        contested |= shape & covered & (mask != class_id)
        covered |= shape
        mask[shape] = class_id
    return mask, covered, contested


def class_table(
    labels: Sequence[str], request: Request, *, source: str
) -> tuple[Encoding, dict[str, int], int]:
    """Return the classes, the id of each label, and the id of uncovered pixels.

    Args:
        labels: what shapes are called, in the order that their ids shall have.
        request: ``classes`` gives another order, ``uncovered`` says what uncovered pixels are.
        source: where the labels come from, for messages.

    Raises:
        UserError: where a label is not among the classes that were given, or there is none.
    """
    if not labels:
        raise UserError(f"{source} names no class; label something first.")
    if len(labels) > 250:
        raise UserError(
            f"{source}: expected at most 250 classes, got {len(labels)}; take some out."
        )
    classes = list(labels if request.classes is None else request.classes)
    strange = [label for label in labels if label not in classes]
    if strange:
        raise UserError(
            f"{source} has labels that --classes does not name: {some(strange)}; name them, too."
        )
    fill = IGNORE
    if request.uncovered != "ignore":
        if BACKGROUND not in classes:
            classes.insert(0, BACKGROUND)
        fill = classes.index(BACKGROUND)
    ids = {name: place for place, name in enumerate(classes)}
    return Encoding(tuple(classes)), ids, fill


def check_size(image: Path, size: tuple[int, int], *, source: str) -> None:
    """Refuse annotations that were made for an image of another size.

    Args:
        image: the file.
        size: height and width that the annotations say.
        source: of the annotations, for the message.

    Raises:
        UserError: where the upright image has another size.
    """
    real = image_size(image)
    if real != size:
        remedy = "annotate the image that is here, or put that one here which was annotated"
        if real == size[::-1]:
            remedy = (
                "the image lies on its side by its EXIF data: save it upright, or annotate it so"
            )
        raise FileError(
            image,
            f"the image is {real[1]} x {real[0]} pixels (width x height), {source} says "
            f"{size[1]} x {size[0]}",
            remedy,
        )


def write_section(request: Request, canvas: Canvas, images: Path, section: str) -> dict[str, str]:
    """Write the list of the painted images and return the section's keys."""
    path = request.made / f"{section}.txt"
    write_lines(path, canvas.names)
    return {
        "images": request.spell(images),
        "masks": request.spell(canvas.folder),
        "list": request.spell(path),
    }


def checked_name(source: Path, value: object) -> str:
    """Return the relative path of an image as annotations give it, with forward slashes.

    Raises:
        UserError: where it leads out of its folder, or is no clean name of an image.
    """
    text = value.replace("\\", "/").removeprefix("./") if isinstance(value, str) else ""
    parts = text.split("/")
    is_image = Path(text).suffix.lower() in IMAGE_SUFFIXES
    if not is_image or not is_clean(text) or text.startswith("/") or ".." in parts or ":" in text:
        raise UserError(
            f"{source}: expected the name of an image below its folder, got {shown(value)}; mend "
            "the file."
        )
    return text


def bare_images(folder: Path, taken: Iterable[str], *, leave: Sequence[Path]) -> list[Path]:
    """Return the images below a folder whose names are not taken.

    Args:
        folder: the folder.
        taken: names, as :func:`u2pl.data.init.draft.name_of` gives them.
        leave: folders below it that hold something else.
    """
    names = frozenset(taken)
    found = [folder / file for file in list_images(folder) if name_of(file) not in names]
    inner = [place for place in leave if place != folder and place.is_relative_to(folder)]
    return [path for path in found if not any(path.is_relative_to(place) for place in inner)]
