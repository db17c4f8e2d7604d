"""Label Studio's JSON export: brushes and polygons, painted as index masks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

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
    tasks = _read(path)
    shapes = {number: _shapes(path, task) for number, task in enumerate(tasks)}
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


def _read(path: Path) -> list[dict[str, Any]]:
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


def _shapes(path: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the brushes and polygons of a task: kind, label, size and value."""
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
    values = [*task["data"].values()] if isinstance(task["data"], dict) else []
    urls = [value for value in values if isinstance(value, str)]
    for url in urls:
        split = urlsplit(url) if url.isprintable() and "[" not in url else urlsplit("")
        place = parse_qs(split.query).get("d", [split.path])[0]
        base = unquote(place).rpartition("/")[2]
        for name in (base, _UPLOAD.sub("", base)):
            found = there.get(name)
            if found is not None:
                return checked_name(path, found)
    raise UserError(
        f"{path}: expected the image of task {shown(task.get('id'))} in {folder}, got "
        f"{shown(urls[:1])}; put it there, or name its folder by --images."
    )


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
        if shape["kind"] == "brushlabels":
            mask = decode_brush(shape["value"].get("rle"), shape["size"], path)
        else:
            mask = _polygon(shape["value"].get("points"), shape["size"], path)
        painted.append((ids[shape["label"]], mask))
    canvas.paint(name_of(name), shapes[0]["size"], painted)


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


def fill_polygon(corners: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels [H, W] whose centres lie within a polygon, by the even-odd rule.

    Args:
        corners: [n, 2], x and y in pixels; (0, 0) is the upper left corner of the first pixel.
        size: height and width.

    >>> fill_polygon(np.array([[1, 0], [3, 0], [3, 1], [1, 1]]), (2, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = size
    flips = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((math.ceil(y0 - 0.5), math.ceil(y1 - 0.5)))
        rows = np.arange(max(low, 0), min(high, height))  # whose centres the edge crosses
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            flips[rows, np.ceil(x - 0.5).clip(0, width).astype(np.int64)] += 1
    inside: npt.NDArray[np.bool_] = flips.cumsum(axis=1)[:, :-1] % 2 == 1
    return inside


def decode_brush(rle: Any, size: tuple[int, int], path: Path) -> npt.NDArray[np.bool_]:
    """Return a brush as a mask [H, W]: where its alpha is not 0.

    The format is that of thi.ng's rle-pack: a head of 32 bits with the number of values, 5 with a
    value's bits less 1, and four of 4 bits with sizes less 1. Then come groups: a bit that says
    whether one value is repeated, two bits that choose a size, the count less 1 in so many bits,
    and the value, or as many values. Values are RGBA, row by row.

    Args:
        rle: bytes as a list of numbers.
        size: height and width.
        path: the file, for messages.

    Raises:
        UserError: where it is no such list, or not of this size.
    """
    if not isinstance(rle, list):  # of a number, bytes() would make as many zeros
        raise _faulty(path, rle)
    try:
        text = "".join(f"{byte:08b}" for byte in bytes(rle))
        values = _unpack(text, 4 * size[0] * size[1])
    except (TypeError, ValueError):  # int("") too, where the bits end early
        raise _faulty(path, rle) from None
    return values.reshape(*size, 4)[:, :, 3] > 0


def _unpack(text: str, expected: int) -> npt.NDArray[np.uint8]:
    """Return the values of a text of bits.

    Raises:
        ValueError: where the bits end early, or hold another number of values.
    """
    if int(text[:32], 2) != expected or int(text[32:37], 2) != 7:
        raise ValueError("another number of values, or values that are no bytes")
    sizes = [int(text[place : place + 4], 2) + 1 for place in range(37, 53, 4)]
    values = np.zeros(expected, np.uint8)
    place, done = 53, 0
    while done < expected:
        is_run = text[place : place + 1] == "1"
        bits = sizes[int(text[place + 1 : place + 3], 2)]
        end = done + 1 + int(text[place + 3 : place + 3 + bits], 2)
        place += 3 + bits
        if end > expected:
            raise ValueError("more values than there are pixels")
        if is_run:
            values[done:end] = int(text[place : place + 8], 2)
            place += 8
        else:
            stop = place + 8 * (end - done)
            values[done:end] = [int(text[p : p + 8], 2) for p in range(place, stop, 8)]
            place = stop
        done = end
    if place > len(text):
        raise ValueError("the last value is cut")
    return values


def _faulty(path: Path, rle: Any) -> UserError:
    return UserError(
        f"{path}: expected a brush's RLE that fits its image, got {shown(rle)}; export the project "
        "again."
    )
