"""What is known of each cell: its result, or how far it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.errors import UserError
from u2pl.plain_files import read_rows, read_text
from u2pl.report.record import Figures, Percent
from u2pl.sweep.cells import Cell, differences
from u2pl.sweep.lock import holder

State = Literal["done", "running", "changed", "failed", "begun", "missing"]

STATES: tuple[State, ...] = ("done", "running", "changed", "failed", "begun", "missing")
"""In the order in which they are told."""


@dataclass(frozen=True)
class Status:
    """How far a cell is.

    Attributes:
        state: ``done``; ``running`` in another process; ``changed``: what lies in its folder is of
            another configuration or data; ``failed`` in the last attempt; ``begun``; ``missing``.
        detail: in words: what has changed, why it failed, or who trains it.
        step: that a training has reached.
        result: of a cell that is done.
    """

    state: State
    detail: str = ""
    step: int = 0
    result: dict[str, Any] | None = None


class _Score(Figures):
    """Of one split and network."""

    miou: Percent | None
    iou: Annotated[dict[str, Percent | None], Field(min_length=1)]


class _Result(Figures):
    """What a table needs of a line of results."""

    row: str
    share: str | None
    seed: int
    scores: dict[str, dict[str, _Score]]
    checkpoint: str
    protocol: str | None
    seeds: dict[str, Any] | None
    seconds: Annotated[float, Field(ge=0)]
    settings: dict[str, Any]
    data: dict[str, str]


def is_result(value: dict[str, Any]) -> bool:
    """Whether plain values are what :func:`append_line` writes; a file may have been edited."""
    try:
        _Result.model_validate(value)
    except ValidationError:
        return False
    return True


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``results.jsonl``; none where there is no file.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        rows = read_rows(path) if path.is_file() else []
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from None
    return [row for row in rows if is_result(row)]


def kept_result(cell: Cell) -> dict[str, Any] | None:
    """What lies in a cell's folder, where it is its result as it is configured now."""
    found = read_object(cell.result)
    if found is None or not is_result(found):
        return None
    return found if fits(cell, found) and is_scored(cell, found) else None


def append_line(path: Path, result: dict[str, Any]) -> None:
    """Add a line in one write; behind a torn one it begins anew."""
    data = (json.dumps(result, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":
                data = b"\n" + data
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mend_lines(cells: Sequence[Cell], lines: Path) -> None:
    """Add the results that a crash, or another machine's write, has kept out of the file."""
    known = {json.dumps(line, sort_keys=True) for line in read_lines(lines)}
    for cell in cells:
        result = read_object(cell.result)
        if (
            result is not None
            and is_result(result)
            and json.dumps(result, sort_keys=True) not in known
        ):
            append_line(lines, result)


def look(cell: Cell, lines: Iterable[dict[str, Any]]) -> Status:
    """How far a cell is.

    Args:
        cell: which one.
        lines: of the ``results.jsonl``.
    """
    kept = [line for line in lines if fits(cell, line) and is_scored(cell, line)]
    result = kept_result(cell) or (kept[-1] if kept else None)
    if result is not None:
        return Status("done", result=result, step=cell.steps)
    if (who := holder(cell.lock)) is not None:
        return Status("running", who, step=last_step(cell))
    changes = changes_of(cell)
    if changes:
        shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if changes[3:] else "")
        return Status("changed", shown, step=last_step(cell))
    failure = read_object(cell.failure)
    if failure is not None:
        return Status("failed", str(failure.get("error")), step=last_step(cell))
    if os.path.isfile(RunFolder(cell.folder).config):
        return Status("begun", step=last_step(cell))
    return Status("missing")


def fits(cell: Cell, result: dict[str, Any]) -> bool:
    """Whether a result is of this cell as it is configured now."""
    same = (result["row"], result["share"], result["seed"])
    return same == (cell.row, cell.share, cell.seed) and not _differs(cell, result)


def is_scored(cell: Cell, result: dict[str, Any]) -> bool:
    """Whether a result has every score that the table wants."""
    scores, wanted = result["scores"], cell.scoring
    return (
        result["checkpoint"] == wanted.checkpoint
        and result["protocol"] == wanted.protocol
        and all(weights in scores.get(split, {}) for split, weights in wanted.columns)
    )


def changes_of(cell: Cell) -> list[str]:
    """In what the training in a cell's folder differs from the cell; nothing where none is."""
    begun = read_object(cell.begun)
    if begun is None:
        if os.path.isfile(RunFolder(cell.folder).config):
            return ["the folder holds a run that no sweep has begun"]
        return []
    return _differs(cell, begun)


def _differs(cell: Cell, known: dict[str, Any]) -> list[str]:
    settings, data = known.get("settings"), known.get("data")
    if not isinstance(settings, dict) or not isinstance(data, dict):
        return ["what it was made with is not known"]
    found = differences(settings, cell.settings)
    sections = [key for key in {**data, **cell.data} if data.get(key) != cell.data.get(key)]
    return found + [f"the data have other {key}" for key in sorted(sections)]


def last_step(cell: Cell) -> int:
    """The step that a training has reported last; 0 before."""
    with suppress(OSError, ValueError):
        rows = read_metrics(RunFolder(cell.folder).metrics)
        return max((row["step"] for row in rows), default=0)
    return 0


def read_object(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where it is missing or torn."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
