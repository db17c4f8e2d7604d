from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from u2pl.models.dpt import DPT, extended


class Ramp(nn.Module):
    """In place of the decoder: the place in pixels of each of its cells, eight along a patch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, features: list[Tensor], _: Any) -> Tensor:
        rows, columns = features[0].shape[-2:]
        assert rows % 2 == columns % 2 == 0
        y, x = (self.patch / 8 * (torch.arange(8 * n) + 0.5) for n in (rows, columns))
        return torch.stack(torch.meshgrid(y, x, indexing="ij")).unsqueeze(0)


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 2)])
def test_cells_of_four_pixels_lie_where_they_say(patch: int, grid: tuple[int, int]) -> None:
    decoder = DPT([8] * 4, patch=patch, width=8, has_prefix_tokens=False)
    decoder.blocks = Ramp(patch)
    places = decoder([torch.rand(1, 8, *grid)] * 4, [None] * 4)
    height, width = (-(-n * patch // 4) for n in grid)
    assert places.shape == (1, 2, height, width)
    wanted = torch.stack(
        torch.meshgrid(4 * torch.arange(height) + 2.0, 4 * torch.arange(width) + 2.0, indexing="ij")
    )
    # at the rim the outermost answer stands, whose place is half of a small cell inside
    edge = torch.tensor([patch * n - patch / 16 for n in grid]).view(2, 1, 1)
    expected = wanted.clamp(min=patch / 16).minimum(edge)
    torch.testing.assert_close(places[0], expected)


def test_last_row_and_column_are_repeated_and_their_gradients_add_up() -> None:
    maps = torch.rand(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert extended(maps, 0, 0).shape == maps.shape
    assert torch.autograd.gradcheck(lambda x: extended(x, 2, 1), (maps,))
