"""Geometry shared by an image and its mask, and evaluation input.

Arrays [H, W, 3] uint8 come in, tensors [3, H, W] go out: uint8 for training, float32 in [0, 1] for
evaluation. Every draw comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from u2pl.errors import UserError

CELL = 4
"""Side of a feature grid's cell in pixels, as :data:`u2pl.models.segmenter.STRIDE`."""

_MOST_PIXELS = 178_956_970  # Pillow's limit for files


def resized_size(height: int, width: int, resize: int | None) -> tuple[int, int]:
    """Return (height, width) after the short side is brought to ``resize``; None keeps the size.

    >>> resized_size(360, 480, 180)
    (180, 240)
    """
    if resize is None:
        return height, width
    factor = resize / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True)
class View:
    """A random crop of a scaled image, as numbers.

    Attributes:
        size: height and width of the whole image after scaling.
        window: top, left, height and width of what is cut from it; at most the crop.
        crop: height and width of the result; what the window leaves free, right and below, is
            padding.
        is_flipped: the result is mirrored left and right, padding included.
    """

    size: tuple[int, int]
    window: tuple[int, int, int, int]
    crop: tuple[int, int]
    is_flipped: bool


def draw_view(
    size: tuple[int, int],
    *,
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    resize: int | None,
    generator: torch.Generator,
) -> View:
    """Return a random view of an image.

    Args:
        size: height and width of the image's file.
        crop: height and width of the result in pixels.
        scale: range of the uniform random factor, on top of ``resize``.
        flip: mirror left and right in half of the draws.
        resize: short side in pixels, or None.
        generator: four numbers are drawn from it, whatever the settings.
    """
    draws: list[float] = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    factor = scale[0] + (scale[1] - scale[0]) * draws[0]
    base = resize / min(size) if resize is not None else 1.0
    full_h, full_w = (max(1, round(side * base * factor)) for side in size)
    h, w = min(full_h, crop[0]), min(full_w, crop[1])
    top = int(draws[1] * (full_h - h + 1))
    left = int(draws[2] * (full_w - w + 1))
    return View((full_h, full_w), (top, left, h, w), crop, flip and draws[3] < 0.5)


def wider_view(view: View, context: int) -> tuple[View, tuple[int, int]]:
    """Return a view of what lies around another, and where that one lies in it.

    Args:
        view: of some image.
        context: pixels on each side, a multiple of :data:`CELL`. The window is moved inwards where
            the image ends, so that as much of it is seen; what is left free is padding.

    Returns:
        The view, its crop larger by ``2 * context``, mirrored as the other is; and (top, left) of
        the other view's crop in it, multiples of :data:`CELL`, so that cells of a feature grid
        are the same cells in both.

    >>> view = View(size=(96, 96), window=(30, 0, 32, 32), crop=(32, 32), is_flipped=False)
    >>> wider_view(view, 16)
    (View(size=(96, 96), window=(14, 0, 64, 64), crop=(64, 64), is_flipped=False), (16, 0))
    """
    starts, sides, offsets = [], [], []
    for axis in range(2):
        full, start = view.size[axis], view.window[axis]
        side = min(full, view.crop[axis] + 2 * context)
        first = min(max(start - context, 0), full - side)
        first += (start - first) % CELL
        starts.append(first)
        sides.append(min(side, full - first))
        offsets.append(start - first)
    crop = (view.crop[0] + 2 * context, view.crop[1] + 2 * context)
    if view.is_flipped:
        offsets[1] = 2 * context - offsets[1]
    wide = View(view.size, (starts[0], starts[1], sides[0], sides[1]), crop, view.is_flipped)
    return wide, (offsets[0], offsets[1])


