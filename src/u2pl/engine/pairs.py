"""The step's contrast (Eq. 4, 9-16): anchors, positives, negatives, and the loss between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from u2pl import losses
from u2pl.config import Config
from u2pl.contrast import (
    anchor_mask,
    class_means,
    labeled_negative_mask,
    members_at,
    rank_band,
    unlabeled_negative_mask,
)
from u2pl.engine.compiled import of_method
from u2pl.engine.state import TrainState
from u2pl.engine.targets import PseudoLabels, TeacherView, ranks
from u2pl.mixing import on_grid
from u2pl.models.segmenter import at_cells


@dataclass(frozen=True)
class ContrastPairs:
    """Anchors of this step and what they are compared with.

    Attributes:
        anchors: [C, M] int64, positions in the flattened grid of all labelled, then all unlabelled
            images of the whole batch.
        positives: [C, D].
        negatives: [C, M, N] int64, rows of the queues' keys.
        active: [C] bool.
        num_negatives: [C] int64, negative pixels offered in this step.
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    active: Tensor
    num_negatives: Tensor


def contrast_pairs(
    state: TrainState,
    view: TeacherView,
    labels: Tensor,
    pseudo: PseudoLabels | None,
    config: Config,
    generator: torch.Generator,
) -> ContrastPairs:
    """Anchors, positives and negatives (Eq. 9-16); prototypes and queues move on."""
    num_unlabeled = 0 if pseudo is None else len(pseudo.labels)
    shares = (state.world.share(count) for count in (len(labels), num_unlabeled))
    num_classes, height, width = view.logits.shape[1:]
    draws = draw_numbers(
        num_classes,
        sum(share.total for share in shares) * height * width,
        config,
        generator,
        view.logits.device,
    )
    return of_method(pair_up, config)(state, view, labels, pseudo, draws, config)


def pair_up(
    state: TrainState,
    view: TeacherView,
    labels: Tensor,
    pseudo: PseudoLabels | None,
    draws: Draws,
    config: Config,
) -> ContrastPairs:
    """:func:`contrast_pairs` with the random numbers drawn."""
    anchor, negative, features = contrast_masks(view, labels, pseudo, config)
    state.prototypes.update(*class_means(features, anchor, total=state.world.sum))
    masks = torch.stack([anchor, negative], dim=1)  # [B, 2, C, h, w]
    masks = state.world.gather_halves(masks, len(view.logits))  # of all processes' images
    anchor, negative = masks.permute(1, 2, 0, 3, 4).flatten(2)  # [C, B·h·w] each
    rows = rows_of_batch(state, len(view.logits), len(features) - len(view.logits))
    push_keys(state, features, negative, rows, draws, config)
    return choose_pairs(state, anchor, negative, draws)


@dataclass(frozen=True)
class Draws:
    """A step's random numbers for its pairs, made before any of them is used.

    Attributes:
        order: [B·h·w] int64, a random order of the whole batch's pixels, for the keys.
        anchors: [C, M] float64 in [0, 1).
        negatives: [C, M, N] float32 in [0, 1).
    """

    order: Tensor
    anchors: Tensor
    negatives: Tensor


def draw_numbers(
    num_classes: int,
    num_pixels: int,
    config: Config,
    generator: torch.Generator,
    device: torch.device,
) -> Draws:
    """Draw for the pixels of the whole batch's feature grids, B·h·w."""
    method, shape = config.method, (num_classes, config.method.num_anchors)
    given: dict[str, Any] = {"generator": generator, "device": device}
    return Draws(
        order=torch.randperm(num_pixels, **given),
        # float64: a float32 draw cannot reach every one of over 16 M pixels
        anchors=torch.rand(shape, dtype=torch.float64, **given),
        negatives=torch.rand(*shape, method.num_negatives, **given),
    )


