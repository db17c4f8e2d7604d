"""Scores of a network: one confusion matrix over a whole data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from u2pl.config import Config
from u2pl.data.loaders import evaluation_batches
from u2pl.data.sources import Dataset, Sample, split_hash
from u2pl.engine.protocol import (
    Protocol,
    Window,
    at_scale,
    middle,
    protocol_of,
    scored_classes,
    sets_within,
)
from u2pl.engine.world import ALONE, World
from u2pl.models import upsample
from u2pl.partition import prediction_entropy

NUM_BINS = 4096
"""Of the entropy histogram that the reliable share is read from; 0.0007 nats each at C = 21."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluating a network on a list of images gave.

    Attributes:
        confusion: [C, C] int64 on the CPU, pixels by (true class, predicted class).
        entropy_histogram: [NUM_BINS] int64, pixels by entropy from 0 to log C.
        classes: names in id order.
        protocol: what was seen and scored.
        num_images: images scored.
        split_sha256: of the list of their names.
        scored: ids of the classes whose mean is the mIoU; None for all.
    """

    confusion: Tensor
    entropy_histogram: Tensor
    classes: tuple[str, ...]
    protocol: Protocol
    num_images: int
    split_sha256: str
    scored: tuple[int, ...] | None = None

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union of each class in percent; None without a pixel of that class."""
        values = class_iou(self.confusion).tolist()
        return {
            name: None if math.isnan(value) else value
            for name, value in zip(self.classes, values, strict=True)
        }

    @property
    def miou(self) -> float:
        """Mean over the scored classes that occur, in percent; nan where no pixel is known."""
        return self.mean_over(self.scored)

    def mean_over(self, ids: Sequence[int] | None) -> float:
        """Mean IoU in percent over those of these classes that occur; None is all.

        Pixels of other classes count all the same, as false alarms of the class that is seen there.
        """
        iou = class_iou(self.confusion)
        return float((iou if ids is None else iou[list(ids)]).nanmean())

    def entropy_quantile(self, share: float) -> float:
        """The entropy in nats below which this share of the pixels lies (upper edge of a bin)."""
        last = quantile_bin(self.entropy_histogram, share)
        return (last + 1) / NUM_BINS * math.log(len(self.classes))

    def to_json(self, *, weights: str, step: int) -> dict[str, Any]:
        """Plain values, as ``evaluate --json`` writes them."""
        accuracy = self.confusion.diagonal().sum() / self.confusion.sum().clamp_min(1)
        sets = sets_within(self.scored, self.classes)
        counted = None if self.scored is None else [self.classes[i] for i in self.scored]
        return {
            "miou": _number(self.miou),
            "miou_classes": counted,
            "miou_of_sets": {name: _number(self.mean_over(ids)) for name, ids in sets.items()},
            "iou": self.iou,
            "pixel_accuracy": float(accuracy) * 100,
            "protocol": self.protocol.name,
            "protocol_settings": self.protocol.to_json(),
            "weights": weights,
            "step": step,
            "images": self.num_images,
            "split_sha256": self.split_sha256,
            "confusion": self.confusion.tolist(),
        }


def _number(value: float) -> float | None:
    """A number as JSON has it."""
    return None if math.isnan(value) else value


