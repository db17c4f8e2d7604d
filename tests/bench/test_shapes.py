"""A step's memory by its shapes."""

from __future__ import annotations

import pytest
import torch

from tiny import tiny_overrides
from u2pl.bench import memory, shapes, steps
from u2pl.bench.memory import queue_bytes
from u2pl.config import Config

SMALL = tiny_overrides(model__encoder="small", model__output_stride=16, data__crop=[96, 96])


def test_contrast_costs_a_step_no_more_than_its_queues_and_a_seventh() -> None:
    """ResNet-101 at PASCAL VOC's 513, as a GPU trains it."""
    peaks = shapes.step_peaks({})
    allowed = 0.15 * queue_bytes(steps.NUM_CLASSES, Config())
    assert 0 < peaks["method"] - peaks["bare"] <= allowed  # the queues lie there all the time
    assert peaks["method"] < peaks["networks"]


@pytest.mark.parametrize("kind", ["method", "bare"])
def test_peak_by_shapes_is_that_of_real_tensors(kind: str) -> None:
    """A real step of float32 holds as much, a scratch buffer of its libraries more or less."""
    precision = {"train.precision": "32-true"}
    config = steps.step_config(torch.device("cuda")).with_overrides({**SMALL, **precision})
    one = steps.KINDS[kind](config, torch.device("cpu"))
    one.step()
    real = memory.peak_bytes(one.step, torch.device("cpu"))
    assert shapes.step_peaks(SMALL | precision)[kind] == pytest.approx(real, rel=0.1)
