"""Eq. 2: the loss on labelled pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    num_pixels: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, averaged over the labelled pixels [P].

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W] int64; pixels with ``ignore_index`` do not count.
        ignore_index: outside 0 … C - 1.
        num_pixels: scalar, what to divide the sum by: the labelled pixels of the *whole* batch,
            where ``logits`` is a part of it. None counts those of ``labels``.
        pixel_weights: [B, H, W], multiplies each pixel's loss; the divisor still counts pixels.

    Returns:
        A scalar in nats; 0, with a gradient of 0, where no pixel is labelled.
    """
    if pixel_weights is None:
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    else:
        losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        total = (losses * pixel_weights).sum()
    counted = (labels != ignore_index).sum() if num_pixels is None else num_pixels
    return total / counted.clamp_min(1)


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Tensor:
    """Cross-entropy over hard pixels only: online hard example mining [P: Cityscapes].

    A pixel is hard if the probability of its own class is at most ``threshold``; where fewer
    than ``min_kept`` are, the hardest ``min_kept`` count (or all, if there are not so many).

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W] int64.
        ignore_index: outside 0 … C - 1.
        threshold: probability in (0, 1].
        min_kept: pixels of the batch.

    Returns:
        A scalar in nats, the mean over the kept pixels; 0 where no pixel is labelled.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none").flatten()
    labeled = (labels != ignore_index).flatten()
    # -log p(own class) is the loss itself: the k-th largest loss is the k-th hardest pixel
    own_probs = losses.detach().neg().exp().masked_fill(~labeled, 2.0)
    kth = min(min_kept, own_probs.numel())
    kth_hardest = own_probs.sort().values[kth - 1]
    kept = labeled & (own_probs <= kth_hardest.clamp_min(threshold))
    return (losses * kept).sum() / kept.sum().clamp_min(1)
