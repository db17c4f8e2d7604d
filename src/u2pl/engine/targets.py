"""What the unlabelled half of a batch is taught: the teacher's word, mixed, then split (Eq. 5-8).

Masks and features live on the network's feature grid [h, w]; images, labels and entropies at full
size [H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from u2pl import losses, mixing, partition
from u2pl.config import Config
from u2pl.contrast import (
    MomentumPrototypes,
    denoise_logits,
    label_mask,
    rank_band,
    rank_bounds,
    tag_negative_mask,
)
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch, cut_windows
from u2pl.engine.compiled import of_method
from u2pl.engine.state import TrainState
from u2pl.mixing import on_grid
from u2pl.models import upsample
from u2pl.models.segmenter import STRIDE
from u2pl.perturbation import channel_dropout, complementary_dropout
from u2pl.refinement import refine_maps


class StepNumbers(NamedTuple):
    """What a step's place in the run decides.

    Attributes:
        alpha: float64 scalar on the device, α_t of Eq. 7.
        eta: float32 scalar on the device, η of Eq. 8 with its ramp.
        contrasted: whether the step has a contrastive loss.
        generator: of the step's random draws, on the device.
    """

    alpha: Tensor
    eta: Tensor
    contrasted: bool
    generator: torch.Generator


@dataclass(frozen=True)
class TeacherView:
    """What the teacher says of one half of the batch, on the feature grid.

    Attributes:
        logits: [B, C, h, w].
        features: [B, D, h, w] of unit length.
    """

    logits: Tensor
    features: Tensor

    def part(self, share: slice) -> TeacherView:
        """What it says of some of the images."""
        return TeacherView(self.logits[share], self.features[share])

    def of_the_weak_view(self, unlabeled: UnlabeledBatch) -> TeacherView:
        """Of a view of ``unlabeled.context``, the cells that the weak view covers."""
        assert unlabeled.offsets is not None, "where there is a context"
        cells = unlabeled.offsets // STRIDE
        size = (-(-unlabeled.weak.shape[-2] // STRIDE), -(-unlabeled.weak.shape[-1] // STRIDE))
        return TeacherView(
            cut_windows(self.logits, cells, size), cut_windows(self.features, cells, size)
        )


@dataclass(frozen=True)
class MixedPixels:
    """Images and what is known about their pixels: all that moves along when pixels are mixed.

    Attributes:
        images: [B, 3, H, W], a strong view.
        predictions: [B, H, W] int64, the teacher's classes, or the labels.
        confidence: [B, H, W], the probability of that class; 1 on labels.
        entropy: [B, H, W] in nats; 0 on labels.
        soft: [B, C, H, W], the probabilities of all classes; no channel without soft pseudo-labels.
        valid: [B, H, W] bool.
        judged: [B, H, W] bool, valid and predicted by the teacher: what the threshold is about.
        probs: [B, C, h, w], the teacher's, after denoising and tags; no channel without contrast.
        features: [B, D, h, w], likewise.
        certain_negatives: [B, C, h, w] bool, from tags; likewise.
    """

    images: Tensor
    predictions: Tensor
    confidence: Tensor
    entropy: Tensor
    soft: Tensor
    valid: Tensor
    judged: Tensor
    probs: Tensor
    features: Tensor
    certain_negatives: Tensor

    def mixed(self, mix: mixing.Mix, donors: MixedPixels) -> MixedPixels:
        """Return these images with pixels of ``donors`` (or erased ones) where ``mix`` says so."""
        ours, theirs = vars(self), vars(donors)
        return MixedPixels(**{k: mix.apply(ours[k], donors=theirs[k]) for k in ours})

    def without_contrast(self) -> MixedPixels:
        """Return the same without what contrast alone needs."""
        return replace(
            self,
            probs=self.probs[:, :0],
            features=self.features[:, :0],
            certain_negatives=self.certain_negatives[:, :0],
        )

    def none_of_them(self) -> MixedPixels:
        """Return the same of no image, which keeps no memory of these."""
        return MixedPixels(**{k: v.new_empty(0, *v.shape[1:]) for k, v in vars(self).items()})


@dataclass(frozen=True)
class Stream:
    """One look at the unlabelled images that the student learns from, with its targets.

    Attributes:
        images: [B, 3, H, W].
        labels: [B, H, W], pseudo-labels; the ignore index where there is none.
        soft: [B, C, H, W], the teacher's probabilities to learn instead; or None.
        pixel_weights: [B, H, W], or None where all weigh the same.
        weight: scalar, λ_u times the stream's share of L_u.
        num_kept: scalar, pixels with a pseudo-label, of the whole batch.
        channel_factors: for each map of the encoder [B, K], where channels are dropped; or None.
    """

    images: Tensor
    labels: Tensor
    soft: Tensor | None
    pixel_weights: Tensor | None
    weight: Tensor
    num_kept: Tensor
    channel_factors: tuple[Tensor, ...] | None = None

    def part(self, share: slice) -> Stream:
        """Some of the images, with their targets."""
        weights, factors = self.pixel_weights, self.channel_factors
        return replace(
            self,
            images=self.images[share],
            labels=self.labels[share],
            soft=None if self.soft is None else self.soft[share],
            pixel_weights=None if weights is None else weights[share],
            channel_factors=None if factors is None else tuple(f[share] for f in factors),
        )


@dataclass(frozen=True)
class PseudoLabels:
    """The unlabelled half of the batch after mixing, with its targets.

    Attributes:
        pixels: the first strong view, mixed, and what the teacher (or a label) says of it.
        labels: [B, H, W], its pseudo-labels; the ignore index where there is none.
        streams: all that the student learns from; the first is of ``pixels``.
        weight: scalar, λ_u of the first.
        num_kept: scalar, its pixels with a pseudo-label, of the whole batch.
        num_valid: scalar, its valid pixels of the whole batch.
        threshold: scalar, γ_t in nats; the mean of the classes' where each has its own.
        unreliable: [B, h, w] bool.
        undecided: [B, h, w] bool, where negatives are looked for (Eq. 15: where it is unreliable).
    """

    pixels: MixedPixels
    labels: Tensor
    streams: tuple[Stream, ...]
    weight: Tensor
    num_kept: Tensor
    num_valid: Tensor
    threshold: Tensor
    unreliable: Tensor
    undecided: Tensor

    def for_the_student(self) -> PseudoLabels:
        """Return the same without ``pixels``, which only the choice of targets needs."""
        return replace(self, pixels=self.pixels.none_of_them())


def pseudo_label(
    state: TrainState,
    view_l: TeacherView | None,
    view_u: TeacherView,
    batch: Batch,
    numbers: StepNumbers,
    config: Config,
) -> PseudoLabels:
    """Denoise, veto by tags, mix images with their targets, split by entropy (Eq. 5-8)."""
    unlabeled = batch.unlabeled
    assert unlabeled is not None, "view_u is of unlabelled images"
    own = judge(state.prototypes, view_u, unlabeled, config)
    donors = own
    if config.method.mixing == "classmix_labeled":
        donors = from_labels(batch.labeled, view_l, own, state.ignore_index)
    views = mixed_views(own, donors, unlabeled, state, config, numbers.generator)
    first = views[0]
    thresholds = thresholds_of(first, numbers.alpha, state, config)
    if config.method.feature_dropout == "stream":
        views.append(replace(own.without_contrast(), images=unlabeled.weak))
    labels = [labels_of(pixels, thresholds, state.ignore_index, config) for pixels in views]
    kept = torch.stack([(each != state.ignore_index).sum() for each in labels])
    valid = torch.stack([pixels.valid.sum() for pixels in views])
    num_valid, num_kept = state.world.sum(torch.stack([valid, kept]))
    weights = weights_of_streams(num_valid, num_kept, numbers.eta, config)
    shares = stream_shares(config)
    pixel_weights = weights_of_pixels(views, own.confidence, unlabeled.valid, state, config)
    factors = channel_factors(len(own.images), state, config, numbers.generator)
    streams = tuple(
        Stream(
            images=pixels.images,
            labels=labels[i],
            soft=pixels.soft if config.method.soft_pseudo_labels else None,
            pixel_weights=pixel_weights[i],
            weight=weights[i] * shares[i],
            num_kept=num_kept[i],
            channel_factors=factors[i],
        )
        for i, pixels in enumerate(views)
    )
    threshold = threshold_at(first, thresholds)
    unreliable = partition.unreliable_mask(first.entropy, threshold, first.valid)
    grid = (view_u.logits.shape[-2], view_u.logits.shape[-1])
    return PseudoLabels(
        pixels=first,
        labels=labels[0],
        streams=streams,
        weight=weights[0],
        num_kept=num_kept[0],
        num_valid=num_valid[0],
        threshold=thresholds if thresholds.ndim == 0 else mean_of_finite(thresholds),
        unreliable=on_grid(unreliable, grid),
        undecided=on_grid(undecided(first, unreliable, config), grid),
    )


def thresholds_of(pixels: MixedPixels, alpha: Tensor, state: TrainState, config: Config) -> Tensor:
    """γ_t of Eq. 6 over the whole batch's pixels that the teacher has judged.

    Args:
        pixels: of the batch.
        alpha: float64 scalar on the device; a number would be compiled in, and it changes.
        state: classes and processes.
        config: what has a threshold of its own.

    Returns:
        A scalar, or [C] where each predicted class has its own.
    """
    given: dict[str, Any] = {
        "unreliable_fraction": alpha,
        "total": state.world.sum if state.world.size > 1 else None,
    }
    if config.method.partition_by == "class":
        given["num_classes"] = len(state.queues.capacities)
        by_class: Tensor = of_method(partition.class_entropy_thresholds, config)(
            pixels.entropy, pixels.predictions, pixels.judged, **given
        )
        return by_class
    threshold: Tensor = of_method(partition.entropy_threshold, config)(
        pixels.entropy, pixels.judged, **given
    )
    return threshold


def threshold_at(pixels: MixedPixels, thresholds: Tensor) -> Tensor:
    """The threshold of each pixel, [B, H, W], or the scalar of all of them."""
    if thresholds.ndim == 0:
        return thresholds
    known = pixels.judged | pixels.valid  # others have no class; they count nowhere
    return thresholds[torch.where(known, pixels.predictions, 0)]


def mean_of_finite(values: Tensor) -> Tensor:
    """The mean of what is finite; 0 where nothing is."""
    finite = values.isfinite()
    return torch.where(finite, values, 0).sum() / finite.sum().clamp_min(1)


def weights_of_streams(num_valid: Tensor, num_kept: Tensor, eta: Tensor, config: Config) -> Tensor:
    """λ_u of each stream (Eq. 8), from its counts over the whole batch."""
    return losses.unsupervised_weight(
        num_valid, num_kept, eta=eta, scaling=config.method.unsupervised_scaling
    )


def mixed_views(
    own: MixedPixels,
    donors: MixedPixels,
    unlabeled: UnlabeledBatch,
    state: TrainState,
    config: Config,
    generator: torch.Generator,
) -> list[MixedPixels]:
    """Each strong view, mixed by a draw of its own; the first alone with what contrast needs."""
    num_classes, views = len(state.queues.capacities), []
    for i in range(config.method.strong_views):
        ours = replace(own, images=unlabeled.strong[i])
        theirs = ours if donors is own else donors
        if i > 0:
            ours, theirs = ours.without_contrast(), theirs.without_contrast()
        mix = choose_mix(ours, theirs, num_classes, state, config, generator)
        views.append(ours.mixed(mix, theirs))
    return views


def labels_of(pixels: MixedPixels, thresholds: Tensor, ignore_index: int, config: Config) -> Tensor:
    """Pseudo-labels [B, H, W], by entropy (Eq. 6) or by confidence."""
    if config.method.pseudo_threshold is None:
        threshold = threshold_at(pixels, thresholds)
        return partition.pseudo_labels(
            pixels.predictions, pixels.entropy, threshold, pixels.valid, ignore_index=ignore_index
        )
    return partition.confident_pseudo_labels(
        pixels.predictions,
        pixels.confidence,
        pixels.valid,
        threshold=config.method.pseudo_threshold,
        ignore_index=ignore_index,
    )


def stream_shares(config: Config) -> list[float]:
    """What each stream counts for in L_u: strong views alike, a stream of dropped channels half."""
    num_strong = config.method.strong_views
    if config.method.feature_dropout == "stream":
        return [0.5 / num_strong] * num_strong + [0.5]
    return [1 / num_strong] * num_strong


def weights_of_pixels(
    views: list[MixedPixels],
    confidence: Tensor,
    valid: Tensor,
    state: TrainState,
    config: Config,
) -> list[Tensor | None]:
    """Each view's weights [B, H, W], where pixels do not all weigh the same."""
    if config.method.pixel_weighting == "even":
        return [None] * len(views)
    share = partition.confident_share(confidence.unsqueeze(1), valid, total=state.world.sum)
    return [torch.where(pixels.judged, share, torch.ones_like(share)) for pixels in views]


