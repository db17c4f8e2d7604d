"""Eq. 3 and 8: the loss on pseudo-labelled pixels, and its weight."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from u2pl.losses.supervised import cross_entropy


def unsupervised_weight(
    num_valid: Tensor,
    num_kept: Tensor,
    *,
    eta: float | Tensor = 1.0,
    scaling: Literal["inverse_share", "even", "share"] = "inverse_share",
) -> Tensor:
    """λ_u of Eq. 8 [P]: ``η · |B_u| H W / (pixels kept)``; or what others have in its place.

    It multiplies the mean over the kept pixels.

    Args:
        num_valid: any shape, the pixels of the unlabelled batch, padding left out.
        num_kept: likewise, how many of them have a pseudo-label.
        eta: η; a number, or a scalar on the device.
        scaling: ``inverse_share`` is Eq. 8; ``even`` leaves η as it is; ``share`` is
            ``η · (pixels kept) / |B_u| H W``, which makes the loss a mean over all valid pixels
            [R: FixMatch].

    Returns:
        Of the same shape; 0 where no pixel is kept.
    """
    if scaling == "share":
        return num_kept * eta / num_valid.clamp_min(1)
    some = (num_kept > 0) * eta
    return some if scaling == "even" else some * num_valid / num_kept.clamp_min(1)


def ramp_up(step: int, ramp_steps: int) -> float:
    """Share of η in force: it rises in a straight line to 1 [R, after Mean Teacher's ramp-up].

    Pseudo-labels of a teacher that has learnt for a short while unlearn what the labels have only
    begun to teach; a weight that grows leaves the labels the upper hand meanwhile.

    Args:
        step: counted from 0, the first semi-supervised step.
        ramp_steps: after so many the share is 1; 0 for 1 from the start, as the papers have it.

    >>> [ramp_up(step, 4) for step in (0, 1, 3, 9)], ramp_up(0, 0)
    ([0.25, 0.5, 1.0, 1.0], 1.0)
    """
    return min(1.0, (step + 1) / ramp_steps) if ramp_steps else 1.0


def reverse_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    num_pixels: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    floor: float = 1e-4,
) -> Tensor:
    """Cross-entropy with the roles swapped, which a wrong label pulls on less [R].

    ``RCE = -Σ_c p(c) log max(y(c), floor)`` for the one-hot label y. Only the classes that are
    not the label contribute, each -log(floor), so that ``RCE = -log(floor) · (1 - p(label))``.

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W] int64.
        ignore_index: outside 0 … C - 1.
        num_pixels: as in :func:`~u2pl.losses.cross_entropy`.
        pixel_weights: likewise.
        floor: what stands for log 0, in (0, 1).

    Returns:
        A scalar, without weights in [0, -log(floor)]; 0 where no pixel is labelled.
    """
    labeled = labels != ignore_index
    index = labels.masked_fill(~labeled, 0).unsqueeze(1)
    own_probs = logits.softmax(dim=1).gather(1, index).squeeze(1)
    counted = labeled.sum() if num_pixels is None else num_pixels
    weights = labeled if pixel_weights is None else labeled * pixel_weights
    return -math.log(floor) * ((1 - own_probs) * weights).sum() / counted.clamp_min(1)


def symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    reverse_weight: float,
    num_pixels: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """``CE + ξ · RCE`` over the pseudo-labelled pixels: Eq. 3 [P] with U2PL+'s second term [R].

    Args:
        logits: [B, C, H, W] of the student on the strongly augmented images.
        labels: [B, H, W] int64 pseudo-labels.
        ignore_index: outside 0 … C - 1.
        reverse_weight: ξ >= 0; 0 is plain cross-entropy.
        num_pixels: as in :func:`~u2pl.losses.cross_entropy`.
        pixel_weights: likewise.

    Returns:
        A scalar; 0 where no pixel is labelled.
    """
    loss = cross_entropy(
        logits,
        labels,
        ignore_index=ignore_index,
        num_pixels=num_pixels,
        pixel_weights=pixel_weights,
    )
    if reverse_weight == 0:
        return loss
    return loss + reverse_weight * reverse_cross_entropy(
        logits,
        labels,
        ignore_index=ignore_index,
        num_pixels=num_pixels,
        pixel_weights=pixel_weights,
    )


def soft_symmetric_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    kept: Tensor,
    *,
    reverse_weight: float,
    num_pixels: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    floor: float = 1e-4,
) -> Tensor:
    """:func:`symmetric_cross_entropy` for labels that are distributions.

    ``-Σ_c y(c) log p(c) - ξ Σ_c p(c) log max(y(c), floor)``; for one-hot y it is the same.

    Args:
        logits: [B, C, H, W] of the student.
        targets: [B, C, H, W], y, summing to 1 over the classes.
        kept: [B, H, W] bool, the pixels that count.
        reverse_weight: ξ >= 0.
        num_pixels: scalar, what to divide by, where this is a part of a batch; None counts
            ``kept``.
        pixel_weights: [B, H, W], multiplies each pixel's loss.
        floor: what stands for log 0, in (0, 1).

    Returns:
        A scalar; 0 where no pixel counts.
    """
    log_probs = logits.log_softmax(dim=1)
    losses = -(targets * log_probs).sum(dim=1)
    if reverse_weight > 0:
        reverse = -(log_probs.exp() * targets.clamp_min(floor).log()).sum(dim=1)
        losses = losses + reverse_weight * reverse
    counted = kept.sum() if num_pixels is None else num_pixels
    weights = kept if pixel_weights is None else kept * pixel_weights
    return (losses * weights).sum() / counted.clamp_min(1)
