"""Whether an exported network says what ours says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image as Pictures
from torch import Tensor

from u2pl.data.transforms import eval_image
from u2pl.data.windows import Image
from u2pl.engine.trained import SegmentationModel

EQUAL_PIXELS = 0.999
"""The share of pixels whose class must be the same: rounding may decide a pixel, not a mask."""


@torch.inference_mode()
def compare(
    model: SegmentationModel,
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Iterable[Image],
    *,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Give images to both, and compare masks and logits.

    Args:
        model: ours; it sees whole images, as the exported one does.
        run: the exported one; from [1, H, W, 3] uint8 to mask [1, H, W] and logits [1, C, H, W].
        images: RGB [H, W, 3] uint8; each is first brought to ``data.resize``.
        size: (height, width) that the exported one takes, or None for any.

    Returns:
        ``equal_pixels``, a fraction; ``max_abs_difference`` of the logits; ``images``.
    """
    equal = total = count = 0
    largest = 0.0
    for image in images:
        pixels = seen_by(image, resize=model.card.resize, size=size)
        expected = model.whole(pixels.permute(0, 3, 1, 2).float() / 255)
        mask, logits = run(pixels)
        same = mask.long() == expected.softmax(dim=1).max(dim=1).indices
        equal += int(same.sum())
        total += same.numel()
        largest = max(largest, float((logits - expected).abs().max()))
        count += 1
    return {
        "equal_pixels": equal / max(total, 1),
        "max_abs_difference": largest,
        "images": count,
    }


def seen_by(image: Image, *, resize: int | None, size: tuple[int, int] | None) -> Tensor:
    """An image as the graph takes it, [1, H, W, 3] uint8.

    Args:
        image: RGB [H, W, 3] uint8.
        resize: short side that the run brings images to, or None.
        size: (height, width) of a graph that takes no other, or None.
    """
    if size is not None:
        fitted = Pictures.fromarray(image).resize((size[1], size[0]), Pictures.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).unsqueeze(0)
    if resize is None:
        return torch.from_numpy(np.array(image)).unsqueeze(0)
    resized = eval_image(image, resize=resize)  # whole 255ths of what Pillow has rounded
    return (resized * 255).round().to(torch.uint8).permute(1, 2, 0).unsqueeze(0).contiguous()
