"""How long a GPU computes for a piece of work, however long the CPU takes to ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def kernel_time(work: Callable[[], Any], device: torch.device) -> dict[str, float] | None:
    """Count a work's kernels and copies on a GPU, by torch's profiler.

    Args:
        work: done once before and once measured.
        device: a CPU has no kernels.

    Returns:
        ``kernels``, their number, and ``busy_milliseconds``, the sum of their times; None on a CPU.
    """
    if device.type != "cuda":
        return None
    work()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    times = [
        event.device_time_total for event in profiler.events() if event.device_type.name == "CUDA"
    ]
    return {"kernels": len(times), "busy_milliseconds": sum(times) / 1000}
