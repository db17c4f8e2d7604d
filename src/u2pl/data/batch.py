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
        context: [B, 3, H', W'] like ``weak``, what lies around it and itself; None where the
            teacher sees ``weak`` alone.
        offsets: [B, 2] int64, top and left of ``weak`` in ``context``; None without it.
    """

    weak: Tensor
    strong: tuple[Tensor, ...]
    valid: Tensor
    possible_classes: Tensor
    context: Tensor | None = None
    offsets: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> UnlabeledBatch:
        """Return what ``function`` makes of each tensor."""
        return UnlabeledBatch(
            function(self.weak),
            tuple(function(view) for view in self.strong),
            function(self.valid),
            function(self.possible_classes),
            None if self.context is None else function(self.context),
            None if self.offsets is None else function(self.offsets),
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


def cut_windows(maps: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a window out of each map, at places that only the device knows.

    Args:
        maps: [B, K, H, W].
        offsets: [B, 2] int64, top and left of each window.
        size: (h, w) of every window; each lies within its map.

    Returns:
        [B, K, h, w].

    >>> maps = torch.arange(6).view(1, 1, 2, 3)
    >>> cut_windows(maps, torch.tensor([[0, 1]]), (2, 2))
    tensor([[[[1, 2],
              [4, 5]]]])
    """
    image = torch.arange(len(maps), device=maps.device)[:, None, None]
    rows = offsets[:, 0, None] + torch.arange(size[0], device=maps.device)
    columns = offsets[:, 1, None] + torch.arange(size[1], device=maps.device)
    cut = maps.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]]
    return cut.movedim(-1, 1)
