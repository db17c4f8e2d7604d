"""How many pixels of each class the masks hold."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt


def num_threads(workers: int | None = None) -> int:
    """Return how many threads read files: ``workers``, or one a core, at most 8."""
    return workers or min(8, os.cpu_count() or 1)


def count_pixels(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    """Return [C + 1] int64: the pixels of each class, then the ignored ones.

    Args:
        labels: [H, W] int64, class ids, and the ignore index, which is C or more.
        num_classes: C.

    >>> count_pixels(np.array([[0, 2], [2, 255]]), 3).tolist()
    [1, 0, 2, 1]
    """
    return np.bincount(labels.clip(max=num_classes).ravel(), minlength=num_classes + 1)
