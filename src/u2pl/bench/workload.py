"""What the method's part of a step is given: a teacher's word on images that nobody has painted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


@dataclass(frozen=True)
class Workload:
    """Sizes of a step.

    Attributes:
        name: of the benchmark.
        num_labeled, num_unlabeled: images.
        size: (H, W) of an image.
        num_classes: C.
        feature_size: D.
        queue_size: keys a class.
        background_queue_size: keys of class 0, where it is the background; None where none is.
        num_anchors: M.
        num_negatives: N.
        keys_per_step: keys pushed a class, at most.
    """

    name: str
    num_labeled: int
    num_unlabeled: int
    size: tuple[int, int]
    num_classes: int
    feature_size: int = 256
    queue_size: int = 30_000
    background_queue_size: int | None = None
    num_anchors: int = 256
    num_negatives: int = 50
    keys_per_step: int = 1024

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature grid, a quarter of the image."""
        return -(-self.size[0] // 4), -(-self.size[1] // 4)

    @property
    def capacities(self) -> list[int]:
        """Keys that each class's queue holds."""
        capacities = [self.queue_size] * self.num_classes
        if self.background_queue_size is not None:
            capacities[0] = self.background_queue_size
        return capacities


VOC = Workload("voc513", 4, 4, (513, 513), 21, background_queue_size=50_000)
CITYSCAPES = Workload("city769", 2, 2, (769, 769), 19)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a :class:`Workload`; features lie as ``channels_last`` networks give them.

    Attributes:
        logits_l, logits_u: [B, C, h, w], the teacher's.
        features_l, features_u: [B, D, h, w] of unit length, the teacher's.
        student: [2B, D, h, w], the student's features of all images; wants a gradient.
        labels: [B, H, W] int64, with a border of ignored pixels.
        valid: [B, H, W] bool, of the unlabelled images, likewise.
    """

    logits_l: Tensor
    logits_u: Tensor
    features_l: Tensor
    features_u: Tensor
    student: Tensor
    labels: Tensor
    valid: Tensor


def make_inputs(workload: Workload, device: torch.device, *, seed: int = 0) -> Inputs:
    """Draw a step's tensors: patches of classes of which the teacher is more or less sure."""
    generator = torch.Generator().manual_seed(seed)
    num_images = workload.num_labeled + workload.num_unlabeled
    shape = (num_images, workload.num_classes, *workload.grid)
    patches = torch.randint(0, workload.num_classes, (num_images, 9, 9), generator=generator)
    classes = F.interpolate(patches.unsqueeze(1).float(), size=workload.size).squeeze(1).long()
    rows = torch.arange(workload.grid[0]) * 4
    columns = torch.arange(workload.grid[1]) * 4
    truth = classes[:, rows.clamp_max(workload.size[0] - 1)]
    truth = truth[:, :, columns.clamp_max(workload.size[1] - 1)]
    sureness = 8 * torch.rand(num_images, 1, *workload.grid, generator=generator)
    logits = torch.randn(shape, generator=generator)
    logits.scatter_add_(1, truth.unsqueeze(1), sureness)
    wide = (num_images, workload.feature_size, *workload.grid)
    features, student = (
        F.normalize(torch.randn(wide, generator=generator), dim=1) for _ in range(2)
    )
    border = torch.zeros(workload.size, dtype=torch.bool)
    border[:8] = border[:, :8] = True
    split = workload.num_labeled

    def place(tensor: Tensor) -> Tensor:
        if tensor.ndim == 4:
            return tensor.to(device).contiguous(memory_format=torch.channels_last)
        return tensor.to(device)

    return Inputs(
        logits_l=place(logits[:split]),
        logits_u=place(logits[split:]),
        features_l=place(features[:split]),
        features_u=place(features[split:]),
        student=place(student).requires_grad_(),
        labels=place(classes[:split].masked_fill(border, IGNORE)),
        valid=place((~border).expand(workload.num_unlabeled, -1, -1).contiguous()),
    )
