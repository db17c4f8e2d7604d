"""Whole training steps: with the contrast and without it, and what an evaluation adds to a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from u2pl.bench.clock import finish
from u2pl.bench.host_syncs import HostSyncs
from u2pl.bench.workload import IGNORE
from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.sources import Dataset
from u2pl.engine.evaluate import Tally, predict_logits
from u2pl.engine.loop import choose_precision
from u2pl.engine.protocol import Protocol
from u2pl.engine.state import TrainState, initial_state
from u2pl.engine.step import training_step

NUM_CLASSES = 21
VAL_IMAGES = 1449
"""Of PASCAL VOC, for the share of a default run that evaluation takes."""


def step_config(device: torch.device) -> Config:
    """ResNet-101 at VOC's 513 on a GPU; ResNet-50 and small crops on a CPU, which takes seconds."""
    on_gpu = device.type == "cuda"
    return Config().with_overrides(
        {
            "model.encoder": "resnet101" if on_gpu else "resnet50",
            "model.output_stride": 8 if on_gpu else 16,
            "model.pretrained": False,
            "data.crop": (513, 513) if on_gpu else (193, 193),
            "data.batch_labeled": 4 if on_gpu else 2,
            "data.batch_unlabeled": 4 if on_gpu else 2,
            "method.background_class": 0,
            "train.steps": 10_000,
        }
    )


def random_batch(config: Config, device: torch.device, num_classes: int) -> Batch:
    """Noise with labels, in the sizes of the configuration."""
    generator = torch.Generator().manual_seed(0)
    height, width = config.data.crop
    num_l, num_u = config.data.batch_labeled, config.data.batch_unlabeled
    images = torch.rand(num_l + num_u, 3, height, width, generator=generator)
    labels = torch.randint(0, num_classes, (num_l, height, width), generator=generator)
    weak = images[num_l:]
    unlabeled = UnlabeledBatch(
        weak=weak,
        strong=(weak.clone(),),
        valid=torch.ones(num_u, height, width, dtype=torch.bool),
        possible_classes=torch.ones(num_u, num_classes, dtype=torch.bool),
    )
    return Batch(LabeledBatch(images[:num_l], labels), unlabeled).to(device)


def make_state(config: Config, fabric: Fabric, num_classes: int) -> TrainState:
    """A state with full queues, set up as training does it."""
    state = initial_state(config, num_classes, IGNORE, fabric.device)
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    state.student.train()
    if config.method.contrastive_weight > 0:
        state.queues.keys.normal_()
        state.queues.num_keys.copy_(state.queues.capacities)
    return state


class Steps:
    """Training steps of one configuration on one batch.

    Args:
        config: of the run.
        device: CPU or GPU.
        num_classes: C.

    Attributes:
        peaks: on a GPU, most bytes that were allocated in each step; empty elsewhere.
    """

    def __init__(
        self, config: Config, device: torch.device, *, num_classes: int = NUM_CLASSES
    ) -> None:
        accelerator = "cuda" if device.type == "cuda" else "cpu"
        self.config = config
        self.fabric = Fabric(accelerator=accelerator, devices=1, precision=choose_precision(config))
        self.state = make_state(config, self.fabric, num_classes)
        self.batch = random_batch(config, self.fabric.device, num_classes)
        self.peaks: list[int] = []

    def run(self) -> float:
        """Make a step; return its seconds."""
        device = self.fabric.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        finish(device)
        started = time.perf_counter()
        training_step(self.fabric, self.state, self.batch, self.config)
        finish(device)
        if device.type == "cuda":
            self.peaks.append(torch.cuda.max_memory_allocated(device))
        return time.perf_counter() - started

    def host_syncs(self) -> int:
        """How often a step calls what waits for a GPU."""
        with HostSyncs() as syncs:
            training_step(self.fabric, self.state, self.batch, self.config)
        return sum(syncs.found.values())


def method_and_bare(device: torch.device, overrides: dict[str, Any]) -> dict[str, Steps]:
    """Steps of the whole method, and the same without contrast and queues."""
    config = step_config(device).with_overrides(overrides)
    bare = config.with_overrides({"method.contrastive_weight": 0.0})
    return {"method": Steps(config, device), "bare": Steps(bare, device)}


def evaluation_work(steps: Steps, dataset: Dataset) -> Callable[[], float]:
    """Scoring a batch by student and teacher, as an evaluation during training does it.

    Returns:
        A function that does it once and returns its seconds, decoding left out.
    """
    device = steps.fabric.device
    images = steps.batch.labeled.images
    masks = steps.batch.labeled.labels
    student: nn.Module = getattr(steps.state.student, "module", steps.state.student)
    tallies = [Tally(dataset, device) for _ in range(2)]

    def work() -> float:
        student.eval()
        finish(device)
        started = time.perf_counter()
        for network, tally in zip((student, steps.state.teacher), tallies, strict=True):
            logits = predict_logits(network, images, Protocol("whole"))
            for row, mask in enumerate(masks):
                tally.add(logits[row : row + 1], mask)
        finish(device)
        seconds = time.perf_counter() - started
        student.train()
        return seconds

    return work


def evaluation_share(step_seconds: float, evaluation_seconds: float, config: Config) -> float:
    """Share of a default run's time that its evaluations take, with VOC's number of val images.

    Both are brought to a pixel's time, so a small crop may stand for a large one.

    Args:
        step_seconds: of a training step.
        evaluation_seconds: of a labelled batch, by both networks.
        config: of both.

    >>> config = Config().with_overrides({"data.batch_labeled": 4, "data.batch_unlabeled": 4})
    >>> round(evaluation_share(8.0, 1.0, config), 3)
    0.022
    """
    default, data = Config(), config.data
    an_image_trained = step_seconds / (data.batch_labeled + data.batch_unlabeled)
    an_image_scored = evaluation_seconds / data.batch_labeled
    batch = default.data.batch_labeled + default.data.batch_unlabeled
    between = default.train.eval_every * batch * an_image_trained
    scoring = VAL_IMAGES * an_image_scored
    return scoring / (between + scoring)
