from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from u2pl.engine.tiles import (
    Tiling,
    blend_tiles,
    blended_at,
    ramp,
    tile_spans,
    upsampled_rows,
)
from u2pl.errors import UserError

TILING = Tiling(size=64, overlap=32)


def joined(logits: Tensor, tiling: Tiling, *, shift: bool = False) -> Tensor:
    """Blocks put where they belong; with ``shift`` each tile says 1 more than the one before."""
    count = iter(range(1000))

    def logits_of(top: int, bottom: int, left: int, right: int) -> Tensor:
        more = next(count) if shift else 0
        return logits[:, top:bottom, left:right] + more

    result = torch.full_like(logits, torch.nan)
    for top, left, block in blend_tiles(logits_of, (logits.shape[1], logits.shape[2]), tiling):
        place = result[:, top : top + block.shape[1], left : left + block.shape[2]]
        assert place.isnan().all()  # no pixel comes twice
        place.copy_(block)
    return result


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (40, 200), (200, 161), (97, 33), (1, 1)])
@pytest.mark.parametrize("overlap", [0, 32])
def test_tiles_that_agree_give_what_they_agree_on(size: tuple[int, int], overlap: int) -> None:
    logits = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    found = joined(logits, Tiling(size=64, overlap=overlap))
    torch.testing.assert_close(found, logits)


def test_tiles_that_disagree_meet_without_an_edge() -> None:
    """Where one tile says 0 and the next 1, the answer climbs by 1/32 from pixel to pixel."""
    row = joined(torch.zeros(1, 10, 96), TILING, shift=True)[0, 0]
    assert row[:32].eq(0).all()
    assert row[64:].eq(1).all()
    torch.testing.assert_close(row[32:64], (torch.arange(32) + 0.5) / 32)


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (130, 161), (1, 1)])
@pytest.mark.parametrize("overlap", [0, 32])
def test_one_pixel_is_blended_as_all_are(size: tuple[int, int], overlap: int) -> None:
    tiling = Tiling(size=64, overlap=overlap)

    def logits_of(top: int, bottom: int, left: int, right: int) -> Tensor:
        """Neighbours contradict each other."""
        generator = torch.Generator().manual_seed(1000 * top + left)
        return torch.randn(3, bottom - top, right - left, generator=generator)

    whole = torch.full((3, *size), torch.nan)
    for top, left, block in blend_tiles(logits_of, size, tiling):
        whole[:, top : top + block.shape[1], left : left + block.shape[2]] = block
    for row in {0, size[0] // 2, size[0] - 1, min(40, size[0] - 1)}:
        for column in {0, size[1] // 2, size[1] - 1, min(63, size[1] - 1)}:
            found = blended_at(logits_of, size, tiling, (row, column))
            torch.testing.assert_close(found, whole[:, row, column])


def test_weights_of_neighbors_add_up_to_one() -> None:
    left = ramp(64, 32, is_first=True, is_last=False)
    right = ramp(64, 32, is_first=False, is_last=True)
    torch.testing.assert_close(left[32:] + right[:32], torch.ones(32))
    assert left[:32].eq(1).all()


def test_tiles_cover_a_side_and_share_what_they_should() -> None:
    for length in range(1, 400):
        spans = tile_spans(length, TILING)
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start == 32
        assert all(start % 32 == 0 and 0 < end - start <= 64 for start, end in spans)


@pytest.mark.parametrize(("size", "overlap"), [(63, 0), (32, 0), (-64, 0), (64, 64), (64, 16)])
def test_tiles_that_would_not_fit_the_grid_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(UserError, match="multiples of 32") as error:
        Tiling(size=size, overlap=overlap)
    assert error.value.exit_code == 2


def test_image_is_large_by_its_logits() -> None:
    tiling = Tiling(whole=1000)
    assert not tiling.is_large((10, 50), 2)
    assert tiling.is_large((10, 51), 2)
    assert not Tiling(size=0, whole=1000).is_large((999, 999), 9)


@pytest.mark.parametrize("size", [(40, 30), (7, 5), (9, 23)])
def test_rows_are_those_of_the_whole_resized(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    rows = [upsampled_rows(logits, size, range(row, row + 1)) for row in range(size[0])]
    torch.testing.assert_close(torch.cat(rows, dim=1), expected)
