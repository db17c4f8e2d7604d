"""A data set of painted streets on disk, for the demo and for tests; nothing is downloaded."""

from __future__ import annotations

import csv
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from u2pl.data.images import write_image, write_mask
from u2pl.data.streets import CLASSES, COLORS, IGNORE_INDEX, STYLES, Style, check_size, paint_scene
from u2pl.errors import UserError, nearest_name

__all__ = ["CLASSES", "COLORS", "IGNORE_INDEX", "STYLES", "Style", "paint_scene", "write_streets"]

_Bytes = npt.NDArray[np.uint8]
_SECTIONS = ("labeled", "unlabeled", "val", "test")

_Map = Callable[[Callable[[int], tuple[str, str]], range], Iterator[tuple[str, str]]]
"""As :func:`map`."""


def write_streets(
    folder: Path,
    *,
    num_labeled: int,
    num_unlabeled: int,
    num_val: int,
    num_test: int = 0,
    size: tuple[int, int] = (96, 96),
    style: str = "day",
    unlabeled_style: str | None = None,
    val_style: str | None = None,
    zoom: tuple[float, float] = (1.0, 1.0),
    choose_from: int = 1,
    seed: int = 0,
    with_tags: bool = True,
    keep_hidden_masks: bool = False,
    workers: int = 1,
) -> Path:
    """Paint a data set of streets and write it with its ``dataset.yaml``.

    Writes ``labeled/``, ``unlabeled/``, ``val/`` and ``test/``, each with ``images/`` and, but for
    ``unlabeled``, ``masks/`` (palette PNG, pixel value = class id). A section of no images is left
    out. Each scene has a chance of its own, so the first k scenes of a section stay the same
    whatever the numbers are.

    Args:
        folder: where to write; made if missing, and must be empty.
        num_labeled: images with masks to train on.
        num_unlabeled: images without masks.
        num_val: images with masks to score on while training.
        num_test: images with masks to score on at the end.
        size: height and width in pixels, each at least 32.
        style: a name in :data:`STYLES`, for the labelled images.
        unlabeled_style: for the unlabelled images; None is ``style``.
        val_style: for the val and test images; None is ``style``.
        zoom: range of a uniform factor z, at least 1: the picture is a window of ``size`` in a view
            painted z times as large, around a pixel of any of its classes, each as likely. A
            close-up shows fewer classes, and larger, and small things as often as others.
        choose_from: paint so many scenes for each labelled one, and label the one that best shows
            what those before it lack, as somebody would who pays for every label: the one with
            the largest ``Σ_c log(1 + pixels of c so far)``.
        seed: another seed paints other scenes; not negative.
        with_tags: write ``tags.csv``: which classes each unlabelled image shows.
        keep_hidden_masks: write the unlabelled images' masks to ``unlabeled/hidden_masks``, which
            ``dataset.yaml`` does not name, to measure pseudo-labels against.
        workers: processes that paint; the pictures are the same with any number of them. With
            several the caller's main module must be importable, as for ``multiprocessing``.

    Returns:
        The path of ``dataset.yaml``.

    Raises:
        UserError: for an unknown style, a negative number, a size below 32, a zoom out of range,
            a choice from nothing, no process or a folder in use.
    """
    counts = dict(zip(_SECTIONS, (num_labeled, num_unlabeled, num_val, num_test), strict=True))
    val_style = style if val_style is None else val_style
    names = (style, style if unlabeled_style is None else unlabeled_style, val_style, val_style)
    styles = dict(zip(_SECTIONS, (_named_style(name) for name in names), strict=True))
    check_size(size)
    _check_numbers({f"num_{name}": number for name, number in counts.items()} | {"seed": seed})
    if not 1 <= zoom[0] <= zoom[1]:
        raise UserError(f"Expected a zoom of 1 <= low <= high, got {zoom}; choose another range.")
    if choose_from < 1:
        raise UserError(f"Expected choose_from of 1 or more, got {choose_from}; choose another.")
    if workers < 1:
        raise UserError(f"Expected workers of 1 or more, got {workers}; choose another number.")
    folder = Path(folder)
    _make_empty(folder)
    tags: list[tuple[str, str]] = []
    with _painters(workers) as each:
        for section in _SECTIONS:
            take_picture = partial(_take_picture, size=size, style=styles[section], zoom=zoom)
            numbers = range(counts[section])
            if section == "labeled" and choose_from > 1:
                _write_chosen(folder / section, numbers, take_picture, seed, choose_from)
                continue
            paint = partial(_write_scene, folder / section, take_picture, seed, keep_hidden_masks)
            found = list(each(paint, numbers))
            tags += found if section == "unlabeled" else []
    sections = [section for section in _SECTIONS if counts[section]]
    return _write_yaml(folder, sections, tags if with_tags else [])


@contextmanager
def _painters(workers: int) -> Iterator[_Map]:
    """A :func:`map` over scenes, in as many processes."""
    if workers == 1:
        yield map
        return
    deaf = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to hear, once
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, signal.signal, deaf) as pool:
        yield partial(pool.map, chunksize=8)


def _scene_chance(section: Path, index: int, seed: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_SECTIONS.index(section.name), index))


