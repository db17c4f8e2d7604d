"""``u2pl sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from u2pl import sweep as sweeps
from u2pl.cli.console import (
    JsonOption,
    TrainingDisplay,
    as_it_is,
    console,
    say,
    write_result,
)
from u2pl.cli.plan import duration
from u2pl.config import parse_assignments
from u2pl.engine.loop import RESUME_ME
from u2pl.errors import UserError
from u2pl.sweep.cells import Cell
from u2pl.sweep.table import spread
from u2pl.sweep.train import Outcome


def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file; see docs/how-to/sweep.md.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results.  [default: runs/ and the file's name]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="What $DATA in the file stands for: a folder.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, for all rows. May be given again."),
    ] = None,
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Only this row. May be given again.")
    ] = None,
    shares: Annotated[
        list[str] | None, typer.Option("--share", help="Only this share. May be given again.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Only this seed. May be given again.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Trainings at a time.  [default: one a GPU, or one]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List all cells and what is left; train none.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: make a few steps of each row.")
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Train cells anew whose configuration has changed.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Train a table of methods, shares of labels and seeds; a second call goes on.

    Results are appended to results.jsonl and never computed twice; Ctrl-C and SIGTERM save first.
    """
    if measure and not dry_run:
        raise UserError("--measure needs --dry-run; a sweep itself knows soon enough.", exit_code=2)
    given: dict[str, Any] = {
        "out": out or Path("runs") / file.stem,
        "data": data,
        "overrides": parse_assignments(settings or []),
        "chosen": sweeps.Chosen(rows or None, shares or None, seeds or None),
        "jobs": jobs,
    }
    if dry_run:
        write_result(json_file, look(file, given, measure))
        return
    with TrainingDisplay() as display:
        result = sweeps.run_sweep(file, **given, redo=redo, watcher=watcher_of(display))
    tell(result)
    write_result(json_file, result)
    end(result)


def look(file: Path, given: dict[str, Any], measure: bool) -> dict[str, Any]:
    """Print how far a sweep is, and return it."""
    found = sweeps.look_at_sweep(
        file, **given, measure=measure, on_measure=lambda row: say(f"Trying steps of {row}.")
    )
    tell_what_is_left(found)
    return found


def watcher_of(display: TrainingDisplay) -> sweeps.Watcher:
    """Shows cells as they go."""
    return sweeps.Watcher(
        on_start=lambda cell: say(f"{cell.name}: begins, log in {cell.log}"),
        on_progress=lambda cell, progress: display.progress(cell.name, progress),
        on_seeds=lambda cell, stage, done, total: display.seeds(
            f"{cell.name}, {stage}", done, total
        ),
        on_end=tell_end,
        on_wait=lambda: say("Waiting for cells that another sweep has."),
    )


def tell_end(cell: Cell, outcome: Outcome) -> None:
    """Say how a cell has ended."""
    detail = f": {outcome.detail}" if outcome.detail else "."
    words = {"elsewhere": "is with another sweep", "changed": "is left as it is"}
    say(f"{cell.name}: {words.get(outcome.state, outcome.state)}{detail}")


def tell_what_is_left(found: dict[str, Any]) -> None:
    """Print every cell, why some are not done, and what the rest costs."""
    console.print(cells_table(found))
    for cell in found["cells"]:
        if cell["detail"]:
            say(f"{named(cell)}: {cell['state']}: {cell['detail']}")
    say(describe_cost(found))


def tell(result: dict[str, Any]) -> None:
    """Print the table, what differs, and what a reader must know."""
    if result["rows"]:
        console.print(scores_table(result))
    for item in result["differences"]:
        share = "" if item["share"] is None else f", {item['share']}"
        say(f"{item['row']}{share} against {item['base']}: {item['statement']}")
    for note in result["notes"]:
        say(f"Note: {note}")
    say(f"Wrote {', '.join(result['files'])}.")


