"""Images too large to be seen at once: in tiles whose answers are blended where they overlap.

What is kept at a time is a tile, a band of rows as high as it, and what later tiles will add to:
memory grows with the width of the image, not with its height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from u2pl.data.transforms import eval_image, resized_size
from u2pl.data.windows import Windows
from u2pl.engine.trained import Prediction, SegmentationModel
from u2pl.errors import UserError

STEP = 32
"""Sides of tiles and overlaps are multiples of it, so that feature grids of tiles coincide."""

_BAND_VALUES = 2**25  # logits of a band of rows that is brought to the image's size at once


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Attributes:
        size: side of a tile in pixels, a multiple of 32; 0 sees every image at once.
        overlap: pixels that neighbours share, a multiple of 32, at most half a tile.
        whole: logits (classes times pixels) up to which an image is seen at once; 2²⁷ of them
            take 0.5 GiB, and about four times that while an image is judged.
    """

    size: int = 1024
    overlap: int = 128
    whole: int = 2**27

    def __post_init__(self) -> None:
        """Raise UserError where tiles of this kind do not cover an image."""
        if self.size == 0:
            return
        if self.size < 2 * STEP or self.size % STEP:
            raise UserError(
                f"Expected a side of tiles in multiples of {STEP} from {2 * STEP} on, or 0 for "
                f"none, got {self.size}.",
                exit_code=2,
            )
        if self.overlap < 0 or self.overlap % STEP or 2 * self.overlap > self.size:
            raise UserError(
                f"Expected an overlap in multiples of {STEP} up to half a tile of {self.size}, "
                f"got {self.overlap}.",
                exit_code=2,
            )

    def is_large(self, size: tuple[int, int], num_classes: int) -> bool:
        """Whether an image of this (height, width) is cut."""
        fits = size[0] * size[1] * num_classes <= self.whole
        return self.size > 0 and not fits


class Block(NamedTuple):
    """Logits that no later tile changes.

    Attributes:
        top: first row of the image that it covers.
        left: first column.
        logits: [C, h, w].
    """

    top: int
    left: int
    logits: Tensor


