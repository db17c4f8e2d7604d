"""How good seeds are, where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from u2pl.data.check import size_error
from u2pl.data.sources import Dataset, Sample
from u2pl.data.storage import ImageFile
from u2pl.engine.evaluate import class_iou


def seed_quality(
    seeds: Sequence[Sample], truths: Mapping[ImageFile, Sample], dataset: Dataset
) -> dict[str, Any]:
    """Compare seed masks with true ones, pixel by pixel over the whole data set.

    Args:
        seeds: samples whose mask is their seed mask.
        truths: of an image the sample with its true mask, where there is one.
        dataset: how to read both.

    Returns:
        ``images``, ``labeled_share`` (percent of all pixels that are not ignored) and
        ``scored_images``. Over the images with a true mask: ``miou`` and ``iou`` of each class,
        in which an unsure pixel is one missed; ``miou_sure`` and ``iou_sure``, over the labelled
        pixels alone; ``precision``, the percentage of these that are right. None where there is
        nothing to count.

    Raises:
        UserError: where a mask cannot be read, or a true one has not its image's size.
    """
    confusion = torch.zeros(dataset.num_classes + 1, dataset.num_classes + 1, dtype=torch.int64)
    num_pixels = num_labeled = num_scored = 0
    for sample in seeds:
        seed = torch.from_numpy(dataset.read_mask(sample))
        num_pixels += seed.numel()
        num_labeled += int((seed != dataset.ignore_index).sum())
        if sample.image not in truths:
            continue
        truth = torch.from_numpy(dataset.read_mask(truths[sample.image]))
        if truth.shape != seed.shape:
            height, width = seed.shape
            raise size_error(sample.image, (height, width), (truth.shape[0], truth.shape[1]))
        confusion += count_pixels(truth, seed, dataset.num_classes, dataset.ignore_index)
        num_scored += 1
    iou = class_iou(confusion)[:-1]  # no pixel is truly unsure
    sure = confusion[:-1, :-1]
    iou_sure = class_iou(sure)
    return {
        "images": len(seeds),
        "labeled_share": _percent(num_labeled, num_pixels),
        "scored_images": num_scored,
        "miou": _number(iou.nanmean()),
        "miou_sure": _number(iou_sure.nanmean()),
        "precision": _percent(int(sure.diagonal().sum()), int(sure.sum())),
        "iou": dict(zip(dataset.classes, map(_number, iou), strict=True)),
        "iou_sure": dict(zip(dataset.classes, map(_number, iou_sure), strict=True)),
    }


def count_pixels(truth: Tensor, seed: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels by (true class, seed class), [C + 1, C + 1] int64.

    The last column holds the pixels whose seed is ``ignore_index``; those whose truth is are left
    out, so the last row is 0.

    >>> truth, seed = torch.tensor([0, 1, 1, 255]), torch.tensor([0, 1, 255, 1])
    >>> count_pixels(truth, seed, 2, 255).tolist()
    [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    """
    known = truth != ignore_index
    column = torch.where(seed == ignore_index, num_classes, seed)
    size = num_classes + 1
    counts = torch.bincount((truth * size + column)[known], minlength=size * size)
    return counts.view(size, size)


def _number(value: Tensor) -> float | None:
    return None if math.isnan(value) else float(value)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
