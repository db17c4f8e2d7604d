"""From a class's scores to labels where they are sure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-8


def seed_labels(
    maps: Tensor,
    possible_classes: Tensor,
    *,
    low: float,
    high: float,
    margin: float,
    background_class: int | None,
    ignore_index: int,
    share: float = 1.0,
) -> Tensor:
    """Label the pixels whose scores are sure, by one of two rules.

    In both, a pixel whose best score is below ``low`` shows no tagged class.

    *With a background class*, which no tag names and no map shows, such a pixel is background;
    one whose best score is above ``high`` is that class; the others are ignored. This is the
    argmax beside a background whose score is ``high`` (for the classes) or ``low`` (for the
    background) everywhere. Such a flat score can be left out of the refinement, which does not
    change it.

    *Without one* every pixel belongs to a possible class, up to a few of which nothing is known.
    How high a score is says little there, because each class has its maximum somewhere: a pixel
    is the best class where that leads the next one by more than the share ``margin`` of itself.
    Where but one class is possible, ``low`` alone decides. Of the pixels that an image then has of
    a class, the ``share`` stays that leads most: a class that never leads by much keeps its best
    pixels, where one ``margin`` for all would take them away.

    Args:
        maps: [B, C, H, W] floating, scores in [0, 1], such as refined class activation maps.
        possible_classes: [B, C] bool, the image tags; the background's entry is not read.
        low: no class below, exclusive; from 0 to 1.
        high: a class above, exclusive; read with a background class alone.
        margin: least lead as a fraction of the best score, exclusive; read without one alone.
        background_class: its id; None where every pixel belongs to a tagged class.
        ignore_index: the label of unsure pixels.
        share: of each class in each image, in (0, 1]; read without a background class alone.

    Returns:
        [B, H, W] int64. Only possible classes, the background and ``ignore_index`` occur. Equal
        scores go to the lower id. An image without a possible class is background, or ignored
        where there is none.

    >>> import torch
    >>> maps = torch.tensor([0.1, 0.4, 0.9]).view(1, 1, 1, 3).repeat(1, 2, 1, 1)
    >>> tags = torch.tensor([[False, True]])
    >>> rule = {"low": 0.3, "high": 0.6, "margin": 0.2, "ignore_index": 255}
    >>> seed_labels(maps, tags, background_class=0, **rule)
    tensor([[[  0, 255,   1]]])
    >>> seed_labels(maps, tags, background_class=None, **rule)
    tensor([[[255,   1,   1]]])
    """
    if background_class is not None:
        possible_classes = possible_classes.clone()
        possible_classes[:, background_class] = False
    scores = maps.masked_fill(~possible_classes[..., None, None], -1.0)
    best, labels = scores.max(dim=1)
    if background_class is not None:
        labels = labels.masked_fill(best <= high, ignore_index)
        return labels.masked_fill(best < low, background_class)
    lead = best - scores.topk(2, dim=1).values[:, 1]
    labels = labels.masked_fill((best < low) | (lead <= margin * best), ignore_index)
    # of the best score, and where but one class is possible the same for all pixels
    lead = torch.where(lead > best, torch.inf, lead / best.clamp_min(_TINY))
    return keep_leading(labels, lead, share=share, ignore_index=ignore_index)


def keep_leading(labels: Tensor, lead: Tensor, *, share: float, ignore_index: int) -> Tensor:
    """Keep the given share of each class's pixels in each image, those with the largest lead.

    Args:
        labels: [B, H, W] int64.
        lead: [B, H, W], by how much a pixel's class leads.
        share: in (0, 1]; of n pixels ``ceil(share * n)`` stay, and those that lead as much as the
            last of them.
        ignore_index: of pixels without a label, and of those that lose theirs.

    Returns:
        [B, H, W] int64.

    >>> import torch
    >>> labels = torch.tensor([[[0, 0, 0, 0, 1]]])
    >>> lead = torch.tensor([[[0.9, 0.2, 0.8, 0.1, 0.3]]])
    >>> keep_leading(labels, lead, share=0.5, ignore_index=255)
    tensor([[[  0, 255,   0, 255,   1]]])
    """
    kept = labels.clone()
    for own_labels, own_lead, own_kept in zip(labels, lead, kept, strict=True):
        for class_id in own_labels.unique():
            if class_id == ignore_index:
                continue
            of_class = own_labels == class_id
            leads = own_lead[of_class]
            count = math.ceil(share * leads.numel())
            least = leads.topk(count).values[-1]
            own_kept[of_class & (own_lead < least)] = ignore_index
    return kept
