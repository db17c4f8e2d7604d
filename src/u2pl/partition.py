"""Eq. 5-8: which pixels of an unlabelled image the teacher may label, and how that share moves.

Everything here is a pure function of tensors. B images, C classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def prediction_entropy(probs: Tensor) -> Tensor:
    """Entropy of each pixel's class distribution, Eq. 5 [P]: ``H = -Σ_c p(c) log p(c)``.

    Args:
        probs: [B, C, H, W], in [0, 1], summing to 1 over the classes. A 0 contributes 0.

    Returns:
        [B, H, W] in nats, from 0 (certain) to log C (all classes alike).

    >>> prediction_entropy(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)).item()  # log 2
    0.693147...
    """
    # sum of -p log p can round to just below 0 for a certain pixel
    pointwise: Tensor = torch.special.entr(probs)
    return pointwise.sum(dim=1).clamp_min(0)


def unreliable_fraction(step: int, total_steps: int, *, initial: float = 0.2) -> float:
    """Share of pixels held unreliable at a step, Eq. 7 [P]: ``α_t = α_0 (1 - t / T)``.

    Args:
        step: t, counted from 0; past ``total_steps`` the share stays 0.
        total_steps: T, at least 1.
        initial: α_0 in [0, 1).

    Returns:
        α_t in [0, α_0], a fraction.

    Raises:
        ValueError: for a negative step, no steps at all, or a share outside [0, 1).

    >>> unreliable_fraction(50, 100)
    0.1
    """
    if total_steps < 1 or step < 0:
        raise ValueError(f"Expected step >= 0 and total_steps >= 1, got {step} and {total_steps}.")
    if not 0 <= initial < 1:
        raise ValueError(f"Expected initial in [0, 1), got {initial}.")
    return initial * max(0.0, 1 - step / total_steps)


def entropy_threshold(
    entropy: Tensor,
    valid: Tensor,
    *,
    unreliable_fraction: float | Tensor,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """γ_t of Eq. 6 [P]: the ``1 - α_t`` quantile of the entropy over the batch's valid pixels.

    Linear interpolation between neighbours, as ``torch.quantile`` has it, but for any number of
    pixels and without waiting for the device.

    Args:
        entropy: [B, H, W], nats.
        valid: [B, H, W] bool; padding and erased pixels are False and do not count.
        unreliable_fraction: α_t in [0, 1); a number, or a float64 scalar on the device.
        total: where several processes share the batch, a function that sums a tensor of counts
            over them; the threshold is then that of all their pixels, to the last bit. None for a
            batch of one process.

    Returns:
        A scalar in nats; +inf where no pixel is valid, so that nothing counts as unreliable.

    >>> H = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 9.0]]])
    >>> entropy_threshold(H, H < 9, unreliable_fraction=0.5)
    tensor(1.5000)
    """
    # at least float32: neighbours of a large batch differ by less than bf16 can say
    entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
    num_valid = valid.sum() if total is None else total(valid.sum())
    # float64: a float32 position is off by whole pixels from 16 M pixels on
    position = (num_valid - 1).clamp_min(0).double() * (1 - unreliable_fraction)
    low = position.floor().long()
    high = torch.minimum(low + 1, (num_valid - 1).clamp_min(0))
    infinity = entropy.new_full((), torch.inf)
    known = torch.where(valid, entropy, infinity).flatten()
    if total is None and (known.is_cuda or known.dtype == torch.float64):
        ordered = known.sort().values  # a GPU sorts a million in a fraction of a millisecond
        below, above = (_at(ordered, n) for n in (low, high))
    else:
        known = known.float()
        below = _nth_smallest(known, low, total)
        if total is None:
            next_one = known.masked_fill(known <= below, torch.inf).min()
            above = torch.where((known <= below).sum() > high, below, next_one)
        else:
            above = _nth_smallest(known, high, total)
    interpolated = torch.lerp(below, above, (position - low).to(below.dtype))
    return torch.where(num_valid > 0, interpolated, infinity)


def class_entropy_thresholds(
    entropy: Tensor,
    predictions: Tensor,
    valid: Tensor,
    *,
    num_classes: int,
    unreliable_fraction: float | Tensor,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Eq. 6 for each predicted class by itself: the ``1 - α_t`` quantile of its pixels' entropy.

    A threshold of the whole batch takes its unreliable pixels from the classes that are hard, and
    rare ones may have no pseudo-label left. Here each class keeps the same share of its pixels, as
    class-balanced self-training does by confidence [R: CBST, arXiv 1810.07911].

    Args:
        entropy: [B, H, W], nats.
        predictions: [B, H, W] int64, the class of each pixel.
        valid: [B, H, W] bool.
        num_classes: C.
        unreliable_fraction, total: as for :func:`entropy_threshold`.

    Returns:
        [C] float32 in nats; +inf for a class without a valid pixel.

    >>> H = torch.tensor([[[0.1, 0.2, 0.3, 2.0, 4.0]]])
    >>> classes = torch.tensor([[[0, 0, 0, 1, 1]]])
    >>> class_entropy_thresholds(H, classes, H < 9, num_classes=3, unreliable_fraction=0.5)
    tensor([0.2000, 3.0000,    inf])
    """
    groups = torch.where(valid, predictions, num_classes).flatten()
    ones = torch.ones_like(groups)
    counts = ones.new_zeros(num_classes + 1).scatter_add_(0, groups, ones)[:-1]
    counts = counts if total is None else total(counts)
    position = (counts - 1).clamp_min(0).double() * (1 - unreliable_fraction)
    low = position.floor().long()
    high = torch.minimum(low + 1, (counts - 1).clamp_min(0))
    values = torch.where(valid, entropy.float(), 0).flatten()
    below, above = (_nth_smallest_of_groups(values, groups, n, total) for n in (low, high))
    interpolated = torch.lerp(below, above, (position - low).to(below.dtype))
    return torch.where(counts > 0, interpolated, torch.inf)


