"""Masks that look shifted, mirrored, or swapped with another image's: a guess, never an error.

Where classes meet, images tend to have edges. So the borders of a mask are laid over the edges of
its image at every offset. A mask in its place fits best where it is. One that fits clearly better
elsewhere, mirrored, or on another image, is odd.

Scores are in standard deviations over all offsets up to a quarter of the image. Masks in their
place have 3 to 9, masks of other images -1 to 2.5; see docs/how-to/own-data.md for what was
measured. Data whose masks do not follow edges have low scores throughout, and are told nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 96  # pixels of the short side that is worked at
_LONGEST = 4 * _SIDE  # of the long side; what is longer is squeezed
_FEWEST = 40  # border pixels; of fewer nothing is said
_EDGE_STEPS = 15.0  # of a standard deviation of the edges, which are kept in 8 bits

_IN_PLACE = 2.5  # a score that masks of other images hardly reach
_STRONG = 3.0  # that a mask must have in the place where it is said to belong
_LEAD = 1.2  # of that place before where the mask is
_NEAREST = 2.8  # pixels at the working size, 3 %; by less, coarse masks miss their edges
_FARTHEST = 0.2  # of a side; scores at the rim of what is looked at are mostly chance
_FEWEST_FOR_RULE = 6  # masks; of fewer a rule may be chance
_MOST_ODD = 0.5  # of all masks out of place: single ones are told up to here, above a rule alone

Kind = Literal["shifted", "mirrored", "swapped"]
_SAME, _BACK = slice(None), slice(None, None, -1)
_MIRRORS: dict[str, tuple[slice, slice]] = {
    "left to right": (_SAME, _BACK),
    "upside down": (_BACK, _SAME),
    "by half a turn": (_BACK, _BACK),
}

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


class Sketch(NamedTuple):
    """What is kept of an image and its mask: edges [h, w] int8, and packed borders."""

    size: tuple[int, int]
    edges: npt.NDArray[np.int8]
    borders: npt.NDArray[np.uint8]


class Fit(NamedTuple):
    """How borders fit edges: the score where they are, the best one, and its offset (y, x)."""

    here: float
    best: float
    offset: tuple[int, int]


@dataclass(frozen=True)
class Oddity:
    """A mask that seems to belong elsewhere.

    Attributes:
        index: of its sketch.
        kind: what seems to have happened.
        score: in the place where it seems to belong.
        shift: ``shifted``: how far the mask must be moved, down and right, as fractions of the
            image's height and width.
        how: ``mirrored``: a phrase that says how.
        other: ``swapped``: the index of the sketch whose mask fits this image better.
    """

    index: int
    kind: Kind
    score: float
    shift: tuple[float, float] = (0.0, 0.0)
    how: str = ""
    other: int = -1


def sketch(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Sketch | None:
    """Return the edges of an image and the borders of its mask, made small.

    Args:
        image: [H, W, 3].
        labels: [H, W]; ignored pixels count as a class of their own.

    Returns:
        None where the mask has too few borders, or the image no edge.
    """
    height, width = labels.shape
    scale = _SIDE / min(height, width)
    size = (min(_LONGEST, round(height * scale)), min(_LONGEST, round(width * scale)))
    # Ids need not fit 8 bits; two that agree in them are seldom neighbours.
    mask = Image.fromarray((labels % 251).astype(np.uint8))
    borders = _borders(np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST)))
    edges = _edges(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))
    if borders.sum() < _FEWEST or not edges.any():
        return None
    steps = (edges * _EDGE_STEPS).round().clip(-127, 127).astype(np.int8)
    return Sketch(size, steps, np.packbits(borders))


def odd_masks(sketches: Sequence[Sketch | None]) -> list[Oddity]:
    """Return the masks that clearly fit better elsewhere, in the order of their sketches.

    Single masks are told where most of the others are in their place. If most are not, they are
    told only where most of them are odd in the same way: all shifted alike, all mirrored alike, or
    all on wrong images. Other masks do not follow the images' edges, and nothing can be said.

    Args:
        sketches: of images and masks that may have been mixed up, such as those of a section.
    """
    known = [index for index, item in enumerate(sketches) if item is not None]
    fits = {index: _fit(sketches[index]) for index in known}
    oddities = []
    for index in known:
        found = _candidates(index, sketches, fits)
        strong = [o for o in found if o.score >= max(_STRONG, fits[index].here + _LEAD)]
        if strong:
            oddities.append(max(strong, key=lambda oddity: oddity.score))
    in_place = sum(fit.here >= _IN_PLACE for fit in fits.values())
    if in_place >= _MOST_ODD * len(known):
        return oddities
    rule = max(_alike(oddities), key=len, default=[])
    is_rule = len(rule) > _MOST_ODD * len(known) and len(known) >= _FEWEST_FOR_RULE
    return rule if is_rule else []


def _alike(oddities: list[Oddity]) -> list[list[Oddity]]:
    """Group oddities by what seems to have happened; shifts are alike within 2 % of the image."""
    groups: dict[tuple[object, ...], list[Oddity]] = {}
    shifts = np.array([oddity.shift for oddity in oddities if oddity.kind == "shifted"])
    middle = np.median(shifts, axis=0) if len(shifts) else np.zeros(2)
    for oddity in oddities:
        near = bool((np.abs(np.array(oddity.shift) - middle) <= 0.02).all())
        key = (oddity.kind, oddity.how, near if oddity.kind == "shifted" else True)
        if key != ("shifted", "", False):
            groups.setdefault(key, []).append(oddity)
    return [*groups.values()]


def _candidates(
    index: int, sketches: Sequence[Sketch | None], fits: dict[int, Fit]
) -> list[Oddity]:
    """Return where else a mask might belong, with scores; most are weak."""
    item, fit = sketches[index], fits[index]
    assert item is not None
    height, width = item.size
    found = []
    shift = (fit.offset[0] / height, fit.offset[1] / width)
    if np.hypot(*fit.offset) >= _NEAREST and max(map(abs, shift)) <= _FARTHEST:
        found.append(Oddity(index, "shifted", fit.best, shift=shift))
    if fit.here < _IN_PLACE:
        edges, borders = _as_floats(item), _unpacked(item)
        for how, turn in _MIRRORS.items():
            score = _scores(edges, borders[turn])[1]
            found.append(Oddity(index, "mirrored", score, how=how))
        other = _best_other(index, sketches)
        if other is not None:
            score = _scores(edges, _unpacked(sketches[other]))[1]
            found.append(Oddity(index, "swapped", score, other=other))
    return found


def _best_other(index: int, sketches: Sequence[Sketch | None]) -> int | None:
    """Return the sketch of the same size whose borders have most of this image's edges."""
    item = sketches[index]
    assert item is not None
    edges, best = _as_floats(item), (-np.inf, -1)
    for place, other in enumerate(sketches):
        if other is not None and place != index and other.size == item.size:
            borders = _unpacked(other)
            best = max(best, (float(edges[borders].sum() / np.sqrt(borders.sum())), place))
    return None if best[1] < 0 else best[1]


