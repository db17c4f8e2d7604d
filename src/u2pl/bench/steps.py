"""Whole training steps: with the contrast and without it, and what an evaluation adds to a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from u2pl.bench.clock import finish
from u2pl.bench.host_syncs import HostSyncs
from u2pl.bench.workload import IGNORE
from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.sources import Dataset
from u2pl.engine.backward import Wanted, anchor_features, look, pixels_backward
from u2pl.engine.evaluate import Tally, count
from u2pl.engine.loop import choose_precision
from u2pl.engine.protocol import Protocol
from u2pl.engine.recorded import gradients_of
from u2pl.engine.state import TrainState, initial_state
from u2pl.engine.step import Gradients, compute_gradients, teacher_views, training_step
from u2pl.engine.targets import StepNumbers, TeacherView, pseudo_label

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
    weak, context, around = images[num_l:], None, config.data.context
    if around:
        size = (height + 2 * around, width + 2 * around)
        context = torch.rand(num_u, 3, *size, generator=generator)
    unlabeled = UnlabeledBatch(
        weak=weak,
        strong=(weak.clone(),),
        valid=torch.ones(num_u, height, width, dtype=torch.bool),
        possible_classes=torch.ones(num_u, num_classes, dtype=torch.bool),
        context=context,
        offsets=torch.full((num_u, 2), around) if around else None,
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


def network_gradients(
    fabric: Fabric, state: TrainState, batch: Batch, numbers: StepNumbers, config: Config
) -> dict[str, Tensor]:
    """Losses and gradients of :class:`NetworkSteps`, by the functions of a training step."""
    assert batch.unlabeled is not None, "random batches have both halves"
    without = config.with_overrides({"method.contrastive_weight": 0.0})
    with torch.no_grad():
        views = teacher_views(fabric, state, batch.labeled, batch.unlabeled)
        assert views[1] is not None, "asked for"
        view = TeacherView(views[1].logits, views[1].features[:, :0])
        pseudo = pseudo_label(state, None, view, batch, numbers, without).for_the_student()
    labels = batch.labeled.labels
    num_anchors = (len(state.queues.capacities), config.method.num_anchors)
    wanted = Wanted(
        here=torch.ones(num_anchors, dtype=torch.bool, device=labels.device),
        cells=torch.zeros(math.prod(num_anchors), dtype=torch.long, device=labels.device),
        area=views[1].logits[0, 0].numel(),
    )
    seen = look(fabric, state, batch.labeled.images, pseudo.streams, config)
    read = seen.cut_off()
    # the features' head learns too
    fabric.backward(0 * anchor_features(fabric, state, read, wanted, config).sum())
    count = (labels != IGNORE).sum()
    terms = pixels_backward(fabric, state, read, labels, count, pseudo.streams, without)
    seen.pass_on(read)
    return {"loss": terms["loss_s"] + terms["loss_u"]}


class Steps:
    """Training steps of one configuration on one batch.

    Args:
        config: of the run.
        device: CPU or GPU.
        num_classes: C.
    """

    compute: Gradients = staticmethod(compute_gradients)

    def __init__(
        self, config: Config, device: torch.device, *, num_classes: int = NUM_CLASSES
    ) -> None:
        accelerator = "cuda" if device.type == "cuda" else "cpu"
        self.config = config
        self.fabric = Fabric(accelerator=accelerator, devices=1, precision=choose_precision(config))
        self.state = make_state(config, self.fabric, num_classes)
        self.batch = random_batch(config, self.fabric.device, num_classes)
        self.gradients = gradients_of(config, self.fabric, self.state, self.compute)

    def step(self, *, recorded: bool = True) -> None:
        """Make a step.

        Args:
            recorded: as a CUDA graph where training does so.
        """
        gradients = self.gradients if recorded else self.compute
        training_step(self.fabric, self.state, self.batch, self.config, gradients=gradients)

    def run(self) -> float:
        """Make a step; return its seconds."""
        finish(self.fabric.device)
        started = time.perf_counter()
        self.step()
        finish(self.fabric.device)
        return time.perf_counter() - started

    def host_syncs(self) -> int:
        """How often a step calls what waits for a GPU."""
        with HostSyncs() as syncs:
            self.step(recorded=False)
        return sum(syncs.found.values())


class NetworkSteps(Steps):
    """The same, but nothing is made of what the networks compute for the contrast.

    The teacher sees the labelled images too, and both networks make features: what is left out is
    the method's own work on them.
    """

    compute = staticmethod(network_gradients)


class BareSteps(Steps):
    """The same without contrast and queues."""

    def __init__(
        self, config: Config, device: torch.device, *, num_classes: int = NUM_CLASSES
    ) -> None:
        bare = config.with_overrides({"method.contrastive_weight": 0.0})
        super().__init__(bare, device, num_classes=num_classes)


KINDS: dict[str, type[Steps]] = {"method": Steps, "networks": NetworkSteps, "bare": BareSteps}
"""Steps of the whole method; of its networks alone; and without contrast and queues."""


def step_kinds(device: torch.device, overrides: dict[str, Any]) -> dict[str, Steps]:
    """Steps of each of :data:`KINDS`."""
    config = step_config(device).with_overrides(overrides)
    return {name: make(config, device) for name, make in KINDS.items()}


def evaluation_work(steps: Steps, dataset: Dataset, *, in_between: bool) -> Callable[[], float]:
    """Scoring a batch of images as an evaluation in training does it.

    Args:
        steps: whose networks and batch.
        dataset: its classes.
        in_between: the teacher in the training's precision; else student and teacher in float32.

    Returns:
        A function that does it once and returns its seconds, decoding left out.
    """
    device = steps.fabric.device
    number = steps.config.evaluation.batch_size
    images = first_of(steps.batch.labeled.images, number)
    masks = first_of(steps.batch.labeled.labels, number)
    student = steps.state.network
    networks = [steps.state.teacher] if in_between else [steps.state.teacher, student]
    tallies = [Tally(dataset, device) for _ in networks]

    def work() -> float:
        student.eval()
        finish(device)
        started = time.perf_counter()
        with steps.fabric.autocast() if in_between else nullcontext():
            for network, tally in zip(networks, tallies, strict=True):
                count(tally, network, images, tuple(masks), Protocol("whole"), windows=1)
        finish(device)
        seconds = time.perf_counter() - started
        student.train()
        return seconds

    return work


def first_of(values: Tensor, number: int) -> Tensor:
    """The first rows, or all of them over and over.

    >>> first_of(torch.tensor([1, 2]), 3), first_of(torch.tensor([1, 2]), 1)
    (tensor([1, 2, 1]), tensor([1]))
    """
    return values[torch.arange(number, device=values.device) % len(values)]


def evaluation_share(
    step_seconds: float, in_between_seconds: float, last_seconds: float, config: Config
) -> float:
    """Share of a default run's time that its evaluations take, with VOC's number of val images.

    Training is brought to an image's time, so a small batch may stand for a large one.

    Args:
        step_seconds: of a training step.
        in_between_seconds: of scoring a batch of an evaluation before the end.
        last_seconds: likewise, of the last one.
        config: of all of them.

    >>> config = Config().with_overrides({"data.batch_labeled": 4, "data.batch_unlabeled": 4})
    >>> round(evaluation_share(8.0, 1.0, 1.0, config), 3)
    0.011
    """
    default, data = Config(), config.data
    an_image_trained = step_seconds / (data.batch_labeled + data.batch_unlabeled)
    batch = default.data.batch_labeled + default.data.batch_unlabeled
    training = default.train.steps * batch * an_image_trained
    times = default.train.steps // default.train.eval_every
    batches_scored = VAL_IMAGES / config.evaluation.batch_size
    scoring = batches_scored * ((times - 1) * in_between_seconds + last_seconds)
    return scoring / (training + scoring)
