"""Decoded images and masks, kept as files that all loader processes read without copying.

A file holds one array, under a name that depends on the path, size and time of what was decoded and
on how it was read, so a changed file is never answered by an old array. Arrays have the size of
their files: a crop is cut out of those pixels in one resampling, and comes out the same, bit for
bit. A cache is only a memory: where it cannot be read or written, files are decoded as without it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from u2pl.config import DataSettings
from u2pl.data.images import read_image, whole_file
from u2pl.data.sources import Dataset, Sample
from u2pl.data.storage import ImageFile
from u2pl.errors import UserError

logger = logging.getLogger(__name__)

FOLDER = ".u2pl-decoded"
"""Beside the dataset.yaml; listings pass over hidden folders."""

_VERSION = 1  # of the files and of how they are decoded
_MEMORY = "u2pl-decoded-"  # folders in memory, with the number of their process
_TORN = (OSError, ValueError, EOFError, SyntaxError, MemoryError, TypeError)


class Decoder:
    """Reads images and masks, from a cache where there is one.

    Args:
        dataset: how masks are read.
        folder: of the cache; None decodes each time.
        budget: bytes that the folder may hold.
    """

    def __init__(self, dataset: Dataset, folder: Path | None = None, budget: int = 0) -> None:
        self._dataset, self._folder, self._budget = dataset, folder, budget
        self._quota = 0  # bytes that this process may still write before it looks again
        self._is_full = folder is None

    def image(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """Return the image [H, W, 3] uint8; it may not be written to.

        Raises:
            UserError: where it cannot be read.
        """
        return self._decoded(sample.image, "image", lambda: read_image(sample.image))

    def mask(self, sample: Sample) -> npt.NDArray[np.integer[Any]]:
        """Return the mask [H, W] as class ids of any integer type; it may not be written to.

        Raises:
            UserError: where it cannot be read.
        """
        dataset, path = self._dataset, sample.mask
        assert path is not None, "only samples that have a mask are asked for it"
        small = np.uint8 if max(dataset.num_classes - 1, dataset.ignore_index) <= 255 else np.uint16
        said = (dataset.num_classes, dataset.ignore_index, dataset.colors, dataset.ignore_color)
        return self._decoded(
            path,
            ("mask", sample.mask_encoding, said),
            lambda: dataset.read_mask(sample).astype(small),
        )

    def _decoded(
        self, path: ImageFile, how: object, decode: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        if self._folder is None:
            return decode()
        try:
            state = (_VERSION, *_state(path), how)
        except OSError:
            return decode()  # which says what is wrong
        name = hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()
        file = self._folder / f"{name}.npy"
        array = _read(file)
        if array is None:
            array = decode()
            self._keep(file, array)
        return array

    def _keep(self, file: Path, array: npt.NDArray[Any]) -> None:
        """Write an array, unless there is no room for it."""
        if self._is_full:
            return
        try:
            if array.nbytes > self._quota:
                self._quota = self._share()
            if array.nbytes > self._quota:
                self._stop(f"the cache of decoded images has its {self._budget / 1e9:.3g} GB")
                return
            with whole_file(file) as temporary, temporary.open("wb") as raw:
                np.save(raw, array, allow_pickle=False)
            self._quota -= array.nbytes
        except (UserError, OSError) as error:
            self._stop(str(error).rstrip("."))

    def _share(self) -> int:
        """Bytes that this process may write: with equal shares all stay within the budget."""
        assert self._folder is not None, "nothing is kept without a folder"
        self._folder.mkdir(parents=True, exist_ok=True)
        worker = get_worker_info()
        processes = 1 if worker is None else worker.num_workers
        # a part of the room, as others write too: what they have written is seen at the next look
        return (self._budget - _bytes_in(self._folder)) // (4 * processes)

    def _stop(self, why: str) -> None:
        self._is_full = True
        worker = get_worker_info()
        if worker is None or worker.id == 0:  # one of them tells
            logger.warning(
                "%s; training goes on, and decodes the other images each time. Give "
                "data.cache_gigabytes more, or data.cache_folder another place.",
                why,
            )


def decoder(dataset: Dataset, settings: DataSettings) -> Decoder:
    """Return what reads the files of a data set, as the settings say.

    Args:
        dataset: of the files.
        settings: ``cache``, ``cache_gigabytes`` and ``cache_folder``.
    """
    if settings.cache == "none":
        return Decoder(dataset)
    if settings.cache == "memory":
        folder = _memory_folder()
    else:
        folder = settings.cache_folder or dataset.path.parent / FOLDER
    try:
        place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        # half of what is free at most: others, the loader's own batches too, need the rest
        room = _bytes_in(folder) + shutil.disk_usage(place).free // 2
    except OSError as error:
        logger.warning("Cannot keep decoded images in %s: %s.", folder, error.strerror)
        return Decoder(dataset)
    return Decoder(dataset, folder, min(int(settings.cache_gigabytes * 1e9), room))


def _state(path: ImageFile) -> tuple[object, ...]:
    """What tells a file, as it is now, from every other."""
    if not isinstance(path, Path):
        return path.identity
    found = os.stat(path)
    return str(path), found.st_size, found.st_mtime_ns


def _read(file: Path) -> npt.NDArray[Any] | None:
    """Return an array that lies in a file, mapped; None where it is not there, or torn."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _TORN:
        return None
    is_image = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    is_mask = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    return array if is_image or is_mask else None


def _bytes_in(folder: Path) -> int:
    """Return how much the files of a folder take; 0 where it is not there."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has just moved it into place
                total += entry.stat().st_size
    return total


@functools.cache
def _memory_folder() -> Path:
    """Return this process's folder in memory, which goes when it ends.

    A process that is killed cannot take its folder away; the next one does.
    """
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    for other in base.glob(f"{_MEMORY}*"):
        if not _is_alive(other.name.removeprefix(_MEMORY).partition("-")[0]):
            shutil.rmtree(other, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_MEMORY}{os.getpid()}-", dir=base))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: str) -> bool:
    """Return whether a process runs; True where that cannot be known."""
    if not process.isdigit() or os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
