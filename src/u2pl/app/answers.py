"""What a network says of an image, and of one of its pixels: numbers, and nothing of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from u2pl.contrast import class_rank, unlabeled_negative_mask
from u2pl.data.transforms import eval_image, resized_size
from u2pl.data.windows import ArrayWindows, Image
from u2pl.engine.evaluate import resize_logits
from u2pl.engine.tiles import (
    Tiling,
    blended_at,
    judge_bands,
    predict_bands,
    small_logits,
    tile_reader,
    upsampled_rows,
)
from u2pl.engine.trained import Prediction, SegmentationModel


@dataclass(frozen=True)
class Labeled:
    """An image with what a network says of it, the same as ``u2pl predict`` writes.

    Attributes:
        image: RGB [H, W, 3] uint8.
        prediction: of its pixels.
        logits: [C, h, w] on the CPU at the size that the network saw; None where that was too
            large to be kept, and a pixel's are computed when somebody asks.
    """

    image: Image
    prediction: Prediction
    logits: Tensor | None

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        logits = 0 if self.logits is None else self.logits.nbytes
        return self.image.nbytes + logits + sum(part.nbytes for part in self.prediction)


class PixelAnswer(NamedTuple):
    """What a network says of one pixel.

    Attributes:
        row, column: where it is, from the top left, from 0.
        probs: of each class, in order of their ids; they sum to 1.
        ranks: O(c) of each class, Eq. 13: 0 for the likeliest.
        excluded: whether the pixel is surely not of each class: r_l <= O(c) < r_h. If it is
            unreliable, it is a negative key of these, Eq. 15.
        entropy: in nats.
        reliable: whether the entropy is within the run's threshold.
    """

    row: int
    column: int
    probs: tuple[float, ...]
    ranks: tuple[int, ...]
    excluded: tuple[bool, ...]
    entropy: float
    reliable: bool

    @property
    def by_rank(self) -> tuple[int, ...]:
        """Class ids from the likeliest to the least likely."""
        return tuple(sorted(range(len(self.ranks)), key=self.ranks.__getitem__))


class ClassShare(NamedTuple):
    """How much of an image a class has.

    Attributes:
        class_id: which.
        share: of the image's pixels, 0 to 1.
        reliable_share: of the class's pixels, 0 to 1.
    """

    class_id: int
    share: float
    reliable_share: float


@torch.inference_mode()
def label(
    model: SegmentationModel,
    image: Image,
    *,
    tiling: Tiling | None = None,
    on_rows: Callable[[int, int], None] = lambda *_: None,
) -> Labeled:
    """Label an image of any size, in tiles where ``u2pl predict`` would take tiles.

    Args:
        model: from :func:`~u2pl.engine.trained.load_model`.
        image: RGB [H, W, 3] uint8.
        tiling: how large images are cut; None takes :class:`~u2pl.engine.tiles.Tiling`'s own.
        on_rows: called with rows done and rows in all, where an image is labelled in bands.

    Raises:
        UserError: where the network's answer is not finite.
    """
    tiling = tiling or Tiling()
    size, resize = (image.shape[0], image.shape[1]), model.card.resize
    seen = resized_size(*size, resize)
    if not tiling.is_large(size, len(model.classes)):
        logits = model.logits_of([eval_image(image, resize=resize)], size=seen)
        return Labeled(image, model.judge(resize_logits(logits, size)), logits[0].cpu())
    if seen == size:
        bands = predict_bands(model, ArrayWindows(image), tiling)
        return Labeled(image, _joined(bands, size, on_rows), None)
    small = small_logits(model, eval_image(image, resize=resize), tiling)
    bands = judge_bands(model, small, size)
    return Labeled(image, _joined(bands, size, on_rows), small.cpu())


def _joined(
    bands: Iterator[tuple[int, Prediction]],
    size: tuple[int, int],
    on_rows: Callable[[int, int], None],
) -> Prediction:
    """One prediction of an image's bands."""
    parts: list[Prediction] = []
    for top, band in bands:
        parts.append(band)
        on_rows(top + band.mask.shape[0], size[0])
    return Prediction(*(np.concatenate(maps) for maps in zip(*parts, strict=True)))


def ask_pixel(
    model: SegmentationModel,
    labeled: Labeled,
    row: int,
    column: int,
    *,
    ranks: tuple[int, int],
    tiling: Tiling | None = None,
) -> PixelAnswer:
    """What the network says of one pixel, and of which classes it surely is not.

    Args:
        model: that labelled the image.
        labeled: from :func:`label`.
        row: of the pixel, from 0.
        column: likewise.
        ranks: r_l and r_h of the run.
        tiling: as it was for :func:`label`.
    """
    logits = pixel_logits(model, labeled, row, column, tiling or Tiling())
    probs = logits.double().softmax(dim=0)
    rank = class_rank(probs.view(1, -1, 1, 1))
    anywhere = torch.ones(1, 1, 1, dtype=torch.bool)  # as if it were unreliable
    excluded = unlabeled_negative_mask(anywhere, rank, low_rank=ranks[0], high_rank=ranks[1])
    return PixelAnswer(
        row=row,
        column=column,
        probs=tuple(probs.tolist()),
        ranks=tuple(rank.flatten().tolist()),
        excluded=tuple(excluded.flatten().tolist()),
        entropy=float(labeled.prediction.entropy[row, column]),
        reliable=bool(labeled.prediction.reliable[row, column]),
    )


@torch.inference_mode()
def pixel_logits(
    model: SegmentationModel, labeled: Labeled, row: int, column: int, tiling: Tiling
) -> Tensor:
    """Logits [C] of a pixel on the CPU: kept ones, or those of the tiles that cover it."""
    size = labeled.prediction.mask.shape
    if labeled.logits is None:
        reader = tile_reader(model, ArrayWindows(labeled.image))
        return blended_at(reader, (size[0], size[1]), tiling, (row, column)).cpu()
    if labeled.logits.shape[1:] == size:
        return labeled.logits[:, row, column]
    return upsampled_rows(labeled.logits, (size[0], size[1]), range(row, row + 1))[:, 0, column]


def class_shares(prediction: Prediction, num_classes: int) -> list[ClassShare]:
    """The classes that an image has, the largest first."""
    pixels = np.bincount(prediction.mask.ravel(), minlength=num_classes)
    sure = np.bincount(prediction.mask[prediction.reliable], minlength=num_classes)
    order = sorted(np.flatnonzero(pixels).tolist(), key=lambda c: (-pixels[c], c))
    return [
        ClassShare(c, float(pixels[c] / prediction.mask.size), float(sure[c] / pixels[c]))
        for c in order
    ]
