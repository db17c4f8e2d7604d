"""The same work in the manner of the authors' public code: a yardstick, not for training.

It has that code's structure: full one-hot maps, percentiles taken by NumPy on the CPU (three a
step), a loop over classes with boolean indexing, queues in CPU memory that grow by concatenation
and go to the device whole, a class at a time. Its known faults are mended, so that it finds the
same thresholds, prototypes and numbers of keys as :class:`u2pl.bench.method.Method`; and it pushes
as many keys. One process has no collectives, so their cost is not in it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from u2pl.bench.clock import Clock
from u2pl.bench.memory import PhaseMemory
from u2pl.bench.method import FRACTION, MOMENTUM
from u2pl.bench.workload import IGNORE, Inputs, Workload
from u2pl.contrast import rank_bounds
from u2pl.mixing import on_grid
from u2pl.models import upsample

THRESHOLD = 0.3  # δ_p
TEMPERATURE = 0.5


class Loops:
    """One step's work, class by class.

    Args:
        workload: sizes.
        inputs: of that workload, on the device.
        seed: of the random choices.

    Attributes:
        queues: [n, D] keys a class, on the CPU.
        prototypes: [C, D].
        gamma: the threshold of the last step.
    """

    def __init__(self, workload: Workload, inputs: Inputs, *, seed: int = 0) -> None:
        self.workload, self.inputs = workload, inputs
        self.generator = torch.Generator().manual_seed(seed)
        self.low, self.high = rank_bounds(workload.num_classes)
        self.queues = [torch.zeros(0, workload.feature_size) for _ in workload.capacities]
        self.prototypes = torch.zeros(
            workload.num_classes, workload.feature_size, device=inputs.labels.device
        )
        self.num_updates = [0] * workload.num_classes
        self.gamma = 0.0

    @property
    def kept(self) -> list[Tensor]:
        """Queues and prototypes."""
        return [*self.queues, self.prototypes]

    def fill_queues(self) -> None:
        """Fill every queue, as it is for nearly all of a run."""
        size = self.workload.feature_size
        self.queues = [
            F.normalize(torch.randn(count, size), dim=1) for count in self.workload.capacities
        ]

    def run(self, clock: Clock | PhaseMemory) -> Tensor:
        """Do one step's work, backward pass included; return the loss."""
        inputs = self.inputs
        with torch.no_grad():
            with clock("thresholds"):
                reliable, unreliable, labels = self.partition()
            with clock("masks"):
                probs = torch.cat([inputs.logits_l, inputs.logits_u]).softmax(dim=1)
                order = probs.sort(dim=1, descending=True, stable=True).indices
                own = self.one_hot(labels)
                known = torch.cat([inputs.labels != IGNORE, reliable]).unsqueeze(1).float()
                sure = on_grid(own * known, self.workload.grid)
                unsure = on_grid(unreliable.float(), self.workload.grid)
        teacher = torch.cat([inputs.features_l, inputs.features_u]).permute(0, 2, 3, 1)
        student = inputs.student.permute(0, 2, 3, 1)
        anchors: list[Tensor] = []
        for class_id in range(self.workload.num_classes):
            with torch.no_grad():
                with clock("masks"):
                    member = (sure[:, class_id] > 0) & (probs[:, class_id] > THRESHOLD)
                    negative = self.negatives(class_id, order, sure, unsure)
                with clock("prototypes"):
                    self.move_prototype(class_id, teacher[member])
                with clock("queue push"):
                    self.push(class_id, teacher, negative)
            with clock("contrast forward"):
                anchors.append(student[member])
        loss = self.contrast(anchors, clock)
        with clock("contrast backward"):
            inputs.student.grad = None
            torch.autograd.backward(loss)
        return loss.detach()

    def partition(self) -> tuple[Tensor, Tensor, Tensor]:
        """Reliable and unreliable pixels [B, H, W] bool, and the labels of all images."""
        inputs = self.inputs
        probs = upsample(inputs.logits_u, self.workload.size).softmax(dim=1)
        predictions = probs.max(dim=1).indices
        entropy = -(probs * torch.log(probs + 1e-10)).sum(dim=1)
        drop, low, high = (
            float(np.percentile(entropy[inputs.valid].cpu().numpy(), 100 * (1 - FRACTION)))
            for _ in range(3)
        )
        self.gamma = drop
        pseudo = predictions.clone()
        pseudo[(entropy > drop) | ~inputs.valid] = IGNORE
        reliable = (entropy <= low) & inputs.valid
        unreliable = (entropy > high) & inputs.valid
        return reliable, unreliable, torch.cat([inputs.labels, pseudo])

    def one_hot(self, labels: Tensor) -> Tensor:
        """[B, C, H, W] float32 at full size; zeros where a pixel is ignored."""
        shape = (len(labels), self.workload.num_classes, *self.workload.size)
        maps = torch.zeros(shape, device=labels.device)
        ignored = labels == IGNORE
        maps.scatter_(1, labels.masked_fill(ignored, 0).unsqueeze(1), 1.0)
        return maps * ~ignored.unsqueeze(1)

    def negatives(self, class_id: int, order: Tensor, sure: Tensor, unsure: Tensor) -> Tensor:
        """[B, h, w] bool: the negatives of a class on labelled, then on unlabelled images."""
        split = len(self.inputs.labels)
        labeled = sure[:split].sum(dim=1) > 0
        likely = (order[:split, : self.low] == class_id).any(dim=1)
        of_labeled = labeled & (sure[:split, class_id] == 0) & likely
        between = (order[split:, self.low : self.high] == class_id).any(dim=1)
        return torch.cat([of_labeled, (unsure > 0) & between])

    def move_prototype(self, class_id: int, members: Tensor) -> None:
        """Move a class's prototype to the mean of its members [n, D]."""
        if len(members) == 0:
            return
        self.num_updates[class_id] += 1
        momentum = min(1 - 1 / self.num_updates[class_id], MOMENTUM)
        mean = members.mean(dim=0)
        self.prototypes[class_id] = momentum * self.prototypes[class_id] + (1 - momentum) * mean

    def push(self, class_id: int, teacher: Tensor, negative: Tensor) -> None:
        """Lengthen a class's queue by some of its negatives, and cut off the oldest."""
        places = negative.nonzero()
        chosen = torch.randperm(len(places), generator=self.generator)
        chosen = chosen[: self.workload.keys_per_step].to(places.device)
        keys = teacher[places[chosen].unbind(1)].cpu()
        capacity = self.workload.capacities[class_id]
        self.queues[class_id] = torch.cat([self.queues[class_id], keys])[-capacity:]

    def contrast(self, anchors: list[Tensor], clock: Clock | PhaseMemory) -> Tensor:
        """Eq. 4, class by class, of the student's features [n, D] of each class's members."""
        num_anchors, num_negatives = self.workload.num_anchors, self.workload.num_negatives
        total, num_active = torch.zeros((), device=self.prototypes.device), 0
        for class_id, members in enumerate(anchors):
            if len(members) == 0 or len(self.queues[class_id]) == 0:
                continue
            num_active += 1
            with clock("sampling"), torch.no_grad():
                bank = self.queues[class_id].clone().to(members.device)
                shape = (num_anchors * num_negatives,)
                drawn = torch.randint(len(bank), shape, generator=self.generator)
                negatives = bank[drawn.to(bank.device)].view(num_anchors, num_negatives, -1)
                positive = self.prototypes[class_id].expand(num_anchors, 1, -1)
                keys = torch.cat([positive, negatives], dim=1)
            with clock("contrast forward"):
                drawn = torch.randint(len(members), (num_anchors,), generator=self.generator)
                anchor = members[drawn.to(members.device)]
                logits = F.cosine_similarity(anchor.unsqueeze(1), keys, dim=2) / TEMPERATURE
                first = torch.zeros(num_anchors, dtype=torch.long, device=members.device)
                total = total + F.cross_entropy(logits, first)
        if num_active == 0:
            return self.inputs.student.sum() * 0
        return total / num_active
