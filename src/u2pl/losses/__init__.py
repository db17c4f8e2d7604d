"""Eq. 2-4: the three losses, each a pure function of tensors."""

from u2pl.losses.contrastive import (
    contrastive_floor,
    contrastive_loss,
    contrastive_loss_of_drawn,
)
from u2pl.losses.supervised import cross_entropy, ohem_cross_entropy
from u2pl.losses.unsupervised import (
    ramp_up,
    reverse_cross_entropy,
    soft_symmetric_cross_entropy,
    symmetric_cross_entropy,
    unsupervised_weight,
)

__all__ = [
    "contrastive_floor",
    "contrastive_loss",
    "contrastive_loss_of_drawn",
    "cross_entropy",
    "ohem_cross_entropy",
    "ramp_up",
    "reverse_cross_entropy",
    "soft_symmetric_cross_entropy",
    "symmetric_cross_entropy",
    "unsupervised_weight",
]
