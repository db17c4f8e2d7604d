"""Makes ``import torchvision`` work where its compiled operators do not load.

A torchvision built for CUDA beside a CPU-only torch fails to import, because it registers
shape functions for operators that its extension never declared. Declaring their names is all
it needs; nothing in u2pl calls them. Where the extension loads, nothing is declared.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

declared: list[torch.library.Library] = []
"""Non-empty where the operators had to be declared; it also keeps the declaration alive."""


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend: the import itself will say that torchvision is absent
    for library in Path(spec.origin).parent.glob("_C*.*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError):
            continue
        return True
    return False


def declare_missing_operators() -> None:
    """Declare torchvision's operators if its own extension cannot; harmless to call twice."""
    if "torchvision" in sys.modules or declared or _extension_loads():
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    declared.append(library)


declare_missing_operators()
