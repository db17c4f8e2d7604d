"""What a training step receives: one labelled and one unlabelled half, for every setting alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabeledBatch:
    """Images with masks.

    Attributes:
        images: [B, 3, H, W] float32, RGB in [0, 1].
        labels: [B, H, W] int64, class ids; the ignore index where nothing is known (padding too).
        strong: like ``images`` with colours changed, for pasting onto unlabelled images; or None.
    """

    images: Tensor
    labels: Tensor
    strong: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> LabeledBatch:
        """Return what ``function`` makes of each tensor."""
        return LabeledBatch(
            function(self.images),
            function(self.labels),
            None if self.strong is None else function(self.strong),
        )


@dataclass(frozen=True)
class UnlabeledBatch:
    """Images without masks, in a weak view and in strong views of the same geometry.

    Attributes:
        weak: [B, 3, H, W] float32, RGB in [0, 1]: geometry only. The teacher labels this view.
        strong: one or more tensors like ``weak``, colours changed; the student learns on these.
        valid: [B, H, W] bool, False on padding.
        possible_classes: [B, C] bool, which classes the image may hold; all True without tags.
    """

    weak: Tensor
    strong: tuple[Tensor, ...]
    valid: Tensor
    possible_classes: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> UnlabeledBatch:
        """Return what ``function`` makes of each tensor."""
        return UnlabeledBatch(
            function(self.weak),
            tuple(function(view) for view in self.strong),
            function(self.valid),
            function(self.possible_classes),
        )


@dataclass(frozen=True)
class Batch:
    """One step's input. ``unlabeled`` is None where a run has no unlabelled image."""

    labeled: LabeledBatch
    unlabeled: UnlabeledBatch | None

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return what ``function`` makes of each tensor, always in one order."""
        return Batch(
            self.labeled.map(function),
            None if self.unlabeled is None else self.unlabeled.map(function),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))