def contrast_masks(
    view: TeacherView, labels: Tensor, pseudo: PseudoLabels | None, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each class has anchors and negatives, on the feature grid (Eq. 9-15).

    Returns:
        Anchors and negatives [B, C, h, w] bool and the teacher's features [B, D, h, w], of all
        labelled, then all mixed images.
    """
    grid = (view.logits.shape[-2], view.logits.shape[-1])
    low, high = ranks(view.logits.shape[1], config)
    labels, probs, features = on_grid(labels, grid), view.logits.softmax(dim=1), view.features
    if pseudo is not None:
        probs = torch.cat([probs, pseudo.pixels.probs])
        features = torch.cat([features, pseudo.pixels.features])
    band = rank_band(probs, low_rank=low, high_rank=high)
    negative = labeled_negative_mask(labels, band[: len(labels)], low_rank=low)
    if not config.method.labeled_negatives:
        negative = torch.zeros_like(negative)
    if pseudo is not None:
        negative_u = pseudo.pixels.certain_negatives | unlabeled_negative_mask(
            pseudo.undecided, band[len(labels) :], low_rank=low, high_rank=high
        )
        negative = torch.cat([negative, negative_u])
        labels = torch.cat([labels, on_grid(pseudo.labels, grid)])
    anchor = anchor_mask(labels, probs, threshold=config.method.anchor_threshold)
    return anchor, negative, features


def push_keys(
    state: TrainState,
    features: Tensor,
    negative: Tensor,
    rows: Tensor,
    draws: Draws,
    config: Config,
) -> None:
    """Put a random subset of the negatives [C, B·h·w] into the queues (Eq. 16)."""
    index, chosen = state.queues.choose(
        negative, max_keys=config.method.keys_per_step, order=draws.order
    )
    keys = pixels_at(index, features, rows)
    if not config.method.keep_keys:
        state.queues.clear()
    state.queues.push_chosen(state.world.sum(keys), chosen)


def choose_pairs(
    state: TrainState, anchor: Tensor, negative: Tensor, draws: Draws
) -> ContrastPairs:
    """Draw anchors of the masks [C, B·h·w], and each one's negatives from the queues."""
    anchors, has_anchor = members_at(anchor, draws.anchors)
    return ContrastPairs(
        anchors=anchors,
        positives=state.prototypes.vectors,
        negatives=state.queues.rows_at(draws.negatives),
        active=has_anchor & (state.queues.num_keys > 0),
        num_negatives=negative.sum(dim=1),
    )


def rows_of_batch(state: TrainState, num_labeled: int, num_unlabeled: int) -> Tensor:
    """Places of this process's images in the whole batch: all labelled ones, then all others."""
    device = state.queues.keys.device
    labeled, unlabeled = state.world.share(num_labeled), state.world.share(num_unlabeled)
    rows_l = labeled.first + torch.arange(num_labeled, device=device)
    rows_u = labeled.total + unlabeled.first + torch.arange(num_unlabeled, device=device)
    return torch.cat([rows_l, rows_u])


def pixels_at(index: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """Features at pixels of the whole batch: [..., D], and zeros where an image is not here.

    Args:
        index: [...] int64, positions in the flattened grid of the whole batch.
        features: [n, D, h, w] of the n images that are here.
        rows: [n] int64, which images of the whole batch they are.
    """
    here, cells = cells_here(index, rows, features.shape[-2] * features.shape[-1])
    found = at_cells(features, cells)
    return torch.where(here.unsqueeze(-1), found, torch.zeros_like(found))


def cells_here(index: Tensor, rows: Tensor, area: int) -> tuple[Tensor, Tensor]:
    """Where pixels of the whole batch are in a part of it.

    Args:
        index: [...] int64, positions in the flattened grid of the whole batch.
        rows: [n] int64, which images of the whole batch the part holds.
        area: h · w, cells of an image.

    Returns:
        [...] bool, whether a pixel is here, and [...] int64, its position in the part's flattened
        grid; another's where it is not.
    """
    match = (index // area).unsqueeze(-1) == rows  # [..., n]
    return match.any(dim=-1), match.long().argmax(dim=-1) * area + index % area


def contrast_of_part(
    pairs: ContrastPairs, keys: Tensor, anchors: Tensor, here: Tensor, config: Config
) -> Tensor:
    """Eq. 4 of the anchors that lie in a part of the batch.

    Args:
        pairs: of the whole batch.
        keys: of the queues.
        anchors: [C, M, D], the student's features of the anchors; anything where one is not here.
        here: [C, M] bool.
        config: temperature.
    """
    return losses.contrastive_loss_of_drawn(
        anchors,
        pairs.positives,
        keys,
        pairs.negatives,
        pairs.active,
        temperature=config.method.temperature,
        anchor_weights=here,
    )
