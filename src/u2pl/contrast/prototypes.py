"""Eq. 12 and what U2PL+ makes of it: one positive key a class, and cleaner pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def class_means(
    features: Tensor, mask: Tensor, *, total: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean feature of each class's pixels, Eq. 12 [P].

    Args:
        features: [B, D, h, w], teacher features.
        mask: [B, C, h, w] bool, the anchors.
        total: sums a tensor over the processes that share the batch; None where there is one.

    Returns:
        Means [C, D] float32, zeros for a class without a pixel, and counts [C] int64.
    """
    counts = mask.sum(dim=(0, 2, 3))
    with torch.autocast(features.device.type, enabled=False):  # a sum of many overflows float16
        # in parts: one sum over all pixels would lose digits
        sums = (_sums_of_rows if features.is_cuda else _sums_of_images)(features, mask).sum(dim=0)
    if total is not None:
        sums, counts = total(sums), total(counts)
    return sums.float() / counts.clamp_min(1).unsqueeze(1), counts


def _sums_of_images(features: Tensor, mask: Tensor) -> Tensor:
    """Sums [B, C, D] over each image's pixels."""
    return torch.bmm(mask.flatten(2).float(), features.flatten(2).float().transpose(1, 2))


def _sums_of_rows(features: Tensor, mask: Tensor) -> Tensor:
    """Sums [B·h, C, D] over each row of each image: enough products to keep a GPU busy."""
    members = mask.transpose(1, 2).flatten(0, 1).float()  # [B·h, C, w]
    pixels = features.permute(0, 2, 3, 1).flatten(0, 1).float()  # [B·h, w, D]
    return torch.bmm(members, pixels)


class MomentumPrototypes(nn.Module):
    """A moving mean of each class's features: the positive key of U2PL+ [P: teaser].

    ``z⁺_c ← m z⁺_c + (1 - m) mean`` with ``m = min(1 - 1/t, momentum)`` [R], where t counts the
    updates of class c, so that a class seen late starts from its first mean and not from zero.
    A class absent from a batch keeps its prototype [R].

    Args:
        num_classes: C.
        feature_size: D.
        momentum: upper bound of m in [0, 1); 0 takes each batch's own mean, as U2PL does.

    Attributes:
        vectors: [C, D] float32 buffer, zeros for a class not seen yet.
        num_updates: [C] int64 buffer.
    """

    vectors: Tensor
    num_updates: Tensor

    def __init__(self, num_classes: int, feature_size: int, *, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("vectors", torch.zeros(num_classes, feature_size))
        self.register_buffer("num_updates", torch.zeros(num_classes, dtype=torch.long))

    @property
    def seen(self) -> Tensor:
        """[C] bool, which classes have a prototype."""
        return self.num_updates > 0

    @torch.no_grad()
    def update(self, means: Tensor, counts: Tensor) -> None:
        """Move towards this batch's means [C, D]; classes with a count [C] of 0 stay."""
        present = counts > 0
        self.num_updates += present
        momentum = (1 - 1 / self.num_updates.clamp_min(1)).clamp_max(self.momentum).unsqueeze(1)
        moved = momentum * self.vectors + (1 - momentum) * means.to(self.vectors)
        self.vectors.copy_(torch.where(present.unsqueeze(1), moved, self.vectors))


def denoise_logits(
    logits: Tensor, features: Tensor, prototypes: Tensor, seen: Tensor, *, temperature: float
) -> Tensor:
    """Prototype denoising [R, after ProDA]: ``p'(c) ∝ p(c) · softmax_c(⟨z, z⁺_c⟩ / τ_d)``.

    In logits the product is a sum, and the softmax's own normaliser drops out:
    ``softmax(logits + ⟨z, z⁺⟩ / τ_d)`` is p'.

    Args:
        logits: [B, C, h, w] of the teacher.
        features: [B, D, h, w] of the teacher; compared by cosine.
        prototypes: [C, D].
        seen: [C] bool; a class without a prototype takes the pixel's mean similarity, which
            leaves its odds against the average class as they were. None seen changes nothing.
        temperature: τ_d > 0; large ones change little.

    Returns:
        [B, C, h, w] logits of p'.
    """
    units = F.normalize(prototypes.to(features.dtype), dim=1)
    similarity = torch.einsum("bdhw,cd->bchw", F.normalize(features, dim=1), units)
    known = seen.view(1, -1, 1, 1)
    mean = (similarity * known).sum(dim=1, keepdim=True) / known.sum().clamp_min(1)
    similarity = torch.where(known, similarity, mean)
    return logits + similarity.to(logits.dtype) / temperature
