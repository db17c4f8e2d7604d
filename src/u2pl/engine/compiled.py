"""Parts of a step through torch.compile, where ``train.compile`` names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from u2pl.config import Config
from u2pl.engine.state import TrainState

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"fullgraph": True, "dynamic": False}
"""Of the method's functions: each is one graph, and a step's shapes do not change."""


def compile_networks(state: TrainState, config: Config) -> None:
    """Mark student and teacher to be compiled when they are first called, names unchanged."""
    for name in ("student", "teacher"):
        if name in config.train.compile:
            getattr(state, name).compile()


def of_method(function: F, config: Config) -> F:
    """A function of the method, compiled where the settings say so."""
    if "method" not in config.train.compile:
        return function
    made: F = _compiled(function)
    return made


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, **OPTIONS)
