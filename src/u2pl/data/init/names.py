"""Class names and colours out of the small text files that lie beside masks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2pl.data.images import Color
from u2pl.errors import UserError, shown
from u2pl.plain_files import read_text

VOID = frozenset(
    {"void", "unlabeled", "unlabelled", "ignore", "ignored", "__ignore__", "unknown", "undefined"}
)
"""Names, in lower case, of what is no class: pixels nobody has labelled."""


@dataclass(frozen=True)
class Names:
    """What a file says of classes.

    Attributes:
        source: the file, or the option.
        names: in its order; some may stand in :data:`VOID`.
        ids: the ids that they have in mask files; 0, 1, … where the file gives none.
        colors: one a name, or none at all.
    """

    source: str
    names: tuple[str, ...]
    ids: tuple[int, ...]
    colors: tuple[Color, ...] = ()


_Rows = list[tuple[str, int | None, Color | None]]


def find_names(root: Path, given: Sequence[str] | None) -> tuple[Names | None, list[str]]:
    """Return the class names that were given or lie in the folder, and sentences about them.

    Args:
        root: where a file of names is looked for.
        given: names that win over any file.

    Raises:
        UserError: where such a file cannot be read as what it is called.
    """
    if given is not None:
        names = Names("--classes", tuple(given), tuple(range(len(given))))
        _refuse_twice(names)
        return names, [f"Classes: {len(given)}, as --classes says."]
    there = [name for name in _READERS if (root / name).is_file()]
    if not there:
        return None, []
    path = root / there[0]
    names = read_names(path)
    said = [f"Classes: {len(names.names)} names of {path.name}."]
    if len(there) > 1:
        said.append(f"{', '.join(there[1:])} may name classes, too, and was not read.")
    return names, said


def read_names(path: Path) -> Names:
    """Return what a file of class names holds; its name says how it is written.

    Raises:
        UserError: where it cannot be read, has no names, or has one twice.
    """
    try:
        rows = _READERS[path.name](read_text(path))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, IndexError, csv.Error, RecursionError):
        raise UserError(
            f"{path}: expected {_FORMS[path.name]}; mend the file, or give --classes."
        ) from None
    if not rows:
        raise UserError(f"{path} names no class; mend the file, or give --classes.")
    ids = [place if row[1] is None else row[1] for place, row in enumerate(rows)]
    colors = tuple(row[2] for row in rows if row[2] is not None)
    names = Names(
        path.name,
        tuple(row[0] for row in rows),
        tuple(ids),
        colors if len(colors) == len(rows) else (),
    )
    _refuse_twice(names)
    return names


def _refuse_twice(names: Names) -> None:
    for what, items in (("class", names.names), ("id", names.ids), ("color", names.colors)):
        twice = [item for place, item in enumerate(items) if item in items[:place]]
        if twice:
            raise UserError(
                f"{names.source}: the {what} {shown(twice[0])} stands there twice; mend it."
            )


def _lines(text: str) -> list[str]:
    return [s for line in text.splitlines() if (s := line.strip()) and not s.startswith("#")]


def _color(items: Sequence[object]) -> Color:
    values = [int(str(item)) for item in items]
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError("a color has three numbers of 0 to 255")
    return (values[0], values[1], values[2])


def _plain(text: str) -> _Rows:
    """A name a line, or an id and a name."""
    lines = _lines(text)
    pairs = [re.fullmatch(r"(\d{1,5})[\s:,;=]+(\S.*)", line) for line in lines]
    if lines and all(pairs):
        return [(pair[2], int(pair[1]), None) for pair in pairs if pair]
    return [(line, None, None) for line in lines]


def _labelmap(text: str) -> _Rows:
    """CVAT's and Datumaro's ``name:r,g,b:parts:actions``."""
    rows: _Rows = []
    for line in _lines(text):
        name, color = line.split(":")[:2]
        rows.append((name, None, _color(color.split(",")) if color.strip() else None))
    return rows


def _json(text: str) -> _Rows:
    tree = json.loads(text)
    if isinstance(tree, dict) and all(key.isdecimal() for key in tree):  # {"0": "sky"}
        return [(str(name), int(key), None) for key, name in tree.items()]
    if isinstance(tree, dict):  # {"sky": 0}
        if not all(type(value) is int for value in tree.values()):
            raise ValueError("expected ids")
        return [(name, int(value), None) for name, value in tree.items()]
    rows: _Rows = []
    for item in tree:
        if isinstance(item, dict):
            rows.append((item["name"], item.get("id"), _color(item["color"])))
        elif isinstance(item, str):
            rows.append((item, None, None))
        else:
            raise ValueError("expected names")
    return rows


def _csv_rows(text: str) -> list[dict[str, str]]:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    head = [cell.strip().lower() for cell in rows[0]]
    return [dict(zip(head, map(str.strip, row), strict=True)) for row in rows[1:] if row]


def _class_dict(text: str) -> _Rows:
    """``name,r,g,b``, as many data sets on Kaggle have it."""
    return [(row["name"], None, _color([row["r"], row["g"], row["b"]])) for row in _csv_rows(text)]


def _pixel_values(text: str) -> _Rows:
    """Roboflow's ``Pixel Value, Class``."""
    return [(row["class"], int(row["pixel value"]), None) for row in _csv_rows(text)]


def _label_colors(text: str) -> _Rows:
    """CamVid's ``r g b name``."""
    rows: _Rows = []
    for line in _lines(text):
        red, green, blue, name = line.split(None, 3)
        rows.append((name, None, _color([red, green, blue])))
    return rows


_READERS: dict[str, Callable[[str], _Rows]] = {
    "labelmap.txt": _labelmap,
    "class_dict.csv": _class_dict,
    "label_colors.txt": _label_colors,
    "_classes.csv": _pixel_values,
    "classes.json": _json,
    "classes.txt": _plain,
    "labels.txt": _plain,
    "class_names.txt": _plain,
}
_FORMS = {
    "labelmap.txt": "lines such as 'road:128,64,128::'",
    "class_dict.csv": "the columns name,r,g,b",
    "label_colors.txt": "lines such as '128 64 128 road'",
    "_classes.csv": "the columns 'Pixel Value, Class'",
    "classes.json": "a list of names, or ids and names",
    "classes.txt": "a name a line",
    "labels.txt": "a name a line",
    "class_names.txt": "a name a line",
}
