"""A whole sweep: look, train what is missing, and write the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from u2pl.engine.trial import try_steps
from u2pl.errors import UserError, nearest_name
from u2pl.sweep.cells import Cell, Plan, planned
from u2pl.sweep.file import order_of
from u2pl.sweep.lock import Lock
from u2pl.sweep.results import Status, look, mend_lines, read_lines
from u2pl.sweep.schedule import Schedule
from u2pl.sweep.table import make_table, write_table
from u2pl.sweep.workers import SILENT, Watcher, run_here, run_in_processes, visible_devices


@dataclass(frozen=True)
class Chosen:
    """Which cells of a sweep are meant; None takes all.

    Attributes:
        rows, shares, seeds: by name or number.
    """

    rows: Sequence[str] | None = None
    shares: Sequence[str] | None = None
    seeds: Sequence[int] | None = None

    def of(self, plan: Plan) -> list[Cell]:
        """The cells that are meant, and those that they need.

        Raises:
            UserError: for one that the sweep does not have.
        """
        for what, wanted, known in (
            ("row", self.rows, {cell.row: None for cell in plan.cells}),
            ("share", self.shares, {cell.share: None for cell in plan.cells}),
            ("seed", self.seeds, {cell.seed: None for cell in plan.cells}),
        ):
            for name in wanted or ():
                if name not in known:
                    names = [str(item) for item in known if item is not None]
                    raise UserError(
                        f"The sweep has no {what} '{name}'.{nearest_name(str(name), names)} "
                        f"It has {', '.join(names) or 'none'}.",
                        exit_code=2,
                    )
        rows = None
        if self.rows is not None:
            rows = {n for row in self.rows for n in order_of(plan.path, plan.sweep, row)}
        return [
            cell
            for cell in plan.cells
            if (rows is None or cell.row in rows)
            and (self.shares is None or cell.share in self.shares)
            and (self.seeds is None or cell.seed in self.seeds)
        ]


EVERYTHING = Chosen()


@dataclass(frozen=True)
class Cost:
    """What the cells that are left will take.

    Attributes:
        seconds: of each cell that is not done, by folder; None is unknown.
        total: seconds until all are done with so many at a time; None where nothing is known.
        unknown: cells whose cost is unknown, which the total leaves out.
        guessed: those of whose row nothing is known; they cost what the dearest other row does.
    """

    seconds: dict[Path, float | None]
    total: float | None
    unknown: int
    guessed: frozenset[Path]


def look_at_sweep(
    path: Path,
    *,
    out: Path,
    data: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    chosen: Chosen = EVERYTHING,
    jobs: int | None = None,
    measure: bool = False,
    on_measure: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Say of each cell of a sweep how far it is and what it will cost; leave nothing behind.

    Args:
        path, out, data, overrides, chosen, jobs: see :func:`run_sweep`.
        measure: train a few steps of each row that is not done, and forget them; without, a cell
            costs what those of its row have taken.
        on_measure: called with a row before it is measured.

    Returns:
        As :func:`run_sweep`, with ``cost`` (seconds that are left, null where unknown) and
        ``guessed`` (by the dearest other row) of each of ``cells``, and ``total_seconds``,
        ``unknown`` (cells of unknown cost) and ``jobs``.

    Raises:
        UserError: see :func:`run_sweep`.
    """
    jobs = check_jobs(jobs)
    with planned(path, out=out, data=data, overrides=overrides, dry=True) as plan:
        cells = chosen.of(plan)
        status = look_at(plan.cells, plan)
        measured = {}
        if measure:
            measured = measure_rows(plan, [c for c in cells if is_left(status, c)], on_measure)
        cost = estimate(cells, status, measured, jobs)
        table = make_table(plan.sweep, cells, status)
    for cell, line in zip(cells, table["cells"], strict=True):
        line["cost"] = cost.seconds.get(cell.folder, 0.0)
        line["guessed"] = cell.folder in cost.guessed
    return table | {"total_seconds": cost.total, "unknown": cost.unknown, "jobs": jobs}


def is_left(status: Mapping[Path, Status], cell: Cell) -> bool:
    """Whether a call would train a cell."""
    return status[cell.folder].state not in ("done", "changed")


def look_at(cells: Iterable[Cell], plan: Plan) -> dict[Path, Status]:
    """How far each cell is, by its folder."""
    lines = read_lines(plan.lines)
    return {cell.folder: look(cell, lines) for cell in cells}


def measure_rows(
    plan: Plan, cells: Iterable[Cell], on_measure: Callable[[str], None]
) -> dict[str, float]:
    """Seconds that a training of each row takes, by a few of its steps; scores are left out.

    A row that begins with tags is left out: its steps need seeds that are not there yet.
    """
    found: dict[str, float] = {}
    for cell in cells:
        if cell.row not in found and cell.config.setting != "weak":
            on_measure(cell.row)
            trial = try_steps(cell.config, plan.datasets[cell.dataset])
            found[cell.row] = trial.seconds(cell.config.train)
    return found


