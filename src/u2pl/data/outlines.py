"""Masks as polygons, for tools that know no masks, and polygons as masks.

Corners are x and y in pixels; (0, 0) is the upper left corner of the first pixel.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.float64]
"""[n, 2], x and y; the last corner is joined to the first."""


def fill_polygon(corners: Polygon, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels [H, W] whose centres lie within a polygon, by the even-odd rule.

    Args:
        corners: [n, 2], x and y in pixels.
        size: height and width.

    >>> fill_polygon(np.array([[1, 0], [3, 0], [3, 1], [1, 1]]), (2, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = size
    flips = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((math.ceil(y0 - 0.5), math.ceil(y1 - 0.5)))
        rows = np.arange(max(low, 0), min(high, height))  # whose centres the edge crosses
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            flips[rows, np.ceil(x - 0.5).clip(0, width).astype(np.int64)] += 1
    inside: npt.NDArray[np.bool_] = flips.cumsum(axis=1)[:, :-1] % 2 == 1
    return inside


def outlines(
    mask: npt.NDArray[np.bool_], *, tolerance: float = 0.0, min_area: float = 0.0
) -> list[Polygon]:
    """Return a polygon around each connected part of a mask, the largest first.

    A hole is joined to the polygon around it by a cut of no width, which is gone over twice, since
    neither COCO nor YOLO knows holes. With a tolerance of 0 the polygons hold the centres of the
    mask's pixels and no others.

    Args:
        mask: [H, W].
        tolerance: how far in pixels a polygon may lie from the outline, to have fewer corners.
        min_area: parts and holes of fewer pixels are left out.

    >>> [corners.tolist() for corners in outlines(np.array([[0, 0, 0], [0, 1, 0]], bool))]
    [[[1.0, 1.5], [1.5, 1.0], [2.0, 1.5], [1.5, 2.0]]]
    """
    from contourpy import FillType, contour_generator

    if not mask.any():
        return []
    # A border of its own closes the lines; they run halfway between centres inside and outside.
    padded = np.pad(mask.astype(np.float64), 1)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    filled: Any = generator.filled(0.5, 2.0)  # whose type depends on fill_type
    found = []
    for corners, ends in zip(*filled, strict=True):
        rings = [corners[a : b - 1] - 0.5 for a, b in itertools.pairwise(ends)]
        size = max(min_area, 0.0)
        if abs(area(rings[0])) < size:
            continue
        holes = [ring for ring in rings[1:] if abs(area(ring)) >= size]
        found.append(_joined([simplified(ring, tolerance) for ring in (rings[0], *holes)]))
    found = [corners for corners in found if len(corners) >= 3]
    return sorted(found, key=lambda corners: -abs(area(corners)))


def area(corners: Polygon) -> float:
    """Return the signed area of a polygon, by the shoelace formula.

    >>> area(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]))
    2.0
    """
    x, y = corners.T
    return float(0.5 * (x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def simplified(ring: Polygon, tolerance: float) -> Polygon:
    """Return a closed line with fewer corners, none of the others farther off than ``tolerance``.

    Douglas and Peucker's rule, between the first corner and the one farthest from it. A ring that
    would become no polygon stays as it is.
    """
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), np.bool_)
    kept[[0, far, len(ring)]] = True
    waiting = [(0, far), (far, len(ring))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        worst = int(distances.argmax())
        if distances[worst] > max(tolerance, 1e-9):
            middle = start + 1 + worst
            kept[middle] = True
            waiting += [(start, middle), (middle, end)]
    fewer: Polygon = ring[kept[:-1]]
    return fewer if len(fewer) >= 3 else ring


def _distances(points: Polygon, start: Polygon, end: Polygon) -> npt.NDArray[np.float64]:
    """Return how far points lie from the line between two others."""
    along = end - start
    length = math.hypot(*along)
    if length == 0:
        apart: npt.NDArray[np.float64] = np.hypot(*(points - start).T)
        return apart
    across = points - start
    distances: npt.NDArray[np.float64] = (
        np.abs(along[0] * across[:, 1] - along[1] * across[:, 0]) / length
    )
    return distances


def _joined(rings: list[Polygon]) -> Polygon:
    """Return one ring of an outer one and its holes, each reached by a cut from a near corner."""
    outer = rings[0]
    for hole in rings[1:]:
        here = int(((outer - hole[0]) ** 2).sum(axis=1).argmin())
        around = np.concatenate([hole, hole[:1]])
        outer = np.concatenate([outer[: here + 1], around, outer[here:]])
    return outer
