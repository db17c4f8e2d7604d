"""Mask files in every spelling, sound, odd and damaged."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fuzz.test_images import encoded, exif
from fuzz.trial import mutations, rounds, trials
from u2pl.data.images import read_mask

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
READERS: dict[str, dict[str, Any]] = {
    "index": {"mask_format": "index"},
    "mapped": {"mask_format": "index", "id_map": {0: 0, 7: 1, 65535: 2}},
    "binary": {"mask_format": "binary"},
    "rgb": {"mask_format": "rgb", "colors": COLORS, "ignore_color": (255, 255, 255)},
}


def ids(*, high: int = 3, dtype: Any = np.uint8) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, high, (9, 14)).astype(dtype))


def mask_files() -> Iterator[tuple[str, str, bytes]]:
    """Yield mask files of many modes: a name, a suffix, and the bytes."""
    palette = ids()
    palette.putpalette([value for color in COLORS for value in color])
    rgb = palette.convert("RGB")
    yield "grey", "png", encoded(ids(), "png")
    yield "palette", "png", encoded(palette, "png")
    yield "palette with transparency", "png", encoded(palette, "png", transparency=1)
    yield "colour", "png", encoded(rgb, "png")
    yield "colour with alpha", "png", encoded(rgb.convert("RGBA"), "png")
    yield "grey with alpha", "png", encoded(ids().convert("LA"), "png")
    yield "one bit", "png", encoded(ids(high=2).point(lambda v: 255 * v, "1"), "png")
    yield "16 bits", "png", encoded(ids(high=70, dtype=np.uint16), "png")
    yield "32 bits", "tif", encoded(ids(high=70, dtype=np.int32), "tif")
    yield "negative", "tif", encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "tif")
    yield "floats", "tif", encoded(Image.new("F", (4, 4), 1.5), "tif")
    yield "cmyk", "tif", encoded(rgb.convert("CMYK"), "tif")
    yield "lab", "tif", encoded(Image.new("LAB", (4, 4)), "tif")
    yield "jpg", "jpg", encoded(ids(), "jpg")
    yield "colour jpg", "jpg", encoded(rgb, "jpg")
    yield "webp", "webp", encoded(rgb, "webp", lossless=True)
    yield "bmp", "bmp", encoded(palette, "bmp")
    yield "lies on its side", "png", encoded(ids(), "png", exif=exif(6))
    yield "outside the classes", "png", encoded(ids(high=250), "png")
    yield "one pixel", "png", encoded(Image.new("L", (1, 1), 2), "png")
    yield "very wide", "png", encoded(Image.new("L", (30_000, 2), 1), "png")
    yield "all ignore", "png", encoded(Image.new("L", (5, 5), 255), "png")
    yield "nothing", "png", b""
    yield "text", "png", b"0 1 2\n"
    file = io.BytesIO()
    np.save(file, np.zeros((3, 3), np.uint8))
    yield "numpy file", "png", file.getvalue()


def test_masks_of_any_mode_are_ids_or_refused(tmp_path: Path) -> None:
    count = rounds(1, long=12)
    with trials("masks") as group:
        for number, (case, suffix, content) in enumerate(mask_files()):
            path = tmp_path / f"{number}.{suffix}"
            variants = [("", content)]
            if len(content) > 100:
                variants += mutations(content, count=count, seed=number)
            for damage, data in variants:
                path.write_bytes(data)
                for reader, options in READERS.items():
                    name = f"{case} {damage} read as {reader}"
                    labels = group.attempt(
                        name,
                        lambda path=path, options=options: read_mask(
                            path, num_classes=3, **options
                        ),
                    )
                    if labels is not None:
                        found = set(np.unique(labels).tolist())
                        group.expect(name, found <= {0, 1, 2, 255}, f"ids {found}")
        assert group.refused > 50