def estimate(
    cells: Sequence[Cell],
    status: Mapping[Path, Status],
    measured: Mapping[str, float],
    jobs: int,
) -> Cost:
    """What is left to do.

    Args:
        cells: that are meant.
        status: of all cells of the sweep.
        measured: seconds of a training, by row; a row that is not there costs what its cells that
            are done have taken.
        jobs: cells at a time.
    """
    taken: dict[str, list[float]] = {}
    for one in status.values():
        if one.result is not None:
            taken.setdefault(str(one.result["row"]), []).append(float(one.result["seconds"]))
    whole = {row: fmean(seconds) for row, seconds in taken.items()} | dict(measured)
    steps = {cell.row: cell.steps for cell in cells}
    dearest = max((whole[row] / steps[row] for row in whole if row in steps), default=None)
    seconds: dict[Path, float | None] = {}
    guessed = set[Path]()
    for cell in cells:
        if is_left(status, cell):
            left = cell.steps - min(status[cell.folder].step, cell.steps)
            a_step = whole[cell.row] / cell.steps if cell.row in whole else dearest
            seconds[cell.folder] = None if a_step is None else a_step * left
            if cell.row not in whole and a_step is not None:
                guessed.add(cell.folder)
    known = [value for value in seconds.values() if value is not None]
    total = max(sum(known) / jobs, max(known)) if known else (None if seconds else 0.0)
    return Cost(seconds, total, len(seconds) - len(known), frozenset(guessed))


def check_jobs(jobs: int | None) -> int:
    """How many cells are trained at a time; None takes one a GPU, or one.

    Raises:
        UserError: for less than one.
    """
    if jobs is None:
        return max(1, len(visible_devices()))
    if jobs < 1:
        raise UserError(f"Expected at least one job, got {jobs}.", exit_code=2)
    return jobs


def run_sweep(
    path: Path,
    *,
    out: Path,
    data: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    chosen: Chosen = EVERYTHING,
    jobs: int | None = None,
    redo: bool = False,
    watcher: Watcher = SILENT,
) -> dict[str, Any]:
    """Train every cell of a sweep that is not done, and write the table.

    Several calls may share a folder, on one machine or several: each cell is trained once. With
    more than one job, or on GPUs, cells are trained in processes of their own, so a script that
    calls this needs ``if __name__ == "__main__"``.

    Args:
        path: the sweep's file; docs/how-to/sweep.md says what stands in it.
        out: the folder of its results; what is done there is not repeated.
        data: what ``$DATA`` in the file stands for: a folder, or a dataset.yaml where the file
            names no data.
        overrides: settings of all rows by dotted key.
        chosen: the cells that are meant.
        jobs: cells at a time; None takes one a GPU, or one. On a CPU they share the threads.
        redo: train cells anew whose configuration has changed since; their folders are kept under
            another name.
        watcher: who hears of it.

    Returns:
        The table, see :func:`u2pl.sweep.table.make_table`, with ``files`` (those of the table) and
        ``stopped``: whether a signal has ended the call.

    Raises:
        UserError: for whatever is wrong with the file, a row or the data, before any training.
    """
    jobs = check_jobs(jobs)
    with planned(path, out=out, data=data, overrides=overrides) as plan:
        cells = chosen.of(plan)
        mend_lines(plan.cells, plan.lines)
        status = look_at(cells, plan)
        if redo:
            put_aside([cell for cell in cells if status[cell.folder].state == "changed"])
            status = look_at(cells, plan)
        schedule = Schedule([cell for cell in cells if status[cell.folder].state != "done"])
        stopped = _train(schedule, jobs, watcher)
        status = look_at(plan.cells, plan) | failed_now(schedule)
        meant = {cell.folder for cell in cells}
        shown = [c for c in plan.cells if c.folder in meant or status[c.folder].state == "done"]
        table = make_table(plan.sweep, shown, status)
        files = write_table(table, out)
    return table | {"files": [str(file) for file in files], "stopped": stopped}


def failed_now(schedule: Schedule) -> dict[Path, Status]:
    """The cells that have failed in this call, also without a word in their folder."""
    return {
        folder: Status("failed", outcome.detail)
        for folder, outcome in schedule.outcomes.items()
        if outcome.state == "failed"
    }


def _train(schedule: Schedule, jobs: int, watcher: Watcher) -> bool:
    """Train; whether a signal has stopped it."""
    gpus = visible_devices()
    if jobs == 1 and not gpus:
        return run_here(schedule, watcher)
    devices = [gpus[index % len(gpus)] if gpus else None for index in range(jobs)]
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        return run_in_processes(schedule, watcher, devices=devices, threads=threads)
    except KeyboardInterrupt:
        return True


def put_aside(cells: Iterable[Cell]) -> None:
    """Rename the folders of trainings of another configuration, so that nothing is lost.

    Raises:
        UserError: where one is being trained, or cannot be renamed.
    """
    for cell in cells:
        lock = Lock(cell.lock)
        if not lock.acquire():
            raise UserError(f"The cell {cell.name} is being trained; redo it later.")
        try:
            number = 1
            while os.path.lexists(_aside(cell, number)):
                number += 1
            cell.folder.rename(_aside(cell, number))
        except OSError as error:
            raise UserError(f"Cannot rename {cell.folder}: {error.strerror}.") from None
        finally:
            lock.release()


def _aside(cell: Cell, number: int) -> Path:
    return cell.folder.with_name(f"{cell.folder.name}-before-{number}")
