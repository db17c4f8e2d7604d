"""Masks that come back from annotators, in the formats that ``u2pl label`` hands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from u2pl.data.images import Color, FileError, read_mask, read_raw_mask
from u2pl.data.init import coco, cvat, label_studio
from u2pl.data.init.archive import unpack
from u2pl.data.init.draft import list_images, name_of, some
from u2pl.data.init.names import VOID, read_names
from u2pl.data.init.paint import BACKGROUND, painted
from u2pl.data.init.voc import MASKS
from u2pl.data.outlines import fill_polygon
from u2pl.data.sources import Dataset
from u2pl.errors import UserError, is_clean, nearest_name, shown
from u2pl.plain_files import read_text, read_yaml

FORMATS = ("png", "coco", "cvat", "labelstudio", "yolo")
"""What can be read; the names are those of ``u2pl label --format``."""

Labels = npt.NDArray[np.int64]
Size = tuple[int, int]

_WHITE: Color = (255, 255, 255)
_FARTHEST = 1.0  # sides of the image that a corner of YOLO may lie outside
_WANTED = (".png", ".txt", ".json", ".yaml")  # of an archive; images are not asked for
_IMAGE_FOLDERS = ("JPEGImages/", "SegmentationObject/", "images/")


class Correction(NamedTuple):
    """One image's mask, not read yet.

    Attributes:
        names: what the image may be called, without suffix, the surest first.
        origin: the file that it is from, for messages.
        size: (height, width) as the annotations say; None where only the mask itself says it.
        read: gives the class ids [H, W] for an image of that size, ignore where nothing is said.
    """

    names: tuple[str, ...]
    origin: Path
    size: Size | None
    read: Callable[[Size], Labels]


@dataclass(frozen=True)
class Corrections:
    """What a file or folder of corrected masks holds.

    Attributes:
        format: a name in :data:`FORMATS`.
        items: the masks.
    """

    format: str
    items: tuple[Correction, ...]


@dataclass(frozen=True)
class _Request:
    """What a reader works for: where, which classes, and what uncovered pixels are."""

    path: Path
    dataset: Dataset
    fill: int

    def id_of(self, label: str) -> int:
        """Return the class id of an annotation's label; ignore for one that is no class.

        Raises:
            UserError: for a name that the data set does not know.
        """
        if label in self.dataset.classes:
            return self.dataset.classes.index(label)
        if label.lower() in VOID:
            return self.dataset.ignore_index
        raise UserError(
            f"{self.path}: the label {shown(label)} is no class of {self.dataset.path} "
            f"({some(self.dataset.classes)}); rename it there."
            f"{nearest_name(label, self.dataset.classes)}"
        )


def read_corrections(
    source: Path,
    dataset: Dataset,
    *,
    format: str | None = None,
    uncovered: str = "ignore",
    scratch: Path,
) -> Corrections:
    """Find out what corrected masks lie in a file or folder; masks are read one at a time later.

    Args:
        source: a folder of PNG; CVAT's "Segmentation mask 1.1" as .zip or folder; Label Studio's
            JSON export; COCO's JSON; Ultralytics YOLO segmentation as .zip or folder.
        dataset: whose classes the labels name.
        format: a name in :data:`FORMATS`; None finds it.
        uncovered: what pixels are that no shape covers: ``ignore``, or a class.
        scratch: an empty folder for what is unpacked.

    Raises:
        UserError: where the source is none of these, or faulty, or has labels of other classes.
    """
    if format is not None and (format := format.replace("-", "").lower()) not in FORMATS:
        raise UserError(f"Expected a format of {', '.join(FORMATS)}, got '{format}'.", exit_code=2)
    if not source.exists():
        raise UserError(f"{source} does not exist; check the path.")
    if uncovered != "ignore" and uncovered not in dataset.classes:
        raise UserError(
            f"Expected --uncovered ignore or a class of {dataset.path}, got '{uncovered}'."
            f"{nearest_name(uncovered, dataset.classes)}",
            exit_code=2,
        )
    place = _unpacked(source, scratch) if source.suffix.lower() == ".zip" else source
    found = _recognized(source, place, format)
    fill = dataset.ignore_index
    if uncovered != "ignore":
        fill = dataset.classes.index(uncovered)
    request = _Request(place, dataset, fill)
    items = tuple(_READERS[found](request))
    if not items:
        raise UserError(f"{source} holds no mask of any image ({found}); label some first.")
    return Corrections(found, items)


def _unpacked(archive: Path, scratch: Path) -> Path:
    """Unpack what is not an image; a folder that holds everything is looked into."""

    def wanted(name: str) -> bool:
        return name.lower().endswith(_WANTED) and not name.startswith(_IMAGE_FOLDERS)

    unpack(archive, scratch, wanted=wanted)
    inside = [*scratch.iterdir()] if scratch.is_dir() else []
    if not inside:
        raise UserError(f"{archive} holds no masks and no annotations; export it again.")
    known = (MASKS, "labels", "annotations", "masks")
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in known:
        return inside[0]
    return scratch


def _recognized(source: Path, place: Path, format: str | None) -> str:
    """Return the format that was named, or the only one that fits."""
    if format is not None:
        return format
    if not place.is_dir():
        if place.suffix.lower() == ".json":
            return "labelstudio" if label_studio.starts_as_tasks(place) else "coco"
        raise UserError(f"Expected a folder, a .zip or a .json, got {source}; name one of them.")
    if (place / "manifest.jsonl").is_file() and (place / "ranking.csv").is_file():
        raise UserError(
            f"{source} is what u2pl label has written, before anybody corrected it; name the "
            "file or folder that came back from annotation, such as png/ in it."
        )
    tests = {
        "cvat": cvat.recognize(place) is not None,
        "yolo": (place / "data.yaml").is_file() and (place / "labels").is_dir(),
        "coco": bool(_json_files(place, "coco")),
        "labelstudio": bool(_json_files(place, "labelstudio")),
    }
    found = [name for name, fits in tests.items() if fits]
    if len(found) > 1:
        raise UserError(f"{source} looks like {' and like '.join(found)}; say which by --format.")
    if found:
        return found[0]
    if list_images(place, (".png",)):
        return "png"
    raise UserError(
        f"Expected masks in {source}, as PNG or as CVAT, COCO, Label Studio or YOLO export them, "
        "got none of these; see docs/how-to/annotation-loop.md."
    )


def _json_files(folder: Path, format: str) -> list[Path]:
    paths = [*sorted(folder.glob("*.json")), *sorted(folder.glob("annotations/*.json"))]
    tests = {"coco": coco.looks_like_instances, "labelstudio": label_studio.starts_as_tasks}
    return [path for path in paths if path.is_file() and tests[format](path)]


def _one_json(request: _Request, format: str) -> Path:
    """Return the file itself, or the only one of a folder."""
    if request.path.is_file():
        return request.path
    paths = _json_files(request.path, format)
    if len(paths) != 1:
        raise UserError(
            f"Expected one JSON file of {format} in {request.path}, got "
            f"{some(path.name for path in paths) or 'none'}; name the file."
        )
    return paths[0]


def _of_png(request: _Request) -> Iterator[Correction]:
    base = request.path if not (request.path / "masks").is_dir() else request.path / "masks"
    if not base.is_dir():
        raise UserError(f"Expected a folder of PNG masks, got {base}; name the folder.")
    for file in list_images(base, (".png",)):
        path = base / file

        def read(_: Size, path: Path = path) -> Labels:
            return _read_png(path, request.dataset)

        yield Correction((name_of(file),), path, None, read)


def _read_png(path: Path, dataset: Dataset) -> Labels:
    """Return a mask of class ids, or of the classes' colours with white or ignore_color."""
    _, pixels, _ = read_raw_mask(path)
    if pixels.ndim == 2:
        return read_mask(path, num_classes=dataset.num_classes, ignore_index=dataset.ignore_index)
    unknown = dataset.ignore_color or (None if _WHITE in dataset.colors else _WHITE)
    if len({*dataset.colors}) < len(dataset.colors):
        raise FileError(path, "it is in colours, but classes share one", "save class ids")
    return read_mask(
        path,
        num_classes=dataset.num_classes,
        mask_format="rgb",
        colors=dataset.colors,
        ignore_index=dataset.ignore_index,
        ignore_color=unknown,
    )


