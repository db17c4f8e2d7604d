"""Channel dropout on a network's inner maps: what UniMatch changes where no picture can.

A draw is one factor for each image and channel, made before the forward pass, so that several
processes and the parts of a batch agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from u2pl.mixing import Share


def channel_dropout(
    num_images: int,
    sizes: Sequence[int],
    *,
    rate: float = 0.5,
    device: torch.device,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> tuple[Tensor, ...]:
    """Factors that leave out whole channels [R: UniMatch, arXiv 2208.09910, a rate of 0.5].

    Args:
        num_images: B, of this process.
        sizes: channels K of each map.
        rate: share of the channels that is left out, in [0, 1).
        device: of the result and of the generator.
        generator: source of randomness.
        share: which images of the whole batch these are; None for all of it.

    Returns:
        For each map [B, K]: 0, or ``1 / (1 - rate)``.
    """
    share = share or Share(0, num_images)
    rows = slice(share.first, share.first + num_images)
    return tuple(
        (torch.rand(share.total, size, device=device, generator=generator)[rows] >= rate)
        / (1 - rate)
        for size in sizes
    )


def complementary_dropout(
    num_images: int,
    sizes: Sequence[int],
    *,
    rate: float = 0.5,
    device: torch.device,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Factors for two views of each image: one sees the channels that the other does not.

    Half of the images keep all channels in both views [R: UniMatch V2, arXiv 2410.10777].

    Args:
        num_images: B, of this process.
        sizes: channels K of each map.
        rate: share of the channels that the first view lacks, in (0, 1).
        device: of the result and of the generator.
        generator: source of randomness.
        share: which images of the whole batch these are; None for all of it.

    Returns:
        For each view, for each map [B, K]: 0 or ``1 / (1 - rate)`` in the first view, and
        ``1 / rate`` or 0 in the second; 1 in the images that keep all.
    """
    share = share or Share(0, num_images)
    rows = slice(share.first, share.first + num_images)
    order = torch.rand(share.total, device=device, generator=generator).argsort()
    whole = torch.zeros(share.total, dtype=torch.bool, device=device)
    whole = whole.index_fill(0, order[: share.total // 2], True)[rows].unsqueeze(1)
    first, second = [], []
    for size in sizes:
        seen = torch.rand(share.total, size, device=device, generator=generator)[rows] >= rate
        first.append((seen / (1 - rate)).masked_fill(whole, 1))
        second.append((~seen / rate).masked_fill(whole, 1))
    return tuple(first), tuple(second)
