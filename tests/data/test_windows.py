from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from u2pl.data.images import read_image
from u2pl.data.windows import ArrayWindows, plain_tiff_size, tiff_windows
from u2pl.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


def write_tiff(path: Path, pixels: np.ndarray[Any, Any] = PIXELS, **options: Any) -> Path:
    bands = np.atleast_3d(pixels)
    profile = {"driver": "GTiff", "height": 70, "width": 90, "count": bands.shape[2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing coordinates
        with rasterio.open(path, "w", dtype=pixels.dtype, **profile, **options) as file:
            file.write(np.moveaxis(bands, -1, 0))
    return path


TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}


@pytest.mark.parametrize("options", [{}, TILED, TILED | {"compress": "lzw", "predictor": 2}])
def test_window_of_a_tiff_is_that_part_of_the_image(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write_tiff(tmp_path / "a.tif", photometric="RGB", **options)
    assert plain_tiff_size(path) == (70, 90)
    with tiff_windows(path) as windows:
        assert windows.size == (70, 90)
        assert np.array_equal(windows.read(10, 50, 20, 90), PIXELS[10:50, 20:90])
    assert np.array_equal(read_image(path), PIXELS)


def test_grey_tiff_reads_as_rgb(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS[..., 0])
    assert plain_tiff_size(path) == (70, 90)
    with tiff_windows(path) as windows:
        assert np.array_equal(windows.read(0, 70, 0, 90), read_image(path))


def test_tiff_that_must_be_changed_to_be_read_is_left_to_the_other_reader(tmp_path: Path) -> None:
    deep = write_tiff(tmp_path / "deep.tif", PIXELS.astype(np.uint16), photometric="RGB")
    turned = tmp_path / "turned.tif"
    Image.fromarray(PIXELS).save(turned, tiffinfo={274: 6})
    white = write_tiff(tmp_path / "white.tif", PIXELS[..., 0], photometric="MINISWHITE")
    palette = tmp_path / "palette.tif"
    Image.fromarray(PIXELS).quantize(8).save(palette)
    other = tmp_path / "other.tif"
    Image.fromarray(PIXELS).save(other, format="PNG")
    for path in (deep, turned, white, palette, other, tmp_path / "none.tif", tmp_path / "a.png"):
        assert plain_tiff_size(path) is None, path


def test_damaged_part_of_a_tiff_is_told(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", photometric="RGB", compress="deflate", **TILED)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.tif: "), tiff_windows(path) as windows:
        windows.read(0, 70, 0, 90)


def test_part_of_an_array_is_no_copy() -> None:
    windows = ArrayWindows(PIXELS)
    assert windows.size == (70, 90)
    assert np.shares_memory(windows.read(1, 5, 2, 9), PIXELS)