def tile_spans(length: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Where tiles begin and end along a side: all overlap alike, the last one may be shorter.

    >>> tile_spans(200, Tiling(size=96, overlap=32)), tile_spans(50, Tiling(size=96, overlap=32))
    ([(0, 96), (64, 160), (128, 200)], [(0, 50)])
    """
    starts = range(0, max(length - tiling.overlap, 1), tiling.size - tiling.overlap)
    return [(start, min(start + tiling.size, length)) for start in starts]


def ramp(length: int, overlap: int, *, is_first: bool, is_last: bool) -> Tensor:
    """Weight of a tile along one side: 1, falling to 0 over each overlap with a neighbour.

    The weights of two neighbours add up to 1 at each pixel that they share.

    >>> ramp(6, 2, is_first=True, is_last=False).tolist()
    [1.0, 1.0, 1.0, 1.0, 0.75, 0.25]
    """
    weights = torch.ones(length)
    if overlap:
        rise = (torch.arange(overlap) + 0.5) / overlap
        if not is_first:
            weights[:overlap] = rise
        if not is_last:
            weights[-overlap:] = 1 - rise
    return weights


def blend_tiles(
    logits_of: Callable[[int, int, int, int], Tensor], size: tuple[int, int], tiling: Tiling
) -> Iterator[Block]:
    """Cut an image into tiles and join their logits.

    Args:
        logits_of: [C, h, w] of the window (top, bottom, left, right).
        size: (height, width) of the image.
        tiling: how to cut.

    Yields:
        Blocks that cover each pixel once, from left to right and from top to bottom.
    """
    rows, columns = tile_spans(size[0], tiling), tile_spans(size[1], tiling)
    overlap = tiling.overlap
    above: list[Tensor] = []  # what the tiles above have said of the rows that they share with us
    for top, bottom in rows:
        below: list[Tensor] = []
        before: Tensor | None = None  # the same of the tile to the left, and its columns
        ends_here = bottom == size[0]
        height = bottom - top - (0 if ends_here else overlap)
        down = ramp(bottom - top, overlap, is_first=top == 0, is_last=ends_here)
        for place, (left, right) in enumerate(columns):
            is_last = right == size[1]
            across = ramp(right - left, overlap, is_first=left == 0, is_last=is_last)
            logits = logits_of(top, bottom, left, right)
            logits = logits * (down[:, None] * across).to(logits.device)
            if before is not None:
                logits[..., : before.shape[-1]] += before
            width = right - left - (0 if is_last else overlap)
            before = logits[..., width:].clone()
            done = logits[..., :width]
            if above:
                done[:, : above[place].shape[1]] += above[place]
            below.append(done[:, height:].clone())
            yield Block(top, left, done[:, :height])
        above = below


def blended_at(
    logits_of: Callable[[int, int, int, int], Tensor],
    size: tuple[int, int],
    tiling: Tiling,
    pixel: tuple[int, int],
) -> Tensor:
    """What :func:`blend_tiles` says of one pixel, from the tiles alone that cover it.

    Args:
        logits_of: [C, h, w] of the window (top, bottom, left, right).
        size: (height, width) of the image.
        tiling: how it is cut.
        pixel: (row, column).

    Returns:
        [C].
    """
    row, column = pixel
    parts: list[Tensor] = []
    for top, bottom in tile_spans(size[0], tiling):
        for left, right in tile_spans(size[1], tiling):
            if not (top <= row < bottom and left <= column < right):
                continue
            down, across = (
                ramp(end - start, tiling.overlap, is_first=start == 0, is_last=end == side)
                for start, end, side in ((top, bottom, size[0]), (left, right, size[1]))
            )
            weight = float(down[row - top] * across[column - left])
            parts.append(logits_of(top, bottom, left, right)[:, row - top, column - left] * weight)
    return torch.stack(parts).sum(dim=0)


def predict_bands(
    model: SegmentationModel, image: Windows, tiling: Tiling
) -> Iterator[tuple[int, Prediction]]:
    """Label a large image a band of rows at a time.

    A run with ``data.resize`` sees the image at that size, and its logits are brought to the
    image's own size band by band; any other sees the image's own pixels.

    Args:
        model: with its card.
        image: parts of it are read as they are needed.
        tiling: how to cut what the network sees.

    Yields:
        The first row of each band, from top to bottom, and what is said of its rows.
    """
    height, width = image.size
    seen = resized_size(height, width, model.card.resize)
    if seen == image.size:
        blocks = blend_tiles(tile_reader(model, image), image.size, tiling)
        yield from _bands(model, blocks, width)
        return
    pixels = eval_image(image.read(0, height, 0, width), resize=model.card.resize)
    yield from judge_bands(model, small_logits(model, pixels, tiling), image.size)


def judge_bands(
    model: SegmentationModel, logits: Tensor, size: tuple[int, int]
) -> Iterator[tuple[int, Prediction]]:
    """Bring logits [C, h, w] to an image's (height, width) and judge them, a band at a time.

    Yields:
        The first row of each band, from top to bottom, and what is said of its rows.
    """
    height, width = size
    rows = max(1, _BAND_VALUES // (logits.shape[0] * width))
    for top in range(0, height, rows):
        band = upsampled_rows(logits, size, range(top, min(top + rows, height)))
        yield top, model.judge(band.unsqueeze(0))


def tile_reader(model: SegmentationModel, image: Windows) -> Callable[[int, int, int, int], Tensor]:
    """What :func:`blend_tiles` asks: the logits [C, h, w] of a window of an image's own pixels."""

    def logits_of(*window: int) -> Tensor:
        pixels = eval_image(image.read(*window), resize=None)
        return model.logits_of([pixels], size=(pixels.shape[-2], pixels.shape[-1]))[0]

    return logits_of


def small_logits(model: SegmentationModel, pixels: Tensor, tiling: Tiling) -> Tensor:
    """Logits [C, h, w] of a resized image [3, h, w], cut only where it is large still."""
    size = (pixels.shape[-2], pixels.shape[-1])
    if not tiling.is_large(size, len(model.classes)):
        return model.logits_of([pixels], size=size)[0]

    def logits_of(top: int, bottom: int, left: int, right: int) -> Tensor:
        tile = pixels[:, top:bottom, left:right]
        return model.logits_of([tile], size=(bottom - top, right - left))[0]

    total = torch.empty(len(model.classes), *size, device=model.network.mean.device)
    for top, left, logits in blend_tiles(logits_of, size, tiling):
        total[:, top : top + logits.shape[1], left : left + logits.shape[2]] = logits
    return total


def _bands(
    model: SegmentationModel, blocks: Iterator[Block], width: int
) -> Iterator[tuple[int, Prediction]]:
    """Judge blocks, and put those of the same rows side by side."""
    parts: list[Prediction] = []
    for top, left, logits in blocks:
        parts.append(model.judge(logits.unsqueeze(0)))
        if left + logits.shape[2] == width:
            yield (
                top,
                Prediction(*(np.concatenate(maps, axis=1) for maps in zip(*parts, strict=True))),
            )
            parts = []


def upsampled_rows(logits: Tensor, size: tuple[int, int], rows: range) -> Tensor:
    """Some rows of what ``F.interpolate`` would make of logits, bilinear, no aligned corners.

    Args:
        logits: [C, h, w].
        size: (height, width) of the whole result.
        rows: of the result.

    Returns:
        [C, len(rows), width].
    """
    height = logits.shape[1]
    place = (torch.arange(rows.start, rows.stop, device=logits.device) + 0.5) * (height / size[0])
    place = (place - 0.5).clamp(0, height - 1)
    upper = place.floor().long()
    share = (place - upper).view(1, -1, 1)
    lower = (upper + 1).clamp(max=height - 1)
    mixed = logits[:, upper] * (1 - share) + logits[:, lower] * share
    wide = F.interpolate(
        mixed.unsqueeze(0), size=(len(rows), size[1]), mode="bilinear", align_corners=False
    )
    return wide[0]