def _fit(item: Sketch | None) -> Fit:
    assert item is not None
    scores, here = _scores(_as_floats(item), _unpacked(item))
    place = np.unravel_index(int(scores.argmax()), scores.shape)
    offset = (int(place[0]) - scores.shape[0] // 2, int(place[1]) - scores.shape[1] // 2)
    return Fit(here, float(scores.max()), offset)


def _scores(edges: _Floats, borders: _Bools) -> tuple[_Floats, float]:
    """Return the score of each offset, [2 h//4 + 1, 2 w//4 + 1], and the one in the middle.

    A score is the sum of the edges under the shifted borders, in standard deviations over all
    offsets from their mean.
    """
    height, width = edges.shape
    shape = (2 * height, 2 * width)  # so that nothing wraps round
    product = np.fft.rfft2(edges, shape) * np.conj(np.fft.rfft2(borders - borders.mean(), shape))
    sums = np.fft.irfft2(product, shape)
    rows, columns = (
        np.arange(-(height // 4), height // 4 + 1),
        np.arange(-(width // 4), width // 4 + 1),
    )
    window = sums[np.ix_(rows % shape[0], columns % shape[1])]
    scores = (window - window.mean()) / max(float(window.std()), 1e-9)
    return scores, float(scores[height // 4, width // 4])


def _edges(image: Image.Image) -> _Floats:
    """Return how steep an image is, [h, w], with mean 0 and deviation 1; zeros where it is flat."""
    pixels = np.asarray(image, np.float64)
    steep = np.zeros(pixels.shape[:2])
    for channel in range(3):
        down, right = np.gradient(pixels[..., channel])
        steep = np.maximum(steep, np.hypot(down, right))
    steep = np.sqrt(steep)  # so that a few strong edges do not outweigh all others
    spread = float(steep.std())
    return (steep - steep.mean()) / spread if spread > 1e-6 else np.zeros_like(steep)


def _borders(labels: npt.NDArray[np.uint8]) -> _Bools:
    """Return the pixels whose neighbour has another class."""
    borders = np.zeros(labels.shape, np.bool_)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders


def _as_floats(item: Sketch) -> _Floats:
    return item.edges.astype(np.float64)


def _unpacked(item: Sketch | None) -> _Bools:
    assert item is not None
    height, width = item.size
    flat = np.unpackbits(item.borders, count=height * width)
    return flat.reshape(height, width).astype(np.bool_)
