"""MATLAB files: of our own writing, and one that scipy's ``savemat`` has written."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

import published
from u2pl.data.prepare import mat
from u2pl.data.prepare.mat import read_field

# scipy 1.17.1: savemat("sbd_by_scipy.mat", {"other": np.eye(3), "GTcls": {"Boundaries": a 20 x 1
# object array of scipy.sparse.csc_matrix((7, 5), dtype=bool), "Segmentation": SCIPY_LABELS,
# "CategoriesPresent": [[1], [20]]}}, do_compression=True)
BY_SCIPY = Path(__file__).parent / "sbd_by_scipy.mat"
SCIPY_LABELS = (np.arange(35) * 3 % 21).reshape(7, 5).astype(np.uint8)


def segmentation(content: bytes) -> np.ndarray:
    return read_field(content, "GTcls", "Segmentation")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("size", [(34, 46), (2, 2), (1, 3), (0, 0)])
def test_labels_come_back_from_either_order_of_bytes(
    order: str, compressed: bool, size: tuple[int, int]
) -> None:
    labels = published.patches(Path("x"), [0, 5, 20], size)
    content = published.mat_file(labels, order=order, compressed=compressed)
    found = segmentation(content)
    assert found.shape == size
    assert np.array_equal(found, labels)


def test_file_of_another_writer_is_read() -> None:
    assert np.array_equal(segmentation(BY_SCIPY.read_bytes()), SCIPY_LABELS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "too short"),
        (bytes(200), "no MATLAB file of level 5"),
        (published.mat_file(SCIPY_LABELS)[:128], "no struct GTcls"),
        (published.mat_file(SCIPY_LABELS)[:-9], "ends behind the file"),
        (published.mat_file(SCIPY_LABELS).replace(b"\x78\x9c", b"\x00\x00"), "be inflated"),
    ],
)
def test_what_is_no_such_file_is_told(content: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        segmentation(content)


@pytest.mark.parametrize(("variable", "field"), [("GTinst", "Segmentation"), ("GTcls", "Other")])
def test_what_is_not_there_is_told(variable: str, field: str) -> None:
    with pytest.raises(ValueError, match=r"has no s"):
        read_field(BY_SCIPY.read_bytes(), variable, field)


def test_variable_that_grows_without_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat, "_MOST_BYTES", 1000)
    content = published.mat_file(np.zeros((300, 300), np.uint8))
    assert len(zlib.compress(bytes(90_000))) < 1000
    with pytest.raises(ValueError, match="torn, or too large"):
        segmentation(content)
