"""Looks at a folder of images and annotations and writes the dataset.yaml that reads them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from u2pl.data.check import quick_check
from u2pl.data.class_counts import count_pixels
from u2pl.data.images import write_whole
from u2pl.data.init import cityscapes, coco, cvat, folders, label_studio, voc
from u2pl.data.init.draft import Draft, Request, Uncovered
from u2pl.data.init.pairs import write_lines
from u2pl.data.sources import Dataset, load_dataset
from u2pl.data.split import parse_share, stratified_order
from u2pl.errors import UserError, is_clean

__all__ = ["FORMATS", "InitResult", "init_dataset"]

FORMATS: dict[str, ModuleType] = {
    module.NAME: module for module in (folders, voc, cityscapes, cvat, coco, label_studio)
}
"""By name: each can ``recognize`` a folder and ``draft`` a data set."""

_MARK = ".made-by-u2pl"  # only a folder with this file in it is ever replaced


@dataclass(frozen=True)
class InitResult:
    """What :func:`init_dataset` wrote.

    Attributes:
        path: the dataset.yaml.
        format: a name in :data:`FORMATS`.
        conclusions: sentences: what was concluded of the files, and why.
        dataset: the file, read back.
        made: the folder of lists and masks that had to be written, if there is one.
    """

    path: Path
    format: str
    conclusions: tuple[str, ...]
    dataset: Dataset
    made: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        encodings = {s.mask_encoding.format for _, rows in self._masked() for s in rows}
        return {
            "dataset": str(self.path),
            "format": self.format,
            "conclusions": list(self.conclusions),
            "classes": list(self.dataset.classes),
            "mask_format": sorted(encodings)[0],
            "ignore_index": self.dataset.ignore_index,
            "sections": {name: len(rows) for name, rows in self.dataset.sections.items()},
            "made": None if self.made is None else str(self.made),
        }

    def _masked(self) -> list[tuple[str, Any]]:
        return [(n, rows) for n, rows in self.dataset.sections.items() if n != "unlabeled"]


def init_dataset(
    source: Path | str,
    *,
    out: Path | None = None,
    format: str | None = None,
    images: Path | None = None,
    classes: tuple[str, ...] | None = None,
    val: str | None = None,
    seed: int = 0,
    uncovered: Uncovered | None = None,
    overwrite: bool = False,
) -> InitResult:
    """Find out what lies in a folder and write a dataset.yaml for it.

    Nothing of the source is changed. Lists, and masks that must be painted, go to a folder beside
    the dataset.yaml, ``dataset-files``. What is written loads, and its masks fit their images.

    Args:
        source: a folder; a .json file of COCO or Label Studio; or CVAT's .zip.
        out: the file to write; None is ``dataset.yaml`` in the folder.
        format: a name in :data:`FORMATS`; None finds it.
        images: the folder of the images, where annotations name them.
        classes: names in the order of ids, where no file names them.
        val: what to hold out of the labelled images where there is no val: ``1/5``, ``0.2`` or a
            number of images; see :func:`u2pl.data.split.stratified_order`.
        seed: of that choice.
        uncovered: whether pixels without annotation are ``background`` or ``ignore``.
        overwrite: replace a dataset.yaml, and its folder, that are there.

    Raises:
        UserError: where the folder can be read in no way or in several, files are faulty or do not
            fit together, or something is in the way.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source} does not exist; check the path.")
    if images is not None and not images.is_dir():
        raise UserError(f"Expected a folder of images, got {images}; change --images.")
    for place in (source, *([] if out is None else [out])):
        if not is_clean(str(place)):
            raise UserError(f"The path {place} has control characters, or is no UTF-8; rename it.")
    folder = source if source.is_dir() else source.parent
    request = Request(source, out or folder / "dataset.yaml", images, classes, uncovered)
    if os.path.lexists(request.out) and not overwrite:
        raise UserError(
            f"{request.out} is there already; give --overwrite to replace it, or another --out."
        )
    module = _recognized(source, format)
    with _place_for_files(request, overwrite):
        result = module.draft(request)
        tree = _tree(request, result)
        dataset = _written(request, tree, result, val, seed)
    made = request.made if request.made.is_dir() else None
    return InitResult(request.out, result.format, tuple(result.conclusions), dataset, made)


