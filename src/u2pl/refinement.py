"""Pixel-adaptive refinement: maps flow between neighbours that look alike.

After Ru et al., "Learning Affinity from Attention" (CVPR 2022, arXiv 2203.02664), section 3.4.
Written from the equations. Nothing is trained. Activation maps become seeds by it, and what a
teacher says of an image gets the image's own edges, which a network's coarse grid has lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
_TINY = 1e-8
_NEVER = -1e30  # before a softmax: no weight, yet finite where no neighbour has any


def refine_maps(
    maps: Tensor,
    images: Tensor,
    *,
    dilations: Sequence[int],
    iterations: int,
    bandwidth: float = 0.3,
    position_weight: float = 0.01,
    valid: Tensor | None = None,
) -> Tensor:
    """Replace each pixel's scores, ``iterations`` times, by its neighbours' weighted mean.

    The weights are those of :func:`pixel_affinity`. As they sum to 1, scores keep their range,
    and a map that is the same everywhere stays as it is.

    Args:
        maps: [B, C, H, W] floating, scores a class.
        images: [B, 3, H, W] floating, the pixels that the maps belong to, in any linear range.
        dilations: distances of the neighbours in pixels, eight at each; beyond the border the
            nearest pixel stands.
        iterations: rounds, 0 or more.
        bandwidth: w_1 = w_2 of the paper: how quickly unlike neighbours lose weight.
        position_weight: w_3 of the paper: share of the weight that depends on distance alone.
        valid: [B, H, W] bool, pixels that are heard, None for all: padding has no say. What comes
            out for a pixel that has no neighbour to hear means nothing.

    Returns:
        [B, C, H, W]. Memory is that of eight numbers a pixel and dilation, beside the maps.

    Raises:
        ValueError: where maps and images are not of one size.

    >>> maps = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]])
    >>> image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 3, 1, 4)
    >>> refined = refine_maps(maps, image, dilations=[1], iterations=9)
    >>> [round(value, 1) for value in refined.flatten().tolist()]
    [0.4, 0.4, 0.0, 0.0]
    """
    if maps.shape[0] != images.shape[0] or maps.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"Expected maps and images of one number and size, got {tuple(maps.shape)} and "
            f"{tuple(images.shape)}."
        )
    if iterations == 0 or maps.numel() == 0:
        return maps
    affinity = pixel_affinity(
        images,
        dilations=dilations,
        bandwidth=bandwidth,
        position_weight=position_weight,
        valid=valid,
    ).to(maps.dtype)
    for _ in range(iterations):
        refined = torch.zeros_like(maps)
        for index, neighbor in enumerate(_neighbors(maps, dilations)):
            refined.addcmul_(affinity[:, index : index + 1], neighbor)
        maps = refined
    return maps


def pixel_affinity(
    images: Tensor,
    *,
    dilations: Sequence[int],
    bandwidth: float = 0.3,
    position_weight: float = 0.01,
    valid: Tensor | None = None,
) -> Tensor:
    """How much each pixel listens to each of its neighbours.

    A softmax over the neighbours of -(difference of colour / (w_1 σ))², averaged over the colour
    channels, plus w_3 times a softmax of -(distance / (w_2 σ_distance))²; σ is the standard
    deviation over the pixel's neighbours, in each channel. Divided by 1 + w_3, which the paper
    does not [R]: it changes no argmax, and the weights sum to 1.

    Args:
        images: [B, 3, H, W] floating.
        dilations: distances in pixels.
        bandwidth: w_1 = w_2.
        position_weight: w_3.
        valid: [B, H, W] bool, the only pixels that are neighbours; None for all.

    Returns:
        [B, 8 * len(dilations), H, W], for each distance the neighbours row by row; they sum to 1.
    """
    nearest = _distances_of_nearest(images)
    distances = torch.cat([nearest * dilation for dilation in dilations])
    heard, count = None, images.new_full((), len(distances))
    if valid is not None:
        seen = _neighbors(valid.unsqueeze(1).to(images.dtype), dilations)
        heard = torch.cat(list(seen), dim=1)  # 1 or 0
        count = heard.sum(dim=1, keepdim=True)
    mean, variance = torch.zeros_like(images), torch.zeros_like(images)
    for index, neighbor in enumerate(_neighbors(images, dilations)):
        mean += neighbor if heard is None else neighbor * heard[:, index : index + 1]
    mean /= count.clamp_min(1)
    for index, neighbor in enumerate(_neighbors(images, dilations)):
        squares = (neighbor - mean).square()
        variance += squares if heard is None else squares * heard[:, index : index + 1]
    variance /= (count - 1).clamp_min(1)
    width = bandwidth * (variance.sqrt() + _TINY)
    likeness = torch.stack(
        [
            -((neighbor - images) / width).square().mean(dim=1)
            for neighbor in _neighbors(images, dilations)
        ],
        dim=1,
    )
    nearness = -(distances / (bandwidth * (distances.std() + _TINY))).square().view(1, -1, 1, 1)
    if heard is not None:
        likeness = likeness.masked_fill(heard == 0, _NEVER)
        nearness = nearness.masked_fill(heard == 0, _NEVER)
    mixed = likeness.softmax(dim=1) + position_weight * nearness.softmax(dim=1)
    return mixed / (1 + position_weight)


def _distances_of_nearest(like: Tensor) -> Tensor:
    """Of a pixel's eight neighbours, [8]; made on the device, which nobody need wait for."""
    each = torch.cat([torch.arange(4, device=like.device), torch.arange(5, 9, device=like.device)])
    dy, dx = each // 3 - 1, each % 3 - 1
    return (dy**2 + dx**2).to(like.dtype).sqrt()


def _neighbors(x: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield [B, K, H, W] shifted to each neighbour in turn, its border repeated."""
    height, width = x.shape[-2:]
    for distance in dilations:
        padded = F.pad(x, (distance,) * 4, mode="replicate")
        for dy, dx in _OFFSETS:
            yield padded.narrow(-2, distance + dy * distance, height).narrow(
                -1, distance + dx * distance, width
            )
