"""What ``train`` would do with a data set: derived numbers, in a file that can be edited.

The mathematics of a run (crop, batch, learning rate, steps, queues) follow from the recipe and the
images alone; the machine decides only in how many parts a batch is computed, and how long it takes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from u2pl.config import Config
from u2pl.contrast import rank_bounds
from u2pl.data.images import image_size, write_whole
from u2pl.data.sources import Dataset, Sample
from u2pl.engine.state import queue_capacities
from u2pl.engine.trial import Trial, try_steps
from u2pl.errors import UserError
from u2pl.models.encoders import cell_size

_PASSES = 80  # over the unlabelled images [P: the epochs on VOC]
_FEWEST_STEPS, _MOST_STEPS = 2_000, 40_000
_LARGEST_VIEW = 3  # crops that the short side of an image may be long; more shows textures alone
_LOOKED_AT = 200  # images of a section whose sizes are read
_GPU_SHARE = 0.9  # of its memory; the rest is for the driver and for what varies
_MOST_PARTS = 64


@dataclass(frozen=True)
class Fingerprint:
    """What the numbers are derived from.

    Attributes:
        classes: C.
        images: of each section.
        size: median height and width in pixels of the images that training reads, as files.
        smallest, largest: of them, by short side.
        device: a GPU's name, or ``cpu``.
        memory: bytes of the GPU; 0 where there is none.
    """

    classes: int
    images: dict[str, int]
    size: tuple[int, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    device: str
    memory: int


@dataclass(frozen=True)
class Choice:
    """One derived number: a setting's dotted key, its value, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """A complete configuration, and how it came about.

    Attributes:
        config: what ``train`` will use.
        choices: the settings that differ from the recipe's, or that the plan looked at.
        fingerprint: of the data set and the machine.
        trial: measured steps; None where none were made.
        queue_bytes: of all queues.
    """

    config: Config
    choices: tuple[Choice, ...]
    fingerprint: Fingerprint
    trial: Trial | None
    queue_bytes: int

    @property
    def hours(self) -> float | None:
        """Of training, evaluation left out; None where nothing was measured."""
        if self.trial is None:
            return None
        return self.trial.seconds(self.config.train) / 3600

    def to_json(self) -> dict[str, Any]:
        """``settings`` (key → value), ``reasons`` (key → sentence), ``fingerprint``, ``ranks``
        (r_l and r_h), ``queue_bytes``, and ``measured``: seconds a step, bytes, and ``hours``.
        """
        method = self.config.method
        measured = None if self.trial is None else asdict(self.trial) | {"hours": self.hours}
        return {
            "settings": {choice.key: choice.value for choice in self.choices},
            "reasons": {choice.key: choice.reason for choice in self.choices},
            "fingerprint": asdict(self.fingerprint),
            "ranks": rank_bounds(
                self.fingerprint.classes, low_rank=method.low_rank, high_rank=method.high_rank
            ),
            "queue_bytes": self.queue_bytes,
            "measured": measured,
        }


def make_plan(
    config: Config,
    dataset: Dataset,
    *,
    given: Sequence[str] = (),
    measure: bool = True,
    on_trial: Callable[[int], None] = lambda _: None,
) -> Plan:
    """Derive a run's numbers from the data set, and measure what it costs here.

    Args:
        config: a recipe's, with the user's own settings.
        dataset: with labelled images.
        given: dotted keys that the user set; the plan leaves them as they are.
        measure: make a few real steps; on a GPU the batch is split into parts until it fits.
        on_trial: called with the number of parts before each try.

    Returns:
        The plan.

    Raises:
        UserError: where an image cannot be read, or not even single images fit into memory.
    """
    fingerprint = take_fingerprint(dataset)
    choices = [
        choice for choice in derive(config, fingerprint) if choice.key not in {*given, "recipe"}
    ]
    config = config.with_overrides({choice.key: choice.value for choice in choices})
    trial = None
    if measure:
        config, trial = fit_into_memory(config, dataset, fingerprint.memory, on_trial)
        parts = config.train.accumulation
        peak = f", with {trial.memory / 2**30:.1f} GiB at the peak" if trial.memory else ""
        choices.append(Choice("train.accumulation", parts, f"parts of a batch{peak}"))
    return Plan(
        config=config,
        choices=tuple(choices),
        fingerprint=fingerprint,
        trial=trial,
        queue_bytes=queue_bytes(config, fingerprint.classes),
    )


def take_fingerprint(dataset: Dataset) -> Fingerprint:
    """Count images and read some sizes; only headers are opened.

    Raises:
        UserError: where an image cannot be read.
    """
    samples = [*spread(dataset.labeled, _LOOKED_AT), *spread(dataset.unlabeled, _LOOKED_AT)]
    sizes = sorted((image_size(sample.image) for sample in samples), key=min)
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Fingerprint(
        classes=dataset.num_classes,
        images={name: len(samples) for name, samples in dataset.sections.items()},
        size=(
            int(statistics.median(size[0] for size in sizes)),
            int(statistics.median(size[1] for size in sizes)),
        ),
        smallest=sizes[0],
        largest=sizes[-1],
        device="cpu" if gpu is None else gpu.name,
        memory=0 if gpu is None else gpu.total_memory,
    )


def spread(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    """At most so many of the samples, evenly spaced.

    >>> list(spread(range(10), 3))  # any sequence will do
    [0, 3, 6]
    """
    if len(samples) <= number:
        return samples
    return [samples[i * len(samples) // number] for i in range(number)]


def derive(config: Config, fingerprint: Fingerprint) -> list[Choice]:
    """The numbers that follow from the images; whatever the recipe has already right is kept.

    Args:
        config: a recipe's.
        fingerprint: of the data set.
    """
    resize = view_size(config, fingerprint)
    size = fingerprint.size if resize.value is None else scaled(fingerprint.size, resize.value)
    batch = batch_size(config, fingerprint)
    steps = num_steps(config, fingerprint)
    warm_up = math.ceil(config.train.supervised_steps / config.train.steps * steps.value)
    share = "the recipe's share of all steps"
    return [
        resize,
        crop_size(config, size),
        batch,
        learning_rate(config, batch.value),
        steps,
        Choice("train.supervised_steps", warm_up, share),
        *queue_settings(config, fingerprint.classes),
    ]


def view_size(config: Config, fingerprint: Fingerprint) -> Choice:
    """The short side that images are brought to: at most three crops long."""
    data, short = config.data, min(fingerprint.size)
    limit = _LARGEST_VIEW * min(data.crop)
    if data.resize is not None:
        return Choice("data.resize", data.resize, "the recipe's")
    if short <= limit:
        return Choice("data.resize", None, f"the short side of {short} pixels stays as it is")
    why = f"a crop of {min(data.crop)} would show too little of a short side of {short} pixels"
    return Choice("data.resize", limit, why)


def scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """A size brought to a short side.

    >>> scaled((1080, 1920), 540)
    (540, 960)
    """
    factor = short / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def crop_size(config: Config, size: tuple[int, int]) -> Choice:
    """The recipe's crop, or what an image fills of it, in whole cells of the encoder's grid."""
    cell, crop = cell_size(config.model), config.data.crop
    filled = tuple(
        min(side, max(math.ceil(length / cell) * cell, 2 * cell))
        for side, length in zip(crop, size, strict=True)
    )
    if filled == crop:
        return Choice("data.crop", crop, f"the recipe's; images are {size[0]} x {size[1]}")
    return Choice("data.crop", filled, f"images are {size[0]} x {size[1]}; the rest were padding")


def batch_size(config: Config, fingerprint: Fingerprint) -> Choice:
    """The recipe's labelled images a step, or fewer where there are not so many."""
    wanted, there = config.data.batch_labeled, fingerprint.images["labeled"]
    if there >= wanted:
        return Choice("data.batch_labeled", wanted, "the recipe's")
    return Choice("data.batch_labeled", max(there, 2), f"there are {there} labelled images")


