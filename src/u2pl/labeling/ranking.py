"""Which images to label next: where the teacher is unsure, of what, and none like another.

Everything here is arithmetic on a few numbers an image. N images, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RARE = 1e-3
"""A class with a smaller share of the pixels weighs as one with this share would."""

KNOWN = 0.05
"""A class of higher IoU than 1 less this weighs as one with that IoU would."""

GREEDY = 1000
"""As many images at most are chosen with regard to one another; the rest follow by score."""


@dataclass(frozen=True)
class Pool:
    """What is known of N images.

    Attributes:
        unreliable: [N], share of each image's pixels that are unreliable (Eq. 6).
        shares: [N, C], each class's expected share of an image's pixels: the mean of its
            probability over them. Rows sum to 1.
        unsure: [N, C], the part of ``shares`` that lies on unreliable pixels.
        features: [N, D], the teacher's features, averaged over an image.
    """

    unreliable: Floats
    shares: Floats
    unsure: Floats
    features: Floats


@dataclass(frozen=True)
class Place:
    """An image's place in the ranking.

    Attributes:
        index: of the image.
        score: see :func:`scores`.
        unreliable: share of unreliable pixels.
        gain: see :func:`class_gain`.
        distance: to the nearest image above in this ranking; None of the first one.
        nearest: the index of that image; None of the first one.
        classes: ids of the classes that the gain comes from, the largest part first, until nine
            tenths of it are named.
    """

    index: int
    score: float
    unreliable: float
    gain: float
    distance: float | None
    nearest: int | None
    classes: tuple[int, ...]


def class_weights(shares: Floats, iou: Sequence[float | None]) -> Floats:
    """How much a pixel of each class is worth: more where it is rare, or badly known.

    ``w_c = k (1 - IoU_c) / sqrt(f_c)``, with f_c the class's share of all pixels and k such that
    ``Σ_c f_c w_c = 1``: a pixel drawn at random is worth 1.

    Args:
        shares: [N, C], see :class:`Pool`.
        iou: of each class on val, 0 to 1; None, where val has no pixel of it, counts as 0.

    Returns:
        [C].

    >>> class_weights(np.array([[0.8, 0.2]]), [0.5, 0.5]).round(2).tolist()
    [0.83, 1.67]
    """
    mean = shares.mean(axis=0)
    unknown = np.array([1 - (value or 0.0) for value in iou]).clip(min=KNOWN)
    weights: Floats = unknown / np.sqrt(mean.clip(min=RARE))
    return weights / max(float((mean * weights).sum()), np.finfo(float).tiny)


def class_gain(unsure: Floats, weights: Floats) -> Floats:
    """What labels of an image's unreliable pixels are worth: ``g_i = Σ_c w_c u_ic``.

    Args:
        unsure: [N, C], see :class:`Pool`.
        weights: [C]. Where all are 1, the gain is the share of unreliable pixels.

    Returns:
        [N].
    """
    gain: Floats = unsure @ weights
    return gain


def scores(unreliable: Floats, gain: Floats) -> Floats:
    """The mean of both: ``s_i = (u_i + g_i) / 2``. [N] each."""
    mean: Floats = (unreliable + gain) / 2
    return mean


def greedy_order(
    score: Floats, features: Floats, *, most: int = GREEDY
) -> list[tuple[int, float | None, int | None]]:
    """Order images so that each of the first is worth much and unlike those before it.

    The first has the highest score. Each next one has the highest product of its score and its
    distance to the nearest image chosen before: the k-centre rule, weighted. Equal images follow
    one another only where nothing else is left. Ties go to the higher score, then to the image
    that comes first.

    Args:
        score: [N], not negative.
        features: [N, D]; distances are Euclidean.
        most: images that are chosen so; the rest follow by score.

    Returns:
        Of all N images, in their order: index, distance to the nearest image chosen before, and
        the index of that one. Of the rest the nearest of those that were chosen.

    >>> score = np.array([1.0, 0.9, 0.2])
    >>> [row[0] for row in greedy_order(score, np.array([[0.0], [0.1], [1.0]]))]
    [0, 2, 1]
    """
    count = len(score)
    if count == 0:
        return []
    left = np.ones(count, np.bool_)
    distance = np.full(count, np.inf)
    nearest = np.zeros(count, np.int64)
    order: list[tuple[int, float | None, int | None]] = []
    apart_by: tuple[float | None, int | None]
    for turn in range(min(most, count)):
        worth = score if turn == 0 else score * distance
        equal = np.flatnonzero(left & (worth == worth[left].max()))
        index = int(equal[score[equal].argmax()])
        apart_by = (None, None) if turn == 0 else (float(distance[index]), int(nearest[index]))
        order.append((index, *apart_by))
        left[index] = False
        apart = np.sqrt(((features - features[index]) ** 2).sum(axis=1))
        closer = apart < distance
        distance, nearest = np.where(closer, apart, distance), np.where(closer, index, nearest)
    rest = np.flatnonzero(left)
    rest = rest[np.argsort(-score[rest], kind="stable")]
    return order + [(int(i), float(distance[i]), int(nearest[i])) for i in rest]


def rank(pool: Pool, iou: Sequence[float | None], *, most: int = GREEDY) -> list[Place]:
    """Rank images, the first to be labelled first.

    Args:
        pool: what is known of them.
        iou: of each class on val, 0 to 1, or None.
        most: see :func:`greedy_order`.
    """
    if len(pool.unreliable) == 0:
        return []
    weights = class_weights(pool.shares, iou)
    gain = class_gain(pool.unsure, weights)
    score = scores(pool.unreliable, gain)
    return [
        Place(
            index=index,
            score=float(score[index]),
            unreliable=float(pool.unreliable[index]),
            gain=float(gain[index]),
            distance=distance,
            nearest=nearest,
            classes=_behind(pool.unsure[index] * weights),
        )
        for index, distance, nearest in greedy_order(score, pool.features, most=most)
    ]


def _behind(parts: Floats, *, share: float = 0.9) -> tuple[int, ...]:
    """Return the classes whose parts make up this share of a sum, the largest first."""
    if parts.sum() <= 0:
        return ()
    order = np.argsort(-parts, kind="stable")
    enough = int(np.searchsorted(parts[order].cumsum(), share * parts.sum())) + 1
    return tuple(int(index) for index in order[:enough])


def ranked_rows(
    places: Sequence[Place], names: Sequence[str], classes: Sequence[str]
) -> list[Mapping[str, str]]:
    """The rows of ``ranking.csv``.

    Args:
        places: of the ranking, in its order.
        names: of the images, by index.
        classes: names in id order.
    """
    return [
        {
            "rank": str(number),
            "image": names[place.index],
            "score": f"{place.score:.6f}",
            "unreliable_share": f"{place.unreliable:.6f}",
            "class_gain": f"{place.gain:.6f}",
            "distance": "" if place.distance is None else f"{place.distance:.6f}",
            "nearest": "" if place.nearest is None else names[place.nearest],
            "classes": ";".join(classes[c] for c in place.classes),
        }
        for number, place in enumerate(places, start=1)
    ]