def _recognized(source: Path, format: str | None) -> ModuleType:
    """Return the module of the format that was named, or of the only one that fits."""
    if format is not None:
        if format not in FORMATS:
            raise UserError(
                f"Expected a format of {', '.join(FORMATS)}, got '{format}'.", exit_code=2
            )
        module = FORMATS[format]
        suffixes = {coco: (".json",), label_studio: (".json",), cvat: (".zip",)}.get(module, ())
        if source.is_dir() and module.recognize(source) is None:
            raise UserError(f"{source} does not look like {format}; leave --format out to find it.")
        if not source.is_dir() and source.suffix.lower() not in suffixes:
            raise UserError(f"{format} is read from a folder; name the folder of {source}.")
        return module
    if source.suffix.lower() == ".zip":
        return cvat
    if source.suffix.lower() == ".json":
        return label_studio if label_studio.starts_as_tasks(source) else coco
    if not source.is_dir():
        raise UserError(f"Expected a folder, a .json or a .zip, got {source}; name the folder.")
    found = {name: why for name, module in FORMATS.items() if (why := module.recognize(source))}
    if cvat.NAME in found:  # its tree is VOC's with a labelmap.txt
        found.pop(voc.NAME, None)
    if len(found) == 1:
        return FORMATS[next(iter(found))]
    if found:
        texts = [f"{name} ({why})" for name, why in found.items()]
        raise UserError(f"{source} looks like {' and like '.join(texts)}; say which by --format.")
    raise UserError(
        f"Expected images/ and masks/ in {source}, or a tree of VOC, Cityscapes, CVAT, COCO or "
        "Label Studio, got none of them; see docs/how-to/own-data.md."
    )


@contextlib.contextmanager
def _place_for_files(request: Request, overwrite: bool) -> Iterator[None]:
    """Put what is made in a fresh folder; on an error leave everything as it was."""
    made, old = request.made, request.made.with_name(f".{request.made.name}.old")
    before = request.out.read_bytes() if request.out.is_file() else None
    if os.path.lexists(made):
        if not overwrite or not (made / _MARK).is_file() or made.is_symlink():
            raise UserError(
                f"{made} is there already; give --overwrite if u2pl made it, or --out another file."
            )
        shutil.rmtree(old, ignore_errors=True)
        made.rename(old)
    try:
        yield
        if made.is_dir():
            (made / _MARK).touch()
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        if old.is_dir():
            old.rename(made)
        if before is None:
            request.out.unlink(missing_ok=True)
        else:
            request.out.write_bytes(before)
        raise


def _tree(request: Request, result: Draft) -> dict[str, Any]:
    """Return the content of the dataset.yaml."""
    tree = result.encoding.head()
    root, here = os.path.realpath(request.root), os.path.realpath(request.out.parent)
    if root != here:
        tree["root"] = root
    for section in ("labeled", "unlabeled", "val", "test"):
        if section in result.sections:
            tree[section] = {**result.sections[section]}
            if section != "unlabeled" and result.encoding.id_map is not None:
                tree[section]["id_map"] = dict(result.encoding.id_map)
    if result.tags is not None:
        tree["tags"] = result.tags
    return tree


def _written(
    request: Request, tree: dict[str, Any], result: Draft, val: str | None, seed: int
) -> Dataset:
    """Write the file, hold images out for val where that is asked for, and read it back."""
    _write(request, tree)
    if "val" in tree and val is not None:
        raise UserError(f"{request.root} has images for val; leave --val out.", exit_code=2)
    if "val" not in tree:
        if val is None:
            raise UserError(
                f"Expected images to score on in {request.root}, such as val/images and val/masks, "
                "found none; add them, or let --val 1/5 hold that share of the labelled images out."
            )
        _hold_out(request, tree, result, val, seed)
        _write(request, tree)
    train = "labeled" if "labeled" in tree else "unlabeled"
    dataset = load_dataset(request.out, require=(train, "val"))
    quick_check(dataset)
    return dataset


def _write(request: Request, tree: dict[str, Any]) -> None:
    text = "# u2pl data init\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    write_whole(request.out, lambda place: place.write_text(text, encoding="utf-8"))


def _hold_out(request: Request, tree: dict[str, Any], result: Draft, val: str, seed: int) -> None:
    """Move a stratified share of the labelled images to val."""
    dataset = load_dataset(request.out, require=("labeled",))
    samples = dataset.labeled
    count = parse_share(val, len(samples))
    if count >= len(samples):
        raise UserError(
            f"Expected some of the {len(samples)} labelled images to be left, got --val {val}; "
            "lower it.",
            exit_code=2,
        )
    rows = [count_pixels(dataset.read_mask(sample), dataset.num_classes)[:-1] for sample in samples]
    chosen = {*stratified_order(np.array(rows), seed=seed, count=count)}
    parts = {
        "val": [sample.name for place, sample in enumerate(samples) if place in chosen],
        "labeled": [sample.name for place, sample in enumerate(samples) if place not in chosen],
    }
    section = tree["labeled"]
    for name, members in parts.items():
        path = request.made / ("val.txt" if name == "val" else "train.txt")
        write_lines(path, members)
        tree[name] = {**section, "list": request.spell(path)}
    result.conclusions.append(
        f"val: {count} of the {len(samples)} labelled images, stratified by class pixels, seed "
        f"{seed}. If neighbours are alike, as frames of a video are, give val folders of its own."
    )
