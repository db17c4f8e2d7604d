"""Rare-class sampling with plain numbers: Eq. 10 and 11 of DAFormer, and a draw by hand."""

from __future__ import annotations

import math


def probabilities(pixels: list[list[int]], temperature: float) -> list[float]:
    """P(c) of classes from pixels[image][class]; a class that no image holds has 0."""
    num_classes = len(pixels[0])
    everything = sum(sum(row) for row in pixels)
    weights = []
    for c in range(num_classes):
        of_class = sum(row[c] for row in pixels)
        share = of_class / everything
        weights.append(math.exp((1 - share) / temperature) if of_class else 0.0)
    return [weight / sum(weights) for weight in weights]


def candidates(pixels: list[list[int]], c: int, min_pixels: int) -> list[int]:
    """The images that class c is drawn from."""
    large = [i for i, row in enumerate(pixels) if row[c] >= min_pixels]
    return large or [i for i, row in enumerate(pixels) if row[c] > 0]


def draw(
    pixels: list[list[int]], temperature: float, min_pixels: int, first: float, second: float
) -> tuple[int, int]:
    """The class whose interval holds ``first``, and the image that ``second`` points at."""
    below = 0.0
    for c, probability in enumerate(probabilities(pixels, temperature)):
        below += probability
        if first < below:
            images = candidates(pixels, c, min_pixels)
            return c, images[math.floor(second * len(images))]
    raise AssertionError("the numbers lie in [0, 1)")


def best_crop(pixels_of_class: list[int], wanted: int) -> int:
    """Which of the crops, in their order, is taken: the first with enough, or else the fullest."""
    for i, pixels in enumerate(pixels_of_class):
        if pixels >= wanted:
            return i
    return pixels_of_class.index(max(pixels_of_class))
