"""One training step, read from top to bottom: the whole method in one function.

Suffixes: ``_l`` labelled, ``_u`` unlabelled. Masks and features live on the network's feature
grid [h, w]; images, labels and losses at full size [H, W].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl import losses, mixing, partition
from u2pl.config import Config
from u2pl.contrast import (
    anchor_mask,
    class_means,
    class_rank,
    denoise_logits,
    labeled_negative_mask,
    rank_bounds,
    sample_with_replacement,
    tag_negative_mask,
    unlabeled_negative_mask,
)
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.loaders import derive_seed
from u2pl.engine.optimizer import learning_rate_factor, set_learning_rate
from u2pl.engine.state import TrainState
from u2pl.engine.teacher import follow, teacher_decay
from u2pl.mixing import on_grid
from u2pl.models import upsample


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
class PseudoLabels:
    """The unlabelled half of the batch after mixing, with its targets.

    Attributes:
        images: [B, 3, H, W], strong view, mixed.
        labels: [B, H, W], pseudo-labels; the ignore index where the teacher is unsure.
        valid: [B, H, W] bool.
        weight: scalar, λ_u.
        num_kept: scalar, pixels with a pseudo-label.
        threshold: scalar, γ_t in nats.
        probs: [B, C, h, w], the teacher's, after denoising and tags.
        features: [B, D, h, w], the teacher's.
        unreliable: [B, h, w] bool.
        certain_negatives: [B, C, h, w] bool, from tags.
    """

    images: Tensor
    labels: Tensor
    valid: Tensor
    weight: Tensor
    num_kept: Tensor
    threshold: Tensor
    probs: Tensor
    features: Tensor
    unreliable: Tensor
    certain_negatives: Tensor


@dataclass(frozen=True)
class ContrastPairs:
    """Anchors of this step and what they are compared with.

    Attributes:
        anchors: [C, M] int64, positions in the flattened grid of labelled, then unlabelled images.
        positives: [C, D].
        negatives: [C, M, N, D].
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
        Scalars on the device: the loss, its terms exactly as optimised, and counts. Nothing here
        waits for the device.
    """
    semi_step = state.step - config.train.supervised_steps
    unlabeled = batch.unlabeled if semi_step >= 0 else None
    contrasted = config.method.contrastive_weight > 0 and semi_step >= 0
    generator = step_generator(config.train.seed, state.step, batch.labeled.images.device)
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
            pseudo = pseudo_label(state, view_u, unlabeled, alpha, config, generator)
        if view_l is not None:
            labels = batch.labeled.labels
            pairs = contrast_pairs(state, view_l, labels, pseudo, config, generator)

    terms = backward_in_parts(fabric, state, batch.labeled, pseudo, pairs, config)
    update_student(fabric, state, config)
    decay = teacher_decay(semi_step, maximum=config.method.ema_decay)
    follow(state.teacher, state.student, decay=decay)
    state.step += 1
    return terms | counts(pseudo, pairs, state, alpha)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A step's own randomness, dropout's included: a function of seed and step alone."""
    torch.manual_seed(derive_seed(seed, "dropout", step))
    return torch.Generator(device=device).manual_seed(derive_seed(seed, "step", step))


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
    view: TeacherView,
    unlabeled: UnlabeledBatch,
    alpha: float,
    config: Config,
    generator: torch.Generator,
) -> PseudoLabels:
    """Denoise, veto by tags, mix images with their targets, split by entropy (Eq. 5-8)."""
    method, size = config.method, (unlabeled.weak.shape[-2], unlabeled.weak.shape[-1])
    grid = (view.logits.shape[-2], view.logits.shape[-1])
    logits = view.logits
    if method.denoise_temperature is not None and method.contrastive_weight > 0:
        logits = denoise_logits(
            logits,
            view.features,
            state.prototypes.vectors,
            state.prototypes.seen,
            temperature=method.denoise_temperature,
        )
    possible = unlabeled.possible_classes
    probs = partition.restrict_to_tags(upsample(logits, size).softmax(dim=1), possible)
    predictions = probs.max(dim=1).indices  # on a CPU several times faster than argmax
    entropy = partition.prediction_entropy(probs)
    low_rank, _ = rank_bounds(logits.shape[1], low_rank=method.low_rank, high_rank=method.high_rank)
    certain = tag_negative_mask(
        possible, on_grid(unlabeled.valid, grid), class_rank(view.logits), low_rank=low_rank
    )

    mix = choose_mix(predictions, unlabeled.valid, logits.shape[1], config, state, generator)
    valid = mix.apply(unlabeled.valid, fill=False)
    entropy = mix.apply(entropy)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=alpha)
    labels = partition.pseudo_labels(
        mix.apply(predictions), entropy, threshold, valid, ignore_index=state.ignore_index
    )
    num_kept = (labels != state.ignore_index).sum()
    return PseudoLabels(
        images=mix.apply(unlabeled.strong[0]),
        labels=labels,
        valid=valid,
        weight=losses.unsupervised_weight(valid.sum(), num_kept, eta=method.unsupervised_weight),
        num_kept=num_kept,
        threshold=threshold,
        probs=mix.apply(partition.restrict_to_tags(logits.softmax(dim=1), possible)),
        features=mix.apply(view.features),
        unreliable=on_grid(partition.unreliable_mask(entropy, threshold, valid), grid),
        certain_negatives=mix.apply(certain, fill=False),
    )


