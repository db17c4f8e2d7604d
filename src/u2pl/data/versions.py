"""Versions of a data set: each stands by itself, beside the one before.

All masks of a version's labelled images lie in its own folder, as index masks. Nothing that is
there is written over, so an earlier version can be trained on again.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from u2pl.data.images import write_mask, write_whole
from u2pl.data.init.pairs import write_lines
from u2pl.data.sources import Dataset, MaskEncoding, Sample, load_dataset
from u2pl.errors import UserError, is_clean, printable
from u2pl.plain_files import read_text, read_yaml

COLUMNS = ("image", "mask", "origin", "format", "labeled_share", "version")
"""Of ``provenance.csv``."""


class NewMask(NamedTuple):
    """A mask that a version brings.

    Attributes:
        file: an index mask of class ids, which is copied.
        labeled_share: share of its pixels that are labelled, 0 to 1.
    """

    file: Path
    labeled_share: float


def next_version(path: Path) -> Path:
    """Return the name of a data set's next version.

    >>> next_version(Path("a/dataset.yaml")).name, next_version(Path("dataset-9.yaml")).name
    ('dataset-2.yaml', 'dataset-10.yaml')
    """
    match = re.fullmatch(r"(.+)-([0-9]{1,6})", path.stem)
    stem, number = (match[1], int(match[2])) if match else (path.stem, 1)
    return path.with_name(f"{stem}-{number + 1}{path.suffix}")


def folder_of(path: Path) -> Path:
    """Return the folder of a version's masks, lists and provenance."""
    return path.with_name(f"{path.stem}-files")


def refuse_what_is_there(out: Path) -> None:
    """Raise UserError where a version cannot be written without writing over something."""
    if not is_clean(str(out)) or out.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"Expected a file name with .yaml for --out, got '{out}'.", exit_code=2)
    for place in (out, folder_of(out)):
        if os.path.lexists(place):
            raise UserError(
                f"{place} is there already, and nothing is written over: merge into the newest "
                f"version (u2pl data merge {out} …), or give another --out."
            )


def write_version(
    dataset: Dataset,
    out: Path,
    masks: Mapping[Path, NewMask],
    *,
    origin: str,
    format: str,
    told: str,
) -> Dataset:
    """Write the next version of a data set, all or nothing, and return it as it reads.

    Args:
        dataset: the version before.
        out: the new dataset.yaml; nothing may be there, nor its folder.
        masks: new masks by the file of their image; an image of ``unlabeled`` becomes labelled,
            one of ``labeled`` has this mask from now on.
        origin: what the masks came from, for ``provenance.csv``.
        format: of that.
        told: what has changed, for the head of the file.

    Raises:
        UserError: where two images would share a mask's name, a file cannot be written, or names
            are such that the new version would not read as it should. Nothing is left behind.
    """
    made = folder_of(out)
    moved, left = _moved(dataset, masks)
    labeled = {sample.file: sample for sample in (*dataset.labeled, *moved)}
    names = _names(labeled)
    tree = read_yaml(dataset.path)
    root = Path(os.path.realpath(dataset.path.parent / (tree.get("root") or ".")))
    try:
        old, rows = _old_provenance(dataset), []
        for image, sample in labeled.items():
            target = made / "masks" / f"{names[image]}.png"
            row = {"image": _seen_from(root, image), "mask": _seen_from(root, target, is_new=True)}
            if image in masks:
                write_whole(target, partial(shutil.copyfile, masks[image].file))
                share = masks[image].labeled_share
                row |= {"origin": printable(origin), "format": format, "version": out.name}
            else:
                share = _carry_over(dataset, sample, target)
                first = dict.fromkeys(("origin", "version"), printable(dataset.path.name))
                row |= {**first, "format": "dataset", **old.get(row["image"], {})}
            rows.append(row | {"labeled_share": f"{share:.4f}"})
        write_lines(made / "labeled.txt", [row["image"] for row in rows])
        write_lines(made / "unlabeled.txt", [sample.name for sample in left])
        _write_provenance(made / "provenance.csv", rows)
        head = _head(dataset, f"{origin} ({format})", f"{len(rows)} labelled images: {told}", made)
        text = _tree(tree, dataset, root, out, bool(left))
        write_whole(out, partial(Path.write_text, data=head + text, encoding="utf-8"))
        new = load_dataset(out, require=("labeled",))
        _require_same(dataset, new, masks)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        out.unlink(missing_ok=True)
        raise
    return new


