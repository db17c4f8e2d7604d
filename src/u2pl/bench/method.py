"""The method's part of a step as training does it, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from u2pl import partition
from u2pl.bench.clock import finish
from u2pl.bench.workload import IGNORE, Inputs, Workload
from u2pl.config import Config
from u2pl.contrast import MomentumPrototypes, NegativeQueues, class_means
from u2pl.engine import pairs as contrast
from u2pl.engine.recorded import WARM_UP, on_another_stream, record
from u2pl.engine.state import TrainState
from u2pl.engine.targets import MixedPixels, PseudoLabels, TeacherView, judge_pixels
from u2pl.mixing import on_grid
from u2pl.models.segmenter import at_cells

FRACTION = 0.2
"""α_t: pixels held unreliable."""
MOMENTUM = 0.999


class Method:
    """Thresholds, masks, prototypes, queues and contrast by the functions of the training step.

    Mixing, denoising and tags are left out: :class:`u2pl.bench.loops.Loops` has none either.

    Args:
        workload: sizes.
        inputs: of that workload, on the device.
        seed: of the random choices.
    """

    def __init__(self, workload: Workload, inputs: Inputs, *, seed: int = 0) -> None:
        self.workload, self.inputs = workload, inputs
        device = inputs.labels.device
        self.config = method_config(workload)
        queues = NegativeQueues(workload.capacities, workload.feature_size).to(device)
        nothing = nn.Identity()
        unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        prototypes = MomentumPrototypes(
            workload.num_classes, workload.feature_size, momentum=MOMENTUM
        ).to(device)
        self.state = TrainState(nothing, nothing, unused, queues, prototypes, IGNORE)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    @property
    def kept(self) -> list[Tensor]:
        """Queues and prototypes."""
        return [*self.state.queues.buffers(), *self.state.prototypes.buffers()]

    def fill_queues(self) -> None:
        """Fill every queue, as it is for nearly all of a run."""
        queues = self.state.queues
        queues.keys.copy_(F.normalize(torch.randn(queues.keys.shape), dim=1))
        queues.num_keys.copy_(queues.capacities)

    def run(self, clock: Callable[[str], AbstractContextManager[Any]] = nullcontext) -> Tensor:
        """Do one step's work, backward pass included; return the loss.

        Args:
            clock: takes a phase's name; a :class:`~u2pl.bench.clock.Clock`, a
                :class:`~u2pl.bench.memory.PhaseMemory`, or nothing that measures.
        """
        inputs, state, config, workload = self.inputs, self.state, self.config, self.workload
        view = TeacherView(inputs.logits_l, inputs.features_l)
        with torch.no_grad():
            with clock("thresholds"):
                pseudo = self.pseudo_label()
            with clock("masks"):
                anchor, negative, features = contrast.contrast_masks(
                    view, inputs.labels, pseudo, config
                )
            with clock("prototypes"):
                state.prototypes.update(*class_means(features, anchor))
            with clock("queue push"):
                anchor, negative = (mask.transpose(0, 1).flatten(1) for mask in (anchor, negative))
                draws = contrast.draw_numbers(
                    anchor.shape[0], anchor.shape[1], config, self.generator, anchor.device
                )
                rows = contrast.rows_of_batch(state, len(inputs.labels), len(inputs.valid))
                contrast.push_keys(state, features, negative, rows, draws, config)
            with clock("sampling"):
                pairs = contrast.choose_pairs(state, anchor, negative, draws)
        with clock("contrast forward"):
            area = workload.grid[0] * workload.grid[1]
            here, cells = contrast.cells_here(pairs.anchors, rows, area)
            anchors = at_cells(inputs.student, cells)
            loss = contrast.contrast_of_part(pairs, state.queues.keys, anchors, here, config)
        with clock("contrast backward"):
            inputs.student.grad = None
            torch.autograd.backward(loss)
        return loss.detach()

    def pseudo_label(self) -> PseudoLabels:
        """Eq. 5-8 of the unmixed images."""
        inputs, workload = self.inputs, self.workload
        predictions, entropy, confidence = judge_pixels(inputs.logits_u, workload.size)
        threshold = partition.entropy_threshold(entropy, inputs.valid, unreliable_fraction=FRACTION)
        labels = partition.pseudo_labels(
            predictions, entropy, threshold, inputs.valid, ignore_index=IGNORE
        )
        unreliable = partition.unreliable_mask(entropy, threshold, inputs.valid)
        pixels = MixedPixels(
            images=inputs.valid,
            predictions=predictions,
            confidence=confidence,
            entropy=entropy,
            soft=inputs.logits_u[:, :0],
            valid=inputs.valid,
            judged=inputs.valid,
            probs=inputs.logits_u.softmax(dim=1),
            features=inputs.features_u,
            certain_negatives=torch.zeros_like(inputs.logits_u, dtype=torch.bool),
        )
        num_kept, num_valid = (labels != IGNORE).sum(), inputs.valid.sum()
        return PseudoLabels(
            pixels=pixels,
            labels=labels,
            streams=(),
            weight=num_valid / num_kept,
            num_kept=num_kept,
            num_valid=num_valid,
            threshold=threshold,
            unreliable=on_grid(unreliable, workload.grid),
            undecided=on_grid(unreliable, workload.grid),
        )


class RecordedMethod:
    """All of it as one CUDA graph, as a training step on one GPU has it.

    Args:
        method: on a GPU; its queues are those that are filled.
    """

    def __init__(self, method: Method) -> None:
        device = method.inputs.labels.device
        with on_another_stream(device):
            for _ in range(WARM_UP):
                method.run()
        self._recording = record(method.run, method.generator)
        self._device = device

    def run(self) -> float:
        """Do one step's work; return its seconds."""
        finish(self._device)
        started = time.perf_counter()
        self._recording.replay()
        finish(self._device)
        return time.perf_counter() - started


def method_config(workload: Workload) -> Config:
    """The defaults with the workload's numbers."""
    return Config().with_overrides(
        {
            "model.feature_size": workload.feature_size,
            "method.queue_size": workload.queue_size,
            "method.num_anchors": workload.num_anchors,
            "method.num_negatives": workload.num_negatives,
            "method.keys_per_step": workload.keys_per_step,
            "method.prototype_momentum": MOMENTUM,
        }
    )