def channel_factors(
    num_images: int, state: TrainState, config: Config, generator: torch.Generator
) -> list[tuple[Tensor, ...] | None]:
    """Each stream's factors of the encoder's channels; None where it keeps them as they are."""
    kind, factors = config.method.feature_dropout, [None] * config.method.strong_views
    if kind == "none":
        return [*factors]
    sizes: Any = state.student.map_sizes
    given: dict[str, Any] = {
        "rate": config.method.feature_dropout_rate,
        "device": generator.device,
        "generator": generator,
        "share": state.world.share(num_images),
    }
    if kind == "stream":
        return [*factors, channel_dropout(num_images, sizes, **given)]
    return [*complementary_dropout(num_images, sizes, **given)]


def undecided(pixels: MixedPixels, unreliable: Tensor, config: Config) -> Tensor:
    """Where negatives of unlabelled images are looked for, [B, H, W] bool."""
    if config.method.negatives_from == "unreliable":
        return unreliable
    if config.method.negatives_from == "reliable":
        return pixels.judged & ~unreliable
    return pixels.judged


def judge(
    prototypes: MomentumPrototypes, view: TeacherView, unlabeled: UnlabeledBatch, config: Config
) -> MixedPixels:
    """What the teacher says of the unlabelled pixels, before any of them is mixed."""
    method, size = config.method, (unlabeled.weak.shape[-2], unlabeled.weak.shape[-1])
    grid = (view.logits.shape[-2], view.logits.shape[-1])
    logits, contrasted = view.logits, method.contrastive_weight > 0
    if method.denoise_temperature is not None and contrasted:
        logits = denoise_logits(
            logits,
            view.features,
            prototypes.vectors,
            prototypes.seen,
            temperature=method.denoise_temperature,
        )
    possible = unlabeled.possible_classes
    logits = partition.restrict_logits_to_tags(logits, possible)
    edges = None
    if method.refine_iterations:
        rule = method.refine_iterations, method.refine_dilations
        edges = Edges(unlabeled.weak, unlabeled.valid, *rule)
    predictions, entropy, confidence = of_method(judge_pixels, config)(logits, size, edges)
    probs_on_grid, certain = logits[:, :0], logits[:, :0].bool()
    if contrasted:
        probs_on_grid = logits.softmax(dim=1)
        low, high = ranks(logits.shape[1], config)
        band = rank_band(view.logits, low_rank=low, high_rank=high)
        certain = tag_negative_mask(possible, on_grid(unlabeled.valid, grid), band, low_rank=low)
    soft = predictions.new_zeros(len(logits), 0, *size, dtype=logits.dtype)
    if method.soft_pseudo_labels:
        soft = probs_of_pixels(logits, size, edges)
    return MixedPixels(
        images=unlabeled.strong[0],
        predictions=predictions,
        confidence=confidence,
        entropy=entropy,
        soft=soft,
        valid=unlabeled.valid,
        judged=unlabeled.valid,
        probs=probs_on_grid,
        features=view.features,
        certain_negatives=certain,
    )


