"""What a run's teacher is right about, measured where masks are known.

The teacher is asked as the training step asks it (:func:`u2pl.engine.targets.judge`), on whole
images: its pseudo-labels, the reliable and the unreliable ones (Eq. 5-8), and the negative keys
that it would give (Eq. 13-15). A report is made of what is written here, and needs no network.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from u2pl.config import Config
from u2pl.contrast import MomentumPrototypes, class_rank, rank_bounds, unlabeled_negative_mask
from u2pl.data.batch import UnlabeledBatch
from u2pl.data.loaders import EvaluationBatch, evaluation_batches
from u2pl.data.sources import Dataset, Sample
from u2pl.engine.checkpoint import kept_checkpoints, load_newest_checkpoint, write_json
from u2pl.engine.evaluate import (
    NUM_BINS,
    class_iou,
    entropy_bins,
    quantile_bin,
    resize_logits,
    window_starts,
)
from u2pl.engine.inspection_pictures import Canvas, write_pictures
from u2pl.engine.predict import SegmentationModel, load_model
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.state import queue_capacities
from u2pl.engine.targets import TeacherView, judge
from u2pl.errors import UserError
from u2pl.mixing import on_grid
from u2pl.models import upsample

SHOWN = {"val": 4, "unlabeled": 2}
"""How many of the worst, of the best and of the other images of a section have pictures."""


@dataclass(frozen=True)
class Window:
    """A part of an image that the network sees at once.

    Attributes:
        rows, columns: where it lies.
        fresh: [h, w] bool, pixels that no window before it has shown.
    """

    rows: slice
    columns: slice
    fresh: Tensor


@dataclass(frozen=True)
class Opinion:
    """What the teacher says of B images of H x W pixels, as in a training step.

    Attributes:
        logits: [B, C, h, w], before denoising and tags.
        predictions: [B, H, W] int64, after both, as are the entropies.
        entropy: [B, H, W] in nats.
        valid: [B, H, W] bool.
        candidates: [B, C, h, w] bool, keys of each class wherever a pixel is unreliable.
        certain: [B, C, h, w] bool, keys whatever the entropy: the tags say so.
    """

    logits: Tensor
    predictions: Tensor
    entropy: Tensor
    valid: Tensor
    candidates: Tensor
    certain: Tensor


class Teacher:
    """A trained network, asked as a training step asks it.

    Args:
        model: in evaluation mode.
        prototypes: of the run, for the denoising; None leaves it out.
        config: of the run. One without contrast is asked for the keys that it would have given.

    Attributes:
        contrast: whether the run itself has contrast.
        low, high: r_l and r_h.
    """

    def __init__(
        self, model: SegmentationModel, prototypes: MomentumPrototypes | None, config: Config
    ) -> None:
        self.model, self.network = model, model.network
        self.device = model.network.mean.device
        self.contrast = config.method.contrastive_weight > 0
        changes: dict[str, Any] = {}
        if prototypes is None or not self.contrast:
            changes["method.denoise_temperature"] = None
        if not self.contrast:
            changes["method.contrastive_weight"] = 1.0
        self.config = config.with_overrides(changes)
        num_classes, method = model.network.num_classes, config.method
        self.prototypes = prototypes or MomentumPrototypes(num_classes, config.model.feature_size)
        self.prototypes.to(self.device)
        self.low, self.high = rank_bounds(
            num_classes, low_rank=method.low_rank, high_rank=method.high_rank
        )

    @torch.inference_mode()
    def judge(self, images: Tensor, valid: Tensor, possible_classes: Tensor) -> Opinion:
        """Judge images [B, 3, H, W] with ``valid`` [B, H, W] and ``possible_classes`` [B, C]."""
        logits, features = self.network(images, with_features=True)[:2]
        view = TeacherView(logits.float(), features.float())
        half = UnlabeledBatch(images, (images,), valid, possible_classes)
        pixels = judge(self.prototypes, view, half, self.config)
        grid = (logits.shape[-2], logits.shape[-1])
        return Opinion(
            logits=view.logits,
            predictions=pixels.predictions,
            entropy=pixels.entropy,
            valid=valid,
            candidates=unlabeled_negative_mask(
                on_grid(valid, grid),
                class_rank(pixels.probs),
                low_rank=self.low,
                high_rank=self.high,
            ),
            certain=pixels.certain_negatives,
        )


class PixelTally:
    """Pixels of a section by what the teacher says of them and what is true; see Eq. 5-15.

    Kept by entropy, so that the threshold can be set when all pixels are known.

    Attributes:
        entropies: [NUM_BINS] int64, all pixels.
        labels: [C, 2, NUM_BINS], pixels of known truth by predicted class and whether it is right.
        keys: [C, 2, NUM_BINS + 1], negative keys of known truth by class and whether the pixel is
            in truth of that class; certain ones lie in the last bin.
        confusion: [C, C], by true and by scored class.
    """

    def __init__(self, num_classes: int, ignore_index: int, device: torch.device) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        counts: dict[str, Any] = {"dtype": torch.long, "device": device}
        self.entropies = torch.zeros(NUM_BINS, **counts)
        self.labels = torch.zeros(num_classes, 2, NUM_BINS, **counts)
        self.keys = torch.zeros(num_classes, 2, NUM_BINS + 1, **counts)
        self.confusion = torch.zeros(num_classes, num_classes, **counts)

    def add(self, opinion: Opinion, truth: Tensor) -> None:
        """Count what the teacher says of images with these true labels [B, H, W]."""
        bins = entropy_bins(opinion.entropy, self.num_classes)
        known = opinion.valid & (truth != self.ignore_index)
        self.entropies += torch.bincount(bins[opinion.valid], minlength=NUM_BINS)
        predictions = opinion.predictions
        place = (2 * predictions + (predictions == truth)) * NUM_BINS + bins
        self.labels += _counted(place[known], self.labels)

        grid = (opinion.candidates.shape[-2], opinion.candidates.shape[-1])
        truth, bins, known = (on_grid(x, grid).unsqueeze(1) for x in (truth, bins, known))
        classes = torch.arange(self.num_classes, device=truth.device).view(1, -1, 1, 1)
        bins = torch.where(opinion.certain, NUM_BINS, bins)
        place = (2 * classes + (classes == truth)) * (NUM_BINS + 1) + bins
        keys = (opinion.candidates | opinion.certain) & known
        self.keys += _counted(place[keys], self.keys)

    def score(self, predictions: Tensor, truth: Tensor) -> float | None:
        """Count one image's predictions [H, W], and return its mIoU; None without known pixel."""
        known = truth != self.ignore_index
        place = truth[known] * self.num_classes + predictions[known]
        confusion = _counted(place, self.confusion)
        self.confusion += confusion
        miou = float(class_iou(confusion).nanmean())
        return None if math.isnan(miou) else miou


