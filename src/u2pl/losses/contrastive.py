"""Eq. 4: the contrastive loss on pixel features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    active: Tensor,
    *,
    temperature: float = 0.5,
    anchor_weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each anchor against its class's positive and its own negatives, Eq. 4.

    ``-1/(C M) Σ_c Σ_m log[ e^{⟨z,z⁺⟩/τ} / (e^{⟨z,z⁺⟩/τ} + Σ_n e^{⟨z,z⁻⟩/τ}) ]`` with cosine
    similarity; C counts the active classes.

    Args:
        anchors: [C, M, D], student features.
        positives: [C, D], one key a class.
        negatives: [C, M, N, D], keys drawn from the class's queue.
        active: [C] bool, which classes have an anchor, a positive and a negative in this step;
            the others' entries may be anything finite.
        temperature: τ > 0.
        anchor_weights: [C, M] or None for ones: 0 leaves an anchor out of the sum but not of
            the count, so that the parts of a batch add up to the whole.

    Returns:
        A scalar in nats, at least :func:`contrastive_floor`; 0, with a gradient of 0, where no
        class is active.
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positive_logits = _against_positives(anchors, positives, dtype, temperature)
        negatives = negatives.to(dtype)
        # products are divided by the keys' lengths, not keys: a D-th of the numbers
        lengths = negatives.norm(dim=-1).clamp_min(1e-12)
        products = torch.einsum("cmd,cmnd->cmn", anchors, negatives)
        negative_logits = products / (lengths * temperature)
    logits = torch.cat([positive_logits.unsqueeze(2), negative_logits], dim=2)
    losses = logits.logsumexp(dim=2) - positive_logits
    return _mean_over_classes(losses, active, anchor_weights)


def contrastive_loss_of_drawn(
    anchors: Tensor,
    positives: Tensor,
    keys: Tensor,
    drawn: Tensor,
    active: Tensor,
    *,
    temperature: float = 0.5,
    anchor_weights: Tensor | None = None,
) -> Tensor:
    """:func:`contrastive_loss` with ``negatives = keys[drawn]``, which are never there all at once.

    A class's anchors alone are compared with 12 800 keys, and a gradient needs them twice. So some
    anchors at a time read their keys, and leave a loss and its derivative, a vector each.

    Args:
        anchors: [C, M, D], student features.
        positives: [C, D], one key a class.
        keys: [K, D] of any floating type, where all keys lie; no gradient flows into them.
        drawn: [C, M, N] int64, which of the keys are an anchor's negatives.
        active: [C] bool, as in :func:`contrastive_loss`.
        temperature: τ > 0.
        anchor_weights: [C, M] or None, as in :func:`contrastive_loss`.

    Returns:
        A scalar in nats. It can be differentiated once.
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positive_logits = _against_positives(anchors, positives, dtype, temperature)
        losses = _LossOfDrawn.apply(  # type: ignore[no-untyped-call]
            anchors.flatten(0, 1), positive_logits.flatten(), keys, drawn.flatten(0, 1), temperature
        )
    return _mean_over_classes(losses.view_as(positive_logits), active, anchor_weights)


def _against_positives(
    anchors: Tensor, positives: Tensor, dtype: torch.dtype, temperature: float
) -> tuple[Tensor, Tensor]:
    """Anchors [C, M, D] of unit length, and their logits [C, M] with their class's positive."""
    anchors = F.normalize(anchors.to(dtype), dim=-1)
    positives = F.normalize(positives.to(dtype), dim=-1)
    return anchors, torch.einsum("cmd,cd->cm", anchors, positives) / temperature


def _mean_over_classes(losses: Tensor, active: Tensor, anchor_weights: Tensor | None) -> Tensor:
    """The mean of [C, M] losses over the anchors of the active classes, weighted ones summed."""
    if anchor_weights is not None:
        losses = losses * anchor_weights
    per_class = torch.where(active, losses.mean(dim=1), torch.zeros_like(losses[:, 0]))
    return per_class.sum() / active.sum().clamp_min(1)


_NUMBERS_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}
"""Of keys that are read at a time: what a core's cache holds, or 128 MiB of a GPU's memory."""


class _LossOfDrawn(torch.autograd.Function):
    """Each anchor's term of Eq. 4, and on the way there its derivatives."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positive_logits: Tensor,
        keys: Tensor,
        drawn: Tensor,
        temperature: float,
    ) -> Tensor:
        """Losses [A] of unit anchors [A, D] with positives' logits [A] and keys [K, D][A, N]."""
        num_anchors, num_negatives = drawn.shape
        at_once = _NUMBERS_AT_ONCE.get(anchors.device.type, 2**25)
        size = max(1, at_once // (num_negatives * keys.shape[1]))
        parts = [
            _loss_of_some(
                anchors[first : first + size],
                positive_logits[first : first + size],
                _rows(keys, drawn[first : first + size]).to(anchors.dtype),
                temperature,
            )
            for first in range(0, num_anchors, size)
        ]
        losses, by_anchor, by_positive = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(by_anchor, by_positive)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the derivatives that are known already."""
        by_anchor, by_positive = ctx.saved_tensors
        return grad.unsqueeze(1) * by_anchor, grad * by_positive, None, None, None


def _rows(keys: Tensor, drawn: Tensor) -> Tensor:
    """``keys[drawn]``, [A, N, D]; on a CPU this way is more than twice as fast."""
    return keys.index_select(0, drawn.flatten()).view(*drawn.shape, -1)


def _loss_of_some(
    anchors: Tensor, positive_logits: Tensor, negatives: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [A], and their derivatives by the anchors [A, D] and by the positives' logits [A]."""
    lengths = negatives.norm(dim=-1).clamp_min(1e-12) * temperature
    logits = torch.bmm(anchors.unsqueeze(1), negatives.transpose(1, 2)).squeeze(1) / lengths
    total = torch.cat([positive_logits.unsqueeze(1), logits], dim=1).logsumexp(dim=1)
    shares = (logits - total.unsqueeze(1)).exp() / lengths
    by_anchor = torch.bmm(shares.unsqueeze(1), negatives).squeeze(1)
    return total - positive_logits, by_anchor, (positive_logits - total).exp() - 1


def contrastive_floor(num_negatives: int, *, temperature: float = 0.5) -> float:
    """The least value Eq. 4 can take: ``log(1 + N e^{-2/τ})``, all negatives opposite the anchor.

    Args:
        num_negatives: N.
        temperature: τ.

    Returns:
        Nats.

    >>> round(contrastive_floor(50), 3)
    0.65
    """
    return math.log1p(num_negatives * math.exp(-2 / temperature))
