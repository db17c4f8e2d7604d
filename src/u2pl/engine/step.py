"""One training step, read from top to bottom: the update, then what it is made of.

Suffixes: ``_l`` labelled, ``_u`` unlabelled. Masks and features live on the network's feature
grid [h, w]; images, labels and losses at full size [H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl import losses, partition
from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.loaders import derive_seed
from u2pl.engine.compiled import of_method
from u2pl.engine.guard import are_finite, gradient_norm, has_scaler
from u2pl.engine.optimizer import learning_rate_factor, set_learning_rate
from u2pl.engine.pairs import (
    ContrastPairs,
    cells_here,
    contrast_of_part,
    contrast_pairs,
    rows_of_batch,
)
from u2pl.engine.state import TrainState
from u2pl.engine.targets import PseudoLabels, StepNumbers, Stream, TeacherView, pseudo_label
from u2pl.models import SegmentationOutput, upsample
from u2pl.models.segmenter import STRIDE
from u2pl.teacher import follow, statistics_at_rest, teacher_decay

Gradients: TypeAlias = Callable[[Fabric, TrainState, Batch, StepNumbers, Config], dict[str, Tensor]]
"""A way to :func:`compute_gradients`."""


def training_step(
    fabric: Fabric,
    state: TrainState,
    batch: Batch,
    config: Config,
    *,
    gradients: Gradients | None = None,
) -> dict[str, Tensor]:
    """Make one update of student, teacher, prototypes and queues.

    Args:
        fabric: precision and backward pass.
        state: changed in place; its ``step`` rises by one.
        batch: on the state's device; without an unlabelled half the step is a supervised one.
        config: the run.
        gradients: computes losses and gradients; None takes :func:`compute_gradients`.

    Returns:
        Scalars on the device: the loss, its terms exactly as optimised, the gradient's norm, and
        counts. Nothing here waits for the device. Where one is not finite the weights stay.
    """
    if state.step < config.train.supervised_steps:
        batch = Batch(batch.labeled, None)
    numbers = step_numbers(state, config, batch.labeled.images.device)
    terms = (gradients or compute_gradients)(fabric, state, batch, numbers, config)
    terms |= update_student(fabric, state, terms, config)
    decay = teacher_decay(state.step, maximum=config.method.ema_decay)
    follow(state.teacher, state.student, decay=decay)
    state.step += 1
    return terms


def compute_gradients(
    fabric: Fabric, state: TrainState, batch: Batch, numbers: StepNumbers, config: Config
) -> dict[str, Tensor]:
    """Losses of a step and their gradients; prototypes and queues move on.

    Args:
        fabric, state, batch, config: as for :func:`training_step`; the weights stay as they are.
        numbers: of the step.

    Returns:
        The loss, its terms, and counts.
    """
    pseudo, pairs = make_targets(fabric, state, batch, numbers, config)
    terms = backward_in_parts(fabric, state, batch.labeled, pseudo, pairs, config)
    return terms | counts(pseudo, pairs, state, numbers)


@torch.no_grad()
def make_targets(
    fabric: Fabric, state: TrainState, batch: Batch, numbers: StepNumbers, config: Config
) -> tuple[PseudoLabels | None, ContrastPairs | None]:
    """What the student is taught, by the teacher's word; nothing else of that word is kept."""
    pseudo, pairs = None, None
    labeled = batch.labeled if numbers.contrasted else None
    view_l, view_u = teacher_views(fabric, state, labeled, batch.unlabeled)
    if view_u is not None:
        pseudo = pseudo_label(state, view_l, view_u, batch, numbers, config)
    if view_l is not None:
        labels = batch.labeled.labels
        pairs = contrast_pairs(state, view_l, labels, pseudo, config, numbers.generator)
    return None if pseudo is None else pseudo.for_the_student(), pairs


