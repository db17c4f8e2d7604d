"""Random choice of pixels out of a mask, for all classes at once and without leaving the device.

The pixels of all images stand in one row here, K = B·h·w of them: :func:`by_class` and
:func:`by_pixel` bring masks and features into that form.
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_class(mask: Tensor) -> Tensor:
    """Lay a mask of maps out as one row of pixels a class.

    Args:
        mask: [B, C, h, w], such as :func:`~u2pl.contrast.anchor_mask` returns.

    Returns:
        [C, B·h·w], pixels in the order of :func:`by_pixel`.

    >>> by_class(torch.tensor([[1, 2], [3, 4]]).view(2, 2, 1, 1))  # two images, two classes
    tensor([[1, 3],
            [2, 4]])
    """
    return mask.transpose(0, 1).flatten(1)


def by_pixel(features: Tensor) -> Tensor:
    """Lay maps of features out as one row of features a pixel.

    Args:
        features: [B, D, h, w].

    Returns:
        [B·h·w, D], so that an index into a row of :func:`by_class` finds the pixel's feature.

    >>> by_pixel(torch.tensor([[1, 2], [3, 4]]).view(2, 2, 1, 1))  # two images, D = 2
    tensor([[1, 2],
            [3, 4]])
    """
    return features.movedim(1, -1).flatten(0, 2)


def sample_with_replacement(
    mask: Tensor, num_samples: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw members of each row, every member as likely as another, repeats allowed.

    Args:
        mask: [C, K] bool, one row a class.
        num_samples: draws a row.
        generator: source of randomness, on the mask's device.

    Returns:
        Indices [C, num_samples] int64 into the row, and [C] bool, False where the row was empty;
        an empty row's indices are valid positions without meaning.
    """
    shape = (mask.shape[0], num_samples)
    # float64: a float32 draw cannot reach every member of a row of over 16 M pixels
    draw = torch.rand(shape, generator=generator, device=mask.device, dtype=torch.float64)
    return members_at(mask, draw)


def members_at(mask: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """The members of each row at given places of it, as shares of their number.

    Args:
        mask: [C, K] bool, one row a class.
        draw: [C, S] float64 in [0, 1); 0.5 is a row's middle member.

    Returns:
        As :func:`sample_with_replacement`, which makes the draw.
    """
    cumulative, total = _counted(mask)
    nth = (draw * total).to(cumulative.dtype) + 1
    index = _place_of(torch.minimum(nth, total.clamp_min(1)), cumulative, total, mask.shape[1])
    return index, total.squeeze(1) > 0


def sample_without_replacement(
    mask: Tensor, num_samples: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw distinct members of each row, in random order; all of them where there are fewer.

    One shuffle of the columns serves all rows, so that the cost is a single pass over the mask.

    Args:
        mask: [C, K] bool, one row a class.
        num_samples: at most so many a row.
        generator: source of randomness, on the mask's device.

    Returns:
        Indices [C, S] int64 with S = min(num_samples, K), and their validity [C, S] bool: True for
        the first min(S, members) entries of a row.
    """
    order = torch.randperm(mask.shape[1], generator=generator, device=mask.device)
    return first_members(mask, num_samples, order=order)


def first_members(mask: Tensor, num_samples: int, *, order: Tensor) -> tuple[Tensor, Tensor]:
    """The members of each row that come first in a given order of the columns.

    Args:
        mask: [C, K] bool, one row a class.
        num_samples: at most so many a row.
        order: [K] int64, the columns in some order.

    Returns:
        As :func:`sample_without_replacement`, which takes a random order.
    """
    num_columns = mask.shape[1]
    size = min(num_samples, num_columns)
    cumulative, total = _counted(mask[:, order])
    nth = torch.arange(1, size + 1, device=mask.device, dtype=cumulative.dtype)
    nth = nth.expand(mask.shape[0], size).contiguous()
    return order[_place_of(nth, cumulative, total, num_columns)], nth <= total


def _counted(mask: Tensor, *, at_once: bool | None = None) -> tuple[Tensor, Tensor]:
    """Count the members of rows from left to right.

    Args:
        mask: [C, K] bool.
        at_once: whether to count through all rows as if they were one, which a GPU does in one
            go, where row by row is slow with few rows; None does so on a GPU.

    Returns:
        The counts, [C, K] or, of all rows at once, [C·K]; and each row's members, [C, 1].
    """
    if not (mask.is_cuda if at_once is None else at_once):
        cumulative = mask.cumsum(dim=1, dtype=torch.int32)
        return cumulative, cumulative[:, -1:]
    dtype = torch.int32 if mask.numel() < 2**31 else torch.int64
    cumulative = mask.flatten().cumsum(dim=0, dtype=dtype)
    ends = cumulative.view(mask.shape)[:, -1:]
    return cumulative, torch.diff(ends, dim=0, prepend=ends.new_zeros(1, 1))


def _place_of(nth: Tensor, cumulative: Tensor, total: Tensor, num_columns: int) -> Tensor:
    """Where the n-th members of rows are.

    Args:
        nth: [C, S], counted from 1, of the counts' type.
        cumulative, total: from :func:`_counted`.
        num_columns: K.

    Returns:
        [C, S] int64; the last column where a row has fewer.
    """
    if cumulative.ndim == 2:
        return torch.searchsorted(cumulative, nth).clamp_max(num_columns - 1)
    before = total.cumsum(dim=0, dtype=total.dtype) - total
    first = num_columns * torch.arange(len(total), device=total.device).unsqueeze(1)
    # a row's members may be fewer, and the search then ends in a later row
    return (torch.searchsorted(cumulative, nth + before) - first).clamp_max(num_columns - 1)
