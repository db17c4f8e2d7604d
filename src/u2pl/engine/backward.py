"""The student's losses and gradients, one head after the other, so that little is held at a time.

Both heads read the decoder's maps. The contrast goes first, and what its head keeps is let go
before the segmentation head runs. The losses at full size take some images at a time. What all of
them ask of the maps goes back through decoder and encoder once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl import losses
from u2pl.config import Config
from u2pl.data.batch import LabeledBatch
from u2pl.engine.compiled import of_method, of_student
from u2pl.engine.pairs import ContrastPairs, cells_here, contrast_of_part, rows_of_batch
from u2pl.engine.state import TrainState
from u2pl.engine.targets import PseudoLabels, Stream
from u2pl.models import Segmenter, upsample
from u2pl.models.segmenter import STRIDE
from u2pl.teacher import statistics_at_rest

NUMBERS_AT_ONCE = 2**23
"""Of a map of some images, all classes and all pixels that a loss makes: 32 MiB in float32; one
image may have more."""


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

    Returns:
        The loss and its terms, of all processes together.
    """
    num_parts, weight = config.train.accumulation, config.method.contrastive_weight
    num_labeled = state.world.sum((labeled.labels != state.ignore_index).sum())
    zero = torch.zeros((), device=labeled.images.device)
    totals = dict.fromkeys(("loss_s", "loss_u", "loss_c"), zero)
    for part in range(num_parts):
        share = slice(part, None, num_parts)
        images, labels = labeled.images[share], labeled.labels[share]
        streams = () if pseudo is None else tuple(s.part(share) for s in pseudo.streams)
        seen = look(fabric, state, images, streams, config)
        read, terms = seen.cut_off(), {}
        if pairs is not None:
            wanted = anchors_of_part(state, pairs, labeled, pseudo, share)
            terms["loss_c"] = contrast_backward(fabric, state, read, pairs, wanted, config)
        terms |= pixels_backward(fabric, state, read, labels, num_labeled, streams, config)
        seen.pass_on(read)
        totals = {name: totals[name] + terms.get(name, zero) for name in totals}
    loss = totals["loss_s"] + totals["loss_u"] + weight * totals["loss_c"]
    state.world.sum_gradients(state.student.parameters())
    summed = state.world.sum(torch.stack([loss, *totals.values()]))
    return dict(zip(("loss", *totals), summed, strict=True))


class Seen(NamedTuple):
    """What the student made of labelled images, then of each stream's, before its heads.

    Attributes:
        maps: [n, K, h, w], what both heads read; two of them, of labelled images and of the
            others, where the student looked twice.
        auxiliary: [n, C, h, w], the auxiliary head's logits of the labelled images; None where
            there is no such head.
    """

    maps: tuple[Tensor, ...]
    auxiliary: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.maps, *(() if self.auxiliary is None else (self.auxiliary,))]

    def cut_off(self) -> Seen:
        """The same values, at which backward passes end and leave their gradients."""
        auxiliary = None if self.auxiliary is None else cut_off(self.auxiliary)
        return Seen(tuple(cut_off(maps) for maps in self.maps), auxiliary)

    def pass_on(self, read: Seen) -> None:
        """Go on backward with the gradients that were left at ``read``, which was cut off here."""
        torch.autograd.backward(self.tensors, [each.grad for each in read.tensors])


def cut_off(tensor: Tensor) -> Tensor:
    """The same values, at which backward passes end and leave their gradients.

    >>> maps = torch.ones(2, requires_grad=True) * 3
    >>> read = cut_off(maps)
    >>> read.square().sum().backward()
    >>> read.grad
    tensor([6., 6.])
    """
    return tensor.detach().requires_grad_()


def look(
    fabric: Fabric,
    state: TrainState,
    images_l: Tensor,
    streams: tuple[Stream, ...],
    config: Config,
) -> Seen:
    """Show the student labelled images and all streams.

    With ``train.separate_statistics`` BatchNorm normalises each half by itself, and its running
    averages, which the teacher follows, are those of the mixed images alone.
    """
    student, images_u = state.network, [stream.images for stream in streams]
    decode = of_student(Segmenter.decode, config)
    num_auxiliary = len(images_l) if config.model.auxiliary_weight > 0 else 0
    with fabric.autocast():
        if not streams or not config.train.separate_statistics:
            factors = factors_of(streams, len(images_l))
            maps, auxiliary = decode(
                student,
                torch.cat([images_l, *images_u]),
                channel_factors=factors,
                num_auxiliary=num_auxiliary,
            )
            return Seen((maps,), auxiliary)
        with statistics_at_rest(student):
            maps_l, auxiliary = decode(student, images_l, num_auxiliary=num_auxiliary)
        factors = factors_of(streams, 0)
        maps_u, _ = decode(student, torch.cat(images_u), channel_factors=factors)
    return Seen((maps_l, maps_u), auxiliary)


def contrast_backward(
    fabric: Fabric,
    state: TrainState,
    read: Seen,
    pairs: ContrastPairs,
    wanted: Wanted,
    config: Config,
) -> Tensor:
    """λ_c times Eq. 4 of a part of the batch, backward to what the heads read.

    Returns:
        Eq. 4 without λ_c.
    """
    anchors = anchor_features(fabric, state, read, wanted, config)
    contrast = of_method(contrast_of_part, config)
    loss = contrast(pairs, state.queues.keys, anchors, wanted.here, config)
    fabric.backward(config.method.contrastive_weight * loss)
    return loss.detach()


