"""Eq. 16 with one ``deque`` a class."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

Key = tuple[float, ...]


class Queues:
    """First in, first out; a full deque drops its oldest key by itself."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.queues: list[deque[Key]] = [deque(maxlen=capacity) for capacity in capacities]

    def push(self, keys_of_class: Sequence[Sequence[Key]]) -> None:
        """Append each class's keys in order."""
        for queue, keys in zip(self.queues, keys_of_class, strict=True):
            for key in keys:
                queue.append(key)
