"""The signals that ask a training to stop, and how it hears of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""What a run is asked to stop by.

SIGUSR1 is what SLURM sends ahead of the end of a job where ``--signal`` asks for it. There is none
on Windows.
"""


def ignore_signals() -> None:
    """Let no stop signal end this process, which another one stops.

    Raises:
        ValueError: outside the main thread.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def noticing_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a flag; a second one acts as usual.

    Outside the main thread, where Python takes no signal handlers, the flag stays down.
    """
    asked = False

    def notice(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before: dict[int, Any] = {}
    try:
        for number in STOP_SIGNALS:
            before[number] = signal.signal(number, notice)
    except ValueError:
        before.clear()
    try:
        yield lambda: asked
    finally:
        restore()
