"""Label Studio's JSON export: brushes and polygons, painted as index masks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from u2pl.data.init.brush import decode_brush
from u2pl.data.init.draft import Draft, Request, list_images, name_of, read_json, some
from u2pl.data.init.paint import (
    Canvas,
    bare_images,
    check_size,
    checked_name,
    class_table,
    write_section,
)
from u2pl.data.init.pairs import unlabeled_section
from u2pl.data.outlines import fill_polygon
from u2pl.errors import UserError, shown
from u2pl.plain_files import read_text

NAME = "labelstudio"

_KINDS = ("brushlabels", "polygonlabels")
_LONGEST_SIDE = 65_500
_UPLOAD = re.compile(r"^[0-9a-f]{6,8}-")  # what Label Studio puts before an uploaded file's name


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like Label Studio's export, or None."""
    found = _find(folder)
    return None if not found else some(path.name for path in found)


def is_label_studio(tree: Any) -> bool:
    """Whether a JSON's content is a list of Label Studio's tasks."""
    return (
        isinstance(tree, list)
        and bool(tree)
        and all(isinstance(t, dict) and "data" in t and "annotations" in t for t in tree)
    )


def draft(request: Request) -> Draft:
    """Paint Label Studio's annotations and return what they say.

    Raises:
        UserError: where the file is no such export, an image is missing, or a shape cannot be
            painted.
    """
    path = request.source
    if path.is_dir():
        found = _find(path)
        if len(found) > 1:
            raise UserError(
                f"{path} holds several exports, {some(p.name for p in found)}; name the one to "
                "use: u2pl data init FILE.json."
            )
        path = found[0]
    tasks = read_tasks(path)
    shapes = {number: shapes_of(path, task) for number, task in enumerate(tasks)}
    labels = sorted({shape["label"] for found in shapes.values() for shape in found})
    encoding, ids, fill = class_table(labels, request, source=path.name)
    result = Draft(NAME, encoding)
    order = "alphabetical order" if request.classes is None else "the order of --classes"
    result.conclusions.append(
        f"Classes: {len(labels)} labels in {order}, {some(encoding.classes)}."
    )
    images = _image_folder(request, path)
    there = _by_any_name(images)
    canvas = Canvas(encoding.classes, fill, request.made / "masks" / "labeled")
    known: list[str] = []
    for number, task in enumerate(tasks):
        name = _image_name(path, task, there, images)
        if shapes[number]:
            known.append(name_of(name))
            _paint(path, images / name, name, shapes[number], canvas, ids)
    if len({*known}) < len(known):
        twice = next(name for place, name in enumerate(known) if name in known[:place])
        raise UserError(f"{path}: two tasks are of the image '{twice}'; take one out.")
    result.sections["labeled"] = write_section(request, canvas, images, "labeled")
    result.conclusions.append(
        f"labeled: {len(known)} of {len(tasks)} tasks have brushes or polygons; masks painted to "
        f"{request.spell(canvas.folder)}/."
    )
    result.conclusions += canvas.conclusions() + _left_out(tasks)
    rest = bare_images(images, known, leave=[request.made])
    section = unlabeled_section(request, None, rest, request.made / "unlabeled.txt")
    if section is not None:
        result.sections["unlabeled"] = section
        result.conclusions.append(f"unlabeled: {len(rest)} images without a shape.")
    return result


def starts_as_tasks(path: Path) -> bool:
    """Whether a JSON file holds a list with the keys of Label Studio's tasks."""
    try:
        text = read_text(path).lstrip() if path.is_file() else ""
    except (OSError, ValueError):
        return False
    return text.startswith("[") and '"annotations"' in text and '"data"' in text


def _find(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if starts_as_tasks(path)]


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """Read the tasks of an export.

    Raises:
        UserError: where it is no such JSON.
    """
    tree = read_json(path)
    if not is_label_studio(tree):
        raise UserError(
            f"{path}: expected a list of tasks with 'data' and 'annotations'; export it as JSON "
            "(not JSON-MIN)."
        )
    tasks: list[dict[str, Any]] = tree
    return tasks


