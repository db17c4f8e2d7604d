from __future__ import annotations

import pytest
import torch

from u2pl.mixing import Share
from u2pl.perturbation import channel_dropout, complementary_dropout

CPU = torch.device("cpu")
SIZES = (400, 600)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
def test_dropped_channels_are_zero_and_the_others_make_up_for_them(rate: float) -> None:
    factors = channel_dropout(3, SIZES, rate=rate, device=CPU, generator=seeded())
    assert [tuple(f.shape) for f in factors] == [(3, 400), (3, 600)]
    for factor in factors:
        kept = factor != 0
        torch.testing.assert_close(factor[kept], torch.full_like(factor[kept], 1 / (1 - rate)))
        assert (~kept).float().mean().item() == pytest.approx(rate, abs=0.05)


def test_images_and_maps_drop_channels_of_their_own() -> None:
    first, second = channel_dropout(2, (500, 500), device=CPU, generator=seeded())
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_one_view_has_the_channels_that_the_other_lacks(rate: float) -> None:
    views = complementary_dropout(4, SIZES, rate=rate, device=CPU, generator=seeded())
    for first, second in zip(*views, strict=True):
        whole = (first == 1).all(dim=1)
        assert torch.equal(whole, (second == 1).all(dim=1))
        assert whole.sum() == 2
        seen, other = first[~whole] != 0, second[~whole] != 0
        assert torch.equal(seen, ~other)
        # together they are the map itself
        sums = first[~whole] * (1 - rate) + second[~whole] * rate
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert seen.float().mean().item() == pytest.approx(1 - rate, abs=0.05)


def test_image_alone_is_dropped() -> None:
    (first,), _ = complementary_dropout(1, (64,), device=CPU, generator=seeded())
    assert (first == 0).any()


@pytest.mark.parametrize("kind", [channel_dropout, complementary_dropout])
def test_processes_that_share_a_batch_drop_as_one_would(kind: object) -> None:
    assert callable(kind)
    whole = kind(4, SIZES, device=CPU, generator=seeded())
    parts = [
        kind(2, SIZES, device=CPU, generator=seeded(), share=Share(first, 4)) for first in (0, 2)
    ]
    flat = [[t for view in draw for t in (view if isinstance(view, tuple) else (view,))]
            for draw in (whole, *parts)]  # fmt: skip
    for full, upper, lower in zip(*flat, strict=True):
        assert torch.equal(full, torch.cat([upper, lower]))
