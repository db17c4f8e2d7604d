"""Refinement of maps and labels from them, pixel by pixel.

A single image, or its maps, are [C][H][W]: three levels, as in :data:`reference.types.Maps`.
"""

from __future__ import annotations

import math

from reference.types import ClassMaps, LabelMaps, Maps


def neighbors(
    y: int, x: int, valid: list[list[bool]], dilations: list[int]
) -> list[tuple[tuple[int, int], float]]:
    """The valid pixels around one, and their distances; the border stands for what is beyond."""
    height, width = len(valid), len(valid[0])
    found = []
    for distance in dilations:
        for dy in (-distance, 0, distance):
            for dx in (-distance, 0, distance):
                if dy == dx == 0:
                    continue
                inside = (min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1))
                if valid[inside[0]][inside[1]]:
                    found.append((inside, math.sqrt(dy**2 + dx**2)))
    return found


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / sum(powers) for power in powers]


def deviation(values: list[float]) -> float:
    """n - 1 below the root; 0 of a single value."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))


def weights_of(
    image: Maps,
    valid: list[list[bool]],
    y: int,
    x: int,
    dilations: list[int],
    bandwidth: float,
    share: float,
) -> list[float]:
    """What each valid neighbour of one pixel counts; ``image`` is [3][H][W]."""
    around = neighbors(y, x, valid, dilations)
    likeness = [0.0] * len(around)
    for channel in image:
        spread = deviation([channel[ny][nx] for (ny, nx), _ in around])
        for n, ((ny, nx), _) in enumerate(around):
            difference = abs(channel[ny][nx] - channel[y][x])
            likeness[n] -= (difference / (bandwidth * (spread + 1e-8))) ** 2 / len(image)
    everywhere = [distance * math.hypot(*offset) for distance in dilations for offset in OFFSETS]
    spread = deviation(everywhere)
    nearness = [-((distance / (bandwidth * (spread + 1e-8))) ** 2) for _, distance in around]
    by_color, by_position = softmax(likeness), softmax(nearness)
    return [(c + share * p) / (1 + share) for c, p in zip(by_color, by_position, strict=True)]


OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def refine(
    maps: Maps,
    image: Maps,
    dilations: list[int],
    iterations: int,
    bandwidth: float,
    share: float,
    valid: list[list[bool]] | None = None,
) -> Maps:
    """Maps [C][H][W] of one image [3][H][W]; 0 at a pixel without a valid neighbour."""
    height, width = len(image[0]), len(image[0][0])
    valid = valid or [[True] * width for _ in range(height)]
    for _ in range(iterations):
        refined = []
        for scores in maps:
            rows = []
            for y in range(height):
                row = []
                for x in range(width):
                    around = neighbors(y, x, valid, dilations)
                    total = 0.0
                    if around:
                        weights = weights_of(image, valid, y, x, dilations, bandwidth, share)
                        for weight, ((ny, nx), _) in zip(weights, around, strict=True):
                            total += weight * scores[ny][nx]
                    row.append(total)
                rows.append(row)
            refined.append(rows)
        maps = refined
    return maps


def leads(scores: list[float], margin: float) -> bool:
    """Whether the first of descending scores is the only one or far enough ahead."""
    return len(scores) == 1 or scores[0] - scores[1] > margin * scores[0]


def seed_labels(
    maps: ClassMaps,
    tags: list[list[bool]],
    *,
    low: float,
    high: float,
    margin: float,
    background_class: int | None,
    ignore_index: int,
) -> LabelMaps:
    """Labels [B][H][W] of maps [B][C][H][W]."""
    result = []
    for image, possible in zip(maps, tags, strict=True):
        classes = [c for c, is_there in enumerate(possible) if is_there and c != background_class]
        rows = []
        for y in range(len(image[0])):
            row = []
            for x in range(len(image[0][0])):
                ranked = sorted((-image[c][y][x], c) for c in classes)
                scores, label = [-score for score, _ in ranked], ignore_index
                if background_class is not None:
                    if not scores or scores[0] < low:
                        label = background_class
                    elif scores[0] > high:
                        label = ranked[0][1]
                elif scores and scores[0] >= low and leads(scores, margin):
                    label = ranked[0][1]
                row.append(label)
            rows.append(row)
        result.append(rows)
    return result