def _nth_smallest_of_groups(
    values: Tensor,
    groups: Tensor,
    n: Tensor,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The n-th smallest (from 0) of each group's values, found as :func:`_nth_smallest` does.

    Args:
        values: [K] float32, not negative.
        groups: [K] int64, from 0 to G; those of G belong to none.
        n: [G] int64, below the number of each group's values; 0 for a group without any.
        total: sums counts over the processes; None where there is one.

    Returns:
        [G] float32; meaningless for a group without values.
    """
    num_groups = len(n)
    bits = values.contiguous().view(torch.int32)
    found = n.new_zeros(num_groups + 1, dtype=torch.int32)
    ones, shift = torch.ones_like(groups), sum(_BITS)
    for width in _BITS:
        candidate = bits >> shift == (found >> shift)[groups]  # agrees in what is found
        shift -= width
        place = torch.where(candidate, bits >> shift & (1 << width) - 1, 1 << width)
        columns = (1 << width) + 1
        counts = ones.new_zeros((num_groups + 1) * columns)
        counts = counts.scatter_add_(0, groups * columns + place, ones)
        counts = counts.view(num_groups + 1, columns)[:-1, :-1]
        cumulative = (counts if total is None else total(counts.contiguous())).cumsum(dim=1)
        index = (cumulative <= n.unsqueeze(1)).sum(dim=1)
        index = index.clamp_max(columns - 2)  # of a group without values
        before = cumulative.gather(1, (index - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
        n = n - torch.where(index > 0, before, 0)
        found[:-1] |= (index << shift).int()
    return found[:-1].view(torch.float32)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` of a scalar index; written like that it would wait for the device."""
    return values.index_select(0, index.view(1)).squeeze(0)


_BITS = (11, 10, 10)  # of a float that is not negative, found in this order: 31 in all


def _nth_smallest(
    values: Tensor, n: Tensor, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The n-th smallest (from 0) of all processes' values, which none of them holds together.

    Floats that are not negative order like their bits, read as an integer. So the bits are found
    some at a time, by counting: three histograms, whatever the number of pixels. On a CPU this is
    faster than a sort, too.

    Args:
        values: [K] float32, not negative.
        n: scalar int64, below the number of all values.
        total: sums counts over the processes; None where there is one.
    """
    bits = values.contiguous().view(torch.int32)
    found = torch.zeros_like(n, dtype=torch.int32)
    one, shift = torch.ones_like(n).expand(len(bits)), sum(_BITS)
    for width in _BITS:
        candidate = bits >> shift == found >> shift  # agrees in what is found
        shift -= width
        place = torch.where(candidate, bits >> shift & (1 << width) - 1, 1 << width)
        counts = bits.new_zeros((1 << width) + 1, dtype=torch.int64)
        counts = counts.scatter_add_(0, place.long(), one)[:-1]
        cumulative = (counts if total is None else total(counts)).cumsum(0)
        index = (cumulative <= n).sum()
        n = n - torch.where(index > 0, _at(cumulative, (index - 1).clamp_min(0)), 0)
        found = found | (index << shift).int()
    return found.view(torch.float32)


def unreliable_mask(entropy: Tensor, threshold: Tensor, valid: Tensor) -> Tensor:
    """Pixels the teacher is not sure of: ``H > γ_t`` on valid pixels, as Eq. 15 has it [P].

    A pixel exactly at the threshold is reliable: with equal entropies everywhere no pixel is
    dropped.

    Args:
        entropy: [B, H, W], nats.
        threshold: scalar, γ_t.
        valid: [B, H, W] bool.

    Returns:
        [B, H, W] bool.
    """
    return (entropy > threshold) & valid


def pseudo_labels(
    predictions: Tensor, entropy: Tensor, threshold: Tensor, valid: Tensor, *, ignore_index: int
) -> Tensor:
    """Eq. 6 [P]: the likeliest class where the teacher is sure, the ignore index elsewhere.

    Args:
        predictions: [B, H, W] int64, argmax over the classes of the teacher's probabilities.
        entropy: [B, H, W], nats.
        threshold: scalar, γ_t; a pixel at the threshold is kept.
        valid: [B, H, W] bool.
        ignore_index: what a pixel without a label carries.

    Returns:
        [B, H, W] int64.
    """
    reliable = valid & ~unreliable_mask(entropy, threshold, valid)
    return torch.where(reliable, predictions, torch.full_like(predictions, ignore_index))


def confident_pseudo_labels(
    predictions: Tensor,
    confidence: Tensor,
    valid: Tensor,
    *,
    threshold: float,
    ignore_index: int,
) -> Tensor:
    """The likeliest class where it is likely enough, in place of Eq. 6 [R: FixMatch].

    Args:
        predictions: [B, H, W] int64, argmax over the classes of the teacher's probabilities.
        confidence: [B, H, W] in [0, 1], the probability of that class.
        valid: [B, H, W] bool.
        threshold: a pixel at the threshold is kept [FixMatch: 0.95].
        ignore_index: what a pixel without a label carries.

    Returns:
        [B, H, W] int64.
    """
    kept = valid & (confidence >= threshold)
    return torch.where(kept, predictions, torch.full_like(predictions, ignore_index))


def confident_share(
    probs: Tensor,
    valid: Tensor,
    *,
    threshold: float = 0.968,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Share of the pixels on which the teacher is confident: the weight that DACS gives [R].

    The threshold is that of DACS (arXiv 2007.08702), which takes the share over the batch, too.

    Args:
        probs: [B, C, H, W].
        valid: [B, H, W] bool; padding does not count.
        threshold: a pixel counts as confident if its likeliest class has at least this
            probability.
        total: sums counts over the processes that share the batch; None where there is one.

    Returns:
        A scalar in [0, 1]; 0 where no pixel is valid.
    """
    confident = (probs.amax(dim=1) >= threshold) & valid
    counts = torch.stack([confident.sum(), valid.sum()])
    if total is not None:
        counts = total(counts)
    return counts[0] / counts[1].clamp_min(1)


def restrict_to_tags(probs: Tensor, possible_classes: Tensor) -> Tensor:
    """Give absent classes no probability and rescale the rest to sum to 1 [R].

    Args:
        probs: [B, C, H, W], summing to 1 over the classes.
        possible_classes: [B, C] bool, the image's tags. All True returns ``probs`` unchanged;
            so does a row without any True, which says nothing.

    Returns:
        [B, C, H, W]. Where all probability lay on absent classes, the possible ones share it
        evenly.
    """
    informative = possible_classes.any(dim=1, keepdim=True) & ~possible_classes.all(
        dim=1, keepdim=True
    )
    possible = possible_classes[:, :, None, None]
    informative = informative[:, :, None, None]
    kept = torch.where(possible | ~informative, probs, torch.zeros_like(probs))
    total = kept.sum(dim=1, keepdim=True)
    lost = informative & (total <= torch.finfo(probs.dtype).tiny)
    divisor = torch.where(informative, total, torch.ones_like(total)).masked_fill(lost, torch.inf)
    even = possible / possible.sum(dim=1, keepdim=True).clamp_min(1)
    return kept / divisor + even.to(probs.dtype) * lost


_NEVER = -1e30  # as a logit: no probability, yet finite, so that it can be interpolated


def restrict_logits_to_tags(logits: Tensor, possible_classes: Tensor) -> Tensor:
    """The logits of what :func:`restrict_to_tags` makes of their softmax [R].

    On the feature grid this costs a sixteenth of what it does at full size, where bilinear
    interpolation takes it along.

    Args:
        logits: [B, C, h, w], at least float32.
        possible_classes: [B, C] bool, as for :func:`restrict_to_tags`.

    Returns:
        [B, C, h, w]. The possible classes keep their odds even where nearly all probability lay on
        absent ones.

    >>> possible = torch.tensor([[True, True, False]])
    >>> restrict_logits_to_tags(torch.zeros(1, 3, 1, 1), possible).softmax(dim=1).flatten()
    tensor([0.5000, 0.5000, 0.0000])
    """
    absent = ~possible_classes & possible_classes.any(dim=1, keepdim=True)
    return logits.masked_fill(absent[:, :, None, None], _NEVER)
