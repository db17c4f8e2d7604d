"""Plotly figures as plain values: ``{"data": [...], "layout": {...}}``.

Colours of text, lines and background are the page's, which knows whether it is light or dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from u2pl.losses import contrastive_floor
from u2pl.report.record import Inspection, Record, Result, Section

Figure = dict[str, Any]

MOST_POINTS = 1500
"""Of a curve; a longer one is thinned out."""
_STUDENT, _TEACHER, _THIRD, _FOURTH = "#e07b39", "#3b82c4", "#3a9e6f", "#b75fb3"


def training_curves(record: Record) -> dict[str, Figure]:
    """The curves of a run by name; one without a point is left out."""
    figures = {
        "losses": losses(record),
        "miou": miou(record),
        "shares": shares(record),
        "threshold": threshold(record),
    }
    return {name: figure for name, figure in figures.items() if figure["data"]}


def losses(record: Record) -> Figure:
    """L_s, L_u and L_c, each while it is trained on, and what L_c cannot fall below."""
    method = record.config.method
    lines = [
        _curve(record, "loss_s", "L_s, labelled", _TEACHER),
        _curve(record, "loss_u", "L_u, pseudo-labels", _STUDENT, only_with="reliable_share"),
        _curve(record, "loss_c", "L_c, contrast", _THIRD, only_with="active_classes"),
    ]
    figure = _lines([line for line in lines if line["x"]], "loss, nats")
    contrast = lines[2]["x"]
    if contrast:
        floor = contrastive_floor(method.num_negatives, temperature=method.temperature)
        name = f"floor of L_c, {floor:.3f}"
        dashed = {"color": _THIRD, "width": 1.5, "dash": "dash"}
        ends = [contrast[0], contrast[-1]]
        figure["data"].append(
            {"type": "scatter", "mode": "lines", "name": name, "line": dashed}
            | {"x": ends, "y": [floor, floor]}
        )
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return figure


def miou(record: Record) -> Figure:
    """mIoU of student and teacher on val."""
    lines = [
        _curve(record, f"miou_{key}", name, color, kind="val")
        for key, name, color in (
            ("student", "student", _STUDENT),
            ("ema", "teacher", _TEACHER),
        )
    ]
    for line in lines:
        line["mode"] = "lines+markers"
    return _lines([line for line in lines if line["x"]], "mIoU on val, %")


def shares(record: Record) -> Figure:
    """The reliable share, α_t and the fill of the queues, all fractions."""
    lines = [
        _curve(record, "reliable_share", "reliable share", _TEACHER),
        _curve(record, "unreliable_fraction", "α_t", _STUDENT),
        _curve(record, "queue_fill", "queue fill", _THIRD),
    ]
    figure = _lines([line for line in lines if line["x"]], "fraction")
    figure["layout"]["yaxis"]["range"] = [0, 1.05]
    return figure


def threshold(record: Record) -> Figure:
    """γ_t, the entropy up to which a pixel is reliable."""
    line = _curve(record, "entropy_threshold", "γ_t", _FOURTH)
    return _lines([line] if line["x"] else [], "γ_t, nats")


def class_iou(result: Result) -> Figure:
    """IoU of each class, student and teacher."""
    names = list(result.ema.iou)
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "marker": {"color": color},
            "y": list(range(len(names))),
            "x": [scores.iou.get(class_name) for class_name in names],
            "hovertext": [_short(class_name) for class_name in names],
            "hovertemplate": "%{hovertext}: %{x:.1f} %",
        }
        for name, scores, color in (
            ("student", result.student, _STUDENT),
            ("teacher", result.ema, _TEACHER),
        )
    ]
    return _bars(bars, names, "IoU, %")


def confusion(result: Result) -> Figure:
    """The teacher's confusion matrix, each row in percent of the class's true pixels."""
    names = [_short(name) for name in result.ema.iou]
    rows, places = result.ema.confusion, list(range(len(names)))
    shares = [[100 * count / max(sum(row), 1) for count in row] for row in rows]
    heat = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": shares,
        "customdata": [
            [[names[t], names[p], count] for p, count in enumerate(row)]
            for t, row in enumerate(rows)
        ],
        "zmin": 0,
        "zmax": 100,
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
        "hovertemplate": "true %{customdata[0]}<br>predicted %{customdata[1]}<br>"
        "%{z:.1f} %, %{customdata[2]:,} pixels"
        "<extra></extra>",
    }
    if len(names) <= 12:
        heat["texttemplate"] = "%{z:.0f}"
    labels = {"tickmode": "array", "tickvals": places, "ticktext": names}
    layout = {
        "xaxis": {"title": {"text": "predicted"}, "tickangle": -45, "constrain": "domain"} | labels,
        "yaxis": {"title": {"text": "true"}, "autorange": "reversed"} | labels,
        "height": min(900, 240 + 26 * len(names)),
    }
    return {"data": [heat], "layout": layout}


def coverage(inspection: Inspection) -> Figure:
    """How right the surest pixels are, for a growing share of them."""
    colors = (_TEACHER, _STUDENT, _THIRD)
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": _short(name),
            "line": {"color": colors[index % len(colors)]},
            "x": [100 * share for share, _ in section.coverage],
            "y": [precision for _, precision in section.coverage],
        }
        for index, (name, section) in enumerate(inspection.sections.items())
        if section.coverage
    ]
    figure = _lines(lines, "of them right, %")
    figure["layout"]["xaxis"] = {"title": {"text": "surest pixels, %"}}
    return figure


def precision(section: Section) -> Figure:
    """Of each class the precision of its reliable and of its unreliable pseudo-labels."""
    names = list(section.classes)
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "marker": {"color": color},
            "y": list(range(len(names))),
            "x": [getattr(section.classes[c], f"{name}_precision") for c in names],
            "customdata": [getattr(section.classes[c], name) for c in names],
            "hovertext": [_short(c) for c in names],
            "hovertemplate": "%{hovertext}: %{x:.1f} % of %{customdata:,} pixels",
        }
        for name, color in (("unreliable", _STUDENT), ("reliable", _TEACHER))
    ]
    return _bars(bars, names, "pseudo-labels that are right, %")


def key_errors(section: Section) -> Figure:
    """Of each class the negative keys that are in truth of that class."""
    names = list(section.classes)
    bar = {
        "type": "bar",
        "orientation": "h",
        "name": "wrong keys",
        "marker": {"color": _FOURTH},
        "y": list(range(len(names))),
        "x": [section.classes[c].negatives_error_rate for c in names],
        "customdata": [section.classes[c].negatives for c in names],
        "hovertext": [_short(c) for c in names],
        "hovertemplate": "%{hovertext}: %{x:.2f} % of %{customdata:,} keys<extra></extra>",
    }
    return _bars([bar], names, "negative keys that are in truth of the class, %")


def seeds_of_groups(groups: Sequence[dict[str, Any]]) -> Figure:
    """The teacher's mIoU of each run, by group."""
    names = [f"{_short(group['label'])}" for group in groups]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "a run",
        "marker": {"color": _TEACHER, "size": 9, "opacity": 0.75},
        "x": [run["miou"] for group in groups for run in group["runs"]],
        "y": [index for index, group in enumerate(groups) for _ in group["runs"]],
        "text": [f"seed {run['seed']}" for group in groups for run in group["runs"]],
        "hovertemplate": "%{x:.2f} %, %{text}<extra></extra>",
    }
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean of the seeds",
        "marker": {"color": _STUDENT, "symbol": "line-ns-open", "size": 22, "line": {"width": 3}},
        "x": [group["mean"] for group in groups],
        "y": list(range(len(groups))),
    }
    figure = _bars([dots, means], names, "mIoU of the last teacher on val, %")
    figure["layout"]["yaxis"]["range"] = [len(names) - 0.5, -0.5]
    figure["layout"]["yaxis"].pop("autorange")
    figure["layout"]["xaxis"].pop("rangemode")
    return figure


