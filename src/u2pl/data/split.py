"""Few labelled images of many: nested lists, stratified by class pixels, or lists of others.

A split is made by order. Every seed has one order of the labelled images, and a fraction takes as
many of the first as it asks for, so 1/16 lies within 1/8 within 1/4. The order keeps the class
pixels of its beginning like those of all images.

Frames of videos are alike where they are neighbours; there :func:`spread_choice` takes one image
out of each of equal stretches. Its choices are not nested.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from u2pl.data.class_counts import class_pixels
from u2pl.data.images import write_whole
from u2pl.data.sources import (
    IMAGE_SUFFIXES,
    Dataset,
    Sample,
    list_unlabeled,
    load_dataset,
    split_hash,
)
from u2pl.errors import UserError, is_clean, nearest_name, printable
from u2pl.plain_files import read_text, read_yaml

# Of the images left, this share, the best ones, are those that the next is drawn from. With less,
# splits of other seeds share more images than by chance; with more, shares fit less well.
_CHOICES = 0.25

DRAWS = ("stratified", "spread")
"""How labelled images are chosen: :func:`stratified_order` or :func:`spread_choice`."""


@dataclass(frozen=True)
class Split:
    """One data set that :func:`split_dataset` or :func:`import_split` wrote.

    Attributes:
        path: the new dataset.yaml; its lists lie in a folder of the same name without suffix.
        labeled: the names of its labelled images, in the order of their list.
        num_unlabeled: images of its unlabelled section.
        share_difference: the largest difference between a class's share of the labelled pixels
            and its share of those of all images that could have been chosen, 0 to 1.
        absent: classes with a pixel in those images and none in the labelled ones.
        sha256: see :func:`u2pl.data.sources.split_hash`, of the labelled images.
    """

    path: Path
    labeled: tuple[str, ...]
    num_unlabeled: int
    share_difference: float
    absent: tuple[str, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the split as plain values."""
        return {
            "dataset": str(self.path),
            "labeled": len(self.labeled),
            "unlabeled": self.num_unlabeled,
            "share_difference": self.share_difference,
            "absent": list(self.absent),
            "sha256": self.sha256,
        }


def stratified_order(
    pixels: npt.NDArray[np.int64], *, seed: int, count: int | None = None
) -> list[int]:
    """Return images in an order whose every beginning is like all images.

    Greedy: the next image is drawn from those that bring the class pixels chosen so far nearest to
    their part of all pixels. The distance between the mean class pixels of some images and those
    of all, with q and p in units of all pixels of the average image, is

        d = sqrt(Σ_c (q_c - p_c)² / p_c)

    so a rare class counts as a frequent one does. Only images are drawn from that leave d no
    larger than the mean of those left would, which bounds it: the first k images have
    d ≤ R / sqrt(k) for every k, where R is the largest d of a single image.

    Args:
        pixels: [n, C], how many pixels of each class each image holds.
        seed: not negative; another seed gives another order.
        count: how many to return; fewer are the beginning of more. None returns all n.

    Returns:
        ``count`` indices, all different.

    >>> order = stratified_order(np.array([[9, 1], [9, 1], [0, 10], [8, 2]]), seed=0)
    >>> sorted(order)
    [0, 1, 2, 3]
    """
    generator = np.random.default_rng(seed)
    scaled = _scaled(pixels)
    count = len(scaled) if count is None else count
    if scaled.shape[1] == 0:  # nothing to stratify by
        return [int(index) for index in generator.permutation(len(scaled))[:count]]
    left = np.arange(len(scaled))
    total = np.zeros(scaled.shape[1])
    squares = (scaled**2).sum(axis=1)
    order: list[int] = []
    while len(order) < count:
        scores = 2 * scaled[left] @ total + squares[left]  # |total + row|², less |total|²
        num_choices = max(1, math.ceil(_CHOICES * len(left)))
        best = np.argsort(scores, kind="stable")[:num_choices]
        best = best[scores[best] <= max(scores.mean(), scores[best[0]])]
        place = int(generator.choice(best))
        order.append(int(left[place]))
        total += scaled[left[place]]
        left = np.delete(left, place)
    return order


