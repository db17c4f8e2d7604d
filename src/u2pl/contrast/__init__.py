"""Eq. 9-16: anchors, positives and negatives of the contrastive loss."""

from u2pl.contrast.masks import (
    anchor_mask,
    class_rank,
    label_mask,
    labeled_negative_mask,
    rank_band,
    rank_bounds,
    tag_negative_mask,
    unlabeled_negative_mask,
)
from u2pl.contrast.prototypes import MomentumPrototypes, class_means, denoise_logits
from u2pl.contrast.queues import NegativeQueues
from u2pl.contrast.sampling import (
    by_class,
    by_pixel,
    first_members,
    members_at,
    sample_with_replacement,
    sample_without_replacement,
)

__all__ = [
    "MomentumPrototypes",
    "NegativeQueues",
    "anchor_mask",
    "by_class",
    "by_pixel",
    "class_means",
    "class_rank",
    "denoise_logits",
    "first_members",
    "label_mask",
    "labeled_negative_mask",
    "members_at",
    "rank_band",
    "rank_bounds",
    "sample_with_replacement",
    "sample_without_replacement",
    "tag_negative_mask",
    "unlabeled_negative_mask",
]
