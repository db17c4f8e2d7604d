"""Eq. 9-15: which pixels are anchors, and which are negative keys, of each class.

Every mask is [B, C, h, w] bool on the feature grid; the class axis is there from birth to loss,
whether a class occurs in the batch or not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rank_bounds(
    num_classes: int, *, low_rank: int | None = None, high_rank: int | None = None
) -> tuple[int, int]:
    """r_l and r_h for a number of classes.

    The papers' 3 and 20 [P] suit 19 to 21 classes. With few classes r_l shrinks to half of them,
    1 at C = 2 (the authors' advice), because no unlabelled pixel could be a negative otherwise.

    Args:
        num_classes: C, at least 2.
        low_rank: r_l, or None for ``min(3, C // 2)``.
        high_rank: r_h, exclusive, or None for ``min(20, C)``.

    Returns:
        (r_l, r_h) with 1 <= r_l < r_h <= C.

    Raises:
        ValueError: where the bounds are not in that order.

    >>> rank_bounds(21), rank_bounds(11), rank_bounds(2)
    ((3, 20), (3, 11), (1, 2))
    """
    low = min(3, num_classes // 2) if low_rank is None else low_rank
    high = min(20, num_classes) if high_rank is None else high_rank
    if not 1 <= low < high <= num_classes:
        raise ValueError(
            f"Expected 1 <= low_rank < high_rank <= {num_classes} classes, "
            f"got low_rank {low} and high_rank {high}."
        )
    return low, high


def class_rank(probs: Tensor) -> Tensor:
    """O(c) of Eq. 13 [P]: 0 for a pixel's likeliest class, C - 1 for its least likely.

    Args:
        probs: [B, C, h, w]; any monotone score does. Equal ones rank in order of class id.

    Returns:
        [B, C, h, w] int64, a permutation of 0 … C - 1 at each pixel.

    >>> class_rank(torch.tensor([0.2, 0.7, 0.1]).view(1, 3, 1, 1)).flatten()
    tensor([1, 0, 2])
    """
    order = probs.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks)


def rank_band(probs: Tensor, *, low_rank: int, high_rank: int) -> Tensor:
    """O(c) of Eq. 13, as much of it as Eq. 14 and 15 ask for: below, between or beyond the bounds.

    Compares with both bounds exactly as :func:`class_rank` does. Where a bound is near an end of
    the ranks, as the papers' are, a few maxima take the place of a sort.

    Args:
        probs: [B, C, h, w]; any monotone score does. Equal ones rank in order of class id.
        low_rank: r_l.
        high_rank: r_h, exclusive; ``r_l < r_h <= C``.

    Returns:
        [B, C, h, w] integer: 0 where ``O(c) < r_l``, r_l where ``r_l <= O(c) < r_h``, else r_h.

    >>> rank_band(torch.tensor([0.2, 0.7, 0.1]).view(1, 3, 1, 1), low_rank=1, high_rank=2).flatten()
    tensor([1, 0, 2], dtype=torch.int32)
    """
    num_classes = probs.shape[1]
    rounds = sum(min(bound, num_classes - bound) for bound in (low_rank, high_rank))
    if rounds > _MOST_ROUNDS or probs.dtype == torch.float64:
        rank = class_rank(probs)
        beyond_low, beyond_high = rank >= low_rank, rank >= high_rank
    else:
        keys = _distinct_keys(probs)
        beyond_low, beyond_high = (_beyond(keys, bound) for bound in (low_rank, high_rank))
    return beyond_low.int() * low_rank + beyond_high.int() * (high_rank - low_rank)


_MOST_ROUNDS = 6  # about where a sort becomes cheaper, on a CPU at 21 classes


def _distinct_keys(probs: Tensor) -> Tensor:
    """Whole numbers in the order of O(c), the likeliest class's the largest, no two alike.

    Floats order like their bits, where those of negative ones are turned round; the class id is
    put behind them, so that of equal ones the smaller id wins.

    Args:
        probs: [B, C, h, w], at most float32.

    Returns:
        [B, C, h, w] int64.
    """
    bits = (probs.float() + 0.0).view(torch.int32)  # + 0.0 makes -0 and 0 alike
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    num_classes = probs.shape[1]
    ids = torch.arange(num_classes - 1, -1, -1, device=probs.device).view(1, -1, 1, 1)
    return ordered * num_classes + ids


def _beyond(keys: Tensor, bound: int) -> Tensor:
    """Where ``O(c) >= bound``, [B, C, h, w] bool; counts from the end that is nearer."""
    num_beyond = keys.shape[1] - bound
    if bound <= num_beyond:
        last = keys.amax(dim=1, keepdim=True)  # the key of rank bound - 1
        for _ in range(bound - 1):
            least = torch.iinfo(keys.dtype).min
            last = keys.masked_fill(keys >= last, least).amax(dim=1, keepdim=True)
        return keys < last
    if num_beyond == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    first = keys.amin(dim=1, keepdim=True)  # the key of rank bound
    for _ in range(num_beyond - 1):
        largest = torch.iinfo(keys.dtype).max
        first = keys.masked_fill(keys <= first, largest).amin(dim=1, keepdim=True)
    return keys <= first


def label_mask(labels: Tensor, num_classes: int) -> Tensor:
    """Where each class is the label; an ignored pixel belongs to none.

    Args:
        labels: [B, h, w] int64; anything outside 0 … C - 1 counts as ignored.
        num_classes: C.

    Returns:
        [B, C, h, w] bool.
    """
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1, 1)
    return labels.unsqueeze(1) == classes


def anchor_mask(labels: Tensor, probs: Tensor, *, threshold: float = 0.3) -> Tensor:
    """Anchors of c, Eq. 9-11 [P]: the (pseudo-)label is c and ``p(c) > δ_p``.

    Args:
        labels: [B, h, w] int64, labels or pseudo-labels; unreliable pixels are ignored in them.
        probs: [B, C, h, w].
        threshold: δ_p, exclusive.

    Returns:
        [B, C, h, w] bool.
    """
    return label_mask(labels, probs.shape[1]) & (probs > threshold)


def labeled_negative_mask(labels: Tensor, rank: Tensor, *, low_rank: int) -> Tensor:
    """Negatives of c on labelled pixels, Eq. 14 [P]: the label is not c, yet ``O(c) < r_l``.

    Args:
        labels: [B, h, w] int64; an ignored pixel is nobody's negative.
        rank: [B, C, h, w] from :func:`class_rank` or :func:`rank_band`.
        low_rank: r_l.

    Returns:
        [B, C, h, w] bool.
    """
    own = label_mask(labels, rank.shape[1])
    labeled = own.any(dim=1, keepdim=True)
    return labeled & ~own & (rank < low_rank)


def unlabeled_negative_mask(
    unreliable: Tensor, rank: Tensor, *, low_rank: int, high_rank: int
) -> Tensor:
    """Negatives of c on unlabelled pixels, Eq. 15 [P]: unreliable, and ``r_l <= O(c) < r_h``.

    Args:
        unreliable: [B, h, w] bool, ``H > γ_t``.
        rank: [B, C, h, w] likewise.
        low_rank: r_l, inclusive.
        high_rank: r_h, exclusive.

    Returns:
        [B, C, h, w] bool.
    """
    return unreliable.unsqueeze(1) & (rank >= low_rank) & (rank < high_rank)


def tag_negative_mask(
    possible_classes: Tensor, valid: Tensor, rank: Tensor, *, low_rank: int
) -> Tensor:
    """Certain negatives from image tags [R]: c is absent from the image, yet ``O(c) < r_l``.

    Args:
        possible_classes: [B, C] bool; all True (no tags) gives no certain negative, and neither
            does a row without any True.
        valid: [B, h, w] bool.
        rank: [B, C, h, w] likewise, of the teacher's own probabilities, *before* the tags' veto:
            after it every absent class ranks last.
        low_rank: r_l.

    Returns:
        [B, C, h, w] bool.
    """
    absent = ~possible_classes & possible_classes.any(dim=1, keepdim=True)
    return absent[:, :, None, None] & valid.unsqueeze(1) & (rank < low_rank)