def choose_mix(
    predictions: Tensor,
    valid: Tensor,
    num_classes: int,
    config: Config,
    state: TrainState,
    generator: torch.Generator,
) -> mixing.Mix:
    """The configured mixing of a batch with teacher predictions [B, H, W]."""
    batch_size, device = predictions.shape[0], predictions.device
    size = (predictions.shape[-2], predictions.shape[-1])
    probability = config.method.mix_probability
    if config.method.mixing == "classmix":
        labels = predictions.masked_fill(~valid, state.ignore_index)
        return mixing.classmix(labels, num_classes, probability=probability, generator=generator)
    if config.method.mixing == "none":
        return mixing.no_mix(batch_size, size, device=device)
    box = mixing.cutmix if config.method.mixing == "cutmix" else mixing.cutout
    return box(batch_size, size, probability=probability, device=device, generator=generator)


def contrast_pairs(
    state: TrainState,
    view: TeacherView,
    labels: Tensor,
    pseudo: PseudoLabels | None,
    config: Config,
    generator: torch.Generator,
) -> ContrastPairs:
    """Anchors, positives and negatives (Eq. 9-16); prototypes and queues move on."""
    method = config.method
    grid = (view.logits.shape[-2], view.logits.shape[-1])
    low, high = rank_bounds(
        view.logits.shape[1], low_rank=method.low_rank, high_rank=method.high_rank
    )
    labels, probs, features = on_grid(labels, grid), view.logits.softmax(dim=1), view.features
    negative = labeled_negative_mask(labels, class_rank(probs), low_rank=low)
    if pseudo is not None:
        negative_u = pseudo.certain_negatives | unlabeled_negative_mask(
            pseudo.unreliable, class_rank(pseudo.probs), low_rank=low, high_rank=high
        )
        negative = torch.cat([negative, negative_u])
        labels = torch.cat([labels, on_grid(pseudo.labels, grid)])
        probs = torch.cat([probs, pseudo.probs])
        features = torch.cat([features, pseudo.features])
    anchor = anchor_mask(labels, probs, threshold=method.anchor_threshold)

    state.prototypes.update(*class_means(features, anchor))
    negative = negative.transpose(0, 1).flatten(1)  # [C, B·h·w]
    keys = features.permute(0, 2, 3, 1).flatten(0, 2)  # [B·h·w, D]
    state.queues.push(keys, negative, max_keys=method.keys_per_step, generator=generator)
    anchors, has_anchor = sample_with_replacement(
        anchor.transpose(0, 1).flatten(1), method.num_anchors, generator=generator
    )
    return ContrastPairs(
        anchors=anchors,
        positives=state.prototypes.vectors,
        negatives=state.queues.sample(
            method.num_anchors, method.num_negatives, generator=generator
        ),
        active=has_anchor & (state.queues.num_keys > 0),
        num_negatives=negative.sum(dim=1),
    )


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
    num_labeled = (labeled.labels != ignore_index).sum()
    zero = torch.zeros((), device=labeled.images.device)
    totals = dict.fromkeys(("loss", "loss_s", "loss_u", "loss_c"), zero)
    for part in range(num_parts):
        share = slice(part, None, num_parts)
        images, labels = labeled.images[share], labeled.labels[share]
        size, split = (images.shape[-2], images.shape[-1]), len(images)
        if pseudo is not None:
            images = torch.cat([images, pseudo.images[share]])
        logits, features = state.student(images, with_features=pairs is not None)
        full = upsample(logits.float(), size)
        terms = {"loss_s": supervised_loss(full[:split], labels, num_labeled, state, config)}
        if pseudo is not None:
            terms["loss_u"] = pseudo.weight * losses.symmetric_cross_entropy(
                full[split:],
                pseudo.labels[share],
                ignore_index=ignore_index,
                reverse_weight=config.method.symmetric_weight,
                num_pixels=pseudo.num_kept,
            )
        if pairs is not None:
            num_images = len(labeled.images) + (0 if pseudo is None else len(pseudo.images))
            rows = torch.arange(num_images, device=zero.device)
            rows_l, rows_u = rows[: len(labeled.images)], rows[len(labeled.images) :]
            rows = torch.cat([rows_l[share], rows_u[share]])
            terms["loss_c"] = contrast_of_part(pairs, features, rows, config)
        loss = terms["loss_s"] + terms.get("loss_u", zero)
        loss = loss + config.method.contrastive_weight * terms.get("loss_c", zero)
        fabric.backward(loss)
        for name, value in {"loss": loss, **terms}.items():
            totals[name] = totals[name] + value.detach()
    return totals


