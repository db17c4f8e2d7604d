"""One training step, read from top to bottom: the update, then what it is made of.

Suffixes: ``_l`` labelled, ``_u`` unlabelled. Masks and features live on the network's feature
grid [h, w]; images, labels and losses at full size [H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl import losses, partition
from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.loaders import derive_seed
from u2pl.engine.backward import backward_in_parts
from u2pl.engine.guard import are_finite, gradient_norm, has_scaler
from u2pl.engine.optimizer import learning_rate_factor, set_learning_rate
from u2pl.engine.pairs import ContrastPairs, contrast_pairs
from u2pl.engine.state import TrainState
from u2pl.engine.targets import PseudoLabels, StepNumbers, TeacherView, pseudo_label
from u2pl.teacher import follow, teacher_decay

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