def _moved(dataset: Dataset, masks: Mapping[Path, NewMask]) -> tuple[list[Sample], list[Sample]]:
    """Return the unlabelled images that become labelled, and those that stay in their section."""
    new = {*masks} - {sample.image for sample in dataset.labeled}
    moved = [sample for sample in dataset.unlabeled if sample.image in new]
    return moved, [sample for sample in dataset.unlabeled if sample.image not in new]


def _carry_over(dataset: Dataset, sample: Sample, target: Path) -> float:
    """Bring a mask of the version before into this one; return its labelled share."""
    labels = dataset.read_mask(sample)
    assert sample.mask is not None, "a labelled image has a mask"
    if sample.mask_encoding == MaskEncoding() and sample.mask.suffix.lower() == ".png":
        write_whole(target, partial(shutil.copyfile, sample.mask))
    else:
        write_mask(target, labels, colors=dataset.colors)
    return float((labels != dataset.ignore_index).mean())


def _names(images: Iterable[Path]) -> dict[Path, str]:
    """Return what a list of images will be called: paths from the folder that all share."""
    paths = [*images]
    base = os.path.commonpath([path.parent for path in paths])
    names = {path: Path(os.path.relpath(path, base)).with_suffix("").as_posix() for path in paths}
    seen: dict[str, Path] = {}
    for path, name in names.items():
        if name in seen:
            raise UserError(f"{seen[name]} and {path} would share the mask {name}.png; rename one.")
        seen[name] = path
    return names


def _seen_from(root: Path, path: Path, *, is_new: bool = False) -> str:
    """Return a path as the dataset.yaml has it; of what is not written yet, links are followed."""
    place = os.path.realpath(path) if is_new else path
    return Path(os.path.relpath(place, root)).as_posix()


def _tree(tree: dict[str, Any], dataset: Dataset, root: Path, out: Path, any_left: bool) -> str:
    """Return the content of the new dataset.yaml; all but the training sections stays."""
    made = folder_of(out)
    new = {key: value for key, value in tree.items() if key not in ("labeled", "unlabeled")}
    if os.path.realpath(out.parent) != os.path.realpath(dataset.path.parent):
        new["root"] = str(root)
    new["labeled"] = {
        "images": _seen_from(root, made / "labeled.txt", is_new=True),
        "masks": _seen_from(root, made / "masks", is_new=True),
        "mask_format": "index",
    }
    if any_left:
        listed = _seen_from(root, made / "unlabeled.txt", is_new=True)
        new["unlabeled"] = {**tree["unlabeled"], "list": listed}
    return yaml.safe_dump(new, sort_keys=False, allow_unicode=True)


def _head(dataset: Dataset, came: str, told: str, made: Path) -> str:
    """Return the comment that says what the file was made of."""
    return (
        f"# u2pl data merge {printable(dataset.path.name)} {printable(came)}\n"
        f"# {told}. Where each mask came from: {printable(made.name)}/provenance.csv\n"
    )


def _old_provenance(dataset: Dataset) -> dict[str, dict[str, str]]:
    """Return where an earlier version's masks came from, by image; empty for a first version."""
    path = folder_of(dataset.path) / "provenance.csv"
    try:
        rows = [*csv.DictReader(io.StringIO(read_text(path), newline=""))]
    except (OSError, ValueError, csv.Error):
        return {}
    kept = ("origin", "format", "version")
    return {
        row["image"]: {key: printable(row[key]) for key in kept}
        for row in rows
        if all(isinstance(row.get(key), str) for key in ("image", *kept))
    }


def _write_provenance(path: Path, rows: Sequence[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda place: place.write_text(text.getvalue(), encoding="utf-8"))


def _require_same(old: Dataset, new: Dataset, masks: Mapping[Path, NewMask]) -> None:
    """Raise where the new version does not read as it should, such as for odd names."""
    moved, left = _moved(old, masks)
    labeled = list(dict.fromkeys(sample.file for sample in (*old.labeled, *moved)))
    names, folder = _names(labeled), Path(os.path.realpath(folder_of(new.path))) / "masks"
    fits = [s.image for s in new.labeled] == labeled
    fits &= [s.mask for s in new.labeled] == [folder / f"{names[image]}.png" for image in labeled]
    fits &= [(s.image, s.tags) for s in new.unlabeled] == [(s.image, s.tags) for s in left]
    if not fits:
        raise UserError(
            f"{new.path} would not name the same files as {old.path}, because of names that begin "
            "with '#' or a blank, or a link in the way; rename these images."
        )
