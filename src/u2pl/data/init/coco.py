"""COCO's instances: polygons and RLE in JSON, painted as index masks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.data.init.draft import (
    Draft,
    Request,
    child,
    list_images,
    name_of,
    read_json,
    some,
    subfolders,
)
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

NAME = "coco"

_LONGEST_SIDE = 65_500  # of a JPEG
_FARTHEST = 2  # sides of the image that a corner may lie outside
_WORDS = {"train": "labeled", "val": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class Instances:
    """One JSON file.

    Attributes:
        path: the file.
        categories: names by id.
        images: relative path and (height, width) by id.
        annotations: those that have a segmentation, by image.
    """

    path: Path
    categories: dict[int, str]
    images: dict[int, tuple[str, tuple[int, int]]]
    annotations: dict[int, list[dict[str, Any]]]


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like one of COCO's, or None."""
    found = _find(folder)
    return None if not found else some(path.relative_to(folder).as_posix() for path in found)


def is_coco(tree: Any) -> bool:
    """Whether a JSON's content has COCO's keys."""
    return isinstance(tree, dict) and {"images", "annotations", "categories"} <= {*tree}


def draft(request: Request) -> Draft:
    """Paint COCO's annotations and return what they say.

    Raises:
        UserError: where polygons need pycocotools and it is missing, a file is faulty, categories
            differ between files, no file is for training, images are missing, or a shape cannot be
            painted.
    """
    is_file = request.source.suffix.lower() == ".json"
    paths = [request.source] if is_file else _find(request.source)
    sections = _sections(paths)
    files = {section: read_instances(path) for section, path in sections.items()}
    categories = files[next(iter(files))].categories
    for file in files.values():
        if file.categories != categories:
            raise UserError(
                f"{file.path} has other categories than {next(iter(files.values())).path}; export "
                "both from one project."
            )
    labels = [categories[key] for key in sorted(categories)]
    encoding, ids, fill = class_table(labels, request, source=files[next(iter(files))].path.name)
    result = Draft(NAME, encoding)
    result.conclusions.append(
        f"Classes: {len(labels)} categories in the order of their ids, {some(labels)}"
        + (f", behind '{encoding.classes[fill]}'." if len(encoding.classes) > len(labels) else ".")
    )
    folders: dict[str, Path] = {}
    for section, file in files.items():
        canvas = Canvas(encoding.classes, fill, request.made / "masks" / section)
        images = folders[section] = _paint(request, file, canvas, ids)
        result.sections[section] = write_section(request, canvas, images, section)
        result.conclusions.append(
            f"{section}: {len(canvas.names)} images of {request.spell(images)}/ with shapes, of "
            f"{request.spell(file.path)}; masks painted to {request.spell(canvas.folder)}/."
        )
        result.conclusions += canvas.conclusions()
    _add_unlabeled(request, result, files, folders)
    return result


def _find(folder: Path) -> list[Path]:
    """Return the JSON files of a folder, its annotations/ and its parts that COCO may have made."""
    places = [folder, *(f for f in subfolders(folder) if f.name in ("annotations", *_WORDS))]
    found = []
    for path in (path for place in places for path in sorted(place.glob("*.json"))):
        if path.is_file() and looks_like_instances(path):
            found.append(path)
    return found


def looks_like_instances(path: Path) -> bool:
    """Whether a JSON file has the words of COCO's instances; it is not parsed."""
    try:
        text = read_text(path)
    except (OSError, ValueError):
        return False
    return all(f'"{key}"' in text for key in ("images", "annotations", "categories")) and (
        '"segmentation"' in text
    )


def _sections(paths: list[Path]) -> dict[str, Path]:
    """Return the section of each file, by what its name or its folder's name says."""
    if len(paths) == 1:
        return {"labeled": paths[0]}
    found: dict[str, Path] = {}
    for path in paths:
        text = path.name.lower() if path.parent.name.lower() not in _WORDS else path.parent.name
        section = next((s for word, s in _WORDS.items() if word in text.lower()), None)
        if section is None or section in found:
            raise UserError(
                f"Expected one JSON file each with 'train', 'val' or 'test' in its name, got "
                f"{some(p.name for p in paths)}; name the one to use: u2pl data init FILE.json."
            )
        found[section] = path
    if "labeled" not in found:
        raise UserError(
            f"Expected a JSON file with 'train' in its name, got {some(p.name for p in paths)}; "
            "name the one to train on: u2pl data init FILE.json."
        )
    return found


