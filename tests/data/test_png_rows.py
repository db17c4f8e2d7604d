from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from u2pl.data.png_rows import PngRows, RowKind

COLORS = ((1, 2, 3), (40, 50, 60), (70, 80, 90))


def written(rows: npt.NDArray[np.integer], kind: RowKind, *, bands: list[int]) -> Image.Image:
    """The picture that Pillow reads where rows came in bands of these heights."""
    file = io.BytesIO()
    writer = PngRows(file, rows.shape[:2], kind=kind, colors=COLORS)
    for band in np.split(rows, np.cumsum(bands)):
        writer.add(band)
    writer.finish()
    image = Image.open(file)
    image.load()
    return image


@pytest.mark.parametrize("bands", [[], [1], [3, 2, 1], [1, 1, 1, 1]])
@pytest.mark.parametrize(
    ("kind", "mode", "shape"),
    [("palette", "P", (7, 5)), ("grey", "L", (7, 5)), ("rgb", "RGB", (7, 5, 3))],
)
def test_rows_come_back_however_they_were_cut(
    kind: RowKind, mode: str, shape: tuple[int, ...], bands: list[int]
) -> None:
    rows = np.random.default_rng(0).integers(0, 3 if kind == "palette" else 256, shape, np.uint8)
    image = written(rows, kind, bands=bands)
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), rows)


def test_mask_shows_in_the_colors_of_the_classes() -> None:
    image = written(np.array([[0, 1], [2, 0]]), "palette", bands=[1])
    assert np.asarray(image.convert("RGB")).tolist() == [
        [list(COLORS[0]), list(COLORS[1])],
        [list(COLORS[2]), list(COLORS[0])],
    ]


def test_more_than_256_ids_become_16_bits_of_grey() -> None:
    rows = np.array([[0, 256], [65535, 7]], np.int32)
    assert np.array_equal(np.asarray(written(rows, "grey16", bands=[1])), rows)


def test_missing_rows_are_noticed() -> None:
    writer = PngRows(io.BytesIO(), (2, 2), kind="grey")
    writer.add(np.zeros((1, 2), np.uint8))
    with pytest.raises(AssertionError, match="1 rows of 2"):
        writer.finish()