def _of_cvat(request: _Request) -> Iterator[Correction]:
    tree, dataset = request.path, request.dataset
    if cvat.recognize(tree) is None:
        raise UserError(
            f"Expected labelmap.txt and {MASKS}/ in {tree}, got no such tree; export the task as "
            "'Segmentation mask 1.1'."
        )
    names = read_names(tree / "labelmap.txt")
    if not names.colors:
        raise UserError(f"{tree / 'labelmap.txt'} has no colors; export the task again.")
    labels_request = replace(request, path=tree / "labelmap.txt")
    table = np.array(
        [
            request.fill
            if name == BACKGROUND and name not in dataset.classes  # CVAT's word for no label
            else labels_request.id_of(name)
            for name in names.names
        ],
        np.int64,
    )
    for file in list_images(tree / MASKS, (".png",)):
        path = tree / MASKS / file

        def read(_: Size, path: Path = path) -> Labels:
            places = read_mask(
                path,
                num_classes=len(names.names),
                mask_format="rgb",
                colors=names.colors,
                ignore_index=len(names.names),
            )
            labels: Labels = table[places]
            return labels

        yield Correction((name_of(file),), path, None, read)


def _of_coco(request: _Request) -> Iterator[Correction]:
    path = _one_json(request, "coco")
    file = coco.read_instances(path)
    request = replace(request, path=path)
    used = {
        file.categories[int(r["category_id"])] for rows in file.annotations.values() for r in rows
    }
    ids = {name: request.id_of(name) for name in sorted(used)}
    for key, (name, size) in file.images.items():
        if not file.annotations.get(key):
            continue

        def read(_: Size, key: int = key, size: Size = size) -> Labels:
            return _painted(size, coco.shapes_of(file, key, ids), request.fill)

        yield Correction((name_of(name),), path, size, read)


