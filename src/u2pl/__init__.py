"""Label-efficient semantic segmentation in which every pixel trains the model.

>>> import u2pl
>>> run = u2pl.train("dataset.yaml", recipe="camvid", out="runs/a", seed=0)  # doctest: +SKIP
>>> model = u2pl.load("runs/a")  # doctest: +SKIP
>>> mask, entropy, reliable = model.predict("street.jpg")  # doctest: +SKIP

These and the other calls are defined in :mod:`u2pl.api`.
The method's parts are functions of tensors, for a training loop of your own:

>>> import torch
>>> certain = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
>>> u2pl.partition.prediction_entropy(certain)
tensor([[[0.]]])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from u2pl import _torchvision as _torchvision  # first: it makes torchvision importable everywhere
from u2pl import contrast, losses, mixing, partition, perturbation, refinement, teacher
from u2pl.errors import UserError

if TYPE_CHECKING:
    from u2pl import models
    from u2pl.api import (
        compare,
        evaluate,
        export,
        inspect,
        label,
        load,
        make_config,
        make_report,
        open_app,
        predict,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "compare",
    "contrast",
    "evaluate",
    "export",
    "inspect",
    "label",
    "load",
    "losses",
    "make_config",
    "make_report",
    "mixing",
    "models",
    "open_app",
    "partition",
    "perturbation",
    "predict",
    "refinement",
    "teacher",
    "train",
]

_PACKAGES = ("api", "config", "data", "engine", "models", "recipes", "report", "weak")


def __getattr__(name: str) -> Any:
    """Import what is asked for on its first use.

    Commands and networks take seconds to import (timm, torchvision, Fabric); the method's parts,
    which need torch alone, do not wait for them.
    """
    if name in _PACKAGES:
        return import_module(f"u2pl.{name}")
    if name in __all__:
        return getattr(import_module("u2pl.api"), name)
    raise AttributeError(f"module 'u2pl' has no attribute '{name}'")


def __dir__() -> list[str]:
    """What can be asked for, imported or not."""
    return sorted({*globals(), *__all__, *_PACKAGES})
