"""Says where a run hangs: a loader's worker, a collective, a disk that does not answer."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

STACKS = "hang.txt"
"""In the run folder: where each thread of the process stood."""


class Watchdog:
    """Ends the process when nothing has moved for long, with a sentence that names the phase.

    A hang cannot be undone from within, as its thread never comes back. So the process ends as if
    it had been killed: with the last checkpoint as it is, and the exit status "resume me".

    Args:
        minutes: without a sign of life; None never barks.
        folder: gets :data:`STACKS`.
        exit_code: of the process.
        end: called in place of ending the process; for tests.
    """

    def __init__(
        self,
        minutes: float | None,
        folder: Path,
        *,
        exit_code: int,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._limit = None if minutes is None else 60 * minutes
        self._folder, self._exit_code, self._end = folder, exit_code, end
        self._phase, self._since = "starting", time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self.beat()
        if self._limit is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def phase(self, name: str) -> None:
        """Say what begins now."""
        self._phase = name
        self.beat()

    def beat(self) -> None:
        """Say that the phase goes on."""
        self._since = time.monotonic()

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._done.wait(min(5.0, self._limit / 10)):
            if time.monotonic() - self._since > self._limit:
                self._bark()
                return

    def _bark(self) -> None:
        assert self._limit is not None
        stacks = self._folder / STACKS
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file)
        print(
            f"Error: Nothing has moved for {self._limit / 60:g} minutes in this phase: "
            f"{self._phase}. Where each thread stands is in {stacks}. The run ends; go on from its "
            "last checkpoint with --resume, or allow more by train.watchdog_minutes.",
            file=sys.stderr,
            flush=True,
        )
        self._end(self._exit_code)
