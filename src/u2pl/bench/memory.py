"""Bytes: what the queues take, and the most that a piece of work holds at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from u2pl.config import Config
from u2pl.engine.state import queue_capacities


def queue_bytes(num_classes: int, config: Config) -> int:
    """Bytes of all queues of a run."""
    dtype = getattr(torch, config.method.queue_dtype)
    numbers = sum(queue_capacities(config, num_classes)) * config.model.feature_size
    return int(numbers * dtype.itemsize)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that a work has, beyond those that were there before it.

    On a CPU by torch's profiler, which sees every allocation of a tensor; on a GPU by the
    allocator's own count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        most = max(most, held)
    return most


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, adds up the storages of all tensors that are made and not yet let go.

    Unlike :func:`peak_bytes` it counts torch's fake tensors too, and on every device alike; what an
    operator takes for itself while it works it does not see.

    Args:
        known: tensors whose storages do not count.

    Attributes:
        held: bytes now.
        peak: the most so far.

    >>> with LiveBytes([]) as live:
    ...     first = torch.ones(1000)
    ...     second = first + 1
    ...     del first
    >>> live.peak, live.held
    (8000, 4000)
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._there = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and count what it makes."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.held)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._there:
            return
        self._there.add(name)
        self.held += size
        weakref.finalize(storage, self._let_go, name, size)

    def _let_go(self, name: int, size: int) -> None:
        self._there.discard(name)
        self.held -= size


class PhaseMemory:
    """The most bytes of tensors that are held in named phases, of whatever phase they are.

    Takes the place of a :class:`~u2pl.bench.clock.Clock`.

    Args:
        known: tensors that are there all the time and do not count.

    Attributes:
        peaks: by phase.

    >>> memory = PhaseMemory([])
    >>> with memory("first"):
    ...     kept = torch.ones(1000)
    >>> with memory("second"):
    ...     _ = kept + 1
    >>> memory.peaks
    {'first': 4000, 'second': 8000}
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._live = LiveBytes(known)
        self.peaks: dict[str, int] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Inside, what is held counts for ``phase``."""
        self._live.peak = self._live.held
        with self._live:
            yield
        self.peaks[phase] = max(self.peaks.get(phase, 0), self._live.peak)
