"""Masks to polygons and back, compared with pycocotools too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from u2pl.data.outlines import Polygon, area, fill_polygon, outlines, simplified

Mask = npt.NDArray[np.bool_]


def blobs(seed: int, size: tuple[int, int] = (40, 56)) -> Mask:
    """Large parts with holes for even seeds, single pixels for odd ones."""
    noise = np.random.default_rng(seed).random(size)
    if seed % 2:
        return noise > 0.5
    for axis in (0, 1):
        noise = sum(np.roll(noise, k, axis) for k in range(-3, 4)) / 7
    return noise > np.median(noise)


def filled(polygons: list[Polygon], size: tuple[int, int]) -> Mask:
    """All polygons painted, which must not overlap."""
    mask = np.zeros(size, np.bool_)
    for corners in polygons:
        shape = fill_polygon(corners, size)
        assert not (mask & shape).any()
        mask |= shape
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_polygons_hold_the_centres_of_the_masks_pixels_and_no_others(seed: int) -> None:
    mask = blobs(seed)
    assert np.array_equal(filled(outlines(mask), mask.shape), mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("seed", range(4))
def test_cocos_own_painter_agrees(seed: int) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    mask = blobs(seed)
    polygons = [corners.ravel().tolist() for corners in outlines(mask)]
    found = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
    difference = (found.astype(bool) != mask).mean()
    assert difference == 0 if seed % 2 == 0 else difference < 0.1  # of single pixels it loses some


def test_mask_that_fills_the_image_has_one_polygon_and_none_where_it_is_empty() -> None:
    (corners,) = outlines(np.ones((3, 5), np.bool_))
    assert filled([corners], (3, 5)).all()
    assert outlines(np.zeros((3, 5), np.bool_)) == []


def test_hole_is_joined_to_its_polygon() -> None:
    ring = np.ones((9, 9), np.bool_)
    ring[3:6, 3:6] = False
    ring[4, 4] = True  # an island in the hole is a part of its own
    polygons = outlines(ring)
    assert len(polygons) == 2
    assert np.array_equal(filled(polygons, ring.shape), ring)


def test_tolerance_saves_corners_and_keeps_the_shape() -> None:
    rows, columns = np.mgrid[:100, :100]
    disk = (rows - 50) ** 2 + (columns - 50) ** 2 < 40**2
    (exact,), (rough,) = outlines(disk), outlines(disk, tolerance=1.0)
    assert len(rough) < len(exact) / 3
    shape = fill_polygon(rough, disk.shape)
    assert (shape & disk).sum() / (shape | disk).sum() > 0.97


def test_small_parts_and_holes_are_left_out() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[1:11, 1:11] = True
    mask[5, 5] = False
    mask[15:17, 15:17] = True
    (corners,) = outlines(mask, min_area=10)
    mask[5, 5], mask[15:17, 15:17] = True, False
    assert np.array_equal(fill_polygon(corners, mask.shape), mask)


def test_largest_part_comes_first() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[1:3, 1:3] = mask[6:16, 6:16] = True
    sizes = [abs(area(corners)) for corners in outlines(mask)]
    assert sizes == sorted(sizes, reverse=True)


def test_ring_that_would_vanish_stays_a_polygon() -> None:
    (corners,) = outlines(np.array([[True]]), tolerance=50.0)
    assert len(corners) >= 3


def test_corners_on_a_line_are_dropped_without_tolerance() -> None:
    ring = np.array([[0.0, 0], [1, 0], [2, 0], [2, 2], [0, 2]])
    assert simplified(ring, 0.0).tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
