"""One HTML file, everything inside: it opens from a disk, without a network, on a phone too."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from u2pl.data.images import write_whole
from u2pl.errors import printable
from u2pl.report import charts
from u2pl.report.record import Record, Section

KINDS = ("truth", "prediction", "entropy", "reliable", "negatives")
LARGEST_PICTURE = 8 * 2**20
"""Bytes; a larger file is not put into the page."""
_SIGNATURES = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n"}
_GREY = (128, 128, 128)


def write_report(record: Record, out: Path) -> dict[str, Any]:
    """Write the page of a run.

    Args:
        record: the run.
        out: the file; whole or not at all.

    Returns:
        ``report`` (the path), ``bytes``, ``pictures`` (how many images are shown).

    Raises:
        UserError: where it cannot be written.
    """
    rows = picture_rows(record)
    figures = charts.training_curves(record)
    if record.result is not None:
        figures |= {
            "class_iou": charts.class_iou(record.result),
            "confusion": charts.confusion(record.result),
        }
    if record.inspection is not None:
        figures["coverage"] = charts.coverage(record.inspection)
        for number, section in enumerate(record.inspection.sections.values()):
            figures[f"precision-{number}"] = charts.precision(section)
            figures[f"keys-{number}"] = charts.key_errors(section)
    size = _write_page(
        out,
        "report.html.j2",
        figures,
        title=f"{record.name} – u2pl report",
        record=record,
        cards=cards(record),
        class_rows=class_rows(record),
        sections=[] if record.inspection is None else list(record.inspection.sections.items()),
        pictures=rows,
        class_names=_class_names(record),
        environment=environment_lines(record),
        commands=commands(record),
        settings=yaml.safe_dump(record.config.model_dump(mode="json"), sort_keys=False),
    )
    return {"report": str(out), "bytes": size, "pictures": len(rows)}


def write_comparison(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the page of a comparison; see :func:`u2pl.report.compare.compare_records`.

    Returns:
        ``report`` (the path) and ``bytes``.

    Raises:
        UserError: where it cannot be written.
    """
    figures = {"groups": charts.seeds_of_groups(result["groups"])}
    names = dict.fromkeys(name for group in result["groups"] for name in group["iou"])
    size = _write_page(
        out,
        "compare.html.j2",
        figures,
        title="u2pl compare",
        result=result,
        class_names=list(names),
    )
    return {"report": str(out), "bytes": size}


def _write_page(out: Path, template: str, figures: dict[str, Any], **values: Any) -> int:
    """Fill a template and write it; return its bytes."""
    scripts = [get_plotlyjs(), _asset("page.js")]
    text = (
        _environment()
        .get_template(template)
        .render(
            figures=figures,
            scripts=[Markup(script) for script in scripts],  # our own and Plotly's: no user's text
            style=Markup(_asset("page.css")),
            policy=content_policy(scripts),
            version=metadata.version("u2pl"),
            **values,
        )
    )
    data = text.encode("utf-8", errors="replace")
    write_whole(out, lambda temporary: temporary.write_bytes(data))
    return len(data)