def anchor_features(
    fabric: Fabric, state: TrainState, read: Seen, wanted: Wanted, config: Config
) -> Tensor:
    """The student's unit features of the anchors, [C, M, D]; anything where one is not here."""
    student, cells = state.network, wanted.cells
    features_at = of_student(Segmenter.features_at, config)
    with fabric.autocast():
        if len(read.maps) == 1:
            features = features_at(student, read.maps[0], cells)
        else:
            # each half is asked for all anchors, and those of the other half are left out
            maps_l, maps_u = read.maps
            border = len(maps_l) * wanted.area
            is_labeled = cells < border
            with statistics_at_rest(student):
                features_l = features_at(student, maps_l, torch.where(is_labeled, cells, 0))
            features_u = features_at(student, maps_u, (cells - border).clamp_min(0))
            features = torch.where(is_labeled.unsqueeze(1), features_l, features_u)
    return features.float().view(*wanted.here.shape, -1)


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


def pixels_backward(
    fabric: Fabric,
    state: TrainState,
    read: Seen,
    labels: Tensor,
    num_labeled: Tensor,
    streams: tuple[Stream, ...],
    config: Config,
) -> dict[str, Tensor]:
    """Eq. 2 and λ_u times Eq. 3 of a part of the batch, backward to what the heads read.

    Returns:
        ``loss_s``, the auxiliary head's share in it, and ``loss_u``, where there are streams.
    """
    size = (labels.shape[-2], labels.shape[-1])
    # OHEM ranks the pixels of all images
    at_once = len(labels) if config.train.ohem else None

    def on_labels(full: Tensor, few: slice) -> Tensor:
        return supervised_loss(full, labels[few], num_labeled, state, config)

    logits = segmentation_logits(fabric, state, read, config)
    counts = [len(labels), *(len(stream.images) for stream in streams)]
    each = torch.split(logits, counts)
    loss, pull = at_full_size(fabric, each[0], on_labels, size=size, at_once=at_once)
    terms, pulls = {"loss_s": loss}, [pull]
    for stream, said in zip(streams, each[1:], strict=True):

        def on_stream(full: Tensor, few: slice, stream: Stream = stream) -> Tensor:
            return unsupervised_loss(full, stream.part(few), state.ignore_index, config)

        loss, pull = at_full_size(fabric, said, on_stream, size=size)
        terms["loss_u"] = terms.get("loss_u", 0) + loss
        pulls.append(pull)
    torch.autograd.backward(logits, torch.cat(pulls))
    if read.auxiliary is not None:

        def weighted(full: Tensor, few: slice) -> Tensor:
            return config.model.auxiliary_weight * on_labels(full, few)

        loss, pull = at_full_size(fabric, read.auxiliary, weighted, size=size, at_once=at_once)
        terms["loss_s"] = terms["loss_s"] + loss
        read.auxiliary.grad = pull
    return terms


def segmentation_logits(fabric: Fabric, state: TrainState, read: Seen, config: Config) -> Tensor:
    """The student's logits [n, C, h, w] of labelled images, then of each stream's."""
    student = state.network
    logits_of = of_student(Segmenter.segmentation_logits, config)
    with fabric.autocast():
        if len(read.maps) == 1:
            return logits_of(student, read.maps[0])
        with statistics_at_rest(student):
            logits_l = logits_of(student, read.maps[0])
        return torch.cat([logits_l, logits_of(student, read.maps[1])])


def at_full_size(
    fabric: Fabric,
    logits: Tensor,
    loss_of: Callable[[Tensor, slice], Tensor],
    *,
    size: tuple[int, int],
    at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A loss that is a sum over images, and its gradient, some images at a time.

    Args:
        fabric: the backward pass.
        logits: [n, C, h, w]; what they are made of hears nothing.
        loss_of: takes logits [k, C, H, W] in float32 and which of the images they are.
        size: (H, W).
        at_once: k at most; None is by :data:`NUMBERS_AT_ONCE`.

    Returns:
        The loss, and its gradient for the logits, scaled as Fabric's backward passes are.
    """
    if at_once is None:
        at_once = max(1, NUMBERS_AT_ONCE // (logits.shape[1] * size[0] * size[1]))
    total, pull = torch.zeros((), device=logits.device), torch.zeros_like(logits)
    for start in range(0, len(logits), at_once):
        few = slice(start, start + at_once)
        part = cut_off(logits[few])
        loss = loss_of(upsample(part.float(), size), few)
        fabric.backward(loss)
        assert part.grad is not None, "of the backward pass"
        pull[few] = part.grad
        total = total + loss.detach()
    return total, pull


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


def unsupervised_loss(logits: Tensor, stream: Stream, ignore_index: int, config: Config) -> Tensor:
    """λ_u times Eq. 3, the share of one stream.

    Args:
        logits: [n, C, H, W] of the student.
        stream: the part of it that these images are.
        ignore_index: of the labels.
        config: ξ.
    """
    given: dict[str, Any] = {
        "reverse_weight": config.method.symmetric_weight,
        "num_pixels": stream.num_kept,
        "pixel_weights": stream.pixel_weights,
    }
    if stream.soft is None:
        mean = losses.symmetric_cross_entropy(
            logits, stream.labels, ignore_index=ignore_index, **given
        )
    else:
        kept = stream.labels != ignore_index
        mean = losses.soft_symmetric_cross_entropy(logits, stream.soft, kept, **given)
    return stream.weight * mean


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