def learning_rate(config: Config, batch: int) -> Choice:
    """Linear in the labelled images a step."""
    recipe, rate = config.data.batch_labeled, config.optimizer.lr
    if batch == recipe:
        return Choice("optimizer.lr", rate, f"the recipe's, for {recipe} labelled images a step")
    value = float(f"{rate * batch / recipe:.3g}")
    return Choice("optimizer.lr", value, f"{rate:g} for {recipe} images, in proportion")


def num_steps(config: Config, fingerprint: Fingerprint) -> Choice:
    """So many that each unlabelled image is seen 80 times, within 2 000 and 40 000."""
    images, batch = fingerprint.images["unlabeled"], config.data.batch_unlabeled
    if config.setting == "supervised" or not images:
        images, batch = fingerprint.images["labeled"], config.data.batch_labeled
    wanted = _PASSES * images / batch
    steps = round(min(max(wanted, _FEWEST_STEPS), _MOST_STEPS), -2)
    passes = steps * batch / max(images, 1)
    return Choice("train.steps", int(steps), f"{passes:.0f} passes over {images} images")


def queue_settings(config: Config, num_classes: int) -> list[Choice]:
    """The recipe's queues, in bfloat16 where in float32 they would be cut short."""
    method = config.method
    kept = max(queue_capacities(config, num_classes))
    if method.queue_dtype == "float32" and kept < method.queue_size:
        why = f"in float32 {method.queue_megabytes} MB hold {kept} keys a class"
        return [Choice("method.queue_dtype", "bfloat16", why)]
    why = f"{kept} keys a class, {queue_bytes(config, num_classes) / 1e6:.0f} MB"
    return [Choice("method.queue_dtype", method.queue_dtype, why)]


