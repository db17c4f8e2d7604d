"""Label Studio's brushes, read by a decoder that is written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotators import pack_rgba, unpack_rgba
from u2pl.data.init.brush import decode_brush, encode_brush


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (40, 56), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_brush_decodes_to_its_mask(size: tuple[int, int], share: float) -> None:
    """300 x 200 values of one kind are longer than one run may be."""
    mask = np.random.default_rng(0).random(size) < share
    rle = encode_brush(mask)
    assert np.array_equal(decode_brush(rle, size, Path("x.json")), mask)
    assert np.array_equal(unpack_rgba(rle, size), mask)
    assert all(type(byte) is int and 0 <= byte < 256 for byte in rle)


def test_brush_with_groups_that_are_no_runs_is_read() -> None:
    mask = np.random.default_rng(1).random((20, 30)) < 0.3
    assert np.array_equal(decode_brush(pack_rgba(mask), (20, 30), Path("x.json")), mask)
