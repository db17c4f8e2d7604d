"""Parts of a step through torch.compile, where ``train.compile`` names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from u2pl.config import Config
from u2pl.engine.state import TrainState

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"dynamic": False}
"""A step's shapes do not change."""


def compile_teacher(state: TrainState, config: Config) -> None:
    """Mark the teacher to be compiled when it is first called, names unchanged.

    Of the student a step compiles what it calls, by :func:`of_student`.
    """
    if "teacher" in config.train.compile:
        state.teacher.compile()


def of_method(function: F, config: Config) -> F:
    """A function of the method, compiled where the settings say so: as one graph."""
    if "method" not in config.train.compile:
        return function
    made: F = _compiled(function, fullgraph=True)
    return made


def of_student(function: F, config: Config) -> F:
    """A method of the student's class, compiled where the settings say so."""
    if "student" not in config.train.compile:
        return function
    made: F = _compiled(function, fullgraph=False)
    return made


@cache
def _compiled(function: Any, *, fullgraph: bool) -> Any:
    return torch.compile(function, fullgraph=fullgraph, **OPTIONS)