def _curve(
    record: Record,
    key: str,
    name: str,
    color: str,
    *,
    kind: str = "train",
    only_with: str | None = None,
) -> Figure:
    rows = [
        row
        for row in record.rows
        if row["kind"] == kind and key in row and (only_with is None or only_with in row)
    ]
    rows = thinned(rows)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "line": {"color": color, "width": 1.5},
        "x": [row["step"] for row in rows],
        "y": [row[key] for row in rows],
    }


def thinned(rows: list[dict[str, Any]], most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """At most so many rows, evenly spread, the last one among them."""
    if len(rows) <= most:
        return rows
    return [rows[(index + 1) * len(rows) // most - 1] for index in range(most)]


def _lines(lines: list[Figure], title: str) -> Figure:
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": title}}}
    return {"data": lines, "layout": layout}


def _bars(bars: Iterable[Figure], names: Sequence[str], title: str) -> Figure:
    """Horizontal bars, one place a class: names are labels alone, two of them may look alike."""
    layout = {
        "barmode": "group",
        "xaxis": {"title": {"text": title}, "rangemode": "tozero"},
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(names))),
            "ticktext": [_short(name) for name in names],
            "autorange": "reversed",
            "automargin": True,
        },
        "height": 130 + 30 * len(names),
    }
    return {"data": list(bars), "layout": layout}


def _short(name: str) -> str:
    """A name as a label: Plotly takes some HTML for formatting, and a long name leaves no room."""
    shortened = name if len(name) <= 24 else f"{name[:23]}…"
    return shortened.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
