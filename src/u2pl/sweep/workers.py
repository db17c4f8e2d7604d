"""Where cells are trained: here, one after the other, or in processes beside each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from u2pl.engine.loop import Progress
from u2pl.signals import STOP_SIGNALS, ignore_signals, noticing_signals
from u2pl.sweep.cells import Cell
from u2pl.sweep.schedule import POLL_SECONDS, Schedule
from u2pl.sweep.train import Listener, Outcome, run_cell

_STOP, _END = "stop", "end"


@dataclass(frozen=True)
class Watcher:
    """Who hears of a sweep.

    Attributes:
        on_start: called with a cell that begins.
        on_progress: called with a cell and each row of its training metrics.
        on_seeds: called with a cell on its way from tags to seeds, the stage, what is done, and of
            how many.
        on_end: called with a cell and how it has ended.
        on_wait: called where all that is left is with other sweeps.
    """

    on_start: Callable[[Cell], None] = lambda _: None
    on_progress: Callable[[Cell, Progress], None] = lambda *_: None
    on_seeds: Callable[[Cell, str, int, int], None] = lambda *_: None
    on_end: Callable[[Cell, Outcome], None] = lambda *_: None
    on_wait: Callable[[], None] = lambda: None


SILENT = Watcher()
"""Nobody hears of it."""


def run_here(schedule: Schedule, watcher: Watcher) -> bool:
    """Train cells one after the other in this process.

    Returns:
        Whether a signal has stopped it; the cell that was trained has saved.
    """
    with _interrupting():
        try:
            while not schedule.is_over:
                cell = schedule.next()
                if cell is None:
                    _wait(schedule, watcher)
                    continue
                watcher.on_start(cell)
                listener = Listener(
                    on_progress=partial(watcher.on_progress, cell),
                    on_seeds=partial(watcher.on_seeds, cell),
                )
                outcome = run_cell(cell, listener)
                schedule.end(cell, outcome)
                watcher.on_end(cell, outcome)
                if outcome.state == "stopped":
                    return True
        except KeyboardInterrupt:
            return True
    return False


def _wait(schedule: Schedule, watcher: Watcher) -> None:
    if not schedule.is_over:
        if schedule.begin_to_wait():
            watcher.on_wait()
        time.sleep(POLL_SECONDS)


@contextmanager
def _interrupting() -> Iterator[None]:
    """Have every signal that asks to stop do what Ctrl-C does, outside of a training.

    Within, the training notices the first one and saves.
    """
    before: dict[int, Any] = {}
    try:
        for number in STOP_SIGNALS:
            before[number] = signal.signal(number, signal.default_int_handler)
    except ValueError:  # not the main thread
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_in_processes(
    schedule: Schedule,
    watcher: Watcher,
    *,
    devices: Sequence[str | None],
    threads: int,
) -> bool:
    """Train cells in processes of their own.

    Args:
        schedule: the cells.
        watcher: who hears of them.
        devices: one a process: what ``CUDA_VISIBLE_DEVICES`` is there; None leaves it.
        threads: that each computes with on the CPU.

    Returns:
        Whether a signal has stopped it; the cells that were trained have saved.
    """
    pool = [Worker(device, threads) for device in devices]
    try:
        # a second signal acts as usual: it ends this process, and with it the others
        with noticing_signals() as asked_to_stop:
            is_told = False
            while True:
                if asked_to_stop() and not is_told:
                    is_told = True
                    for worker in pool:
                        worker.stop()
                busy = [worker for worker in pool if _fed(worker, schedule, watcher, is_told)]
                if not busy and (is_told or schedule.is_over):
                    return is_told
                if busy:
                    wait([worker.connection for worker in busy], timeout=0.2)
                    for worker in busy:
                        worker.listen(schedule, watcher)
                else:
                    _wait(schedule, watcher)
    finally:
        for worker in pool:
            worker.close()


def _fed(worker: Worker, schedule: Schedule, watcher: Watcher, is_told: bool) -> bool:
    """Give an idle worker the next cell; whether it is busy now."""
    if worker.cell is None and not is_told:
        cell = schedule.next()
        if cell is not None:
            watcher.on_start(cell)
            worker.start(cell)
    return worker.cell is not None


class Worker:
    """A process that trains one cell after the other; a new one where it has died.

    Args:
        device: see :func:`run_in_processes`.
        threads: see :func:`run_in_processes`.

    Attributes:
        cell: that it is at; None where it is idle.
        connection: what it says comes here.
    """

    def __init__(self, device: str | None, threads: int) -> None:
        self._device, self._threads = device, threads
        self._process: Any = None
        self.connection: Connection[Any, Any]
        self.cell: Cell | None = None

    def start(self, cell: Cell) -> None:
        """Begin a cell."""
        if self._process is None:
            self._spawn()
        self.cell = cell
        self.connection.send(cell)

    def stop(self) -> None:
        """Ask it to save and to end its cell."""
        if self.cell is None or self._process is None:
            return
        with suppress(OSError):
            self.connection.send(_STOP)
        if sys.platform != "win32":  # there this would end it at once
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def listen(self, schedule: Schedule, watcher: Watcher) -> None:
        """Pass on what it has said; where it has died its cell has failed."""
        assert self.cell is not None
        try:
            while self.cell is not None and self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "progress":
                    watcher.on_progress(self.cell, value)
                elif kind == "seeds":
                    watcher.on_seeds(self.cell, *value)
                else:
                    self._finish(value, schedule, watcher)
        except (EOFError, OSError):
            self._process.join()
            self._finish(Outcome("failed", self._last_words()), schedule, watcher)
            self._process = None

    def _finish(self, outcome: Outcome, schedule: Schedule, watcher: Watcher) -> None:
        assert self.cell is not None
        cell, self.cell = self.cell, None
        schedule.end(cell, outcome)
        watcher.on_end(cell, outcome)

    def _last_words(self) -> str:
        """Why a process may have died."""
        assert self.cell is not None
        code = self._process.exitcode
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        why = " (perhaps for want of memory)" if code == -9 else ""
        return f"Its process ended by {how}{why}; {self.cell.log} has its last words."

    def close(self) -> None:
        """End the process: one that is idle is told, one that is at a cell is killed."""
        if self._process is None:
            return
        if self.cell is None:
            with suppress(OSError):
                self.connection.send(_END)
            self._process.join()
        else:
            self._process.kill()
            self._process.join()
        self.connection.close()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, self._threads), name="u2pl-sweep"
        )
        with _started_with(self._device):
            self._process.start()
        theirs.close()


@contextmanager
def _started_with(device: str | None) -> Iterator[None]:
    """Let a process that is started see one GPU, and be deaf to signals until it can save.

    Ctrl-C reaches every process of a terminal, and one that is still importing would die of it.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        with suppress(ValueError):  # not the main thread
            ignore_signals()
        yield
    finally:
        with suppress(ValueError):
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if device is not None:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _work(connection: Connection[Any, Any], threads: int) -> None:
    """What a worker does: cells, until it is told to end or its sweep is gone."""
    # A signal may come several times, from the terminal, a scheduler and the sweep. A training
    # notices the first; any other must not end the process while it saves.
    ignore_signals()
    torch.set_num_threads(threads)
    is_told = False

    def told() -> bool:
        nonlocal is_told
        with suppress(EOFError, OSError):
            while connection.poll():
                is_told = connection.recv() == _STOP or is_told
        return is_told

    def say(kind: str, value: object) -> None:
        with suppress(OSError):  # the sweep is gone; the cell is worth finishing all the same
            connection.send((kind, value))
        if told():  # also where the signal came before the training could notice it
            signal.raise_signal(signal.SIGTERM)

    listener = Listener(
        on_progress=lambda progress: say("progress", progress),
        on_seeds=lambda *event: say("seeds", event),
        asked_to_stop=told,
    )
    while True:
        try:
            cell = connection.recv()
        except (EOFError, OSError):
            return
        if not isinstance(cell, Cell):  # _STOP or _END
            return
        with _redirected(cell):
            outcome = run_cell(cell, listener)
        with suppress(OSError):
            connection.send(("end", outcome))


@contextmanager
def _redirected(cell: Cell) -> Iterator[None]:
    """Send what the process prints, below Python too, to the cell's log."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    with cell.log.open("a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


def visible_devices() -> list[str]:
    """The GPUs that trainings may take, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