def read_instances(path: Path) -> Instances:
    """Read a file and check the parts of it that are used.

    Raises:
        UserError: where it is no file of COCO's instances, or a name stands there twice.
    """
    tree = read_json(path)
    if not is_coco(tree):
        raise UserError(f"{path}: expected images, annotations and categories; export it as COCO.")
    try:
        categories = {int(row["id"]): str(row["name"]) for row in tree["categories"]}
        images = {
            int(row["id"]): (checked_name(path, row["file_name"]), _size(row))
            for row in tree["images"]
        }
        annotations = defaultdict(list)
        for row in tree["annotations"]:
            if row.get("segmentation"):
                annotations[int(row["image_id"])].append(row)
                if int(row["category_id"]) not in categories:
                    raise ValueError(f"category_id {shown(row['category_id'])} is not a category")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__} {error}"
        raise UserError(f"{path} is not as COCO's format says ({what}); export it again.") from None
    twice = [name for name, count in Counter(categories.values()).items() if count > 1]
    names = Counter(name_of(name) for name, _ in images.values())
    twice += [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError(f"{path}: {shown(twice[0])} stands there twice; names must differ.")
    return Instances(path, categories, images, dict(annotations))


def _size(row: dict[str, Any]) -> tuple[int, int]:
    height, width = int(row["height"]), int(row["width"])
    if not (0 < height <= _LONGEST_SIDE and 0 < width <= _LONGEST_SIDE):
        raise ValueError(f"an image of {height} x {width} pixels")
    return height, width


def _paint(request: Request, file: Instances, canvas: Canvas, ids: dict[str, int]) -> Path:
    """Paint the images of a file that have shapes; return the folder that holds them."""
    wanted = {key: image for key, image in file.images.items() if file.annotations.get(key)}
    if not wanted:
        raise UserError(f"{file.path}: no image has a segmentation; export polygons or masks.")
    folder = _image_folder(request, file.path, [name for name, _ in wanted.values()])
    for key, (name, size) in wanted.items():
        check_size(folder / name, size, source=file.path.name)
        canvas.paint(name_of(name), size, shapes_of(file, key, ids))
    return folder


def shapes_of(
    file: Instances, key: int, ids: dict[str, int]
) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """Return the shapes of an image as class ids with masks [H, W], in the order to paint them.

    Args:
        file: the annotations.
        key: the image's id in it.
        ids: class id of each category's name.

    Raises:
        UserError: see :func:`decode`.
    """
    size = file.images[key][1]
    shapes = [
        (
            ids[file.categories[int(row["category_id"])]],
            decode(row["segmentation"], size, file.path),
        )
        for row in file.annotations[key]
    ]
    return sorted(shapes, key=lambda shape: -int(shape[1].sum()))  # small things lie before large


def decode(segmentation: Any, size: tuple[int, int], path: Path) -> npt.NDArray[np.bool_]:
    """Return a segmentation as a mask [H, W].

    Args:
        segmentation: polygons, a list of [x0, y0, x1, y1, …]; or RLE, {"size", "counts"} with
            counts as numbers or as COCO's text.
        size: height and width of its image.
        path: the file, for messages.

    Raises:
        UserError: where it is neither, or does not fit the size; or pycocotools is missing, which
            paints polygons.
    """
    if not isinstance(segmentation, list):
        return _filled(_checked_runs(segmentation, size, path), size)
    polygons = [_checked_polygon(polygon, size, path) for polygon in segmentation]
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        raise UserError(
            f"{path}: polygons of COCO need pycocotools; install it with: pip install 'u2pl[coco]'"
        ) from None
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    runs = _runs_of_text(merged["counts"].decode("ascii"))
    assert runs is not None, "pycocotools writes what it reads"
    return _filled(runs, size)


def _filled(runs: list[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask [H, W] of runs down its columns, the first of zeros."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask: npt.NDArray[np.bool_] = flat.reshape(size[1], size[0]).T
    return mask


def _checked_polygon(polygon: Any, size: tuple[int, int], path: Path) -> list[float]:
    """Return a polygon's numbers; far corners would ask pycocotools for endless memory."""
    most = _FARTHEST * max(size)
    is_polygon = (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(type(v) in (int, float) and math.isfinite(v) and abs(v) <= most for v in polygon)
    )
    if not is_polygon:
        raise _faulty(path, polygon)
    return [float(value) for value in polygon]


def _checked_runs(rle: Any, size: tuple[int, int], path: Path) -> list[int]:
    """Return the runs of an RLE, which must fill the image."""
    if not isinstance(rle, dict) or rle.get("size") != list(size):
        raise _faulty(path, rle)
    runs = rle.get("counts")
    if isinstance(runs, str):
        runs = _runs_of_text(runs)
    if (
        not isinstance(runs, list)
        or not all(type(run) is int and run >= 0 for run in runs)
        or sum(runs) != size[0] * size[1]
    ):
        raise _faulty(path, rle)
    return runs


def _runs_of_text(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed counts; None where it is no such text.

    A number has five bits a character, the low ones first; 0x20 says that more follow, and the
    last one's 0x10 is the sign. From the third run on, each is a difference to the last but one.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (code & 0x10 != 0) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs if shift == 0 else None


def runs_of(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the runs of a mask [H, W] down its columns, the first of zeros.

    >>> runs_of(np.array([[0, 1], [0, 1]], bool)), runs_of(np.array([[1], [0]], bool))
    ([2, 2], [0, 1, 1])
    """
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs: list[int] = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def text_of_runs(runs: list[int]) -> str:
    """Return runs as COCO's compressed counts; see :func:`_runs_of_text`.

    >>> text_of_runs([40, 2200])
    'X1hT2'
    """
    characters = []
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        while True:
            code, value = value & 0x1F, value >> 5
            is_last = value == (-1 if code & 0x10 else 0)
            characters.append(chr(48 + (code if is_last else code | 0x20)))
            if is_last:
                break
    return "".join(characters)


def _faulty(path: Path, segmentation: Any) -> UserError:
    return UserError(
        f"{path}: expected polygons or RLE that fit their image, got {shown(segmentation)}; export "
        "the annotations again."
    )


def _image_folder(request: Request, path: Path, names: list[str]) -> Path:
    """Return the folder below which all names are files."""
    stem = path.stem.removeprefix("instances_")
    places = [request.images] if request.images else list(_image_places(request.root, path, stem))
    for place in places:
        if all((place / name).is_file() for name in names):
            return place
    missing = {place: sum(not (place / name).is_file() for name in names) for place in places}
    best = min(missing, key=lambda place: missing[place])
    raise UserError(
        f"Expected the {len(names)} images of {path.name} below one folder, got {best} without "
        f"{missing[best]} of them, such as '{names[0]}'; name their folder by --images."
    )


def _image_places(root: Path, path: Path, stem: str) -> Iterator[Path]:
    names = [stem, f"images/{stem}", "images"]
    words = [word for word in _WORDS if word in stem.lower()]
    names += [name for word in words for name in (word, f"images/{word}", f"{word}/images")]
    yield path.parent
    for base in dict.fromkeys((root, path.parent.parent)):
        yield base
        yield from (place for name in names if (place := child(base, name)) is not None)


def _add_unlabeled(
    request: Request, result: Draft, files: dict[str, Instances], folders: dict[str, Path]
) -> None:
    """Add the images without a shape: of the labelled ones' file, beside them, and of a folder."""
    names = ("unlabeled", "unlabelled", "unlabeled2017", "images/unlabeled")
    folder = next((f for name in names if (f := child(request.root, name))), None)
    if folder is not None and not list_images(folder):
        folder = None
    images, file = folders["labeled"], files["labeled"]
    own = [
        images / name
        for key, (name, _) in file.images.items()
        if key not in file.annotations and (images / name).is_file()
    ]
    listed = {name_of(name) for other in files.values() for name, _ in other.images.values()}
    leave = [request.made, *folders.values(), *([] if folder is None else [folder])]
    bare = own + bare_images(images, listed, leave=leave)
    section = unlabeled_section(request, folder, bare, request.made / "unlabeled.txt")
    if bare:
        result.conclusions.append(
            f"unlabeled: {len(bare)} images without a shape. They may hold nothing, or be not "
            "labelled yet: no one can tell, so they count as not labelled."
        )
    if folder is not None:
        count = len(list_images(folder))
        result.conclusions.append(f"unlabeled: {count} images of {request.spell(folder)}/.")
    if section is not None:
        result.sections["unlabeled"] = section
