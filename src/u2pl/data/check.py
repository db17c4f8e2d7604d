"""Finds what is wrong with a data set before it costs a training run."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.data.alignment import Oddity, Sketch, odd_masks, sketch
from u2pl.data.class_counts import count_pixels, num_threads
from u2pl.data.images import FileError, image_size, read_bytes, read_image
from u2pl.data.sources import SECTIONS, Dataset, MaskEncoding, Sample
from u2pl.data.storage import ImageFile
from u2pl.errors import UserError

SMALLEST_SIDE = 32
"""Pixels; the deepest grid of an encoder has one cell for so many."""

_TRAIN = frozenset({"labeled", "unlabeled"})


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: in which file, what, and what to do."""

    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}."


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_dataset` found.

    Attributes:
        errors: what training or scoring would trip over.
        warnings: what is worth a look.
        images: class name to number of labelled images (labeled, val, test) that hold the class.
        pixels: class name to number of its pixels in them.
        sections: section to number of images.
        ignore_share: fraction of mask pixels that are ignored, 0 to 1.
        unmapped_share: the same of the masks read by an id_map alone, by section; sections
            without one are left out.
    """

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    images: dict[str, int]
    pixels: dict[str, int]
    sections: dict[str, int]
    ignore_share: float
    unmapped_share: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "errors": [vars(finding) for finding in self.errors],
            "warnings": [vars(finding) for finding in self.warnings],
            "images": self.images,
            "pixels": self.pixels,
            "sections": self.sections,
            "ignore_share": self.ignore_share,
            "unmapped_share": self.unmapped_share,
        }


# Of masks: the file and how it is read -> [C + 1] pixels a class, then ignored ones.
_Counts = dict[tuple[Path | None, MaskEncoding], npt.NDArray[np.int64]]
# Of the same masks, laid over their image.
_Sketches = dict[tuple[Path | None, MaskEncoding], Sketch | None]


@dataclass(frozen=True)
class _Facts:
    """What one image file and its masks hold; small, so that thousands fit in memory."""

    image: ImageFile
    digest: str
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    counts: _Counts
    sketches: _Sketches


def check_dataset(dataset: Dataset, *, workers: int | None = None) -> CheckReport:
    """Decode every image and mask once and report what is wrong.

    Args:
        dataset: what :func:`u2pl.data.sources.load_dataset` returned.
        workers: threads; None takes one a core, at most 8. So many images are in memory at once.
    """
    # An image may stand in two sections; it is read once, and so is each of its masks.
    masks: dict[ImageFile, dict[tuple[Path | None, MaskEncoding], Sample]] = {}
    for samples in dataset.sections.values():
        for sample in samples:
            of_image = masks.setdefault(sample.image, {})
            if sample.mask is not None:
                of_image[_mask_key(sample)] = sample
    with ThreadPoolExecutor(num_threads(workers)) as pool:
        distinct = (list(of_image.values()) for of_image in masks.values())
        facts = list(pool.map(partial(_examine, dataset), masks, distinct))
    counts = {key: found for fact in facts for key, found in fact.counts.items()}
    errors = [finding for fact in facts for finding in fact.errors]
    warnings = [finding for fact in facts for finding in fact.warnings]
    for is_error, finding in _copies(dataset, facts):
        (errors if is_error else warnings).append(finding)
    warnings += [
        Finding(str(shard), *note) for shard in dataset.shards for note in shard.index.notes
    ]
    warnings += _absent_classes(dataset, counts)
    sketches = {(f.image, key): found for f in facts for key, found in f.sketches.items()}
    warnings += _odd_masks(dataset, sketches)
    images, pixels, ignore_share = _totals(dataset, list(counts.values()))
    return CheckReport(
        errors=tuple(errors),
        warnings=tuple(warnings),
        images=images,
        pixels=pixels,
        sections={name: len(samples) for name, samples in dataset.sections.items()},
        ignore_share=ignore_share,
        unmapped_share=_unmapped_shares(dataset, counts),
    )


def quick_check(dataset: Dataset, *, workers: int | None = None) -> None:
    """Refuse labelled and val masks that do not fit their images or hold unknown ids.

    Masks are decoded; of the images only the headers are read.

    Raises:
        UserError: with the first fault and the number of others.
    """
    samples = (*dataset.labeled, *dataset.val)
    with ThreadPoolExecutor(num_threads(workers)) as pool:
        found = [fault for fault in pool.map(partial(_fault_of_pair, dataset), samples) if fault]
    if found:
        more = f" ({len(found) - 1} more; see `u2pl data check`.)" if len(found) > 1 else ""
        raise UserError(f"{found[0]}{more}")


def size_error(image: ImageFile, image_hw: tuple[int, int], mask_hw: tuple[int, int]) -> FileError:
    """Return the error for a mask that has not the size of its image; sizes are (height, width)."""
    remedy = "export the mask again at the size of the image"
    if image_hw == mask_hw[::-1]:
        remedy = (
            "images are turned upright as their EXIF data say, masks are not; turn the mask as its "
            "image is turned"
        )
    return FileError(
        image,
        f"the image is {image_hw[1]} x {image_hw[0]} pixels (width x height), "
        f"its mask {mask_hw[1]} x {mask_hw[0]}",
        remedy,
    )


def _mask_key(sample: Sample) -> tuple[Path | None, MaskEncoding]:
    return sample.mask, sample.mask_encoding


def _fault_of_pair(dataset: Dataset, sample: Sample) -> FileError | None:
    try:
        size = image_size(sample.image)
        labels = dataset.read_mask(sample)
    except FileError as error:
        return error
    height, width = labels.shape
    return None if size == (height, width) else size_error(sample.image, size, (height, width))


def _finding(error: FileError) -> Finding:
    return Finding(str(error.file), error.what, error.remedy)


def _examine(dataset: Dataset, image: ImageFile, samples: list[Sample]) -> _Facts:
    """Decode one image and the masks of its samples."""
    errors, warnings, digest, size = [], [], "", None
    sketches: _Sketches = {}
    try:
        fetched = None if isinstance(image, Path) else read_bytes(image)  # once, from far away
        pixels = read_image(image, fetched)
        size = pixels.shape[:2]
        height, width = size
        digest = hashlib.sha256(fetched or read_bytes(image)).hexdigest()
        if min(size) < SMALLEST_SIDE:
            what = f"the image is only {width} x {height} pixels (width x height)"
            warnings.append(Finding(str(image), what, "set data.resize, or take it out"))
    except FileError as error:
        errors.append(_finding(error))
    counts: _Counts = {}
    for sample in samples:
        try:
            labels = dataset.read_mask(sample)
        except FileError as error:
            errors.append(_finding(error))
            continue
        height, width = labels.shape
        if size is not None and size != (height, width):
            errors.append(_finding(size_error(image, size, (height, width))))
        elif size is not None:
            sketches[_mask_key(sample)] = sketch(pixels, labels)
        found = count_pixels(labels, dataset.num_classes)
        counts[_mask_key(sample)] = found
        if found[:-1].sum() == 0:
            what = "every pixel of the mask is ignored"
            remedy = "label it, or move the image to unlabeled"
            warnings.append(Finding(str(sample.mask), what, remedy))
    return _Facts(image, digest, tuple(errors), tuple(warnings), counts, sketches)


def _copies(dataset: Dataset, facts: Iterable[_Facts]) -> Iterator[tuple[bool, Finding]]:
    """Yield what stands in the data set twice, and whether that is an error."""
    places: dict[ImageFile, set[str]] = defaultdict(set)
    for section, samples in dataset.sections.items():
        for sample in samples:
            places[sample.image].add(section)
    in_both = sum({"labeled", "unlabeled"} <= sections for sections in places.values())
    if in_both:
        what = f"{in_both} images stand in labeled and in unlabeled"
        remedy = "nothing, if that is meant; else give unlabeled its own folder or list"
        yield False, Finding(str(dataset.path), what, remedy)
    groups: dict[str, list[ImageFile]] = defaultdict(list)
    for fact in facts:
        if fact.digest:
            groups[fact.digest].append(fact.image)
    for files in groups.values():
        sections = {section for file in files for section in places[file]}
        # The same file in two training sections has been told above; here are copies of a file.
        for copy in files[1:]:
            names = " and ".join(name for name in SECTIONS if name in sections)
            what = f"the file has the same content as {files[0]} (in {names})"
            leaks = bool(sections & _TRAIN) and bool(sections - _TRAIN)
            yield leaks, Finding(str(copy), what, "keep one of the two")


def _absent_classes(dataset: Dataset, counts: _Counts) -> Iterator[Finding]:
    for section, samples in dataset.sections.items():
        found = [counts[_mask_key(s)] for s in samples if _mask_key(s) in counts]
        if not found:
            continue
        reachable, pixels = _reachable_classes(dataset, samples), np.sum(found, axis=0)
        for class_id, name in enumerate(dataset.classes):
            if pixels[class_id] > 0:
                continue
            what = f"the class '{name}' has no pixel in {section}"
            remedy = "add images that hold it, or take the class out"
            if class_id not in reachable:
                what = f"the id_map of {section} maps no id to the class '{name}'"
                remedy = "nothing, if the masks have no such class; else add its id"
            yield Finding(str(dataset.path), what, remedy)


def _odd_masks(
    dataset: Dataset,
    sketches: dict[tuple[ImageFile, tuple[Path | None, MaskEncoding]], Sketch | None],
) -> Iterator[Finding]:
    """Yield the masks that look shifted, mirrored or swapped; each is looked at in one section."""
    for samples in dataset.sections.values():
        pairs = [(sample, sketches.get((sample.image, _mask_key(sample)))) for sample in samples]
        for oddity in odd_masks([found for _, found in pairs]):
            sample = pairs[oddity.index][0]
            yield Finding(str(sample.mask), *_words(oddity, samples))


def _words(oddity: Oddity, samples: Sequence[Sample]) -> tuple[str, str]:
    """Return what seems to be wrong with a mask, and what to do."""
    if oddity.kind == "shifted":
        moves = [
            f"{abs(100 * share):.0f} % of the {side} further {ways[share > 0]}"
            for share, side, ways in zip(
                oddity.shift, ("height", "width"), (("up", "down"), ("left", "right")), strict=True
            )
            if abs(share) >= 0.005
        ]
        what = f"the mask looks shifted: it would fit better {' and '.join(moves)}"
        return what, "look at its overlay; nothing, if it is where it belongs"
    if oddity.kind == "mirrored":
        what = f"the mask looks mirrored: it would fit better {oddity.how}"
        return what, "look at its overlay; images are turned upright by EXIF data, masks are not"
    other = samples[oddity.other].mask
    what = f"the mask looks swapped: {other} would fit this image better"
    return what, "look at its overlay; give each image its own mask"


def _reachable_classes(dataset: Dataset, samples: Iterable[Sample]) -> set[int]:
    """Return the classes that the masks of the samples can spell."""
    reachable: set[int] = set()
    for encoding in {sample.mask_encoding for sample in samples}:
        every = range(dataset.num_classes)
        reachable |= {*every} if encoding.id_map is None else {to for _, to in encoding.id_map}
    return reachable


def _totals(
    dataset: Dataset, counts: list[npt.NDArray[np.int64]]
) -> tuple[dict[str, int], dict[str, int], float]:
    """Return images a class, pixels a class, and the ignored fraction of all mask pixels."""
    table = np.stack([np.zeros(dataset.num_classes + 1, np.int64), *counts])
    pixels, images = table.sum(axis=0).tolist(), Counter[str]()
    for row in table:
        images.update(name for name, n in zip(dataset.classes, row, strict=False) if n)
    return (
        {name: images[name] for name in dataset.classes},
        dict(zip(dataset.classes, pixels, strict=False)),
        pixels[-1] / max(sum(pixels), 1),
    )


def _unmapped_shares(dataset: Dataset, counts: _Counts) -> dict[str, float]:
    """Return, for each section that has an id_map, the ignored fraction of its masks."""
    shares = {}
    for section, samples in dataset.sections.items():
        mapped = [
            counts[_mask_key(s)]
            for s in samples
            if s.mask_encoding.id_map is not None and _mask_key(s) in counts
        ]
        if mapped:
            _, _, shares[section] = _totals(dataset, mapped)
    return shares
