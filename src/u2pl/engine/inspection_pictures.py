"""Pictures of what a teacher says of an image, small enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from u2pl.data.images import Color, colorize, entropy_picture, write_whole
from u2pl.data.sources import Dataset

LONGEST_SIDE = 480
"""Pixels of a picture."""
TALLEST = 16_000
"""Pixels of the negative keys of all classes below each other; browsers refuse much more."""
KEY_COLORS: tuple[Color, Color] = ((0, 170, 255), (255, 60, 40))
"""Of a negative key, and of one that is in truth of its class."""


@dataclass(frozen=True)
class Canvas:
    """An image of H x W pixels with what was said of it.

    Attributes:
        image: [H, W, 3] uint8.
        truth: [H, W] int64 labels.
        predictions: [H, W] int64, as they are scored.
        entropy: [H, W] float32 in nats.
        labels: [H, W] int64, pseudo-labels; the ignore index where unsure.
        keys: [C, H, W] bool, negative keys of each class.
    """

    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    keys: npt.NDArray[np.bool_]

    @classmethod
    def blank(cls, size: tuple[int, int], num_classes: int) -> Canvas:
        """One of zeros."""
        return cls(
            image=np.zeros((*size, 3), np.uint8),
            truth=np.zeros(size, np.int64),
            predictions=np.zeros(size, np.int64),
            entropy=np.zeros(size, np.float32),
            labels=np.zeros(size, np.int64),
            keys=np.zeros((num_classes, *size), np.bool_),
        )

    def paste(
        self,
        part: tuple[slice, slice],
        *,
        entropy: Tensor,
        labels: Tensor,
        keys: Tensor,
    ) -> None:
        """Put in what was said of a window: maps [h, w], and keys on its feature grid."""
        size = (labels.shape[-2], labels.shape[-1])
        self.entropy[part] = entropy.cpu().numpy()
        self.labels[part] = labels.cpu().numpy()
        self.keys[:, part[0], part[1]] = on_pixels(keys.cpu().numpy(), size)


def on_pixels(grid: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Give each pixel its cell of a coarser grid; see :func:`u2pl.mixing.on_grid`.

    >>> on_pixels(np.array([[1, 2]]), (1, 3)).tolist()
    [[1, 1, 2]]
    """
    rows, columns = (
        np.arange(full) // -(-full // cells)
        for full, cells in zip(size, grid.shape[-2:], strict=True)
    )
    picked: npt.NDArray[Any] = grid[..., rows[:, None], columns]
    return picked


def shrunk(array: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Pick the pixel nearest to each one's centre: [..., H, W] to [..., *size].

    >>> shrunk(np.array([[1, 2, 3]]), (1, 1)).tolist()
    [[2]]
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, array.shape[-2:], strict=True)
    )
    picked: npt.NDArray[Any] = array[..., rows[:, None], columns]
    return picked


def fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The size of a picture, its sides in proportion and none longer than ``longest``.

    >>> fitting((1000, 500), 480), fitting((30, 40), 480)
    ((480, 240), (30, 40))
    """
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def write_pictures(canvas: Canvas, folder: Path, dataset: Dataset) -> None:
    """Write ``image.jpg`` and, as PNG, ``truth``, ``prediction``, ``entropy``, ``reliable`` and
    ``negatives``.

    In masks an ignored pixel is transparent. ``negatives`` holds all classes, one below the other
    in order of their ids: transparent, a key, and a key that is in truth of its class.

    Raises:
        UserError: where they cannot be written.
    """
    size = fitting((canvas.truth.shape[0], canvas.truth.shape[1]), LONGEST_SIDE)
    image = Image.fromarray(canvas.image).resize((size[1], size[0]), Image.Resampling.BOX)
    write_whole(
        folder / "image.jpg",
        lambda path: image.save(path, format="JPEG", quality=90, subsampling=0),
    )
    masks = {
        "truth": canvas.truth,
        "prediction": canvas.predictions,
        "reliable": canvas.labels,
    }
    for name, mask in masks.items():
        _save_png(folder / f"{name}.png", _mask_picture(shrunk(mask, size), dataset.colors))
    entropy = entropy_picture(shrunk(canvas.entropy, size), dataset.num_classes)
    _save_png(folder / "entropy.png", Image.fromarray(entropy))
    _save_png(folder / "negatives.png", keys_picture(canvas), transparency=0)


def _mask_picture(mask: npt.NDArray[np.int64], colors: Sequence[Color]) -> Image.Image:
    opaque = (mask >= 0) & (mask < len(colors))
    alpha = np.where(opaque, 255, 0).astype(np.uint8)
    return Image.fromarray(np.dstack([colorize(mask, colors), alpha]))


def keys_picture(canvas: Canvas) -> Image.Image:
    """The negative keys of all classes, one below the other, with a palette of three."""
    num_classes, height, width = canvas.keys.shape
    longest = max(1, min(LONGEST_SIDE // 2, TALLEST // num_classes))
    size = fitting((height, width), longest)
    truth = shrunk(canvas.truth, size)
    wrong = truth == np.arange(num_classes)[:, None, None]
    ids = np.where(shrunk(canvas.keys, size), 1 + wrong, 0).astype(np.uint8)
    image = Image.fromarray(ids.reshape(num_classes * size[0], size[1]))
    image.putpalette([0, 0, 0, *KEY_COLORS[0], *KEY_COLORS[1]])
    return image


def _save_png(path: Path, image: Image.Image, **options: Any) -> None:
    write_whole(path, lambda temporary: image.save(temporary, format="PNG", **options))
