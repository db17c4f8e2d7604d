"""Corrected masks into a data set: the next version of its dataset.yaml, beside the one before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from u2pl.data.corrections import Correction, Corrections, Labels, read_corrections
from u2pl.data.images import FileError, image_size, read_mask, write_mask
from u2pl.data.init.draft import some
from u2pl.data.init.paint import check_size
from u2pl.data.sources import Dataset, Sample, load_dataset
from u2pl.data.versions import NewMask, next_version, refuse_what_is_there, write_version
from u2pl.errors import UserError

_KEPT = ("merged", "relabeled")
_SORTS = (*_KEPT, "already", "empty", "unchanged")


@dataclass(frozen=True)
class MergeResult:
    """What :func:`merge_corrections` did.

    Attributes:
        path: the new dataset.yaml; None where there was nothing to do.
        format: of the corrections.
        merged: images that have moved from ``unlabeled`` to ``labeled``, by name.
        relabeled: labelled images that have new masks.
        already: labelled images whose masks are these already.
        empty: images in whose masks no pixel is labelled; they stay unlabelled.
        unchanged: images whose masks are still the pseudo-labels; they stay unlabelled.
        unmatched: names of masks that belong to no image of the data set.
        labeled_share: of the pixels of ``merged`` and ``relabeled``, 0 to 1.
        num_labeled: labelled images of the new version.
        num_unlabeled: its unlabelled ones.
    """

    path: Path | None
    format: str
    merged: tuple[str, ...] = ()
    relabeled: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    labeled_share: float = 0.0
    num_labeled: int = 0
    num_unlabeled: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "dataset": None if self.path is None else str(self.path),
            "format": self.format,
            **{name: list(getattr(self, name)) for name in (*_SORTS, "unmatched")},
            "labeled_share": self.labeled_share,
            "labeled": self.num_labeled,
            "unlabeled": self.num_unlabeled,
        }


@dataclass
class _Sorted:
    """Corrections by what is to become of them; masks to keep lie in a folder, by number."""

    folder: Path
    fresh: dict[Path, Path] = field(default_factory=dict)  # image: its new mask
    shares: dict[Path, float] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    pixels: int = 0
    known: int = 0

    def note(self, what: str, name: str) -> None:
        """Count an image."""
        self.names.setdefault(what, []).append(name)

    def keep(self, sample: Sample, labels: Labels, dataset: Dataset) -> None:
        """Write a mask that the new version will have."""
        path = self.folder / f"{len(self.fresh)}.png"
        write_mask(path, labels, colors=dataset.colors)
        known = int((labels != dataset.ignore_index).sum())
        self.fresh[sample.file] = path
        self.shares[sample.file] = known / labels.size
        self.pixels += labels.size
        self.known += known


def merge_corrections(
    path: Path | str,
    source: Path | str,
    *,
    out: Path | None = None,
    format: str | None = None,
    images: Path | None = None,
    uncovered: str = "ignore",
    pseudo_labels: Path | None = None,
    relabel: bool = False,
    skip_unmatched: bool = False,
) -> MergeResult:
    """Write the next version of a data set, with corrected masks among its labels.

    Of ``dataset.yaml`` is made ``dataset-2.yaml``, of that ``dataset-3.yaml``, and in
    ``dataset-2-files`` the masks, the lists and ``provenance.csv``, which says where each label
    came from.

    Args:
        path: a dataset.yaml, or its folder.
        source: the corrected masks; see :func:`u2pl.data.corrections.read_corrections`.
        out: the file to write; None takes the next number.
        format: of the masks; None finds it.
        images: the folder that their names count from; None looks for images whose path ends as
            a name does.
        uncovered: what pixels are that no shape covers: ``ignore``, or a class.
        pseudo_labels: a folder that ``u2pl label`` wrote: masks that are still equal to those in
            it are nobody's correction, and are left out.
        relabel: give labelled images, too, the masks that came.
        skip_unmatched: leave masks out that belong to no image; otherwise they are an error.

    Raises:
        UserError: where a mask is of an image of val or test, of another size, or has other
            classes; masks are of no image, of two, or of one that has another mask; files are
            faulty; or something is in the way. Nothing is left behind then.
    """
    dataset, source = load_dataset(path, require=()), Path(source)
    out = next_version(dataset.path) if out is None else out
    refuse_what_is_there(out)
    with tempfile.TemporaryDirectory(prefix="u2pl-merge-") as scratch:
        place = Path(scratch)
        corrections = read_corrections(
            source, dataset, format=format, uncovered=uncovered, scratch=place / "unpacked"
        )
        pairs, unmatched = _matched(dataset, corrections, images)
        if unmatched and not skip_unmatched:
            raise UserError(
                f"{source}: {len(unmatched)} masks belong to no image of {dataset.path}: "
                f"{some(unmatched)}; name the folder that names count from by --images, or leave "
                "these masks out by --skip-unmatched."
            )
        found = _sorted(dataset, pairs, place / "kept", pseudo_labels, relabel)
        result = _counts(found, corrections, unmatched)
        if not found.fresh:
            _refuse_nothing(dataset, source, result)
            return result
        new = _write(dataset, out, found, source, corrections.format)
    return replace(result, path=out, num_labeled=len(new.labeled), num_unlabeled=len(new.unlabeled))


def _write(dataset: Dataset, out: Path, found: _Sorted, source: Path, format: str) -> Dataset:
    """Write the next version with the masks that are to be kept."""
    counts = [f"{len(found.names[what])} {what}" for what in _KEPT if what in found.names]
    masks = {image: NewMask(file, found.shares[image]) for image, file in found.fresh.items()}
    told = ", ".join(counts)
    return write_version(dataset, out, masks, origin=source.name, format=format, told=told)


def _matched(
    dataset: Dataset, corrections: Corrections, images: Path | None
) -> tuple[list[tuple[Correction, Sample, bool]], list[str]]:
    """Return each correction with its image and whether that is labelled, and names of the others.

    Raises:
        UserError: where an image is one of val or test, or has two corrections, or a name fits
            several images.
    """
    finder = _Images(dataset, images)
    pairs, unmatched, seen = [], [], dict[Path, Correction]()
    for item in corrections.items:
        found = finder.find(item)
        if found is None:
            unmatched.append(item.names[0])
            continue
        sample, section = found
        if section in ("val", "test"):
            raise UserError(
                f"{item.origin}: '{item.names[0]}' is an image of '{section}' in {dataset.path}, "
                "which is scored on and never trained on; take its mask out."
            )
        if sample.file in seen:
            raise UserError(
                f"{item.origin}: '{item.names[0]}' and '{seen[sample.file].names[0]}' of "
                f"{seen[sample.file].origin} are masks of one image, {sample.image}; take one out."
            )
        seen[sample.file] = item
        pairs.append((item, sample, section == "labeled"))
    return pairs, unmatched


class _Images:
    """Finds the image of a correction among those of a data set."""

    def __init__(self, dataset: Dataset, folder: Path | None) -> None:
        self._sections = {
            name: dataset.sections[name] for name in ("labeled", "unlabeled", "val", "test")
        }
        labeled = {sample.image for sample in dataset.labeled}
        # an image of both sections has a mask, so it counts as labelled
        self._sections["unlabeled"] = tuple(
            sample for sample in dataset.unlabeled if sample.image not in labeled
        )
        self._folder = None if folder is None else Path(os.path.realpath(folder))
        self._by_name: dict[str, dict[str, list[Sample]]] = {}
        self._by_tail: dict[str, dict[str, list[Sample]]] = {}
        for section, samples in self._sections.items():
            names: dict[str, list[Sample]] = {}
            tails: dict[str, list[Sample]] = {}
            for sample in samples:
                names.setdefault(sample.name, []).append(sample)
                for tail in _tails(sample):
                    tails.setdefault(tail, []).append(sample)
            self._by_name[section], self._by_tail[section] = names, tails

    def find(self, item: Correction) -> tuple[Sample, str] | None:
        """Return the image and its section, or None.

        The first of the item's names that fits decides. A name is that of an image within its
        section, or the end of its path; images that may be labelled come before others.
        """
        for name in item.names:
            if self._folder is not None:
                name = (self._folder / name).as_posix()
                tables = [self._by_tail]
            else:
                tables = [self._by_name, self._by_tail]
            for sections in (("unlabeled", "labeled"), ("val", "test")):
                for table in tables:
                    fits = [(s, n) for n in sections for s in table[n].get(name, [])]
                    if len(fits) > 1:
                        raise UserError(
                            f"{item.origin}: '{item.names[0]}' may be {fits[0][0].image} or "
                            f"{fits[1][0].image}; name the folder that names count from by "
                            "--images."
                        )
                    if fits:
                        return fits[0]
        return None


def _tails(sample: Sample) -> list[str]:
    """Return every end of a path without suffix, the whole path too; in a shard, of the name."""
    image, whole = sample.image, sample.name
    if isinstance(image, Path):
        whole = Path(os.path.realpath(image.parent), image.name).with_suffix("").as_posix()
    parts = whole.split("/")
    return [whole, *("/".join(parts[start:]) for start in range(1, len(parts)))]


def _sorted(
    dataset: Dataset,
    pairs: Sequence[tuple[Correction, Sample, bool]],
    folder: Path,
    pseudo_labels: Path | None,
    relabel: bool,
) -> _Sorted:
    """Read every mask and decide what becomes of it."""
    found, others = _Sorted(folder), []
    before = None if pseudo_labels is None else _PseudoLabels(dataset, pseudo_labels)
    for item, sample, is_labeled in pairs:
        labels = _read(item, sample)
        if (labels == dataset.ignore_index).all():
            found.note("empty", sample.name)
        elif before is not None and before.equals(item, labels):
            found.note("unchanged", sample.name)
        elif is_labeled and np.array_equal(dataset.read_mask(sample), labels):
            found.note("already", sample.name)
        elif is_labeled and not relabel:
            others.append(sample.name)
        else:
            found.note("relabeled" if is_labeled else "merged", sample.name)
            found.keep(sample, labels, dataset)
    if others:
        raise UserError(
            f"{len(others)} images are labelled in {dataset.path} already, with other masks: "
            f"{some(others)}; take the new ones by --relabel, or leave them out."
        )
    return found


def _read(item: Correction, sample: Sample) -> Labels:
    """Return a correction's mask, which has its image's size."""
    size = image_size(sample.image)
    if item.size is not None:
        check_size(sample.file, item.size, source=item.origin.name)
    labels = item.read(size)
    if labels.shape != size:
        raise FileError(
            item.origin,
            f"the mask is {labels.shape[1]} x {labels.shape[0]} pixels (width x height), its "
            f"image {sample.image} is {size[1]} x {size[0]}",
            "annotate the image that is here, at its own size",
        )
    return labels


class _PseudoLabels:
    """The masks that annotators were given.

    Raises:
        UserError: where the folder has none.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._dataset, self._folder = dataset, folder / "masks"
        if not self._folder.is_dir():
            raise UserError(
                f"Expected the folder that u2pl label wrote, with masks/ in it, got {folder}; "
                "change --pseudo-labels."
            )

    def equals(self, item: Correction, labels: Labels) -> bool:
        """Whether an image's mask is still what was handed out, pixel for pixel."""
        path = next((p for n in item.names if (p := self._folder / f"{n}.png").is_file()), None)
        if path is None:
            return False
        given = read_mask(
            path,
            num_classes=self._dataset.num_classes,
            ignore_index=self._dataset.ignore_index,
        )
        return np.array_equal(given, labels)


def _counts(found: _Sorted, corrections: Corrections, unmatched: list[str]) -> MergeResult:
    names: dict[str, Any] = {what: tuple(found.names.get(what, ())) for what in _SORTS}
    return MergeResult(
        path=None,
        format=corrections.format,
        unmatched=tuple(unmatched),
        labeled_share=found.known / max(found.pixels, 1),
        **names,
    )


def _refuse_nothing(dataset: Dataset, source: Path, result: MergeResult) -> None:
    """Raise where nothing could be taken; that all of it is there already is no mistake."""
    if result.already:
        return
    reasons = {
        "have no labelled pixel": result.empty,
        "are still the pseudo-labels": result.unchanged,
        f"belong to no image of {dataset.path}": result.unmatched,
    }
    told = [f"{len(names)} {why} ({some(names)})" for why, names in reasons.items() if names]
    raise UserError(f"{source} corrects no image: {'; '.join(told)}; nothing was written.")
