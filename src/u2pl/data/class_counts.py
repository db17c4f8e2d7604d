"""How many pixels of each class the masks hold, counted once and kept in a file.

The file stands beside the dataset.yaml. It is only a memory: whoever cannot read it, or finds that
a mask has changed since, counts again.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from u2pl.data.images import write_whole
from u2pl.errors import UserError

if TYPE_CHECKING:  # sources.py reads tags off masks by these counts
    from u2pl.data.sources import Dataset, Sample

_VERSION = 1  # of the file and of what is counted
_TORN = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # its word for a password
    MemoryError,  # a shape that no memory holds
)


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


def class_pixels(
    dataset: Dataset, samples: Sequence[Sample], *, workers: int | None = None
) -> npt.NDArray[np.int64]:
    """Return [n, C] int64: how many pixels of each class the mask of each sample holds.

    Every mask is opened once. The counts are kept in ``.u2pl-class-pixels-….npz`` beside the
    dataset.yaml and are read from there until a mask, the list or the classes change.

    Args:
        dataset: how masks are read, and where the file is kept.
        samples: n samples that have masks.
        workers: threads; None takes one a core, at most 8.

    Raises:
        UserError: where a mask cannot be read.
    """
    cache, key = _cache_file(dataset, samples), _state_of(dataset, samples)
    pixels = _read_cache(cache, key, (len(samples), dataset.num_classes))
    if pixels is None:
        with ThreadPoolExecutor(num_threads(workers)) as pool:
            rows = pool.map(
                lambda sample: count_pixels(dataset.read_mask(sample), dataset.num_classes), samples
            )
            pixels = np.array([row[:-1] for row in rows], np.int64)
        pixels = pixels.reshape(len(samples), dataset.num_classes)  # also of no sample
        with suppress(UserError):  # a folder that may not be written to costs time alone
            _write_cache(cache, key, pixels)
    return pixels


def _cache_file(dataset: Dataset, samples: Sequence[Sample]) -> Path:
    """Return the file for these samples; other lists of the same folder have other files."""
    classes = (dataset.num_classes, dataset.ignore_index, dataset.colors, dataset.ignore_color)
    masks = [(sample.name, str(sample.mask), sample.mask_encoding) for sample in samples]
    name = hashlib.sha256(repr((_VERSION, classes, masks)).encode()).hexdigest()[:16]
    return dataset.path.parent / f".u2pl-class-pixels-{name}.npz"


def _state_of(dataset: Dataset, samples: Sequence[Sample]) -> str:
    """Return a text that changes with the size or the time of any mask."""
    state = hashlib.sha256()
    for sample in samples:
        try:
            found = os.stat(str(sample.mask))
            state.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError:  # reading the mask will say what is wrong
            state.update(b"missing\n")
    return state.hexdigest()


def _read_cache(path: Path, key: str, shape: tuple[int, int]) -> npt.NDArray[np.int64] | None:
    """Return the counts; None where they are not there, torn, or of other masks."""
    try:
        # Opened here, because numpy leaves a torn file open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            saved, pixels = str(file["key"]), file["pixels"]
    except _TORN:
        return None
    if not isinstance(pixels, np.ndarray):  # numpy hands out what is no array as bytes
        return None
    fits = saved == key and pixels.shape == shape and pixels.dtype == np.int64
    return pixels if fits else None


def _write_cache(path: Path, key: str, pixels: npt.NDArray[np.int64]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # by name, numpy would add its own suffix
            np.savez_compressed(file, key=np.array(key), pixels=pixels)

    write_whole(path, write)
