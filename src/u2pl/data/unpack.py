"""From what loader processes deliver to what a step receives.

Images come as bytes and labels as small integers, a quarter to an eighth of what the step computes
with; strong views come as twelve random numbers an image. So little has to pass between processes
and to a GPU, and the colours are changed where there is most power to do it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from u2pl.config import DataSettings
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.photometric import photometric


def label_dtype(num_classes: int, ignore_index: int) -> torch.dtype:
    """Return a small integer type that holds every label.

    >>> label_dtype(19, 255), label_dtype(19, 65535)
    (torch.uint8, torch.int32)
    """
    return torch.uint8 if max(num_classes - 1, ignore_index) <= 255 else torch.int32


def unpack(item: dict[str, Any], settings: DataSettings, device: torch.device) -> Batch:
    """Return a batch on ``device``; on a GPU nothing waits for it where the item is page-locked.

    Args:
        item: ``image`` [B, 3, H, W] uint8; ``label`` [B, H, W] of :func:`label_dtype`;
            ``image_colors`` [B, 12] for strong views of them, or absent; and what
            :func:`unpack_unlabeled` reads, or nothing of it.
        settings: how much colours change.
        device: of the step.
    """
    images = _to_float(item["image"], device)
    labels = item["label"].to(device, non_blocking=True).long()
    draws = item.get("image_colors")
    strong = None if draws is None else _changed(images, draws, settings)
    labeled = LabeledBatch(images, labels, strong)
    return Batch(labeled, unpack_unlabeled(item, settings, device) if "weak" in item else None)


def unpack_unlabeled(
    item: dict[str, Any], settings: DataSettings, device: torch.device
) -> UnlabeledBatch:
    """Return the unlabelled half alone.

    Args:
        item: ``weak`` [B, 3, H, W] uint8; ``colors`` [B, V, 12] float64 of
            :func:`u2pl.data.photometric.draw_colors` for V strong views; ``valid`` [B, H, W] and
            ``possible_classes`` [B, C] bool; ``context`` [B, 3, H', W'] uint8 with ``offsets``
            [B, 2] int64, or neither.
        settings, device: as for :func:`unpack`.
    """
    weak = _to_float(item["weak"], device)
    return UnlabeledBatch(
        weak=weak,
        strong=tuple(_changed(weak, draws, settings) for draws in item["colors"].unbind(1)),
        valid=item["valid"].to(device, non_blocking=True),
        possible_classes=item["possible_classes"].to(device, non_blocking=True),
        context=_to_float(item["context"], device) if "context" in item else None,
        offsets=item["offsets"].to(device, non_blocking=True) if "offsets" in item else None,
    )


def _to_float(pixels: Tensor, device: torch.device) -> Tensor:
    """Return bytes as float32 in [0, 1]."""
    return pixels.to(device, non_blocking=True).float().div_(255)


def _changed(images: Tensor, draws: Tensor, settings: DataSettings) -> Tensor:
    return photometric(
        images,
        draws,
        jitter=settings.jitter,
        jitter_probability=settings.jitter_probability,
        grayscale_probability=settings.grayscale_probability,
        blur_probability=settings.blur_probability,
        intensities=settings.intensities,
    )
