"""From the results of a sweep to its table: means over seeds, differences, classes, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from u2pl.data.images import write_whole
from u2pl.engine.checkpoint import write_json
from u2pl.errors import printable
from u2pl.report.compare import difference
from u2pl.sweep.cells import Cell
from u2pl.sweep.file import Sweep
from u2pl.sweep.plot import write_plot
from u2pl.sweep.results import Status

_WEIGHTS = {"ema": "teacher", "student": "student"}
_SEED_COLUMNS = ("miou", "miou_sure", "precision", "labeled_share")


def make_table(
    sweep: Sweep, cells: Sequence[Cell], status: Mapping[Path, Status]
) -> dict[str, Any]:
    """Put the results of all cells that are done into a table.

    Args:
        sweep: the file.
        cells: all of them.
        status: by the cell's folder.

    Returns:
        ``name``, ``columns`` (``split weights``), ``base``, ``rows``, ``differences``, ``seeds``
        (of rows that made seed masks), ``cells`` and ``notes``; docs/reference/cli.md has every
        key. mIoU and IoU are in percent; deviations are of a sample (n - 1).
    """
    results = [status[cell.folder].result for cell in cells]
    done = [result for result in results if result is not None]
    groups: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for name in sweep.rows:
        for share in sweep.shares_of(name):
            found = [result for result in done if (result["row"], result["share"]) == (name, share)]
            groups[name, share] = sorted(found, key=lambda result: int(result["seed"]))
    rows = [_row(sweep, name, share, found) for (name, share), found in groups.items() if found]
    return {
        "name": sweep.name,
        "columns": [" ".join(column) for column in sweep.evaluation.columns],
        "checkpoint": sweep.evaluation.checkpoint,
        "base": sweep.base_row,
        "rows": rows,
        "differences": _differences(sweep.base_row, rows),
        "seeds": [made for key, group in groups.items() if (made := _seeds(*key, group))],
        "cells": [_cell(cell, status[cell.folder]) for cell in cells],
        "notes": _notes(cells, status, done),
    }


def _row(
    sweep: Sweep, name: str, share: str | None, results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Figures of one row and share."""
    scores = {}
    for split, weights in sweep.evaluation.columns:
        by_seed = {
            int(result["seed"]): float(result["scores"][split][weights]["miou"])
            for result in results
            if result["scores"][split][weights]["miou"] is not None
        }
        scores[f"{split} {weights}"] = {"seeds": by_seed, **_spread(list(by_seed.values()))}
    split, weights = sweep.evaluation.columns[0]
    ious = [result["scores"][split][weights]["iou"] for result in results]
    return {
        "row": name,
        "share": share,
        "about": sweep.rows[name].about,
        "n": len(results),
        "scores": scores,
        "iou": {label: _mean([iou.get(label) for iou in ious]) for label in ious[0]},
        "seconds": fmean(float(result["seconds"]) for result in results),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "mean": fmean(values) if values else None,
        "deviation": stdev(values) if len(values) > 1 else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a seed has no such figure."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _differences(base: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row against the base row of its share, seed by seed, in the first column."""
    groups = {
        (row["row"], row["share"]): {
            "label": row["row"],
            "seeds": next(iter(row["scores"].values()))["seeds"],
        }
        for row in rows
    }
    found = []
    for (name, share), group in groups.items():
        if name != base and (base, share) in groups:
            paired = difference(group, groups[base, share])
            found.append({"row": name, "share": share, **paired})
    return found


def _seeds(
    name: str, share: str | None, results: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """How good the seed masks of a row are; None where it made none, or nothing is known."""
    known = [result["seeds"] for result in results if isinstance(result.get("seeds"), dict)]
    if not known:
        return None
    columns = {
        column: _spread([seeds[column] for seeds in known if seeds.get(column) is not None])
        for column in _SEED_COLUMNS
    }
    return {"row": name, "share": share, "n": len(known), **columns}


def _cell(cell: Cell, status: Status) -> dict[str, Any]:
    return {
        "row": cell.row,
        "share": cell.share,
        "seed": cell.seed,
        "state": status.state,
        "detail": status.detail,
        "step": status.step,
        "steps": cell.steps,
        "run": str(cell.folder),
        "seconds": None if status.result is None else status.result.get("seconds"),
    }


def _notes(
    cells: Sequence[Cell], status: Mapping[Path, Status], results: Sequence[dict[str, Any]]
) -> list[str]:
    """What a reader must know before believing the table."""
    notes = []
    missing = sum(status[cell.folder].state != "done" for cell in cells)
    if missing:
        notes.append(f"{missing} of {len(cells)} cells are not done.")
    for key, what in (("commit", "commits"), ("u2pl", "versions of u2pl"), ("device", "devices")):
        found = sorted({str(result.get(key)) for result in results})
        if len(found) > 1:
            notes.append(f"The cells were trained with several {what}: {', '.join(found)}.")
    notes.append("± is the standard deviation over seeds (n - 1).")
    return notes


def write_table(table: dict[str, Any], out: Path) -> list[Path]:
    """Write ``table.json``, ``table.md`` and, where there are several shares, ``shares.png``.

    Returns:
        The files.

    Raises:
        UserError: where they cannot be written.
    """
    write_json(out / "table.json", table)
    text = markdown(table)
    page = out / "table.md"
    write_whole(page, partial(Path.write_text, data=text, encoding="utf-8"))
    picture = write_plot(table, out / "shares.png")
    return [out / "table.json", page, *([] if picture is None else [picture])]


def markdown(table: dict[str, Any]) -> str:
    """The table as a page of Markdown."""
    parts = [f"# {_text(table['name'])}\n"]
    if table["rows"]:
        parts += [_scores_table(table), _classes_table(table)]
    if table["differences"]:
        parts.append(_differences_table(table))
    if table["seeds"]:
        parts.append(_seeds_table(table))
    parts.append("".join(f"- {_text(note)}\n" for note in table["notes"]))
    left = [cell for cell in table["cells"] if cell["state"] != "done"]
    if left:
        lines = [[_where(cell), cell["seed"], cell["state"], cell["detail"]] for cell in left]
        parts.append(_grid(["not done", "seed", "state", "why"], lines))
    return "\n".join(parts)


def _scores_table(table: dict[str, Any]) -> str:
    heads = [f"{s}, {_WEIGHTS[w]}" for s, w in (c.split(" ") for c in table["columns"])]
    lines = []
    for row in table["rows"]:
        scores = row["scores"].values()
        seeds = ", ".join(str(seed) for seed in next(iter(scores))["seeds"])
        figures = [spread(score["mean"], score["deviation"]) for score in scores]
        lines.append([_where(row), row["about"], seeds, *figures, f"{row['seconds']:.0f}"])
    title = f"mIoU in %, {table['checkpoint']} checkpoint"
    return _grid([title, "", "seeds", *heads, "seconds a run"], lines)


def _classes_table(table: dict[str, Any]) -> str:
    labels = list(dict.fromkeys(label for row in table["rows"] for label in row["iou"]))
    lines = [
        [_where(row), *(spread(row["iou"].get(label), None) for label in labels)]
        for row in table["rows"]
    ]
    return _grid([f"IoU in %, {_column(table)}", *labels], lines)


def _differences_table(table: dict[str, Any]) -> str:
    lines = [
        [
            _where(item),
            ", ".join(
                f"{gap:+.1f} (seed {seed})"
                for seed, gap in zip(item["seeds"], item["differences"], strict=True)
            ),
            item["statement"],
        ]
        for item in table["differences"]
    ]
    return _grid([f"against {table['base']}, {_column(table)}", "by seed", "mean"], lines)


def _seeds_table(table: dict[str, Any]) -> str:
    lines = []
    for row in table["seeds"]:
        figures = [spread(row[name]["mean"], row[name]["deviation"]) for name in _SEED_COLUMNS]
        lines.append([_where(row), row["n"], *figures])
    return _grid(["the seed masks themselves", "n", *_SEED_COLUMNS], lines)


def _column(table: dict[str, Any]) -> str:
    split, weights = table["columns"][0].split(" ")
    return f"{split}, {_WEIGHTS[weights]}"


def _where(row: Mapping[str, Any]) -> str:
    """A row's name, and its share of the labels."""
    return str(row["row"]) if row["share"] is None else f"{row['row']}, {row['share']}"


def spread(mean: float | None, deviation: float | None) -> str:
    """A figure and its deviation; a dash where there is none.

    >>> spread(57.25, 0.512), spread(57.25, None), spread(None, None)
    ('57.2 ± 0.5', '57.2', '–')
    """
    if mean is None:
        return "–"
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _grid(heads: Sequence[object], lines: Sequence[Sequence[object]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(_text(item) for item in row)} |\n" for row in rows)


def _text(value: object) -> str:
    """A name as it is, on one line, that closes no column and opens no tag."""
    return printable(str(value)).replace("|", "\\|").replace("<", "&lt;")
