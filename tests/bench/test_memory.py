"""What the method may hold: bounded queues, and no map of all classes at full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import IGNORE
from u2pl.bench.clock import Clock
from u2pl.bench.memory import peak_bytes, queue_bytes
from u2pl.bench.method import Method
from u2pl.bench.workload import Workload, make_inputs
from u2pl.config import Config
from u2pl.contrast import NegativeQueues
from u2pl.engine.state import queue_capacities

CPU = torch.device("cpu")
WORKLOAD = Workload("w", 2, 3, (64, 60), 7, feature_size=8, queue_size=100, num_anchors=16)


@pytest.mark.parametrize(
    ("num_classes", "dtype", "megabytes"),
    [
        (2, "float32", 61.44),
        (2, "bfloat16", 30.72),
        (19, "float32", 583.68),
        (19, "bfloat16", 291.84),
        (21, "float32", 645.12),
        (21, "bfloat16", 322.56),
        (150, "float32", 2199.86),
        (150, "bfloat16", 2199.94),
    ],
)
def test_queues_take_the_bytes_of_the_table(num_classes: int, dtype: str, megabytes: float) -> None:
    config = Config().with_overrides({"method.queue_dtype": dtype})
    assert queue_bytes(num_classes, config) / 1e6 == pytest.approx(megabytes, abs=0.01)
    assert queue_bytes(num_classes, config) < 2.3e9


def test_queue_bytes_are_those_of_the_queues_themselves() -> None:
    config = Config().with_overrides({"method.queue_megabytes": 1, "model.feature_size": 16})
    capacities = queue_capacities(config, 5)
    queues = NegativeQueues(capacities, 16)
    assert queues.keys.nbytes == queue_bytes(5, config) <= 1_000_000
    assert capacities == [3125] * 5


def test_long_queue_stays_the_longer_one_where_all_are_shortened() -> None:
    changes = {"method.background_class": 0, "method.queue_megabytes": 1}
    capacities = queue_capacities(Config().with_overrides(changes), 4)
    assert capacities == [348, 209, 209, 209]


class FullSizeMaps(TorchDispatchMode):
    """Notes every new tensor of floats for all classes, all images and all pixels."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        height, width = workload.size
        self.least = workload.num_unlabeled * workload.num_classes * height * width
        self.found: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            floats = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
            if floats and tensor.numel() >= self.least:
                self.found.append((func.__name__, tensor.shape))
        return made


def test_method_makes_no_map_of_all_classes_images_and_pixels() -> None:
    method = Method(WORKLOAD, make_inputs(WORKLOAD, CPU))
    with FullSizeMaps(WORKLOAD) as maps:
        method.run(Clock(CPU))
    assert maps.found == []


def test_such_a_map_would_be_noticed() -> None:
    with FullSizeMaps(WORKLOAD) as maps:
        torch.zeros(3, 7, 64, 60).softmax(dim=1)
    assert len(maps.found) == 2
    assert WORKLOAD.num_classes < IGNORE


def test_peak_is_the_most_that_is_held_at_a_time() -> None:
    def work() -> None:
        for _ in range(3):
            first = torch.ones(250_000)
            second = first + 1
            del first, second

    assert peak_bytes(work, CPU) == pytest.approx(2_000_000, rel=0.01)
