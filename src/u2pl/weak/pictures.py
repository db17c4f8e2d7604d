"""A sheet to judge seeds by at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from u2pl.data.images import entropy_picture, overlay
from u2pl.data.sources import Dataset

_HEIGHT = 160
_WIDEST = 640
_CAPTION = 14
_GAP = 4


@dataclass(frozen=True)
class SeedExample:
    """One image on its way to seeds.

    Attributes:
        image: [H, W, 3] uint8.
        maps: [H, W] in [0, 1] by class name, refined.
        labels: [H, W] int64, its seeds.
    """

    image: npt.NDArray[np.uint8]
    maps: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]


def contact_sheet(examples: Sequence[SeedExample], dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return one row an example: the image, its seeds laid over it, and each tag's map.

    Unsure pixels show the image. Maps run from black (0) to bright yellow (1).

    Returns:
        [H, W, 3] uint8.
    """
    rows = []
    for example in examples:
        seeds = overlay(example.image, example.labels, dataset.colors, alpha=0.7)
        tiles = [_tile(example.image, "image"), _tile(seeds, "seeds")]
        for name, scores in example.maps.items():
            # from 0 to log 2 is the range of an entropy of two classes
            tiles.append(_tile(entropy_picture(scores * math.log(2), 2), name))
        rows.append(np.concatenate(tiles, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def _tile(picture: npt.NDArray[np.uint8], caption: str) -> npt.NDArray[np.uint8]:
    """Return the picture at a fixed height below its caption, with white to the right.

    One that would be wider than 640 pixels keeps that width, and has white below.
    """
    height, width = picture.shape[:2]
    scale = min(_HEIGHT / height, _WIDEST / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = Image.fromarray(picture).resize(size)
    tile = Image.new("RGB", (scaled.width + _GAP, _HEIGHT + _CAPTION + _GAP), "white")
    tile.paste(scaled, (0, _CAPTION))
    ImageDraw.Draw(tile).text((2, 1), caption, fill="black")
    return np.array(tile)
