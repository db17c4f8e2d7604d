"""Random inputs that hold the awkward cases: an absent class, ignored and invalid pixels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

IGNORE = 255


@dataclass(frozen=True)
class Case:
    """One random batch on a small grid; ``num_classes`` C, ``batch_size`` B."""

    num_classes: int
    batch_size: int
    seed: int
    size: tuple[int, int] = (4, 5)
    feature_size: int = 3

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def logits(self) -> Tensor:
        """[B, C, h, w] float32."""
        shape = (self.batch_size, self.num_classes, *self.size)
        return 2 * torch.randn(shape, generator=self.generator())

    def probs(self) -> Tensor:
        """[B, C, h, w] float32."""
        return self.logits().softmax(dim=1)

    def labels(self) -> Tensor:
        """[B, h, w] int64; the last class never occurs, and about a quarter is ignored."""
        generator = self.generator()
        shape = (self.batch_size, *self.size)
        labels = torch.randint(0, self.num_classes - 1, shape, generator=generator)
        return labels.masked_fill(torch.rand(shape, generator=generator) < 0.25, IGNORE)

    def valid(self) -> Tensor:
        """[B, h, w] bool, about four fifths True."""
        shape = (self.batch_size, *self.size)
        return torch.rand(shape, generator=self.generator()) < 0.8

    def features(self) -> Tensor:
        """[B, D, h, w] float32."""
        shape = (self.batch_size, self.feature_size, *self.size)
        return torch.randn(shape, generator=self.generator())

    def class_mask(self) -> Tensor:
        """[B, C, h, w] bool; no pixel belongs to the last class."""
        shape = (self.batch_size, self.num_classes, *self.size)
        mask = torch.rand(shape, generator=self.generator()) < 0.4
        mask[:, -1] = False
        return mask

    def tags(self) -> Tensor:
        """[B, C] bool; the first image has none at all, the second all of them."""
        shape = (self.batch_size, self.num_classes)
        tags = torch.rand(shape, generator=self.generator()) < 0.6
        tags[:1] = self.batch_size == 1
        tags[1:2] = True
        return tags


on_random_cases = pytest.mark.parametrize(
    "case",
    [
        Case(num_classes, batch_size, seed)
        for num_classes in (2, 3, 7, 21)
        for batch_size in (1, 4)
        for seed in (0, 1)
    ],
    ids=lambda case: f"C{case.num_classes}-B{case.batch_size}-seed{case.seed}",
)
