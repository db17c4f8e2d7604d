"""For tests that have a GPU: within, whatever waits for it is an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Have torch raise at each operation that makes the CPU wait for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        # torch says once that it does not see every such operation yet
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