def _results(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of the annotation to use: the ground truth, or the first not cancelled."""
    rows = task["annotations"] if isinstance(task["annotations"], list) else []
    rows = [row for row in rows if isinstance(row, dict) and not row.get("was_cancelled")]
    rows.sort(key=lambda row: not row.get("ground_truth"))
    found = rows[0].get("result") if rows else []
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def shapes_of(path: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the brushes and polygons of a task: kind, label, size and value.

    Raises:
        UserError: for one without a label or a size, or of a turned image.
    """
    shapes = []
    for row in _results(task):
        kind, value = row.get("type"), row.get("value")
        if kind not in _KINDS or not isinstance(value, dict):
            continue
        labels = value.get(kind)
        size = (row.get("original_height"), row.get("original_width"))
        is_sound = isinstance(labels, list) and len(labels) == 1 and isinstance(labels[0], str)
        if not is_sound or not all(type(s) is int and 0 < s <= _LONGEST_SIDE for s in size):
            raise UserError(
                f"{path}: expected {kind} with one label and its image's size, got "
                f"{shown({'label': labels, 'size': size})}; export the project again."
            )
        if row.get("image_rotation"):
            raise UserError(
                f"{path}: the annotations of task {shown(task.get('id'))} are of a turned image; "
                "turn the file itself, and annotate it again."
            )
        assert isinstance(labels, list)
        shapes.append({"kind": kind, "label": labels[0], "size": size, "value": value})
    return shapes


def _left_out(tasks: list[dict[str, Any]]) -> list[str]:
    kinds: dict[str, int] = {}
    for task in tasks:
        for row in _results(task):
            if row.get("type") not in _KINDS:
                kinds[shown(row.get("type"))] = kinds.get(shown(row.get("type")), 0) + 1
    if not kinds:
        return []
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return [f"Left out, since they are no masks: {text}."]


def _image_folder(request: Request, path: Path) -> Path:
    if request.images is not None:
        return request.images
    for place in (path.parent / "images", path.parent):
        if place.is_dir() and list_images(place):
            return place
    raise UserError(f"Expected images beside {path}, found none; name their folder by --images.")


def _by_any_name(folder: Path) -> dict[str, str | None]:
    """Return the images of a folder by relative path and by file name; None where not unique."""
    there: dict[str, str | None] = {}
    for file in list_images(folder):
        base = file.rpartition("/")[2]
        there[base] = None if base in there else file
        there[file] = file
    return there


def _image_name(
    path: Path, task: dict[str, Any], there: dict[str, str | None], folder: Path
) -> str:
    """Return the image of a task: Label Studio knows a URL of it, with a prefix of its own."""
    names = names_of(task)
    for name in names:
        found = there.get(name)
        if found is not None:
            return checked_name(path, found)
    raise UserError(
        f"{path}: expected the image of task {shown(task.get('id'))} in {folder}, got "
        f"{shown(names[:1])}; put it there, or name its folder by --images."
    )


def names_of(task: dict[str, Any]) -> list[str]:
    """Return what a task's image may be called: file names, without and with their folders.

    The whole path comes first; last comes the file's name without the prefix of an upload.
    """
    values = [*task["data"].values()] if isinstance(task["data"], dict) else []
    names: list[str] = []
    for url in (value for value in values if isinstance(value, str)):
        split = urlsplit(url) if url.isprintable() and "[" not in url else urlsplit("")
        place = unquote(parse_qs(split.query).get("d", [split.path])[0])
        base = place.rpartition("/")[2]
        names += [place.lstrip("/"), base, _UPLOAD.sub("", base)]
    return [name for name in dict.fromkeys(names) if name]


def _paint(
    path: Path,
    image: Path,
    name: str,
    shapes: list[dict[str, Any]],
    canvas: Canvas,
    ids: dict[str, int],
) -> None:
    """Paint one image's shapes, in the order in which they were drawn."""
    painted = []
    for shape in shapes:
        check_size(image, shape["size"], source=path.name)
        painted.append((ids[shape["label"]], mask_of(shape, path)))
    canvas.paint(name_of(name), shapes[0]["size"], painted)


def mask_of(shape: dict[str, Any], path: Path) -> npt.NDArray[np.bool_]:
    """Return a shape of :func:`shapes_of` as a mask [H, W].

    Raises:
        UserError: where it cannot be painted; the message names ``path``.
    """
    if shape["kind"] == "brushlabels":
        return decode_brush(shape["value"].get("rle"), shape["size"], path)
    return _polygon(shape["value"].get("points"), shape["size"], path)


def _polygon(points: Any, size: tuple[int, int], path: Path) -> npt.NDArray[np.bool_]:
    """Return a polygon, whose corners are in percent of the image, as a mask [H, W]."""
    try:
        corners = [(float(x) * size[1] / 100, float(y) * size[0] / 100) for x, y in points]
    except (TypeError, ValueError):
        corners = []
    most = 2 * max(size)
    if len(corners) < 3 or not all(math.isfinite(v) and abs(v) <= most for c in corners for v in c):
        raise UserError(
            f"{path}: expected a polygon of three corners in percent or more, got {shown(points)}; "
            "export the project again."
        )
    return fill_polygon(np.array(corners), size)
