"""What every format is given."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from u2pl.data.images import Color, read_mask

BLACK: Color = (0, 0, 0)


@dataclass(frozen=True)
class Wishes:
    """How pseudo-labels are to be written.

    Attributes:
        classes: names in id order.
        colors: one a class.
        ignore_index: of unreliable pixels.
        model: what made them, for tools that show it.
        simplify: pixels that a polygon may lie off the outline.
        min_area: parts of fewer pixels have no polygon.
        url: what stands before an image's path in Label Studio.
    """

    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_index: int
    model: str = "u2pl"
    simplify: float = 1.0
    min_area: float = 16.0
    url: str = "/data/local-files/?d="


class Entry(NamedTuple):
    """An image with pseudo-labels.

    Attributes:
        image: its path below the folder of images, with forward slashes and suffix.
        size: height and width.
        mask: its index mask.
        reliable: share of its pixels that are labelled.
    """

    image: str
    size: tuple[int, int]
    mask: Path
    reliable: float

    @property
    def name(self) -> str:
        """The path without suffix."""
        return self.image.rpartition(".")[0]

    def labels(self, wishes: Wishes) -> npt.NDArray[np.int64]:
        """Return the class ids [H, W], ignore where unreliable."""
        return read_mask(
            self.mask, num_classes=len(wishes.classes), ignore_index=wishes.ignore_index
        )


def class_masks(
    labels: npt.NDArray[np.int64], num_classes: int
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield the id and the mask [H, W] of each class that occurs, in the order of ids."""
    for class_id in np.unique(labels).tolist():
        if class_id < num_classes:
            yield class_id, labels == class_id


def distinct_colors(colors: Sequence[Color], *, taken: Sequence[Color] = (BLACK,)) -> list[Color]:
    """Return a colour a class, as given where that is free, and all different.

    >>> distinct_colors([(0, 0, 0), (9, 9, 9)])
    [(229, 45, 45), (9, 9, 9)]
    """
    used = {*taken, *(color for color in colors if color not in taken)}
    seen: set[Color] = {*taken}
    result: list[Color] = []
    spare = (color for color in _wheel() if color not in used)
    for color in colors:
        result.append(color if color not in seen else next(spare))
        seen.add(result[-1])
    return result


def _wheel() -> Iterator[Color]:
    """Yield saturated colours, neighbours far apart, then darker ones."""
    number = 0
    while True:
        hue, value = number * 0.381966 % 1, 0.9 - 0.2 * (number // 12 % 3)
        red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, value))
        yield red, green, blue
        number += 1


def hex_of(color: Color) -> str:
    """Return a colour as HTML writes it.

    >>> hex_of((255, 0, 10))
    '#ff000a'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)