def update_student(fabric: Fabric, state: TrainState, config: Config) -> None:
    """Clip where asked, and make the optimiser's step at this step's learning rate."""
    settings = config.optimizer
    factor = learning_rate_factor(
        state.step,
        config.train.steps,
        power=settings.poly_power,
        warmup_steps=settings.lr_warmup_steps,
    )
    set_learning_rate(state.optimizer, factor)
    if settings.max_grad_norm is not None:
        fabric.clip_gradients(
            state.student,
            state.optimizer,
            max_norm=settings.max_grad_norm,
            error_if_nonfinite=False,  # it would wait for the device; the loop looks at the loss
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def supervised_loss(
    logits: Tensor, labels: Tensor, num_labeled: Tensor, state: TrainState, config: Config
) -> Tensor:
    """Eq. 2 of a part of the batch; OHEM ranks the pixels of its part alone."""
    if not config.train.ohem:
        return losses.cross_entropy(
            logits, labels, ignore_index=state.ignore_index, num_pixels=num_labeled
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
    pairs: ContrastPairs, features: Tensor, rows: Tensor, config: Config
) -> Tensor:
    """Eq. 4 of the anchors that lie in these rows of the batch.

    Args:
        pairs: of the whole batch.
        features: [n, D, h, w] of the student, the n images of this part.
        rows: [n] int64, which images of the batch they are.
        config: temperature.
    """
    cells = features.shape[-2] * features.shape[-1]
    images, cell = pairs.anchors // cells, pairs.anchors % cells
    match = images.unsqueeze(-1) == rows  # [C, M, n]
    pixels = features.flatten(2).transpose(1, 2).flatten(0, 1)  # [n·h·w, D]
    return losses.contrastive_loss(
        pixels[match.long().argmax(dim=-1) * cells + cell],
        pairs.positives,
        pairs.negatives,
        pairs.active,
        temperature=config.method.temperature,
        anchor_weights=match.any(dim=-1),
    )


def counts(
    pseudo: PseudoLabels | None, pairs: ContrastPairs | None, state: TrainState, alpha: float
) -> dict[str, Tensor]:
    """What the progress line and the report show beside the losses."""
    shown: dict[str, Tensor] = {}
    if pseudo is not None:
        shown["reliable_share"] = pseudo.num_kept / pseudo.valid.sum().clamp_min(1)
        shown["entropy_threshold"] = pseudo.threshold
        shown["unsupervised_weight"] = pseudo.weight
        shown["unreliable_fraction"] = torch.full_like(pseudo.threshold, alpha)
    if pairs is not None:
        shown["active_classes"] = pairs.active.sum()
        shown["queue_fill"] = state.queues.num_keys.sum() / state.queues.capacities.sum()
        shown["negatives_offered"] = pairs.num_negatives.sum()
    return shown