def _counted(place: Tensor, like: Tensor) -> Tensor:
    """How often each flat position of ``like`` occurs, in its shape."""
    return torch.bincount(place, minlength=like.numel()).view(like.shape)


def inspect_run(
    folder: RunFolder,
    dataset: Dataset,
    sections: Mapping[str, Sequence[Sample]],
    *,
    device: torch.device | str = "cpu",
    max_images: int = 500,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Measure a run's teacher on images with masks, and draw some of them.

    Args:
        folder: a finished run.
        dataset: classes, and how masks are read.
        sections: of ``val`` and ``unlabeled`` the images to look at, all of them with masks;
            their tags veto as in training.
        device: where to compute.
        max_images: at most so many of each section, evenly spread over it.
        on_image: called with images done and images in all.

    Returns:
        What is written to ``eval/inspection.json``; docs/reference/run-folder.md says what it
        holds. Pictures go to ``pictures/inspection/``; those of an earlier inspection are removed.

    Raises:
        UserError: where there is no finished run, its checkpoint does not fit its settings, or an
            image cannot be read.
    """
    config = folder.read_config()
    folder.refuse_links()
    model = load_model(folder.path, device=device)
    memory = read_memory(folder, config, dataset.num_classes)
    teacher = Teacher(model, memory.prototypes, config)
    chosen = {name: spread(samples, max_images) for name, samples in sections.items()}
    counter = _Counter(sum(map(len, chosen.values())), on_image)
    found: dict[str, Any] = {}
    drawn: list[dict[str, Any]] = []
    place = folder.path / "pictures" / "inspection"
    shutil.rmtree(place, ignore_errors=True)
    for name, samples in chosen.items():
        tally, scores = measure(teacher, samples, dataset, counter)
        last_bin = quantile_bin(tally.entropies, 1 - config.method.initial_unreliable_fraction)
        found[name] = {"images": len(samples), "of": len(sections[name])}
        found[name] |= summary(tally, dataset.classes, last_bin)
        for index, why in pick(scores, SHOWN.get(name, 2)):
            sample = samples[index]
            entry = {"section": name, "name": sample.name, "why": why, "miou": scores[index]}
            canvas = draw(teacher, sample, dataset, last_bin)
            write_pictures(canvas, place / f"{len(drawn):03d}", dataset)
            drawn.append(entry)
    result = describe(teacher, memory, dataset.classes)
    result |= {"sections": found, "pictures": drawn}
    (folder.path / "eval").mkdir(exist_ok=True)
    write_json(folder.path / "eval" / "inspection.json", result)
    return result


def describe(teacher: Teacher, memory: Memory, classes: Sequence[str]) -> dict[str, Any]:
    """Which teacher was asked, and by which rules."""
    method = teacher.config.method
    return {
        "step": teacher.model.card.step,
        "unreliable_fraction": method.initial_unreliable_fraction,
        "low_rank": teacher.low,
        "high_rank": teacher.high,
        "contrast": teacher.contrast,
        "denoised": teacher.contrast and method.denoise_temperature is not None,
        "queues": memory.queues_of(classes),
    }


class _Counter:
    """Tells how many images are done."""

    def __init__(self, total: int, on_image: Callable[[int, int], None]) -> None:
        self.done, self.total, self.on_image = 0, total, on_image

    def add(self, number: int) -> None:
        self.done += number
        self.on_image(self.done, self.total)


@dataclass(frozen=True)
class Memory:
    """What a run's checkpoint remembers of the contrast.

    Attributes:
        prototypes: None where there is no checkpoint.
        num_keys: [C] int64 in each queue; None without a checkpoint or without contrast.
        capacities: C of them.
    """

    prototypes: MomentumPrototypes | None
    num_keys: Tensor | None
    capacities: Sequence[int]

    def queues_of(self, classes: Sequence[str]) -> dict[str, Any] | None:
        """Keys held and capacity of each class's queue."""
        if self.num_keys is None:
            return None
        rows = zip(classes, self.num_keys.tolist(), self.capacities, strict=True)
        return {name: {"keys": keys, "capacity": capacity} for name, keys, capacity in rows}


def read_memory(folder: RunFolder, config: Config, num_classes: int) -> Memory:
    """Prototypes and queues of a run's last checkpoint; none where it is gone.

    Raises:
        UserError: where it is damaged, or does not fit the settings.
    """
    capacities = queue_capacities(config, num_classes)
    path = folder.checkpoint("last")
    if not kept_checkpoints(path):
        return Memory(None, None, capacities)
    saved = load_newest_checkpoint(path, network="teacher")
    prototypes = MomentumPrototypes(num_classes, config.model.feature_size)
    try:
        prototypes.load_state_dict(saved["prototypes"])
        num_keys = saved["queues"]["num_keys"]
        if num_keys.shape != (num_classes,) or not prototypes.vectors.isfinite().all():
            raise ValueError
    except (KeyError, RuntimeError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"The checkpoint of {folder.path} does not fit its config.yaml; were files of two "
            "runs mixed?"
        ) from None
    contrasted = config.method.contrastive_weight > 0
    return Memory(prototypes, num_keys if contrasted else None, capacities)


def spread(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """At most so many samples, evenly spread over the list and in its order."""
    if len(samples) <= most:
        return samples
    return tuple(samples[index * len(samples) // most] for index in range(most))


def measure(
    teacher: Teacher, samples: Sequence[Sample], dataset: Dataset, counter: _Counter
) -> tuple[PixelTally, list[float | None]]:
    """Count the pixels of a section; return each image's mIoU in percent too."""
    device = teacher.device
    tally = PixelTally(dataset.num_classes, dataset.ignore_index, device)
    scores: list[float | None] = []
    for batch in batches(teacher, samples, dataset):
        images, truth = batch.images.to(device), truth_of(batch).to(device)
        possible = possible_classes(batch.samples, dataset.num_classes).to(device)
        logits = None
        for window in windows_of(images, teacher.config):
            part = (..., window.rows, window.columns)
            valid = window.fresh.expand(len(images), -1, -1)
            opinion = teacher.judge(images[part], valid, possible)
            tally.add(opinion, truth[part])
            logits = opinion.logits
        assert batch.masks is not None, "samples without masks cannot be scored"
        assert logits is not None, "an image has at least one window"
        protocol = teacher.model.card.seen_by
        if protocol.kind == "slide" or protocol.has_views:
            logits = teacher.model(images)
        else:  # it has been asked already
            logits = upsample(logits, (images.shape[-2], images.shape[-1]))
        for row, (mask, size) in enumerate(zip(batch.masks, batch.sizes, strict=True)):
            predictions = resize_logits(logits[row : row + 1], size).max(dim=1).indices[0]
            scores.append(tally.score(predictions, mask.to(device)))
        counter.add(len(images))
    return tally, scores


def batches(
    teacher: Teacher, samples: Sequence[Sample], dataset: Dataset
) -> Iterator[EvaluationBatch]:
    """The images as an evaluation reads them."""
    config = teacher.config
    return evaluation_batches(
        samples, dataset, config.data, batch_size=config.evaluation.batch_size
    )


def truth_of(batch: EvaluationBatch) -> Tensor:
    """The true labels [B, H, W] int64 at the size of the network's images."""
    assert batch.masks is not None, "samples without masks cannot be measured"
    size = batch.images.shape[-2:]
    resized = [
        F.interpolate(mask[None, None].double(), size=size, mode="nearest-exact")[0, 0].long()
        for mask in batch.masks
    ]
    return torch.stack(resized)


def possible_classes(samples: Sequence[Sample], num_classes: int) -> Tensor:
    """Which classes each image may hold, [B, C] bool; all without tags."""
    possible = torch.ones(len(samples), num_classes, dtype=torch.bool)
    for row, sample in enumerate(samples):
        if sample.tags is not None:
            possible[row] = False
            possible[row, list(sample.tags)] = True
    return possible


def windows_of(images: Tensor, config: Config) -> Iterator[Window]:
    """What the network sees at once: the image, or with ``slide`` windows that just cover it."""
    height, width = images.shape[-2:]
    crop = config.evaluation.crop or config.data.crop
    if config.evaluation.protocol != "slide":
        crop = (height, width)
    bottom = 0
    for top in window_starts(height, crop[0], 1):
        rows, right = slice(top, min(top + crop[0], height)), 0
        for left in window_starts(width, crop[1], 1):
            columns = slice(left, min(left + crop[1], width))
            fresh = torch.zeros(rows.stop - top, columns.stop - left, dtype=torch.bool)
            fresh[bottom - top if bottom > top else 0 :, right - left if right > left else 0 :] = 1
            yield Window(rows, columns, fresh.to(images.device))
            right = columns.stop
        bottom = rows.stop


def summary(tally: PixelTally, classes: Sequence[str], last_bin: int) -> dict[str, Any]:
    """A section's figures, reliable being the pixels up to a bin of entropy.

    Shares are fractions; precisions, error rates and mIoU are percentages of the pixels whose
    truth is known, and None where there is none.
    """
    labels, keys, confusion = tally.labels.cpu(), tally.keys.cpu(), tally.confusion.cpu()
    parts = {
        "reliable": labels[..., : last_bin + 1].sum(-1),  # [C, 2]
        "unreliable": labels[..., last_bin + 1 :].sum(-1),
        "negatives": keys[..., last_bin + 1 :].sum(-1),
    }
    entropies = tally.entropies.cpu()
    miou = float(class_iou(confusion).nanmean())
    result: dict[str, Any] = {
        "miou": None if math.isnan(miou) else miou,
        "entropy_threshold": (last_bin + 1) / NUM_BINS * math.log(len(classes)),
        "reliable_share": float(entropies[: last_bin + 1].sum() / entropies.sum().clamp_min(1)),
    }
    for name, counts in parts.items():
        result |= _rate(name, counts.sum(0))
    result["coverage"] = coverage(labels.sum(0))
    result["classes"] = {
        class_name: {"support": int(confusion[index].sum())}
        | {
            key: value
            for name, counts in parts.items()
            for key, value in _rate(name, counts[index]).items()
        }
        for index, class_name in enumerate(classes)
    }
    return result


def _rate(name: str, counts: Tensor) -> dict[str, Any]:
    """The number of pixels and the percentage of the second kind, of [2] counts."""
    total = int(counts.sum())
    rate = "error_rate" if name == "negatives" else "precision"
    return {name: total, f"{name}_{rate}": 100 * int(counts[1]) / total if total else None}


def coverage(counts: Tensor, *, points: int = 20) -> list[list[float]]:
    """Precision of the surest pixels, for a growing share of them.

    Args:
        counts: [2, NUM_BINS], wrong and right pixels by entropy.
        points: shares to look at.

    Returns:
        Pairs of a share (a fraction of all pixels) and a precision in percent.
    """
    right, total = counts[1].cumsum(0), counts.sum(0).cumsum(0)
    if total[-1] == 0:
        return []
    bins = {quantile_bin(counts.sum(0), (n + 1) / points) for n in range(points)}
    return [
        [float(total[n] / total[-1]), 100 * float(right[n] / total[n])]
        for n in sorted(bins)
        if total[n] > 0
    ]


def pick(scores: Sequence[float | None], number: int) -> list[tuple[int, str]]:
    """Choose images: the worst, the best, and some between, each at most once.

    Args:
        scores: mIoU of each image; None, where no pixel is known, is never chosen.
        number: of each kind at most.

    Returns:
        Pairs of an index and ``worst``, ``best`` or ``between``; the worst and the best come
        first of their kind.

    >>> pick([50.0, None, 10.0, 90.0, 70.0], 1)
    [(2, 'worst'), (3, 'best'), (0, 'between')]
    """
    order = sorted((score, index) for index, score in enumerate(scores) if score is not None)
    ranked = [index for _, index in order]
    worst = ranked[:number]
    best = ranked[len(worst) :][-number:][::-1]
    rest = sorted(set(ranked) - {*worst, *best})
    step = max(1, len(rest) // number)
    between = rest[: step * number : step]
    kinds = {"worst": worst, "best": best, "between": between}
    return [(index, why) for why, indices in kinds.items() for index in indices]


@torch.inference_mode()
def draw(teacher: Teacher, sample: Sample, dataset: Dataset, last_bin: int) -> Canvas:
    """Judge one image and lay what was said of its windows side by side.

    Args:
        teacher: to ask.
        sample: with a mask.
        dataset: classes, and how the mask is read.
        last_bin: of the entropies of reliable pixels.
    """
    (batch,) = batches(teacher, (sample,), dataset)
    images = batch.images.to(teacher.device)
    possible = possible_classes([sample], dataset.num_classes).to(images.device)
    size = (images.shape[-2], images.shape[-1])
    canvas = Canvas.blank(size, dataset.num_classes)
    truth = truth_of(batch)[0]
    canvas.image[:] = (images[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    canvas.truth[:] = truth.numpy()
    canvas.predictions[:] = teacher.model(images).max(dim=1).indices[0].cpu().numpy()
    for window in windows_of(images, teacher.config):
        part = (window.rows, window.columns)
        opinion = teacher.judge(
            images[..., window.rows, window.columns], torch.ones_like(window.fresh)[None], possible
        )
        unreliable = entropy_bins(opinion.entropy, dataset.num_classes) > last_bin
        grid = (opinion.candidates.shape[-2], opinion.candidates.shape[-1])
        keys = (opinion.candidates & on_grid(unreliable, grid).unsqueeze(1)) | opinion.certain
        canvas.paste(
            part,
            entropy=opinion.entropy[0],
            labels=opinion.predictions[0].masked_fill(unreliable[0], dataset.ignore_index),
            keys=keys[0],
        )
    return canvas
