"""One training step, read from top to bottom: the whole method in one function.

Suffixes: ``_l`` labelled, ``_u`` unlabelled. Masks and features live on the network's feature
grid [h, w]; images, labels and losses at full size [H, W].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl import losses, mixing, partition
from u2pl.config import Config
from u2pl.contrast import (
    MomentumPrototypes,
    anchor_mask,
    class_means,
    denoise_logits,
    labeled_negative_mask,
    members_at,
    rank_band,
    rank_bounds,
    tag_negative_mask,
    unlabeled_negative_mask,
)
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.loaders import derive_seed
from u2pl.engine.compiled import of_method
from u2pl.engine.guard import are_finite, gradient_norm, has_scaler
from u2pl.engine.optimizer import learning_rate_factor, set_learning_rate
from u2pl.engine.state import TrainState
from u2pl.mixing import on_grid
from u2pl.models import upsample
from u2pl.teacher import follow, statistics_at_rest, teacher_decay


@dataclass(frozen=True)
class TeacherView:
    """What the teacher says of one half of the batch, on the feature grid.

    Attributes:
        logits: [B, C, h, w].
        features: [B, D, h, w] of unit length.
    """

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class MixedPixels:
    """Images and what is known about their pixels: all that moves along when pixels are mixed.

    Attributes:
        images: [B, 3, H, W], the strong view.
        predictions: [B, H, W] int64, the teacher's classes, or the labels.
        entropy: [B, H, W] in nats; 0 on labels.
        valid: [B, H, W] bool.
        judged: [B, H, W] bool, valid and predicted by the teacher: what the threshold is about.
        probs: [B, C, h, w], the teacher's, after denoising and tags; no channel without contrast.
        features: [B, D, h, w], likewise.
        certain_negatives: [B, C, h, w] bool, from tags.
    """

    images: Tensor
    predictions: Tensor
    entropy: Tensor
    valid: Tensor
    judged: Tensor
    probs: Tensor
    features: Tensor
    certain_negatives: Tensor

    def mixed(self, mix: mixing.Mix, donors: MixedPixels) -> MixedPixels:
        """Return these images with pixels of ``donors`` (or erased ones) where ``mix`` says so."""
        ours, theirs = vars(self), vars(donors)
        return MixedPixels(**{k: mix.apply(ours[k], donors=theirs[k]) for k in ours})


@dataclass(frozen=True)
class PseudoLabels:
    """The unlabelled half of the batch after mixing, with its targets.

    Attributes:
        pixels: the mixed images and what the teacher (or a label) says of them.
        labels: [B, H, W], pseudo-labels; the ignore index where the teacher is unsure.
        pixel_weights: [B, H, W], or None where all weigh the same.
        weight: scalar, λ_u.
        num_kept: scalar, pixels with a pseudo-label, of the whole batch.
        num_valid: scalar, valid pixels of the whole batch.
        threshold: scalar, γ_t in nats.
        unreliable: [B, h, w] bool.
    """

    pixels: MixedPixels
    labels: Tensor
    pixel_weights: Tensor | None
    weight: Tensor
    num_kept: Tensor
    num_valid: Tensor
    threshold: Tensor
    unreliable: Tensor


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


def training_step(
    fabric: Fabric, state: TrainState, batch: Batch, config: Config
) -> dict[str, Tensor]:
    """Make one update of student, teacher, prototypes and queues.

    Args:
        fabric: precision and backward pass.
        state: changed in place; its ``step`` rises by one.
        batch: on the state's device; without an unlabelled half the step is a supervised one.
        config: the run.

    Returns:
        Scalars on the device: the loss, its terms exactly as optimised, the gradient's norm, and
        counts. Nothing here waits for the device. Where one is not finite the weights stay.
    """
    semi_step = state.step - config.train.supervised_steps
    unlabeled = batch.unlabeled if semi_step >= 0 else None
    contrasted = config.method.contrastive_weight > 0 and semi_step >= 0
    generator = step_generator(config.train.seed, state, batch.labeled.images.device)
    alpha = partition.unreliable_fraction(
        max(semi_step, 0),
        max(config.train.steps - config.train.supervised_steps, 1),
        initial=config.method.initial_unreliable_fraction,
    )
    pseudo, pairs = None, None
    with torch.no_grad():
        labeled = batch.labeled if contrasted else None
        view_l, view_u = teacher_views(fabric, state, labeled, unlabeled)
        if unlabeled is not None and view_u is not None:
            pseudo = pseudo_label(state, view_l, view_u, batch, alpha, config, generator)
        if view_l is not None:
            labels = batch.labeled.labels
            pairs = contrast_pairs(state, view_l, labels, pseudo, config, generator)

    terms = backward_in_parts(fabric, state, batch.labeled, pseudo, pairs, config)
    terms |= update_student(fabric, state, terms, config)
    decay = teacher_decay(state.step, maximum=config.method.ema_decay)
    follow(state.teacher, state.student, decay=decay)
    state.step += 1
    return terms | counts(pseudo, pairs, state, alpha)


def step_generator(seed: int, state: TrainState, device: torch.device) -> torch.Generator:
    """A step's own randomness, dropout's included: a function of seed and step alone.

    Every process gets a generator in the same state; dropout's masks are its own.
    """
    rank = (state.world.rank,) if state.world.rank else ()
    torch.manual_seed(derive_seed(seed, "dropout", state.step, *rank))
    return torch.Generator(device=device).manual_seed(derive_seed(seed, "step", state.step))


def teacher_views(
    fabric: Fabric,
    state: TrainState,
    labeled: LabeledBatch | None,
    unlabeled: UnlabeledBatch | None,
) -> tuple[TeacherView | None, TeacherView | None]:
    """One pass of the teacher over labelled images and weak views together.

    Pseudo-label, entropy, rank and key of a pixel thus come from the same prediction. (The
    authors' code takes keys and entropies from a second pass, over mixed images in train mode.)

    Args:
        fabric: precision.
        state: holds the teacher.
        labeled: None without contrast, which alone needs the teacher's word on labelled images.
        unlabeled: None without unlabelled images.

    Returns:
        A view of each half that was given; without contrast its features have no channel.
    """
    images = [] if labeled is None else [labeled.images]
    images += [] if unlabeled is None else [unlabeled.weak]
    if not images:
        return None, None
    with fabric.autocast():
        logits, features = state.teacher(torch.cat(images), with_features=labeled is not None)
    logits = logits.float()
    features = logits[:, :0] if features is None else features.float()
    split = 0 if labeled is None else len(labeled.images)
    view_l = None if labeled is None else TeacherView(logits[:split], features[:split])
    view_u = None if unlabeled is None else TeacherView(logits[split:], features[split:])
    return view_l, view_u


def pseudo_label(
    state: TrainState,
    view_l: TeacherView | None,
    view_u: TeacherView,
    batch: Batch,
    alpha: float,
    config: Config,
    generator: torch.Generator,
) -> PseudoLabels:
    """Denoise, veto by tags, mix images with their targets, split by entropy (Eq. 5-8)."""
    method, unlabeled, ignore_index = config.method, batch.unlabeled, state.ignore_index
    assert unlabeled is not None, "view_u is of unlabelled images"
    own, confidence = judge(state.prototypes, view_u, unlabeled, config)
    donors = own
    if method.mixing == "classmix_labeled":
        donors = from_labels(batch.labeled, view_l, own, ignore_index)
    mix = choose_mix(own, donors, view_u.logits.shape[1], state, config, generator)
    pixels = own.mixed(mix, donors)
    total = state.world.sum
    threshold = of_method(partition.entropy_threshold, config)(
        pixels.entropy,
        pixels.judged,
        # a number would be compiled in, and this one changes with each step
        unreliable_fraction=torch.full(
            (), alpha, dtype=torch.float64, device=pixels.entropy.device
        ),
        total=total if state.world.size > 1 else None,
    )
    labels = partition.pseudo_labels(
        pixels.predictions, pixels.entropy, threshold, pixels.valid, ignore_index=ignore_index
    )
    unreliable = partition.unreliable_mask(pixels.entropy, threshold, pixels.valid)
    num_valid, num_kept = total(torch.stack([pixels.valid.sum(), (labels != ignore_index).sum()]))
    ramp = losses.ramp_up(
        state.step - config.train.supervised_steps, method.unsupervised_ramp_steps
    )
    eta = method.unsupervised_weight * ramp
    weight = losses.unsupervised_weight(num_valid, num_kept, eta=eta)
    pixel_weights = None
    if method.pixel_weighting == "confident_share":
        share = partition.confident_share(confidence.unsqueeze(1), unlabeled.valid, total=total)
        pixel_weights = torch.where(pixels.judged, share, torch.ones_like(share))
    return PseudoLabels(
        pixels=pixels,
        labels=labels,
        pixel_weights=pixel_weights,
        weight=weight,
        num_kept=num_kept,
        num_valid=num_valid,
        threshold=threshold,
        unreliable=on_grid(unreliable, (view_u.logits.shape[-2], view_u.logits.shape[-1])),
    )


def judge(
    prototypes: MomentumPrototypes, view: TeacherView, unlabeled: UnlabeledBatch, config: Config
) -> tuple[MixedPixels, Tensor]:
    """What the teacher says of the unlabelled pixels, and how likely its classes are [B, H, W]."""
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
    predictions, entropy, confidence = of_method(judge_pixels, config)(logits, size)
    probs_on_grid, certain = logits[:, :0], logits[:, :0].bool()
    if contrasted:
        probs_on_grid = logits.softmax(dim=1)
        low, high = ranks(logits.shape[1], config)
        band = rank_band(view.logits, low_rank=low, high_rank=high)
        certain = tag_negative_mask(possible, on_grid(unlabeled.valid, grid), band, low_rank=low)
    pixels = MixedPixels(
        images=unlabeled.strong[0],
        predictions=predictions,
        entropy=entropy,
        valid=unlabeled.valid,
        judged=unlabeled.valid,
        probs=probs_on_grid,
        features=view.features,
        certain_negatives=certain,
    )
    return pixels, confidence


def judge_pixels(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Class, entropy (Eq. 5) and probability of the class at full size.

    Image by image, because the probabilities of all classes at all pixels of a batch would be the
    largest thing that the method makes, and nobody needs more than one image's at a time.

    Args:
        logits: [B, C, h, w].
        size: (H, W).

    Returns:
        Predictions [B, H, W] int64, entropy in nats and confidence, both [B, H, W].
    """
    images = []
    for own in torch.split(logits, 1):
        probs = upsample(own, size).softmax(dim=1)
        confidence, prediction = probs.max(dim=1)  # on a CPU several times faster than argmax
        images.append((prediction, partition.prediction_entropy(probs), confidence))
    predictions, entropy, confidence = (torch.cat(maps) for maps in zip(*images, strict=True))
    return predictions, entropy, confidence


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
        entropy=torch.zeros_like(labels, dtype=like.entropy.dtype),
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
    band = rank_band(probs, low_rank=low, high_rank=high)
    negative = labeled_negative_mask(labels, band, low_rank=low)
    if pseudo is not None:
        pixels = pseudo.pixels
        band = rank_band(pixels.probs, low_rank=low, high_rank=high)
        negative_u = pixels.certain_negatives | unlabeled_negative_mask(
            pseudo.unreliable, band, low_rank=low, high_rank=high
        )
        negative = torch.cat([negative, negative_u])
        labels = torch.cat([labels, on_grid(pseudo.labels, grid)])
        probs = torch.cat([probs, pixels.probs])
        features = torch.cat([features, pixels.features])
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
    here, found = _found(index, features, rows)
    return torch.where(here.unsqueeze(-1), found, torch.zeros_like(found))


def _found(index: Tensor, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a pixel of the whole batch is here, and its feature; another's where it is not."""
    cells = features.shape[-2] * features.shape[-1]
    image, cell = index // cells, index % cells
    match = image.unsqueeze(-1) == rows  # [..., n]
    # indexed as they lie: to bring D behind the cells first would copy all features
    found = features.flatten(2).transpose(1, 2)[match.long().argmax(dim=-1), cell]
    return match.any(dim=-1), found


def backward_in_parts(
    fabric: Fabric,
    state: TrainState,
    labeled: LabeledBatch,
    pseudo: PseudoLabels | None,
    pairs: ContrastPairs | None,
    config: Config,
) -> dict[str, Tensor]:
    """Forward and backward of the student, in one part or in several that save memory.

    Every sum is divided by the count of the whole batch, so the parts' gradients add up to the
    whole's; only BatchNorm sees the parts.
    """
    num_parts, ignore_index = config.train.accumulation, state.ignore_index
    num_labeled = state.world.sum((labeled.labels != ignore_index).sum())
    zero = torch.zeros((), device=labeled.images.device)
    totals = dict.fromkeys(("loss", "loss_s", "loss_u", "loss_c"), zero)
    for part in range(num_parts):
        share = slice(part, None, num_parts)
        images, labels = labeled.images[share], labeled.labels[share]
        size, split = (images.shape[-2], images.shape[-1]), len(images)
        logits, features = student_views(
            state, images, None if pseudo is None else pseudo.pixels.images[share], pairs, config
        )
        full = upsample(logits.float(), size)
        terms = {"loss_s": supervised_loss(full[:split], labels, num_labeled, state, config)}
        if pseudo is not None:
            weights = pseudo.pixel_weights
            terms["loss_u"] = pseudo.weight * losses.symmetric_cross_entropy(
                full[split:],
                pseudo.labels[share],
                ignore_index=ignore_index,
                reverse_weight=config.method.symmetric_weight,
                num_pixels=pseudo.num_kept,
                pixel_weights=None if weights is None else weights[share],
            )
        if pairs is not None:
            num_unlabeled = 0 if pseudo is None else len(pseudo.labels)
            rows = rows_of_batch(state, len(labeled.images), num_unlabeled)
            rows_l, rows_u = torch.split(rows, [len(labeled.images), num_unlabeled])
            rows = torch.cat([rows_l[share], rows_u[share]])
            assert features is not None, "asked for with the pairs"
            terms["loss_c"] = of_method(contrast_of_part, config)(
                pairs, state.queues.keys, features, rows, config
            )
        loss = terms["loss_s"] + terms.get("loss_u", zero)
        loss = loss + config.method.contrastive_weight * terms.get("loss_c", zero)
        fabric.backward(loss)
        for name, value in {"loss": loss, **terms}.items():
            totals[name] = totals[name] + value.detach()
    state.world.sum_gradients(state.student.parameters())
    summed = state.world.sum(torch.stack(list(totals.values())))
    return dict(zip(totals, summed, strict=True))


def student_views(
    state: TrainState,
    images_l: Tensor,
    images_u: Tensor | None,
    pairs: ContrastPairs | None,
    config: Config,
) -> tuple[Tensor, Tensor | None]:
    """Logits and features of labelled images, then of mixed ones.

    With ``train.separate_statistics`` BatchNorm normalises each half by itself, and its running
    averages, which the teacher follows, are those of the mixed images alone.
    """
    with_features = pairs is not None
    if images_u is None or not config.train.separate_statistics:
        images = images_l if images_u is None else torch.cat([images_l, images_u])
        logits, features = state.student(images, with_features=with_features)
        return logits, features
    with statistics_at_rest(state.student):
        logits_l, features_l = state.student(images_l, with_features=with_features)
    logits_u, features_u = state.student(images_u, with_features=with_features)
    features = torch.cat([features_l, features_u]) if with_features else None
    return torch.cat([logits_l, logits_u]), features


def update_student(
    fabric: Fabric, state: TrainState, terms: dict[str, Tensor], config: Config
) -> dict[str, Tensor]:
    """Make the optimiser's step at this step's learning rate, unless a number is not finite.

    Returns:
        ``grad_norm``, before clipping. With float16 the loss scaler looks at the gradients instead
        and skips updates; then ``skipped_updates``, how many of the run so far.
    """
    settings = config.optimizer
    factor = learning_rate_factor(
        state.step,
        config.train.steps,
        power=settings.poly_power,
        warmup_steps=settings.lr_warmup_steps,
    )
    set_learning_rate(state.optimizer, factor)
    norm = gradient_norm(state.student.parameters())
    if has_scaler(fabric):
        state.num_skipped = state.num_skipped + ~norm.isfinite()
        told = {"skipped_updates": state.num_skipped}
    else:
        told = {"grad_norm": norm}
        # the fused optimisers read this, and where it is 1 leave weights and moments alone
        raw: Any = getattr(state.optimizer, "optimizer", state.optimizer)
        raw.found_inf = (~are_finite(terms | told)).float()
    if settings.max_grad_norm is not None:
        fabric.clip_gradients(
            state.student,
            state.optimizer,
            max_norm=settings.max_grad_norm,
            error_if_nonfinite=False,  # it would wait for the device; the loop looks at the norm
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return told


def supervised_loss(
    logits: Tensor, labels: Tensor, num_labeled: Tensor, state: TrainState, config: Config
) -> Tensor:
    """Eq. 2 of a part of the batch; OHEM ranks the pixels of its part alone."""
    if not config.train.ohem:
        return losses.symmetric_cross_entropy(
            logits,
            labels,
            ignore_index=state.ignore_index,
            reverse_weight=config.method.labeled_symmetric_weight,
            num_pixels=num_labeled,
        )
    mean = losses.ohem_cross_entropy(
        logits,
        labels,
        ignore_index=state.ignore_index,
        threshold=config.train.ohem_threshold,
        min_kept=max(1, config.train.ohem_min_kept // config.train.accumulation),
    )
    return mean / config.train.accumulation


def contrast_of_part(
    pairs: ContrastPairs, keys: Tensor, features: Tensor, rows: Tensor, config: Config
) -> Tensor:
    """Eq. 4 of the anchors that lie in these rows of the batch.

    Args:
        pairs: of the whole batch.
        keys: of the queues.
        features: [n, D, h, w] of the student, the n images of this part.
        rows: [n] int64, which images of the batch they are.
        config: temperature.
    """
    here, anchors = _found(pairs.anchors, features, rows)
    return losses.contrastive_loss_of_drawn(
        anchors,
        pairs.positives,
        keys,
        pairs.negatives,
        pairs.active,
        temperature=config.method.temperature,
        anchor_weights=here,
    )


def counts(
    pseudo: PseudoLabels | None, pairs: ContrastPairs | None, state: TrainState, alpha: float
) -> dict[str, Tensor]:
    """What the progress line and the report show beside the losses."""
    shown: dict[str, Tensor] = {}
    if pseudo is not None:
        shown["reliable_share"] = pseudo.num_kept / pseudo.num_valid.clamp_min(1)
        shown["entropy_threshold"] = pseudo.threshold
        shown["unsupervised_weight"] = pseudo.weight
        shown["unreliable_fraction"] = torch.full_like(pseudo.threshold, alpha)
    if pairs is not None:
        shown["active_classes"] = pairs.active.sum()
        shown["queue_fill"] = state.queues.num_keys.sum() / state.queues.capacities.sum()
        shown["negatives_offered"] = pairs.num_negatives.sum()
    return shown