def end(result: dict[str, Any]) -> None:
    """End with the status of the whole.

    Raises:
        UserError: where the sweep was stopped (exit status 75), or a cell has failed or changed.
    """
    cells = result["cells"]
    left = sum(cell["state"] != "done" for cell in cells)
    if result["stopped"]:
        raise UserError(
            f"Stopped; {len(cells) - left} of {len(cells)} cells are done, and what was trained is "
            "saved. The same command goes on.",
            exit_code=RESUME_ME,
        )
    failed = [cell for cell in cells if cell["state"] == "failed"]
    changed = [cell for cell in cells if cell["state"] == "changed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells have failed, the first {named(failed[0])}: "
            f"{failed[0]['detail']} The same command tries them again."
        )
    if changed:
        raise UserError(
            f"{len(changed)} of {len(cells)} cells were trained with another configuration, the "
            f"first {named(changed[0])}: {changed[0]['detail']}. They are not in the table; add "
            "--redo to train them anew and keep the old ones, or choose another --out."
        )


def named(cell: dict[str, Any]) -> str:
    """A cell in a sentence.

    >>> named({"row": "u2pl", "share": "1/8", "seed": 2})
    'u2pl, 1/8, seed 2'
    """
    share = "" if cell["share"] is None else f"{cell['share']}, "
    return f"{cell['row']}, {share}seed {cell['seed']}"


def scores_table(result: dict[str, Any]) -> Table:
    """Mean and deviation of each row and share."""
    table = Table(
        title=f"mIoU in %, {result['checkpoint']} checkpoint, mean ± deviation over seeds"
    )
    table.add_column("row", overflow="fold")
    for head in ("share", "seeds", *result["columns"], "a run"):
        table.add_column(head.replace("ema", "teacher"), justify="right")
    for row in result["rows"]:
        figures = [spread(score["mean"], score["deviation"]) for score in row["scores"].values()]
        cells = [row["row"], row["share"] or "–", row["n"], *figures, length(row["seconds"])]
        table.add_row(*map(as_it_is, cells))
    return table


def cells_table(found: dict[str, Any]) -> Table:
    """Every cell: how far it is, and what it will cost."""
    table = Table(title=as_it_is(f"{found['name']}: {len(found['cells'])} cells"))
    for head in ("row", "share", "seed", "state", "step", "left"):
        table.add_column(head, overflow="fold")
    for cell in found["cells"]:
        left = "unknown" if cell["cost"] is None else length(cell["cost"])
        left = f"{left} ?" if cell["guessed"] else left
        is_left = cell["state"] not in ("done", "changed")
        parts = [
            cell["row"],
            cell["share"] or "–",
            cell["seed"],
            cell["state"],
            f"{cell['step']}/{cell['steps']}",
            left if is_left else "–",
        ]
        table.add_row(*map(as_it_is, parts))
    return table


def describe_cost(found: dict[str, Any]) -> str:
    """How many cells are how far, and how long the rest takes.

    >>> cells = [{"state": "done", "guessed": False}, {"state": "missing", "guessed": True}]
    >>> describe_cost({"cells": cells, "total_seconds": 7200.0, "unknown": 0, "jobs": 1})
    '1 done, 1 missing. About 2.0 hours, one at a time (? as the dearest other row; add --measure).'
    """
    states = [cell["state"] for cell in found["cells"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    at_a_time = "one at a time" if found["jobs"] == 1 else f"{found['jobs']} at a time"
    if found["total_seconds"] is None:
        return f"{counts}. What the rest costs is not known; add --measure."
    more = f", and {found['unknown']} more of unknown cost" if found["unknown"] else ""
    if any(cell["guessed"] for cell in found["cells"]):
        more += " (? as the dearest other row; add --measure)"
    return f"{counts}. About {duration(found['total_seconds'] / 3600)}, {at_a_time}{more}."


def length(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> length(42.4), length(600), length(9000)
    ('42 s', '10 minutes', '2.5 hours')
    """
    return f"{seconds:.0f} s" if seconds < 100 else duration(seconds / 3600)
