"""Pseudo-labels of images, and for each image the few numbers that its rank is made of."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from u2pl.data.images import refuse_way_out, write_mask
from u2pl.data.transforms import eval_image
from u2pl.data.windows import Image, Windows
from u2pl.engine.evaluate import resize_logits
from u2pl.engine.predict import Job, Labeling, Small
from u2pl.engine.tiles import predict_bands
from u2pl.engine.trained import Fetched, Prediction, SegmentationModel
from u2pl.models import SegmentationOutput, upsample
from u2pl.partition import prediction_entropy

FOLDER = "masks"
"""Where pseudo-labels lie below the output folder."""

_VIEW = 1024  # long side in pixels to which a very large image is brought to be summed up
_BAND = 1024  # rows of it that are read at a time


class Summary(NamedTuple):
    """What is kept of an image; see :class:`u2pl.labeling.ranking.Pool`.

    Attributes:
        shares: [C] float32, expected share of each class's pixels.
        unsure: [C] float32, the part of it on unreliable pixels.
        features: [D] float32, mean over the image.
    """

    shares: npt.NDArray[np.float32]
    unsure: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    def to_text(self) -> str:
        """Return all numbers as base64 of little-endian float16: 2 bytes each."""
        numbers = np.concatenate(self).astype("<f2")
        return base64.b64encode(numbers.tobytes()).decode("ascii")


def summary_of_text(text: object, num_classes: int, num_features: int) -> Summary | None:
    """Return what :meth:`Summary.to_text` has written; None where it is no such text."""
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return None
    if len(content) != 2 * (2 * num_classes + num_features):
        return None
    numbers = np.frombuffer(content, "<f2").astype(np.float32)
    if not np.isfinite(numbers).all() or numbers[: 2 * num_classes].min() < 0:
        return None
    return Summary(*np.split(numbers, [num_classes, 2 * num_classes]))


def summarize(output: SegmentationOutput, threshold: float) -> Callable[[int], Summary]:
    """Sum up what a network says of images, on its feature grid.

    Args:
        output: logits [B, C, h, w] and features [B, D, h, w].
        threshold: γ in nats; cells of a higher entropy are unreliable.

    Returns:
        Gives the summary of one of the images; a GPU is waited for only then.
    """
    assert output.features is not None, "the network is asked for features"
    probs = output.logits.float().softmax(dim=1)
    is_unsure = prediction_entropy(probs) > threshold
    fetched = Fetched(
        probs.mean(dim=(2, 3)),
        (probs * is_unsure.unsqueeze(1)).mean(dim=(2, 3)),
        output.features.float().mean(dim=(2, 3)),
    )
    return lambda index: Summary(*fetched.of(index))


class Answer(NamedTuple):
    """How to come by what the network says of one image; each waits for a GPU.

    Attributes:
        prediction: at the image's own size.
        summary: of the image as the network sees it.
    """

    prediction: Callable[[], Prediction]
    summary: Callable[[], Summary]


@dataclass
class PseudoLabeling(Labeling):
    """Writes an index mask an image, unreliable pixels as ignore, and keeps the summaries.

    Attributes:
        reliable: share of reliable pixels, by source.
        sizes: height and width, by source.
        summaries: by source.
    """

    reliable: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)

    def ask(self, images: Sequence[Small]) -> list[Answer]:
        """What the network says, by the run's protocol, and a summary; by one pass if one does."""
        prepared, size = [image.prepared for image in images], images[0].size
        whole = self.model.on_device(prepared)
        view = within_crop(self.model, whole)
        output = self.model.network(view, with_features=True)
        summary = summarize(output, self.model.card.reliable_entropy)
        if view is whole:
            seen = (whole.shape[-2], whole.shape[-1])
            logits = resize_logits(upsample(output.logits.float(), seen), size)
        else:
            logits = self.model.logits_of(prepared, size=size)
        return [
            Answer(prediction, partial(summary, index))
            for index, prediction in enumerate(self.judged(logits))
        ]

    @torch.inference_mode()
    def write(self, job: Job, image: Image, answer: Answer) -> dict[str, Any]:
        """Write an image's pseudo-labels, and return its line."""
        prediction = answer.prediction()
        labels = labels_of(prediction, self.model.card.ignore_index)
        return self._write(job, labels, prediction.reliable, answer.summary())

    def in_tiles(self, job: Job, image: Windows) -> dict[str, Any]:
        """Write a large image's pseudo-labels; its summary is that of a small copy."""
        ignore = self.model.card.ignore_index
        labels = np.full(image.size, ignore, np.uint8 if ignore < 256 else np.uint16)
        reliable = np.zeros(image.size, np.bool_)
        for top, band in predict_bands(self.model, image, self.tiling):
            rows = slice(top, top + len(band.mask))
            labels[rows], reliable[rows] = labels_of(band, ignore), band.reliable
        copy = eval_image(small_copy(image), resize=self.model.card.resize, file=job.file)
        view = within_crop(self.model, copy.unsqueeze(0).to(self.model.network.mean.device))
        output = self.model.network(view, with_features=True)
        summary = summarize(output, self.model.card.reliable_entropy)(0)
        return self._write(job, labels, reliable, summary)

    def was_done(self, job: Job) -> bool:
        """Whether the manifest vouches for an image's labels, and has its summary."""
        row = None if self.book is None else self.book.done.get(job.source)
        if row is None or self._summary(row) is None or not super().was_done(job):
            return False
        self._remember(row)
        return True

    def note(self, row: dict[str, Any]) -> None:
        """An image is whole."""
        super().note(row)
        self._remember(row)

    def _write(
        self, job: Job, labels: npt.NDArray[Any], reliable: npt.NDArray[np.bool_], summary: Summary
    ) -> dict[str, Any]:
        path = self.out / FOLDER / job.name
        refuse_way_out(self.out, path)
        write_mask(path, labels, colors=self.model.card.colors)
        size = (labels.shape[0], labels.shape[1])
        return self.line(job, size, int(reliable.sum())) | {"summary": summary.to_text()}

    def _summary(self, row: dict[str, Any]) -> Summary | None:
        network = self.model.network
        last = network.representation_head[-1]
        assert isinstance(last, nn.Conv2d), "a head ends in a convolution"
        return summary_of_text(row.get("summary"), network.num_classes, last.out_channels)

    def _remember(self, row: dict[str, Any]) -> None:
        summary, source = self._summary(row), row["source"]
        assert summary is not None, "a line that we have written or checked"
        self.summaries[source] = summary
        self.reliable[source] = float(row["reliable_share"])
        self.sizes[source] = (int(row["size"][0]), int(row["size"][1]))


