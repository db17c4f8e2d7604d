"""Rare-class sampling: a class is drawn first, the rarer the likelier, then an image that holds it.

DAFormer (Hoyer et al., CVPR 2022, arXiv 2111.14887), Eq. 10 and 11 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


def class_probabilities(
    pixels: npt.NDArray[np.int64], *, temperature: float
) -> npt.NDArray[np.float64]:
    """Return the probability [C] of drawing each class: P(c) = softmax over c of (1 - f_c) / T.

    f_c is the share of class c in all labelled pixels, as in DAFormer's code; its paper counts
    ignored pixels too. Classes without a pixel have probability 0, which is ours: the softmax runs
    over the others.

    Args:
        pixels: [n, C], pixels of each class in each image; one is above 0.
        temperature: T, above 0. A small one prefers rare classes, a large one none.

    >>> class_probabilities(np.array([[5, 0, 4], [4, 0, 5]]), temperature=0.01).tolist()
    [0.5, 0.0, 0.5]
    """
    total = pixels.sum(axis=0)
    assert total.any(), "no class to draw"
    share = np.where(total > 0, total / total.sum(), np.inf)  # an infinite share is never drawn
    with np.errstate(over="ignore"):  # a tiny temperature leaves the rarest class alone
        weight = np.exp((share.min() - share) / temperature)
    probabilities: npt.NDArray[np.float64] = weight / weight.sum()
    return probabilities


def images_with_class(
    pixels: npt.NDArray[np.int64], *, min_pixels: int
) -> tuple[npt.NDArray[np.int64], ...]:
    """Return, for each of C classes, the indices of the images to draw it from.

    These are the images that hold at least ``min_pixels`` pixels of the class, or, where there is
    no such image, those that hold any; so a class of small things is not lost. An absent class has
    none.

    Args:
        pixels: [n, C], pixels of each class in each image.
        min_pixels: 1 or more.

    >>> [found.tolist() for found in images_with_class(np.array([[9, 2], [9, 0]]), min_pixels=5)]
    [[0, 1], [0]]
    """
    enough = [np.flatnonzero(column >= min_pixels) for column in pixels.T]
    holding = [np.flatnonzero(column) for column in pixels.T]
    return tuple(few if len(few) else some for few, some in zip(enough, holding, strict=True))


@dataclass(frozen=True)
class RareClassSampler:
    """Draws a class and an image of it.

    Attributes:
        probabilities: [C] float64, of each class; their sum is 1.
        images: for each class the indices of the images to draw from; some, where the probability
            is above 0.
    """

    probabilities: npt.NDArray[np.float64]
    images: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def of_pixels(
        cls, pixels: npt.NDArray[np.int64], *, temperature: float, min_pixels: int
    ) -> RareClassSampler:
        """Return the sampler for images that hold so many pixels [n, C] of each class."""
        return cls(
            class_probabilities(pixels, temperature=temperature),
            images_with_class(pixels, min_pixels=min_pixels),
        )

    def draw(self, generator: torch.Generator) -> tuple[int, int]:
        """Return a class id and the index of an image; two numbers are drawn."""
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        steps = self.probabilities.cumsum()
        # Divided, for rounding leaves the sum a little beside 1. A class of width 0 is skipped.
        class_id = int(np.searchsorted(steps / steps[-1], first, side="right"))
        images = self.images[class_id]
        return class_id, int(images[int(second * len(images))])
