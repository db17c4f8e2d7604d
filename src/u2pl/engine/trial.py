"""A few real steps, to learn what a run would cost in time and memory."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import closing
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from u2pl.config import Config, TrainSettings
from u2pl.data.loaders import training_batches
from u2pl.data.sources import Dataset
from u2pl.engine.loop import choose_precision, uses_unlabeled
from u2pl.engine.recorded import WARM_UP, gradients_of
from u2pl.engine.state import initial_state
from u2pl.engine.step import training_step


@dataclass(frozen=True)
class Trial:
    """What a few steps cost.

    Attributes:
        seconds_supervised: of a step on labelled images alone, the median.
        seconds_semi: of a step with everything; as the other where there is nothing unlabelled.
        memory: bytes at the peak: of the GPU, or of this process where there is none; 0 is unknown.
    """

    seconds_supervised: float
    seconds_semi: float
    memory: int

    def seconds(self, train: TrainSettings) -> float:
        """Of all steps of a run, evaluation left out."""
        semi = train.steps - train.supervised_steps
        return train.supervised_steps * self.seconds_supervised + semi * self.seconds_semi


def try_steps(config: Config, dataset: Dataset, *, num_steps: int = 3) -> Trial:
    """Train a little on the data set's own images, and forget it.

    Loading is part of a step's time. The first step of each kind, which prepares kernels and
    memory, is not counted, nor are those before a CUDA graph is recorded. Weights are random: they
    cost what pretrained ones do. Such a network needs its batch's statistics, so ``frozen_norm``
    is off; it would save a little time.

    Args:
        config: the run; as many of its steps as are needed are made.
        dataset: checked already.
        num_steps: of each kind that count, at least 1.

    Returns:
        The cost of the run's steps.

    Raises:
        torch.OutOfMemoryError: where the GPU's memory does not hold a step.
    """
    uncounted = WARM_UP + 1 if torch.cuda.is_available() and config.train.cuda_graph else 1
    supervised = num_steps + uncounted
    config = _as_a_trial(config, supervised)
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=1, precision=choose_precision(config))
    if accelerator == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    state = initial_state(
        config,
        dataset.num_classes,
        dataset.ignore_index,
        fabric.device,
        load_pretrained=False,
    )
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    state.student.train()
    batches = training_batches(
        dataset,
        config.data,
        seed=config.train.seed,
        start_step=0,
        stop_step=config.train.steps,
        with_unlabeled=uses_unlabeled(config, dataset),
        labeled_strong=config.method.mixing == "classmix_labeled",
        num_strong=config.method.strong_views,
        device=fabric.device,
    )
    gradients, seconds = gradients_of(config, fabric, state), []
    with closing(batches):
        for _ in range(config.train.steps):
            started = time.perf_counter()
            batch = next(batches)
            training_step(fabric, state, batch, config, gradients=gradients)
            if accelerator == "cuda":
                torch.cuda.synchronize(fabric.device)
            seconds.append(time.perf_counter() - started)
    return Trial(
        seconds_supervised=statistics.median(seconds[uncounted:supervised]),
        seconds_semi=statistics.median(seconds[supervised + uncounted :]),
        memory=_peak_memory(fabric.device),
    )


def _as_a_trial(config: Config, supervised: int) -> Config:
    """With so many steps of each kind, of a network with random weights."""
    data = config.data.model_copy(update={"num_workers": 0})
    steps = {"steps": 2 * supervised, "supervised_steps": supervised}
    train = config.train.model_copy(update=steps)
    return config.model_copy(
        update={"model": config.model.without_pretrained(), "data": data, "train": train}
    )


def _peak_memory(device: torch.device) -> int:
    """Bytes in use at the peak so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if sys.platform == "win32":  # Python has no word for it there
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
