"""Counts what would make a training step wait for a GPU, on whatever device it runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = frozenset(
    {
        "_local_scalar_dense",  # .item(), float(), int(), bool() and branches on a value
        "nonzero",
        "masked_select",
        "unique_consecutive",
        "unique_dim",
        "_unique2",
        "bincount",
        "is_nonzero",
        "equal",
    }
)


class HostSyncs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every operator is noted that needs a value, or a size that depends on values.

    Such are ``.item()``, ``nonzero``, indexing by a boolean mask, and copies from a GPU. It does
    not see into compiled code.

    Attributes:
        found: how often each operator was called.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and note it where it waits."""
        name = func.overloadpacket.__name__
        if name in _WAITING or _indexes_by_mask(name, args) or _leaves_the_gpu(name, args, kwargs):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _indexes_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    masks = (torch.bool, torch.uint8)
    return any(isinstance(i, torch.Tensor) and i.dtype in masks for i in args[1])


def _leaves_the_gpu(name: str, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether this copies from a GPU to the CPU."""
    if name == "_to_copy":
        target = (kwargs or {}).get("device")
        return args[0].is_cuda and target is not None and torch.device(target).type == "cpu"
    return name == "copy_" and args[1].is_cuda and not args[0].is_cuda
