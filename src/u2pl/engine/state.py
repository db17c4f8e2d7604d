"""Everything that a training step changes, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from u2pl.config import Config
from u2pl.contrast import MomentumPrototypes, NegativeQueues
from u2pl.data.loaders import derive_seed
from u2pl.engine.optimizer import build_optimizer
from u2pl.engine.world import ALONE, World
from u2pl.models import Segmenter
from u2pl.teacher import make_teacher


@dataclass
class TrainState:
    """Networks, optimiser, the contrast's memory, and the step they are at.

    The learning rate, α_t and every random draw are functions of the step and the seed, so that
    nothing else has to be remembered to go on exactly.

    Attributes:
        student: trained.
        teacher: its moving average, in evaluation mode, without gradients.
        optimizer: of the student.
        queues: negative keys a class.
        prototypes: positive key a class.
        ignore_index: of the labels.
        step: updates made so far.
        num_skipped: int64 scalar, those of them that the float16 scaler has left out.
        world: the processes that share the batch; no part of what is saved.
    """

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.Optimizer
    queues: NegativeQueues
    prototypes: MomentumPrototypes
    ignore_index: int
    step: int = 0
    num_skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    world: World = ALONE

    @property
    def network(self) -> Segmenter:
        """The student without Fabric's wrapper.

        That would choose the precision itself, and turn all that is returned into float32.
        """
        inner: Any = getattr(self.student, "module", self.student)
        return cast("Segmenter", inner)

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "queues": self.queues.state_dict(),
            "prototypes": self.prototypes.state_dict(),
            "step": self.step,
            "skipped_updates": int(self.num_skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: where it is that of another network, or
                no such thing at all.
        """
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._require_shapes()
        self.queues.load_state_dict(state["queues"])
        self.prototypes.load_state_dict(state["prototypes"])
        self.step = int(state["step"])
        if self.step < 0:
            raise ValueError(f"step {self.step}")
        skipped = int(state.get("skipped_updates", 0))  # runs begun earlier did not keep it
        self.num_skipped = torch.full_like(self.num_skipped, skipped)

    def _require_shapes(self) -> None:
        """Raise ValueError where the optimiser, which does not look, has taken other shapes."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # inside Fabric's wrapper
        for parameter, memory in optimizer.state.items():
            for value in memory.values():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"shape {tuple(value.shape)}")


def queue_capacities(config: Config, num_classes: int) -> list[int]:
    """Keys a class, the background's own number where there is one.

    Without contrast no key is ever pushed, and a single slot a class stands for the memory. Where
    all would take more than ``method.queue_megabytes``, each is shortened by the same factor.
    """
    settings = config.method
    if settings.contrastive_weight == 0:
        return [1] * num_classes
    capacities = [settings.queue_size] * num_classes
    if settings.background_class is not None:
        capacities[settings.background_class] = settings.background_queue_size
    key_bytes = config.model.feature_size * getattr(torch, settings.queue_dtype).itemsize
    most, wanted = settings.queue_megabytes * 10**6 // key_bytes, sum(capacities)
    if wanted <= most:
        return capacities
    return [max(1, capacity * most // wanted) for capacity in capacities]


def initial_state(
    config: Config,
    num_classes: int,
    ignore_index: int,
    device: torch.device,
    *,
    load_pretrained: bool = True,
    world: World = ALONE,
) -> TrainState:
    """Networks with their first weights, drawn from the run's seed, and an empty memory.

    Args:
        config: the run.
        num_classes: C.
        ignore_index: of the labels.
        device: where all of it lives.
        load_pretrained: False where a checkpoint brings the weights anyway.
        world: the processes that share the training; each draws the same first weights.

    Raises:
        UserError: where the network cannot be built.
    """
    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    student = Segmenter(config.model, num_classes, load_pretrained=load_pretrained)
    if config.train.channels_last:
        student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    student = student.to(device)
    queues = NegativeQueues(
        queue_capacities(config, num_classes),
        config.model.feature_size,
        dtype=getattr(torch, config.method.queue_dtype),
    )
    prototypes = MomentumPrototypes(
        num_classes, config.model.feature_size, momentum=config.method.prototype_momentum
    )
    return TrainState(
        student=student,
        teacher=make_teacher(student),
        optimizer=build_optimizer(
            student, config.optimizer, scaled=config.train.precision == "16-mixed"
        ),
        queues=queues.to(device),
        prototypes=prototypes.to(device),
        ignore_index=ignore_index,
        num_skipped=torch.zeros((), dtype=torch.int64, device=device),
        world=world,
    )