def _of_label_studio(request: _Request) -> Iterator[Correction]:
    path = _one_json(request, "labelstudio")
    request = replace(request, path=path)
    for task in label_studio.read_tasks(path):
        shapes = label_studio.shapes_of(path, task)
        names = tuple(name_of(name) for name in label_studio.names_of(task) if is_clean(name))
        if not shapes:
            continue
        if not names:
            raise UserError(
                f"{path}: expected the URL of an image in task {shown(task.get('id'))}, got none."
            )
        ids = {shape["label"]: request.id_of(shape["label"]) for shape in shapes}
        sizes = {shape["size"] for shape in shapes}
        if len(sizes) > 1:
            raise UserError(f"{path}: the shapes of '{names[0]}' are of images of several sizes.")

        def read(
            size: Size, shapes: list[dict[str, Any]] = shapes, ids: dict[str, int] = ids
        ) -> Labels:
            masks = [(ids[shape["label"]], label_studio.mask_of(shape, path)) for shape in shapes]
            return _painted(size, masks, request.fill)

        yield Correction(names, path, shapes[0]["size"], read)


def _of_yolo(request: _Request) -> Iterator[Correction]:
    tree = request.path
    if not (tree / "data.yaml").is_file() or not (tree / "labels").is_dir():
        raise UserError(f"Expected data.yaml and labels/ in {tree}; export YOLO segmentation.")
    names = _yolo_names(tree / "data.yaml")
    ids = {key: replace(request, path=tree / "data.yaml").id_of(n) for key, n in names.items()}
    for file in list_images(tree / "labels", (".txt",)):
        path, name = tree / "labels" / file, name_of(file)

        def read(size: Size, path: Path = path) -> Labels:
            shapes = [(ids[key], fill_polygon(p, size)) for key, p in _polygons(path, ids, size)]
            shapes.sort(key=lambda shape: -int(shape[1].sum()))  # small things lie before large
            return _painted(size, shapes, request.fill)

        inside = name.partition("/")[2]  # the first folder is train, val or test
        yield Correction((inside, name) if inside else (name,), path, None, read)


def _yolo_names(path: Path) -> dict[int, str]:
    try:
        names = read_yaml(path)["names"]
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not names or not all(type(k) is int and isinstance(n, str) for k, n in names.items()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: expected 'names' of the classes, by their numbers.") from None
    return {int(key): str(name) for key, name in names.items()}


def _polygons(
    path: Path, ids: dict[int, int], size: Size
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Yield the number of the class and the corners, in pixels, of each line of a label file."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError):
        raise UserError(f"{path} is not a text file; export it again.") from None
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            key, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            key, values = -1, []
        far = any(not math.isfinite(v) or not -_FARTHEST <= v <= 1 + _FARTHEST for v in values)
        if key not in ids or len(values) < 6 or len(values) % 2 or far:
            raise UserError(
                f"{path}, line {number}: expected a class of data.yaml and three corners or more "
                f"as shares of the sides, got {shown(line)}; boxes are no masks."
            )
        yield key, np.array(values).reshape(-1, 2) * (size[1], size[0])


def _painted(size: Size, shapes: Sequence[tuple[int, npt.NDArray[np.bool_]]], fill: int) -> Labels:
    return painted(size, shapes, fill=fill)[0].astype(np.int64)


_READERS: dict[str, Callable[[_Request], Iterator[Correction]]] = {
    "png": _of_png,
    "coco": _of_coco,
    "cvat": _of_cvat,
    "labelstudio": _of_label_studio,
    "yolo": _of_yolo,
}
