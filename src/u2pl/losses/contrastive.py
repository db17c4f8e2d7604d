"""Eq. 4: the contrastive loss on pixel features."""

from __future__ import annotations

import math

import torch
from torch import Tensor
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
        anchors = F.normalize(anchors.to(dtype), dim=-1)
        positives = F.normalize(positives.to(dtype), dim=-1)
        negatives = negatives.to(dtype)
        positive_logits = torch.einsum("cmd,cd->cm", anchors, positives) / temperature
        # products are divided by the keys' lengths, not keys: a D-th of the numbers
        lengths = negatives.norm(dim=-1).clamp_min(1e-12)
        products = torch.einsum("cmd,cmnd->cmn", anchors, negatives)
        negative_logits = products / (lengths * temperature)
    logits = torch.cat([positive_logits.unsqueeze(2), negative_logits], dim=2)
    losses = logits.logsumexp(dim=2) - positive_logits
    if anchor_weights is not None:
        losses = losses * anchor_weights
    per_class = torch.where(active, losses.mean(dim=1), torch.zeros_like(losses[:, 0]))
    return per_class.sum() / active.sum().clamp_min(1)


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