def view_image(image: npt.NDArray[np.uint8], view: View) -> tuple[Tensor, Tensor]:
    """Return an image's view, bilinear with antialias, and where it is valid.

    Args:
        image: [H, W, 3] uint8.
        view: of an image of this size.

    Returns:
        image [3, h, w] uint8, 0 on padding; valid [h, w] bool, False on padding.
    """
    _, _, h, w = view.window
    pixels = torch.zeros((*view.crop, 3), dtype=torch.uint8)
    pixels[:h, :w] = torch.from_numpy(_resample(image, view.size, view.window))
    valid = torch.zeros(view.crop, dtype=torch.bool)
    valid[:h, :w] = True
    if view.is_flipped:
        pixels, valid = pixels.flip(1), valid.flip(1)
    return pixels.permute(2, 0, 1).contiguous(), valid


def view_labels(mask: npt.NDArray[np.integer[Any]], view: View, *, ignore_index: int) -> Tensor:
    """Return a mask's view [h, w] int64, nearest; ``ignore_index`` on padding.

    Args:
        mask: [H, W] of integers.
        view: of an image of this size.
        ignore_index: what padding holds.
    """
    _, _, h, w = view.window
    labels = torch.full(view.crop, ignore_index, dtype=torch.int64)
    picked = _resample_mask(mask, view.size, view.window)
    labels[:h, :w] = torch.from_numpy(picked.astype(np.int64, copy=False))
    return labels.flip(1) if view.is_flipped else labels


def _resample(
    image: npt.NDArray[np.uint8], size: tuple[int, int], window: tuple[int, int, int, int]
) -> npt.NDArray[np.uint8]:
    """Return the window (top, left, height, width) of the image resized to ``size``.

    Only the window is computed; the filter still sees the pixels around it.
    """
    (full_h, full_w), (top, left, h, w) = size, window
    y, x = image.shape[0] / full_h, image.shape[1] / full_w
    # Rounding may carry the last edge past the image, which Pillow refuses.
    bottom, right = min((top + h) * y, image.shape[0]), min((left + w) * x, image.shape[1])
    box = (left * x, top * y, right, bottom)
    # Pillow's bilinear filter widens with the reduction, so it does not alias.
    return np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR, box=box))


def _resample_mask(
    mask: npt.NDArray[np.integer[Any]], size: tuple[int, int], window: tuple[int, int, int, int]
) -> npt.NDArray[np.integer[Any]]:
    """Return the window of the mask resized to ``size``: the label at each new pixel's centre."""
    (full_h, full_w), (top, left, h, w) = size, window
    rows = ((np.arange(top, top + h) + 0.5) * (mask.shape[0] / full_h)).astype(np.int64)
    columns = ((np.arange(left, left + w) + 0.5) * (mask.shape[1] / full_w)).astype(np.int64)
    picked: npt.NDArray[np.integer[Any]] = mask[
        rows.clip(max=mask.shape[0] - 1)[:, None], columns.clip(max=mask.shape[1] - 1)
    ]
    return picked


def _to_float(pixels: Tensor) -> Tensor:
    """Return [H, W, 3] uint8 as [3, H, W] float32 in [0, 1]."""
    return pixels.permute(2, 0, 1).contiguous().float().div_(255)


def eval_image(
    image: npt.NDArray[np.uint8], *, resize: int | None, file: Path | str = "The image"
) -> Tensor:
    """Return an image [H, W, 3] uint8 as [3, h, w] float32 in [0, 1] for evaluation.

    The short side is brought to ``resize`` pixels, bilinear with antialias; None keeps the size.

    Raises:
        UserError: that names ``file``, where a very long image would become larger than any that
            is read.
    """
    height, width = image.shape[:2]
    h, w = resized_size(height, width, resize)
    if h * w > max(_MOST_PIXELS, height * width):
        raise UserError(
            f"{file}: {width} x {height} pixels (width x height) would become {w} x {h} with "
            f"data.resize={resize}; take the image out, or cut it into parts."
        )
    return _to_float(torch.from_numpy(_resample(image, (h, w), (0, 0, h, w))))