def content_policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: these scripts alone may run, and nothing is fetched.

    What a name could smuggle past the escaping would still neither run nor phone home.
    """
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("u2pl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def percent(value: float | None, digits: int = 1) -> str:
    """A percentage, or a dash where there was nothing to count.

    >>> percent(61.234), percent(None)
    ('61.2', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def cards(record: Record) -> list[tuple[str, str, str]]:
    """The headline: a name, a figure and a remark each."""
    result = record.result
    if result is None:
        last = record.rows[-1]["step"] if record.rows else 0
        total = record.config.train.steps
        return [("training goes on", f"step {last}", f"of {total}; scores come at the end")]
    val = f"{result.ema.images} val images"
    best = result.best
    found = [
        ("teacher, last", f"{percent(result.ema.miou)} %", f"mIoU at step {result.step}, {val}"),
        ("student, last", f"{percent(result.student.miou)} %", f"mIoU at step {result.step}"),
        (
            "teacher, best",
            f"{percent(best.miou if best.miou >= 0 else None)} %",
            f"mIoU at step {best.step}, chosen on val",
        ),
        ("pixels right", f"{percent(result.ema.pixel_accuracy)} %", "teacher, last, val"),
    ]
    section = None if record.inspection is None else record.inspection.sections.get("val")
    if section is not None:
        share = f"the surest {100 * section.reliable_share:.0f} % of the pixels"
        found.append(("sure and right", f"{percent(section.reliable_precision)} %", share))
    return found


def class_rows(record: Record) -> list[dict[str, Any]]:
    """The per-class table: IoU of teacher and student, true pixels and their share."""
    if record.result is None:
        return []
    teacher, student = record.result.ema, record.result.student
    support = [sum(row) for row in teacher.confusion]
    return [
        {
            "name": name,
            "color": css_color(record, name),
            "teacher": teacher.iou[name],
            "student": student.iou.get(name),
            "support": pixels,
            "share": 100 * pixels / max(sum(support), 1),
        }
        for name, pixels in zip(teacher.iou, support, strict=True)
    ]


def css_color(record: Record, name: str) -> str:
    """A class's colour; grey where the run does not say it."""
    return "rgb({}, {}, {})".format(*record.colors.get(name, _GREY))


def _class_names(record: Record) -> list[tuple[str, str]]:
    """Names and colours in order of the ids, as the inspection has them."""
    sections: list[Section] = (
        [] if record.inspection is None else list(record.inspection.sections.values())
    )
    names = list(sections[0].classes) if sections else []
    return [(name, css_color(record, name)) for name in names]


def picture_rows(record: Record) -> list[dict[str, Any]]:
    """The images of an inspection with their pictures as data URIs; one without a file is out.

    Where the pictures lie is known here; no path is taken from a file.
    """
    if record.inspection is None:
        return []
    rows = []
    for number, picture in enumerate(record.inspection.pictures):
        folder = record.path / "pictures" / "inspection" / f"{number:03d}"
        kinds = {kind: data_uri(folder / f"{kind}.png", record.path) for kind in KINDS}
        image = data_uri(folder / "image.jpg", record.path)
        if image is None or None in kinds.values():
            continue
        rows.append(
            {
                "why": picture.why,
                "section": picture.section,
                "name": printable(picture.name),
                "miou": picture.miou,
                "image": image,
                **kinds,
            }
        )
    return rows


def data_uri(path: Path, root: Path) -> str | None:
    """A JPEG or PNG file as a data URI.

    Returns:
        None where it is missing, too large, no such image, or a link out of ``root``.
    """
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    if not inside or not os.path.isfile(path) or path.stat().st_size > LARGEST_PICTURE:
        return None
    data = path.read_bytes()
    for kind, signature in _SIGNATURES.items():
        if data.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return None


def environment_lines(record: Record) -> list[tuple[str, str]]:
    """What the run ran on: names and values as text."""
    lines = []
    for key, value in record.environment.items():
        if isinstance(value, dict):
            lines += [(f"{key}: {name}", str(inner)) for name, inner in value.items()]
        elif key != "command":
            lines.append((key, str(value)))
    return lines


def commands(record: Record) -> list[tuple[str, str]]:
    """How the run was made, and what can be done with it."""
    run = shlex.quote(str(record.path))
    command = record.environment.get("command")
    found = []
    if isinstance(command, list):
        words = [str(word) for word in command]
        words[:1] = [os.path.basename(word) for word in words[:1]]
        found.append(("made by", shlex.join(words)))
    return [
        *found,
        ("score it", f"u2pl evaluate {run}"),
        ("label images", f"u2pl predict {run} IMAGES --out labelled"),
        ("this page", f"u2pl report {run}"),
    ]