def labels_of(prediction: Prediction, ignore_index: int) -> npt.NDArray[Any]:
    """Return the pseudo-labels of Eq. 6 [H, W]: the class where reliable, else ignore."""
    dtype = np.uint8 if max(ignore_index, prediction.mask.max(initial=0)) < 256 else np.uint16
    labels: npt.NDArray[Any] = np.where(
        prediction.reliable, prediction.mask.astype(dtype), np.array(ignore_index, dtype)
    )
    return labels


def within_crop(model: SegmentationModel, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] as a run sees them at once: with ``slide``, no larger than its window."""
    height, width = images.shape[-2:]
    crop = model.card.crop
    if model.card.protocol == "whole" or (height <= crop[0] and width <= crop[1]):
        return images
    scale = min(crop[0] / height, crop[1] / width)
    size = [max(1, math.floor(height * scale)), max(1, math.floor(width * scale))]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def small_copy(image: Windows) -> Image:
    """Return every n-th pixel of every n-th row, read a band of rows at a time."""
    height, width = image.size
    step = math.ceil(max(height, width) / _VIEW)
    band = step * max(1, _BAND // step)
    parts = [
        image.read(top, min(top + band, height), 0, width)[::step, ::step]
        for top in range(0, height, band)
    ]
    return np.concatenate(parts)
