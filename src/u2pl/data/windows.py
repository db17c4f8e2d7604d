"""Images of which parts can be read: a large TIFF need not be decoded whole."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from u2pl.data.images import FileError

Image = npt.NDArray[np.uint8]
"""RGB [H, W, 3]."""

TIFF_SUFFIXES = (".tif", ".tiff")
_GREY, _RGB, _YCBCR = 1, 2, 6  # TIFF's photometric interpretations
_JPEG = 7  # a compression in which GDAL turns YCbCr into RGB
_CACHE = 64 * 2**20  # bytes that GDAL keeps of decoded strips and tiles


class Windows(Protocol):
    """An image of which parts can be had."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""

    def read(self, top: int, bottom: int, left: int, right: int) -> Image:
        """RGB [bottom - top, right - left, 3] uint8."""


class ArrayWindows:
    """Parts of an image in memory.

    Args:
        image: RGB [H, W, 3] uint8.
    """

    def __init__(self, image: Image) -> None:
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    def read(self, top: int, bottom: int, left: int, right: int) -> Image:
        """RGB [bottom - top, right - left, 3] uint8."""
        return self.image[top:bottom, left:right]


class TiffWindows:
    """Parts of a TIFF file, decoded when they are asked for.

    Args:
        path: the file, for messages.
        source: rasterio's data set of it.
    """

    def __init__(self, path: Path, source: Any) -> None:
        self._path = path
        self._source = source

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self._source.height), int(self._source.width)

    def read(self, top: int, bottom: int, left: int, right: int) -> Image:
        """RGB [bottom - top, right - left, 3] uint8.

        Raises:
            UserError: where the file is damaged there.
        """
        bands = [1, 2, 3] if self._source.count >= 3 else [1, 1, 1]
        try:
            pixels = self._source.read(bands, window=((top, bottom), (left, right)))
        except Exception as error:  # rasterio has classes of its own for each of GDAL's errors
            raise FileError(
                self._path,
                f"rows {top} to {bottom} cannot be decoded ({type(error).__name__})",
                "replace the file or take it out of the data set",
            ) from None
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


def plain_tiff_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of a TIFF whose parts can be read as they are, from its header.

    That is 8 bits of grey or RGB, upright, and rasterio is there to read it. Of any other file
    None, and :func:`~u2pl.data.images.read_image` decodes it whole.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES or not path.is_file():
        return None
    try:
        import rasterio  # noqa: F401  # an extra

        with (
            path.open("rb") as file,
            contextlib.closing(TiffImagePlugin.TiffImageFile(file)) as image,
        ):
            tags = image.tag_v2
            photometric, compression = tags.get(262), tags.get(259, 1)
            is_plain = image.mode in ("L", "RGB", "RGBA", "RGBX") and tags.get(274, 1) == 1
            is_plain &= set(np.atleast_1d(tags.get(258, 1))) == {8}  # bits of each channel
            is_plain &= photometric in (_GREY, _RGB) or (photometric, compression) == (
                _YCBCR,
                _JPEG,
            )
            return (int(tags[257]), int(tags[256])) if is_plain else None
    except Exception:  # whatever is wrong with it, the reader of whole images says so
        return None


@contextlib.contextmanager
def tiff_windows(path: Path) -> Iterator[TiffWindows]:
    """Open a file of which :func:`plain_tiff_size` knows the size.

    Raises:
        UserError: where it cannot be opened.
    """
    import rasterio

    # only this file is to be read, as what it is: no files that lie beside it
    quiet = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
    with rasterio.Env(GDAL_CACHEMAX=_CACHE, **quiet):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about missing coordinates
                source = rasterio.open(path.resolve(), driver="GTiff")
        except rasterio.errors.RasterioError as error:
            raise FileError(
                path,
                f"the file cannot be opened as TIFF ({type(error).__name__})",
                "replace the file or take it out of the data set",
            ) from None
        with source:
            yield TiffWindows(path, source)
