"""Time by phase, and two ways of doing the same work, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the seconds of named phases; on a GPU each phase waits for its end.

    Args:
        device: where the work is done.

    Attributes:
        seconds: by phase, of wall time.
        cpu_seconds: of this process's computing in all phases; what a busy neighbour takes is not
            in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.cpu_seconds = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Inside, time counts for ``phase``."""
        finish(self._device)
        started, computed = time.perf_counter(), time.process_time()
        yield
        finish(self._device)
        took = time.perf_counter() - started
        self.cpu_seconds += time.process_time() - computed
        self.seconds[phase] = self.seconds.get(phase, 0.0) + took

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


def finish(device: torch.device) -> None:
    """Wait for what a GPU has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    works: Mapping[str, Callable[[], float]], *, repetitions: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time several ways of doing a work in turns, so that a busy neighbour slows all of them alike.

    Args:
        works: each does its work once and returns its seconds.
        repetitions: how often each is timed.
        warm_up: how often each is done before, untimed.

    Returns:
        The seconds of each, in order.
    """
    for _ in range(warm_up):
        for work in works.values():
            work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            found[name].append(work())
    return found


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times slower one is: by the medians, and the least and largest of the turns.

    >>> ratio([4.0, 6.0, 9.0], [2.0, 2.0, 3.0])
    {'median': 3.0, 'least': 2.0, 'largest': 3.0}
    """
    turns = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "median": statistics.median(slow) / statistics.median(fast),
        "least": min(turns),
        "largest": max(turns),
    }