def queue_bytes(config: Config, num_classes: int) -> int:
    """Bytes of all negative keys; the step's own keys come on top."""
    keys = sum(queue_capacities(config, num_classes))
    size: int = getattr(torch, config.method.queue_dtype).itemsize
    return keys * config.model.feature_size * size


def fit_into_memory(
    config: Config, dataset: Dataset, memory: int, on_trial: Callable[[int], None]
) -> tuple[Config, Trial]:
    """Split the batch into more parts until a step fits; without a GPU as it is.

    Raises:
        UserError: where it does not fit however it is split.
    """
    parts = config.train.accumulation
    while parts <= min(config.data.batch_labeled, _MOST_PARTS):
        on_trial(parts)
        split = config.with_overrides({"train.accumulation": parts})
        try:
            trial = try_steps(split, dataset)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        else:
            if not memory or trial.memory <= _GPU_SHARE * memory:
                return split, trial
        parts *= 2
    raise UserError(
        "Not even single images fit into the GPU's memory; lower data.crop, or choose a smaller "
        "model.encoder."
    )


def write_plan(plan: Plan, path: Path) -> None:
    """Write the configuration as YAML, the reason beside each derived number.

    ``train --recipe FILE`` reads it, edited or not.

    Raises:
        UserError: where the file cannot be written.
    """
    tree = plan.config.model_dump(mode="json")
    reasons = {choice.key: choice.reason for choice in plan.choices}
    lines = ["# Made by `u2pl plan`; edit what you like. Derived numbers carry their reason."]
    for name, group in tree.items():
        if not isinstance(group, dict):
            lines.append(f"{name}: {_flow(group)}")
            continue
        lines.append(f"{name}:")
        for key, value in group.items():
            reason = reasons.get(f"{name}.{key}")
            lines.append(f"  {key}: {_flow(value)}" + (f"  # {reason}" if reason else ""))
    text = "\n".join(lines) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _flow(value: Any) -> str:
    """A value as YAML on one line.

    >>> _flow((1, 2)), _flow("small"), _flow(None)
    ('[1, 2]', 'small', 'null')
    """
    item = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([item], default_flow_style=True, width=math.inf).strip()[1:-1]