def _scaled(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return [n, C'] rows (x - p) / sqrt(p), whose length is an image's distance d."""
    rows = np.asarray(pixels, np.float64)
    present = rows.sum(axis=0) > 0
    rows = rows[:, present]
    if not rows.size:
        return rows
    rows = rows / rows.sum(axis=1).mean()
    mean = rows.mean(axis=0)
    scaled: npt.NDArray[np.float64] = (rows - mean) / np.sqrt(mean)
    return scaled


def spread_choice(total: int, count: int, *, seed: int) -> list[int]:
    """Return one random index out of each of ``count`` equal stretches of ``total``.

    For images whose neighbours are alike, such as the frames of a video in their order.

    Args:
        total: how many there are.
        count: how many to return, at most ``total``.
        seed: not negative; another seed gives another choice.

    Returns:
        Rising indices, all different.

    >>> spread_choice(100, 4, seed=0)
    [21, 43, 60, 81]
    """
    draw = random.Random(seed)
    stretch = total / count if count else 0.0
    chosen: list[int] = []
    for place in range(count):
        index = int((place + draw.random()) * stretch)
        # where stretches are no whole numbers, two may share an index at their border
        index = max(index, chosen[-1] + 1 if chosen else 0)
        chosen.append(min(index, total - count + place))
    return chosen


def parse_share(text: str, total: int) -> int:
    """Return how many of ``total`` images a text asks for: ``1/16``, ``0.05`` or ``23``.

    Halves are rounded up, and at least one image is taken.

    Raises:
        UserError: where it is no such number, or more than there are.

    >>> parse_share("1/16", 1464), parse_share("0.5", 3), parse_share("23", 367)
    (92, 2, 23)
    """
    share, is_count = Fraction(0), text.isdecimal()
    if re.fullmatch(r"[0-9]{1,9}(/0*[1-9][0-9]{0,8}|\.[0-9]{1,9})?", text):
        share = Fraction(text)
    if share <= 0 or (share > 1 and not is_count):
        raise UserError(
            f"Expected a fraction such as 1/16 or 0.05, or a number of images, got '{text}'; "
            "change it.",
            exit_code=2,
        )
    count = int(share) if is_count else max(1, math.floor(share * total + Fraction(1, 2)))
    if count > total:
        raise UserError(
            f"Expected at most {total} images, as many as have masks, got {count}; ask for fewer."
        )
    return count


def split_dataset(
    path: Path | str, *, labeled: Sequence[str], seeds: Sequence[int], draw: str = "stratified"
) -> list[Split]:
    """Write a data set for each fraction and seed, beside the one it is made of.

    Of ``dataset.yaml`` and 1/16 with seed 0 are made ``dataset-1of16-seed0.yaml`` and, in the
    folder ``dataset-1of16-seed0``, ``labeled.txt`` and ``unlabeled.txt``. The labelled images come
    out of those of its section 'labeled'; all others become unlabelled ones. Nothing is
    overwritten: files that are there must have the same content.

    Args:
        path: a dataset.yaml, or its folder.
        labeled: see :func:`parse_share`; of the images in 'labeled'.
        seeds: one or more; not negative.
        draw: of :data:`DRAWS`; ``spread`` takes the images in the order of their names, and adds
            its own name to that of the file.

    Raises:
        UserError: where the data set, a fraction or a seed is faulty, a mask cannot be read, or a
            file of another content is in the way.
    """
    if draw not in DRAWS:
        raise UserError(
            f"Expected a draw of {' or '.join(DRAWS)}, got '{draw}'.{nearest_name(draw, DRAWS)}",
            exit_code=2,
        )
    dataset = load_dataset(path)
    counts = {text: parse_share(text, len(dataset.labeled)) for text in labeled}
    for seed in seeds:
        if seed < 0:
            raise UserError(f"Expected seeds of 0 or more, got {seed}; change it.", exit_code=2)
    pixels = class_pixels(dataset, dataset.labeled)
    made = []
    for seed in dict.fromkeys(seeds):
        chosen = _chosen(dataset, pixels, list(counts.values()), seed=seed, draw=draw)
        for text, indices in zip(counts, chosen, strict=True):
            suffix, option = ("", "") if draw == "stratified" else (f"-{draw}", f" --draw {draw}")
            name = f"{dataset.path.stem}-{text.replace('/', 'of')}-seed{seed}{suffix}"
            made.append((name, f"--labeled {text} --seed {seed}{option}", indices))
    return _write_splits(dataset, pixels, made)


def _chosen(
    dataset: Dataset,
    pixels: npt.NDArray[np.int64],
    counts: Sequence[int],
    *,
    seed: int,
    draw: str,
) -> list[list[int]]:
    """Return the indices of the labelled images, for each number of them."""
    if draw == "spread":
        names = [sample.name for sample in dataset.labeled]
        order = sorted(range(len(names)), key=names.__getitem__)
        return [
            [order[place] for place in spread_choice(len(order), count, seed=seed)]
            for count in counts
        ]
    order = stratified_order(pixels, seed=seed, count=max(counts, default=0))
    return [order[:count] for count in counts]


def import_split(
    path: Path | str, *, labeled: Path, unlabeled: Path | None = None, name: str | None = None
) -> Split:
    """Write a data set whose labelled images are those of a published list.

    A list has an image a line: its name, its path with or without suffix, or a pair of paths,
    ``JPEGImages/x.jpg SegmentationClass/x.png``, of which the first counts. Of a path, folders
    that are not here are left away.

    Args:
        path: a dataset.yaml, or its folder; its 'labeled' must hold all images of the list.
        labeled: the list.
        unlabeled: a list of its unlabelled images; None takes all images that are not labelled.
        name: of the new file, without suffix; None makes one of the list's name.

    Raises:
        UserError: as :func:`split_dataset`, and where a list names an image twice or one that is
            not there.
    """
    dataset = load_dataset(path)
    name = name or f"{dataset.path.stem}-{labeled.parent.name}-{labeled.stem}"
    if not is_clean(name) or os.path.basename(name) != name or name.startswith("."):
        raise UserError(
            f"Expected a file name without suffix, got '{name}'; change --name.", exit_code=2
        )
    chosen = _listed(labeled, dataset.labeled, "'labeled'")
    others = None
    if unlabeled is not None:
        images = {sample.image: sample for sample in (*dataset.labeled, *dataset.unlabeled)}
        candidates = list(images.values())
        found = _listed(unlabeled, candidates, "'labeled' and 'unlabeled'")
        others = [candidates[index] for index in found]
        both = {dataset.labeled[index].image for index in chosen} & {s.image for s in others}
        if both:
            first = min(Path(str(image)).stem for image in both)
            raise UserError(
                f"{unlabeled}: {len(both)} images stand in {labeled}, too, the first "
                f"'{first}'; take them out of one of the lists."
            )
    pixels = class_pixels(dataset, dataset.labeled)
    (split,) = _write_splits(dataset, pixels, [(name, f"--import {labeled}", chosen)], others)
    return split


def _write_splits(
    dataset: Dataset,
    pixels: npt.NDArray[np.int64],
    made: Sequence[tuple[str, str, Sequence[int]]],
    others: Sequence[Sample] | None = None,
) -> list[Split]:
    """Write data sets, given as name, how they were asked for, and indices; all or none."""
    tree = read_yaml(dataset.path)
    files: dict[Path, str] = {}
    unlabeled = {}
    for name, how, chosen in made:
        samples = [dataset.labeled[index] for index in chosen]
        rest = _others(dataset, samples) if others is None else others
        unlabeled[name] = rest
        files |= _texts(dataset, tree, name, how, samples, rest)
    _refuse_other_content(files)
    new = [file for file in files if not os.path.lexists(file)]
    for file, text in files.items():
        write_whole(file, partial(Path.write_text, data=text, encoding="utf-8"))
    try:
        return [
            _read_back(dataset, pixels, name, chosen, unlabeled[name]) for name, _, chosen in made
        ]
    except UserError:
        for file in new:
            file.unlink(missing_ok=True)
        for folder in {file.parent for file in new} - {dataset.path.parent}:
            folder.rmdir()
        raise


def _read_back(
    dataset: Dataset,
    pixels: npt.NDArray[np.int64],
    name: str,
    chosen: Sequence[int],
    unlabeled: Sequence[Sample],
) -> Split:
    """Return what was written, after a look that it reads as it should."""
    path = dataset.path.with_name(f"{name}.yaml")
    samples = [dataset.labeled[index] for index in chosen]
    _require_same(dataset, load_dataset(path), samples, unlabeled)
    return Split(
        path=path,
        labeled=tuple(sample.name for sample in samples),
        num_unlabeled=len(unlabeled),
        share_difference=_share_difference(pixels, chosen),
        absent=_absent(dataset.classes, pixels, chosen),
        sha256=split_hash(samples),
    )


def _others(dataset: Dataset, labeled: Iterable[Sample]) -> list[Sample]:
    """Return every image of the training sections that is not labelled, each once."""
    taken = {sample.image for sample in labeled}
    images = {sample.image: sample for sample in (*dataset.labeled, *dataset.unlabeled)}
    return [sample for image, sample in images.items() if image not in taken]


def _texts(
    dataset: Dataset,
    tree: dict[str, Any],
    name: str,
    how: str,
    labeled: Sequence[Sample],
    unlabeled: Sequence[Sample],
) -> dict[Path, str]:
    """Return the files of one split."""
    folder = dataset.path.parent / name
    root = Path(os.path.realpath(dataset.path.parent / (tree.get("root") or ".")))
    tree = {
        **tree,
        "labeled": {**tree["labeled"], "list": _seen_from(root, folder / "labeled.txt")},
    }
    files = {folder / "labeled.txt": _lines(sample.name for sample in labeled)}
    before = tree.pop("unlabeled", None)
    images, with_shards = list_unlabeled(dataset, unlabeled)
    section = {"shards": before["shards"]} if with_shards else {}
    if images:
        files[folder / "unlabeled.txt"] = _lines(_seen_from(root, image) for image in images)
        section["images"] = _seen_from(root, folder / "unlabeled.txt")
    if section:
        tree["unlabeled"] = section
    head = (
        f"# u2pl data split {printable(dataset.path.name)} {printable(how)}\n"
        f"# {len(labeled)} of {len(dataset.labeled)} images are labelled.\n"
    )
    text = head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    files[dataset.path.with_name(f"{name}.yaml")] = text
    return files


def _seen_from(root: Path, file: Path) -> str:
    """Return a path of a dataset.yaml; links of the file itself are not followed."""
    place = os.path.join(os.path.realpath(file.parent), file.name)
    try:
        return Path(os.path.relpath(place, root)).as_posix()
    except ValueError:  # on another drive of Windows
        return Path(place).as_posix()


def _lines(items: Iterable[str]) -> str:
    return "".join(f"{item}\n" for item in items)


def _refuse_other_content(files: dict[Path, str]) -> None:
    for file, text in files.items():
        if not os.path.lexists(file):
            continue
        try:
            same = read_text(file) == text
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(
                f"{file} is there already, with other content; move it away, or import the list "
                "under another --name."
            )


def _require_same(
    old: Dataset, new: Dataset, labeled: Sequence[Sample], unlabeled: Sequence[Sample]
) -> None:
    """Raise where a new data set does not hold what it was made of, such as for odd names."""
    tags = {sample.image: sample.tags for sample in old.unlabeled}
    fits = [s.image for s in new.labeled] == [s.image for s in labeled]
    fits &= [s.image for s in new.unlabeled] == [s.image for s in unlabeled]
    if not fits:
        raise UserError(
            f"{new.path} does not name the same files as {old.path}, because of names that begin "
            "with '#' or a blank; rename these images."
        )
    lost = [s.name for s in new.unlabeled if s.tags is None and tags.get(s.image) is not None]
    if lost:
        raise UserError(
            f"{new.path}: {len(lost)} images have lost their tags, the first '{lost[0]}', since "
            f"the name is not unique any more; name them by their path in the tags of {old.path}."
        )


def _shares(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return each class's share of all pixels; zeros where there is none."""
    counts: npt.NDArray[np.float64] = pixels.sum(axis=0) / max(int(pixels.sum()), 1)
    return counts


def _share_difference(pixels: npt.NDArray[np.int64], chosen: Sequence[int]) -> float:
    return float(np.abs(_shares(pixels[list(chosen)]) - _shares(pixels)).max())


def _absent(
    classes: Sequence[str], pixels: npt.NDArray[np.int64], chosen: Sequence[int]
) -> tuple[str, ...]:
    is_absent = (pixels.sum(axis=0) > 0) & (pixels[list(chosen)].sum(axis=0) == 0)
    return tuple(name for name, absent in zip(classes, is_absent, strict=True) if absent)


def _listed(path: Path, samples: Sequence[Sample], where: str) -> list[int]:
    """Return the indices of the samples that a published list names, in its order."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except FileNotFoundError:
        raise UserError(f"The list {path} does not exist; check the path.") from None
    except (OSError, ValueError):
        raise UserError(f"The list {path} is not a text file; give one name a line.") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"The list {path} names no image; give one name a line.")
    known = _by_any_name(samples)
    found = [_find(line, known) for line in lines]
    missing = [line for line, index in zip(lines, found, strict=True) if index is None]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(lines)} lines name no image of {where}, or more than "
            f"one; the first is '{missing[0]}', where names such as '{samples[0].name}' are known; "
            "check that the list belongs to this data set."
        )
    chosen = [index for index in found if index is not None]
    if len(set(chosen)) < len(chosen):
        twice = next(lines[i] for i, index in enumerate(chosen) if index in chosen[:i])
        raise UserError(f"{path}: '{twice}' stands there twice; each image may be listed once.")
    return chosen


def _by_any_name(samples: Sequence[Sample]) -> dict[str, int]:
    """Return samples by every end of their path, and without a tail that all names share."""
    tails = {"".join(sample.name.rpartition("_")[1:]) for sample in samples}
    tail = tails.pop() if len(tails) == 1 else ""  # such as _leftImg8bit
    ends: dict[str, set[int]] = {}
    for index, sample in enumerate(samples):
        place = os.path.splitext(str(sample.image))[0].replace(os.sep, "/")
        for text in {place, sample.name, place.removesuffix(tail)}:
            parts = text.split("/")
            for start in range(len(parts)):
                ends.setdefault("/".join(parts[start:]), set()).add(index)
    return {end: min(found) for end, found in ends.items() if len(found) == 1}


def _find(line: str, known: dict[str, int]) -> int | None:
    """Return the sample of a line; as few leading folders as possible are left away."""
    texts = [line]
    first = line.split()[0]
    if first != line:  # a name may hold blanks; a pair is what no name is
        texts.append(first)
    for text in texts:
        plain, suffix = os.path.splitext(text)
        parts = PurePosixPath(plain if suffix.lower() in IMAGE_SUFFIXES else text).parts
        for start in range(len(parts)):
            index = known.get("/".join(parts[start:]))
            if index is not None:
                return index
    return None