def _write_scene(
    section: Path,
    take_picture: Callable[[np.random.Generator], tuple[_Bytes, _Bytes]],
    seed: int,
    keep_hidden_masks: bool,
    index: int,
) -> tuple[str, str]:
    """Paint a scene of a section; return the image's name and its tags."""
    image, mask = take_picture(np.random.default_rng(_scene_chance(section, index, seed)))
    name = _scene_name(section, index)
    _save(section, name, image, mask if section.name != "unlabeled" or keep_hidden_masks else None)
    return name, ";".join(CLASSES[i] for i in np.unique(mask))


def _write_chosen(
    section: Path,
    numbers: range,
    take_picture: Callable[[np.random.Generator], tuple[_Bytes, _Bytes]],
    seed: int,
    choose_from: int,
) -> None:
    """Paint a section of labelled scenes, each the best of several; one after the other."""
    shown = np.zeros(len(CLASSES), np.int64)  # pixels so far
    for index in numbers:
        chances = _scene_chance(section, index, seed).spawn(choose_from)
        pictures = [take_picture(np.random.default_rng(chance)) for chance in chances]
        image, mask = _choose_picture(pictures, shown)
        shown += _class_pixels(mask)
        _save(section, _scene_name(section, index), image, mask)


def _scene_name(section: Path, index: int) -> str:
    return f"{section.name}-{index:04d}"


def _choose_picture(
    pictures: Sequence[tuple[_Bytes, _Bytes]], shown: npt.NDArray[np.int64]
) -> tuple[_Bytes, _Bytes]:
    """The picture that adds most to what is shown: a pixel counts the more the rarer its class."""
    scores = [np.log(1 + shown + _class_pixels(mask)).sum() for _, mask in pictures]
    return pictures[int(np.argmax(scores))]


def _class_pixels(mask: _Bytes) -> npt.NDArray[np.int64]:
    """Pixels of each class, [C]."""
    return np.bincount(mask.ravel(), minlength=len(CLASSES))


def _take_picture(
    generator: np.random.Generator,
    *,
    size: tuple[int, int],
    style: Style,
    zoom: tuple[float, float],
) -> tuple[_Bytes, _Bytes]:
    """Paint a scene, larger than asked for where there is a zoom, and cut a window out of it."""
    if zoom == (1.0, 1.0):
        return paint_scene(size=size, style=style, generator=generator)
    height, width = size
    factor = generator.uniform(*zoom)
    view = (round(height * factor), round(width * factor))
    image, mask = paint_scene(size=view, style=style, generator=generator)
    row, column = _draw_pixel(mask, generator)
    top = min(max(row - height // 2, 0), view[0] - height)
    left = min(max(column - width // 2, 0), view[1] - width)
    window = (slice(top, top + height), slice(left, left + width))
    return image[window], mask[window]


def _draw_pixel(mask: _Bytes, generator: np.random.Generator) -> tuple[int, int]:
    """Row and column of a pixel whose class is any that the mask shows, each as likely."""
    rows, columns = np.nonzero(mask == generator.choice(np.unique(mask)))
    index = int(generator.integers(len(rows)))
    return int(rows[index]), int(columns[index])


def _check_numbers(numbers: dict[str, int]) -> None:
    """Raise UserError where a number is negative."""
    for what, number in numbers.items():
        if number < 0:
            raise UserError(f"Expected {what} of 0 or more, got {number}; choose another number.")


def _named_style(name: str) -> Style:
    """Return the style of that name."""
    if name not in STYLES:
        raise UserError(
            f"Expected a style out of {', '.join(STYLES)}, got '{name}'; "
            f"choose one of them.{nearest_name(name, STYLES)}"
        )
    return STYLES[name]


def _make_empty(folder: Path) -> None:
    """Make the folder; scenes of another data set must not stay among the new ones."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"Expected a folder to write to, got {folder} ({error.strerror}); choose another one."
        ) from None
    if used:
        raise UserError(f"Expected an empty folder, got {folder} with files; choose another one.")


def _save(
    section: Path,
    name: str,
    image: _Bytes,
    mask: _Bytes | None,
) -> None:
    """Write one scene; a section without masks is the unlabelled one."""
    write_image(section / "images" / f"{name}.png", image)
    if mask is not None:
        folder = "hidden_masks" if section.name == "unlabeled" else "masks"
        write_mask(section / folder / f"{name}.png", mask, colors=COLORS)


def _write_yaml(folder: Path, sections: Sequence[str], tags: Sequence[tuple[str, str]]) -> Path:
    """Write ``dataset.yaml``, and ``tags.csv`` if there are tags; return the former's path."""
    tree: dict[str, object] = {
        "classes": [
            {"name": name, "color": list(color)}
            for name, color in zip(CLASSES, COLORS, strict=True)
        ],
        "ignore_index": IGNORE_INDEX,
        "mask_format": "index",
    }
    for section in sections:
        entry = {"images": f"{section}/images"}
        if section != "unlabeled":
            entry["masks"] = f"{section}/masks"
        tree[section] = entry
    if tags:
        tree["tags"] = "tags.csv"
        with (folder / "tags.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("image", "classes"), *tags])
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path