def quantile_bin(histogram: Tensor, share: float) -> int:
    """The first bin up to which at least this share of the pixels lies; the last where none is.

    >>> quantile_bin(torch.tensor([6, 2, 2, 0]), 0.8), quantile_bin(torch.zeros(4), 0.8)
    (1, 3)
    """
    cumulative = histogram.cumsum(0).double()
    if cumulative[-1] == 0:
        return len(histogram) - 1
    return int((cumulative >= share * cumulative[-1]).long().argmax())


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union in percent from pixels by (true, predicted) class.

    Args:
        confusion: [C, C].

    Returns:
        [C] float64; nan for a class without a true pixel, which no mean should count as 0.

    >>> class_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    tensor([75., 80., nan], dtype=torch.float64)
    """
    confusion = confusion.double()
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    iou = 100 * intersection / union
    return torch.where(confusion.sum(1) > 0, iou, torch.full_like(iou, torch.nan))


@torch.no_grad()
def predict_logits(
    model: nn.Module, images: Tensor, protocol: Protocol, *, windows: int = 1
) -> Tensor:
    """Logits of whole images, at their own size.

    Args:
        model: returns logits on the feature grid.
        images: [B, 3, H, W], RGB in [0, 1].
        protocol: ``slide`` averages the logits of windows; any other kind sees the image at once.
            With several sizes, or mirrored, the result is the logarithm of the mean probabilities.
        windows: of ``slide``, how many of each image the model sees in one batch.

    Returns:
        [B, C, H, W] float32.
    """
    if not protocol.has_views:
        return _one_view(model, images, protocol, windows)
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    for scale in protocol.scales:
        view = at_scale(images, scale)
        for is_mirrored in (False, True) if protocol.flip else (False,):
            shown = view.flip(-1) if is_mirrored else view
            logits = _one_view(model, shown, protocol, windows)
            logits = resize_logits(logits.flip(-1) if is_mirrored else logits, size)
            probs = logits.softmax(dim=1)
            total = probs if total is None else total.add_(probs)
    assert total is not None, "a protocol has at least one size"
    total /= len(protocol.scales) * (2 if protocol.flip else 1)
    return total.clamp_min_(torch.finfo(total.dtype).tiny).log_()


def _one_view(model: nn.Module, images: Tensor, protocol: Protocol, windows: int) -> Tensor:
    """Logits [B, C, H, W] of images as they are, at once or by windows."""
    height, width = images.shape[-2:]
    crop = protocol.crop
    if protocol.kind != "slide" or (height <= crop[0] and width <= crop[1]):
        return upsample(model(images, with_features=False).logits.float(), (height, width))
    size = (min(height, crop[0]), min(width, crop[1]))
    corners = [
        (top, left)
        for top in window_starts(height, size[0], protocol.stride_fraction)
        for left in window_starts(width, size[1], protocol.stride_fraction)
    ]
    total: Tensor | None = None
    seen = images.new_zeros(1, 1, height, width)
    for first in range(0, len(corners), windows):
        some = corners[first : first + windows]
        places = [(slice(y, y + size[0]), slice(x, x + size[1])) for y, x in some]
        batch = torch.cat([images[..., rows, columns] for rows, columns in places])
        logits = upsample(model(batch, with_features=False).logits.float(), size)
        if total is None:
            total = logits.new_zeros(images.shape[0], logits.shape[1], height, width)
        for (rows, columns), of_window in zip(
            places, torch.split(logits, len(images)), strict=True
        ):
            total[..., rows, columns] += of_window
            seen[..., rows, columns] += 1
    assert total is not None
    return total / seen


def scored_logits(
    model: nn.Module, images: Tensor, protocol: Protocol, *, windows: int = 1
) -> tuple[Tensor, Window]:
    """Logits of the part of images that a protocol scores, and which part that is.

    Args:
        model: see :func:`predict_logits`.
        images: [B, 3, H, W], RGB in [0, 1].
        protocol: ``center-crop`` sees and scores the middle; any other kind all of it.
        windows: see :func:`predict_logits`.

    Returns:
        [B, C, h, w] float32 of the part, and the part of the images. Padding is in neither, so it
        is never scored.
    """
    if protocol.kind != "center-crop":
        logits = predict_logits(model, images, protocol, windows=windows)
        return logits, Window(0, images.shape[-2], 0, images.shape[-1])
    seen, shown, inside = middle(images, protocol.crop)
    logits = predict_logits(model, seen, protocol)
    return logits[..., inside.top : inside.bottom, inside.left : inside.right], shown


def window_starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin so that they cover a side, the last one flush with the end.

    >>> window_starts(10, 4, 0.75), window_starts(3, 4, 0.75)
    ([0, 3, 6], [0])
    """
    if length <= window:
        return [0]
    hop = max(1, round(window * stride))
    return [*range(0, length - window, hop), length - window]