class Edges(NamedTuple):
    """Images whose edges probabilities are to follow, and how.

    Attributes:
        images: [B, 3, H, W].
        valid: [B, H, W] bool, the pixels that have a say.
        iterations, dilations: of :func:`~u2pl.refinement.refine_maps`.
    """

    images: Tensor
    valid: Tensor
    iterations: int
    dilations: Sequence[int]


def judge_pixels(
    logits: Tensor, size: tuple[int, int], edges: Edges | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Class, entropy (Eq. 5) and probability of the class at full size.

    Image by image, because the probabilities of all classes at all pixels of a batch would be the
    largest thing that the method makes, and nobody needs more than one image's at a time. To follow
    edges takes many small steps, which small images share.

    Args:
        logits: [B, C, h, w].
        size: (H, W).
        edges: that probabilities follow; None leaves them as they are.

    Returns:
        Predictions [B, H, W] int64, entropy in nats and confidence, both [B, H, W].
    """
    parts = []
    at_once = 1 if edges is None else max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    for first in range(0, len(logits), at_once):
        some = slice(first, first + at_once)
        own = edges and edges._replace(images=edges.images[some], valid=edges.valid[some])
        probs = probs_of_pixels(logits[some], size, own)
        confidence, prediction = probs.max(dim=1)  # on a CPU several times faster than argmax
        parts.append((prediction, partition.prediction_entropy(probs), confidence))
    predictions, entropy, confidence = (torch.cat(maps) for maps in zip(*parts, strict=True))
    return predictions, entropy, confidence


_PIXELS_AT_ONCE = 2**16


def probs_of_pixels(logits: Tensor, size: tuple[int, int], edges: Edges | None) -> Tensor:
    """Probabilities [B, C, H, W] at full size, which follow the images' edges where there are any.

    Args:
        logits: [B, C, h, w].
        size: (H, W).
        edges: of all the images, or None.
    """
    probs = upsample(logits, size).softmax(dim=1)
    if edges is None:
        return probs
    images, valid, iterations, dilations = edges
    return refine_maps(probs, images, dilations=dilations, iterations=iterations, valid=valid)


def ranks(num_classes: int, config: Config) -> tuple[int, int]:
    """r_l and r_h of the run."""
    method = config.method
    return rank_bounds(num_classes, low_rank=method.low_rank, high_rank=method.high_rank)


def from_labels(
    labeled: LabeledBatch, view: TeacherView | None, like: MixedPixels, ignore_index: int
) -> MixedPixels:
    """Labelled images as donors: their labels are certain, and nothing is left to judge."""
    images, labels = labeled.images if labeled.strong is None else labeled.strong, labeled.labels
    nothing = torch.zeros(len(labels), 0, *like.features.shape[-2:], device=labels.device)
    return MixedPixels(
        images=images,
        predictions=labels,
        confidence=torch.ones_like(labels, dtype=like.confidence.dtype),
        entropy=torch.zeros_like(labels, dtype=like.entropy.dtype),
        soft=label_mask(labels, like.soft.shape[1]).to(like.soft.dtype),
        valid=labels != ignore_index,
        judged=torch.zeros_like(labels, dtype=torch.bool),
        probs=nothing if view is None else view.logits.softmax(dim=1),
        features=nothing if view is None else view.features,
        certain_negatives=torch.zeros(
            len(labels), *like.certain_negatives.shape[1:], device=labels.device, dtype=torch.bool
        ),
    )


def choose_mix(
    own: MixedPixels,
    donors: MixedPixels,
    num_classes: int,
    state: TrainState,
    config: Config,
    generator: torch.Generator,
) -> mixing.Mix:
    """The configured mixing of the unlabelled images, for :meth:`MixedPixels.mixed`."""
    batch_size, height, width = own.predictions.shape
    size, device = (height, width), own.predictions.device
    labels = donors.predictions.masked_fill(~donors.valid, state.ignore_index)
    kind, probability = config.method.mixing, config.method.mix_probability
    share = state.world.share(batch_size)
    if kind == "classmix_labeled":
        return mixing.classmix_donors(
            labels,
            num_classes,
            num_images=batch_size,
            probability=probability,
            generator=generator,
            share=share,
        )
    if kind == "classmix":
        return mixing.classmix(
            labels, num_classes, probability=probability, generator=generator, share=share
        )
    if kind == "none":
        return mixing.no_mix(batch_size, size, device=device)
    box = mixing.cutmix if kind == "cutmix" else mixing.cutout
    return box(
        batch_size, size, probability=probability, device=device, generator=generator, share=share
    )
