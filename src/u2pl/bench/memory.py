"""Bytes: what the queues take, and the most that a piece of work holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

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