@torch.no_grad()
def evaluate(
    models: Mapping[str, nn.Module],
    samples: Sequence[Sample],
    dataset: Dataset,
    config: Config,
    *,
    device: torch.device,
    workers: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
    world: World = ALONE,
) -> dict[str, Evaluation]:
    """Score networks side by side, so that each image is decoded once.

    Predictions are brought to each mask's own size before they are compared; a pixel counts once,
    whatever image it is in. ``center-crop`` cuts masks as it cuts images.

    Args:
        models: by name; put into evaluation mode, and back as they were.
        samples: with masks.
        dataset: classes and mask format.
        config: resizing and protocol.
        device: where the networks are.
        workers: loader processes; None as in the configuration.
        on_batch: called before each batch is scored.
        world: the processes that share the images; each image is scored once, by one of them.

    Returns:
        An :class:`Evaluation` for each name, of all images in every process.
    """
    settings, protocol = config.evaluation, protocol_of(config)
    tallies = {name: Tally(dataset, device) for name in models}
    was_training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    for images, masks, _, _ in evaluation_batches(
        samples[world.rank :: world.size],
        dataset,
        config.data,
        batch_size=settings.batch_size,
        workers=workers,
    ):
        on_batch()
        assert masks is not None, "samples without masks cannot be scored"
        windows = max(1, settings.batch_size // len(images))
        images, truths = images.to(device), [mask.to(device) for mask in masks]
        for name, model in models.items():
            count(tallies[name], model, images, truths, protocol, windows=windows)
    for name, model in models.items():
        model.train(was_training[name])
    return {
        name: Evaluation(
            confusion=world.sum(tally.confusion).cpu(),
            entropy_histogram=world.sum(tally.histogram).cpu(),
            classes=dataset.classes,
            protocol=protocol,
            num_images=len(samples),
            split_sha256=split_hash(samples),
            scored=scored_classes(settings.classes, dataset.classes),
        )
        for name, tally in tallies.items()
    }


def count(
    tally: Tally,
    model: nn.Module,
    images: Tensor,
    masks: Sequence[Tensor],
    protocol: Protocol,
    *,
    windows: int,
) -> None:
    """Score a batch by a network.

    Args:
        tally: gets the pixels.
        model: in evaluation mode.
        images: [B, 3, H, W], RGB in [0, 1].
        masks: of each image [H', W'], of whatever size its file has.
        protocol: what is seen and scored.
        windows: see :func:`predict_logits`.
    """
    # not compiled: images come in any size, and each would be compiled anew
    with torch.compiler.set_stance("force_eager"):
        logits, part = scored_logits(model, images, protocol, windows=windows)
    seen = (images.shape[-2], images.shape[-1])
    for row, mask in enumerate(masks):
        own = part.scaled(seen, (mask.shape[-2], mask.shape[-1]))
        truth = mask[own.top : own.bottom, own.left : own.right]
        tally.add(resize_logits(logits[row : row + 1], own.size), truth)


class Tally:
    """Pixels of a data set, counted on the device as they come; nothing waits for a GPU.

    Args:
        dataset: classes and ignore index.
        device: where to count.

    Attributes:
        confusion: [C, C] int64, pixels by (true class, predicted class).
        histogram: [NUM_BINS] int64, pixels by entropy.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self._ignore_index, size = dataset.ignore_index, dataset.num_classes
        self.confusion = torch.zeros(size, size, dtype=torch.long, device=device)
        self.histogram = torch.zeros(NUM_BINS, dtype=torch.long, device=device)

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Count one image: logits [1, C, H, W] against its mask [H, W]."""
        probs, size = logits.softmax(dim=1), len(self.confusion)
        place = mask.long() * size + probs.max(dim=1).indices.squeeze(0)
        place = torch.where(mask == self._ignore_index, size * size, place)
        self.confusion += counts_of(place, size * size + 1)[:-1].view(size, size)
        self.histogram += entropy_histogram(probs)


def counts_of(values: Tensor, number: int) -> Tensor:
    """How often each of 0, …, ``number`` - 1 occurs.

    Args:
        values: int64 of any shape, none of them outside of these.
        number: K.

    Returns:
        [K] int64.

    >>> counts_of(torch.tensor([2, 0, 2]), 4)
    tensor([1, 0, 2, 0])
    """
    if values.is_cuda:  # bincount would wait, to see the largest
        return torch.histc(values, bins=number, min=0, max=number)
    return torch.bincount(values.flatten(), minlength=number)


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring [B, C, h, w] to ``size``, (H, W), bilinear with ``align_corners=False``."""
    if (logits.shape[-2], logits.shape[-1]) == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def entropy_histogram(probs: Tensor) -> Tensor:
    """Pixels of [B, C, H, W] probabilities by entropy, [NUM_BINS] int64 from 0 to log C."""
    bins = entropy_bins(prediction_entropy(probs), probs.shape[1])
    return counts_of(bins, NUM_BINS)


def entropy_bins(entropy: Tensor, num_classes: int) -> Tensor:
    """The bin of each entropy in nats, int64 from 0 to NUM_BINS - 1; the range is 0 to log C."""
    return (entropy / math.log(num_classes) * NUM_BINS).long().clamp(0, NUM_BINS - 1)