def step_numbers(state: TrainState, config: Config, device: torch.device) -> StepNumbers:
    """The numbers of the step that a state is at."""
    method, semi_step = config.method, state.step - config.train.supervised_steps
    alpha = method.initial_unreliable_fraction
    if method.adaptive_partition:
        total_steps = max(config.train.steps - config.train.supervised_steps, 1)
        alpha = partition.unreliable_fraction(max(semi_step, 0), total_steps, initial=alpha)
    eta = method.unsupervised_weight * losses.ramp_up(
        max(semi_step, 0), method.unsupervised_ramp_steps
    )
    return StepNumbers(
        alpha=torch.full((), alpha, dtype=torch.float64, device=device),
        eta=torch.full((), eta, device=device),
        contrasted=method.contrastive_weight > 0 and semi_step >= 0,
        generator=step_generator(config.train.seed, state, device),
    )


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
    Where the teacher sees more of the unlabelled images than the student (``data.context``), they
    pass by themselves, and what it says of the weak view is cut out.

    Args:
        fabric: precision.
        state: holds the teacher.
        labeled: None without contrast, which alone needs the teacher's word on labelled images.
        unlabeled: None without unlabelled images.

    Returns:
        A view of each half that was given; without contrast its features have no channel.
    """
    contrasted = labeled is not None
    if unlabeled is not None and unlabeled.context is not None:
        view_l, _ = teacher_views(fabric, state, labeled, None)
        wide = ask_teacher(fabric, state, unlabeled.context, with_features=contrasted)
        return view_l, wide.of_the_weak_view(unlabeled)
    images = [] if labeled is None else [labeled.images]
    images += [] if unlabeled is None else [unlabeled.weak]
    if not images:
        return None, None
    said = ask_teacher(fabric, state, torch.cat(images), with_features=contrasted)
    split = 0 if labeled is None else len(labeled.images)
    view_l = None if labeled is None else said.part(slice(split))
    view_u = None if unlabeled is None else said.part(slice(split, None))
    return view_l, view_u


def ask_teacher(
    fabric: Fabric, state: TrainState, images: Tensor, *, with_features: bool
) -> TeacherView:
    """What the teacher says of images; without features theirs have no channel."""
    with fabric.autocast():
        said = state.teacher(images, with_features=with_features)
    logits = said.logits.float()
    return TeacherView(logits, logits[:, :0] if said.features is None else said.features.float())


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
        streams = () if pseudo is None else tuple(s.part(share) for s in pseudo.streams)
        wanted = None if pairs is None else anchors_of_part(state, pairs, labeled, pseudo, share)
        said = student_views(state, images, streams, wanted, config)
        full = upsample(said.logits.float(), size)
        terms = {"loss_s": supervised_loss(full[:split], labels, num_labeled, state, config)}
        if said.auxiliary is not None:
            coarse = upsample(said.auxiliary.float(), size)
            loss = supervised_loss(coarse, labels, num_labeled, state, config)
            terms["loss_s"] = terms["loss_s"] + config.model.auxiliary_weight * loss
        if streams:
            terms["loss_u"] = unsupervised_loss(full[split:], streams, ignore_index, config)
        if pairs is not None:
            assert wanted is not None, "of the pairs"
            assert said.features is not None, "asked for with the pairs"
            anchors = said.features.view(*pairs.anchors.shape, -1)
            terms["loss_c"] = of_method(contrast_of_part, config)(
                pairs, state.queues.keys, anchors, wanted.here, config
            )
        loss = terms["loss_s"] + terms.get("loss_u", zero)
        loss = loss + config.method.contrastive_weight * terms.get("loss_c", zero)
        fabric.backward(loss)
        for name, value in {"loss": loss, **terms}.items():
            totals[name] = totals[name] + value.detach()
    state.world.sum_gradients(state.student.parameters())
    summed = state.world.sum(torch.stack(list(totals.values())))
    return dict(zip(totals, summed, strict=True))


class Wanted(NamedTuple):
    """The anchors of all classes in a part of the batch.

    Attributes:
        here: [C, M] bool, whether an anchor is in the part.
        cells: [C · M] int64, where, in the flattened grid of the part's images.
        area: h · w of an image.
    """

    here: Tensor
    cells: Tensor
    area: int


def anchors_of_part(
    state: TrainState,
    pairs: ContrastPairs,
    labeled: LabeledBatch,
    pseudo: PseudoLabels | None,
    share: slice,
) -> Wanted:
    """Find the whole batch's anchors in some of its images, labelled ones first."""
    num_unlabeled = 0 if pseudo is None else len(pseudo.labels)
    rows = rows_of_batch(state, len(labeled.images), num_unlabeled)
    rows_l, rows_u = torch.split(rows, [len(labeled.images), num_unlabeled])
    rows = torch.cat([rows_l[share], rows_u[share]])
    height, width = labeled.images.shape[-2:]  # as unlabelled ones are
    area = -(-height // STRIDE) * -(-width // STRIDE)
    here, cells = cells_here(pairs.anchors, rows, area)
    return Wanted(here, cells.flatten(), area)


def student_views(
    state: TrainState,
    images_l: Tensor,
    streams: tuple[Stream, ...],
    wanted: Wanted | None,
    config: Config,
) -> SegmentationOutput:
    """Logits [n, C, h, w] of labelled images, then of each stream's, and features of anchors.

    With ``train.separate_statistics`` BatchNorm normalises each half by itself, and its running
    averages, which the teacher follows, are those of the mixed images alone.

    Returns:
        The logits; [K, D] at the cells that are wanted, None where none are; and the auxiliary
        head's logits of the labelled images, None where there is no such head.
    """
    images_u = [stream.images for stream in streams]
    given: dict[str, Any] = {"with_features": wanted is not None}
    of_labeled: dict[str, Any] = {}
    if config.model.auxiliary_weight > 0:
        of_labeled["num_auxiliary"] = len(images_l)
    cells = None if wanted is None else wanted.cells
    if not streams or not config.train.separate_statistics:
        said: SegmentationOutput = state.student(
            torch.cat([images_l, *images_u]),
            feature_cells=cells,
            channel_factors=factors_of(streams, len(images_l)),
            **given,
            **of_labeled,
        )
        return said
    # each half is asked for all anchors, and those of the other half are left out
    border = 0 if wanted is None else len(images_l) * wanted.area
    cells_l, cells_u = (None, None) if cells is None else (cells, (cells - border).clamp_min(0))
    with statistics_at_rest(state.student):
        cells_l = None if cells_l is None else torch.where(cells_l < border, cells_l, 0)
        said_l = state.student(images_l, feature_cells=cells_l, **given, **of_labeled)
    said_u = state.student(
        torch.cat(images_u),
        feature_cells=cells_u,
        channel_factors=factors_of(streams, 0),
        **given,
    )
    logits, features = torch.cat([said_l.logits, said_u.logits]), None
    if cells is not None:
        is_labeled = (cells < border).unsqueeze(1)
        features = torch.where(is_labeled, said_l.features, said_u.features)
    return SegmentationOutput(logits, features, said_l.auxiliary)


def factors_of(streams: tuple[Stream, ...], num_before: int) -> list[Tensor] | None:
    """Channel factors of a batch: ``num_before`` images as they are, then each stream's.

    Returns:
        For each map of the encoder [B, K]; None where no stream drops channels.
    """
    dropped = next((s.channel_factors for s in streams if s.channel_factors is not None), None)
    if dropped is None:
        return None
    factors = []
    for level, example in enumerate(dropped):
        whole = example.new_ones(1, example.shape[1])
        parts = [whole.expand(num_before, -1)]
        for stream in streams:
            own = stream.channel_factors
            parts.append(whole.expand(len(stream.images), -1) if own is None else own[level])
        factors.append(torch.cat(parts))
    return factors


def unsupervised_loss(
    logits: Tensor, streams: tuple[Stream, ...], ignore_index: int, config: Config
) -> Tensor:
    """λ_u times Eq. 3, summed over the streams by their shares.

    Args:
        logits: [n, C, H, W] of the student, one stream's images after the other's.
        streams: the parts of them that these images are.
        ignore_index: of the labels.
        config: ξ.
    """
    loss = logits.new_zeros(())
    each = torch.split(logits, [len(stream.images) for stream in streams])
    for own, stream in zip(each, streams, strict=True):
        given: dict[str, Any] = {
            "reverse_weight": config.method.symmetric_weight,
            "num_pixels": stream.num_kept,
            "pixel_weights": stream.pixel_weights,
        }
        if stream.soft is None:
            mean = losses.symmetric_cross_entropy(
                own, stream.labels, ignore_index=ignore_index, **given
            )
        else:
            kept = stream.labels != ignore_index
            mean = losses.soft_symmetric_cross_entropy(own, stream.soft, kept, **given)
        loss = loss + stream.weight * mean
    return loss


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


def counts(
    pseudo: PseudoLabels | None,
    pairs: ContrastPairs | None,
    state: TrainState,
    numbers: StepNumbers,
) -> dict[str, Tensor]:
    """What the progress line and the report show beside the losses."""
    shown: dict[str, Tensor] = {}
    if pseudo is not None:
        shown["reliable_share"] = pseudo.num_kept / pseudo.num_valid.clamp_min(1)
        shown["entropy_threshold"] = pseudo.threshold
        shown["unsupervised_weight"] = pseudo.weight
        shown["unreliable_fraction"] = numbers.alpha.to(pseudo.threshold.dtype)
    if pairs is not None:
        shown["active_classes"] = pairs.active.sum()
        shown["queue_fill"] = state.queues.num_keys.sum() / state.queues.capacities.sum()
        shown["negatives_offered"] = pairs.num_negatives.sum()
    return shown
