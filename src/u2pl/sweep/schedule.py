"""Which cell comes next: what it needs is done, and no other process has it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from u2pl.sweep.cells import Cell
from u2pl.sweep.lock import holder
from u2pl.sweep.results import changes_of, kept_result
from u2pl.sweep.train import Outcome, read_failure

POLL_SECONDS = 5.0
"""Between two looks at cells that wait for another one, or that another sweep has."""


class Schedule:
    """The cells of a sweep that are still to be trained.

    Other sweeps may work on the same folder: what they have done is done, what they are at is
    waited for, and what fails there is not tried again here.

    Args:
        cells: in the order in which they should begin; those that others need are among them, or
            done.

    Attributes:
        outcomes: how cells have ended, by folder.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.outcomes: dict[Path, Outcome] = {}
        self._cells = {cell.folder: cell for cell in cells}
        self._waiting = list(cells)
        self._look_again = 0.0
        self._is_waiting = False
        self._failures = {cell.folder: read_failure(cell) for cell in cells}

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to begin."""
        return not self._waiting

    def next(self) -> Cell | None:
        """The next cell that can begin now, which counts as begun; None where all must wait."""
        if time.monotonic() < self._look_again:
            return None
        for cell in list(self._waiting):
            ended = self._ended_elsewhere(cell) or self._held_up(cell)
            if ended is not None:
                self._waiting.remove(cell)
                self.outcomes[cell.folder] = ended
            elif self._is_ready(cell):
                self._waiting.remove(cell)
                self._is_waiting = False
                return cell
        self._look_again = time.monotonic() + POLL_SECONDS
        return None

    def begin_to_wait(self) -> bool:
        """Say that nothing can be done now; whether this is new."""
        is_new, self._is_waiting = not self._is_waiting, True
        return is_new

    def end(self, cell: Cell, outcome: Outcome) -> None:
        """Say how a cell has ended; one that another process has is waited for."""
        self._look_again = 0.0
        if outcome.state == "elsewhere":
            self._waiting.append(cell)
            self._look_again = time.monotonic() + POLL_SECONDS
        else:
            self.outcomes[cell.folder] = outcome

    def _ended_elsewhere(self, cell: Cell) -> Outcome | None:
        """What another process has made of a cell since this sweep began."""
        if kept_result(cell) is not None:
            return Outcome("done")
        failure = read_failure(cell)
        if failure is not None and failure != self._failures[cell.folder]:
            return Outcome("failed", failure[1])
        if holder(cell.lock) is None and (changes := changes_of(cell)):
            return Outcome("changed", "; ".join(changes))
        return None

    def _held_up(self, cell: Cell) -> Outcome | None:
        """The failure of a cell whose need has failed."""
        for folder in cell.needs:
            outcome = self.outcomes.get(folder)
            if outcome is not None and outcome.state in ("failed", "changed"):
                needed = self._cells[folder].name
                return Outcome("failed", f"It needs the cell {needed}, which has {outcome.state}.")
        return None

    def _is_ready(self, cell: Cell) -> bool:
        for folder in cell.needs:
            needed = self._cells.get(folder)
            outcome = self.outcomes.get(folder)
            if needed is not None and (outcome is None or outcome.state != "done"):
                return False
        return holder(cell.lock) is None
