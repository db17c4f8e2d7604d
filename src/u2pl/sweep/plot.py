"""A picture of a sweep's rows over their shares of labels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from u2pl.data.images import write_whole

_FEWEST_SHARES = 2
_BESIDE = 0.015  # of the distance between two shares


def write_plot(table: dict[str, Any], path: Path) -> Path | None:
    """Draw mIoU over the share of labels: a line a row, bars of one deviation.

    Rows of a single share are left out.

    Args:
        table: see :func:`u2pl.sweep.table.make_table`.
        path: of the PNG file.

    Returns:
        The file; None where no row has several shares.

    Raises:
        UserError: where it cannot be written.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"]:
        if row["share"] is not None and _first(row)["mean"] is not None:
            lines.setdefault(row["row"], []).append(row)
    lines = {name: rows for name, rows in lines.items() if len(rows) >= _FEWEST_SHARES}
    if not lines:
        return None
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shares = sorted({row["share"] for rows in lines.values() for row in rows}, key=_size)
    for index, (name, rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: _size(row["share"]))
        aside = _BESIDE * (index - (len(lines) - 1) / 2)  # or bars would hide one another
        places = [shares.index(row["share"]) + aside for row in rows]
        means = [_first(row)["mean"] for row in rows]
        bars = [_first(row)["deviation"] or 0.0 for row in rows]
        label = name.replace("$", r"\$")  # no formula
        axes.errorbar(places, means, yerr=bars, marker="o", capsize=3, label=label)
    axes.set_xticks(range(len(shares)), shares)
    axes.set_xlabel("labelled images")
    axes.set_ylabel(f"mIoU in %, {table['columns'][0].replace('ema', 'teacher')}")
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, partial(_save, figure))
    return path


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)


def _first(row: dict[str, Any]) -> dict[str, Any]:
    """The scores of the first column."""
    scores: Sequence[dict[str, Any]] = list(row["scores"].values())
    return scores[0]


def _size(share: str) -> tuple[bool, Fraction]:
    """Fractions in order, then numbers of images.

    >>> sorted(["1/4", "100", "1/16", "23"], key=_size)
    ['1/16', '1/4', '23', '100']
    """
    return share.isdecimal(), Fraction(share)
