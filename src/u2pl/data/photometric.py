"""The strong view: colours changed at random, a whole batch at a time and each image by its draws.

The loader draws the numbers (:func:`draw_colors`), which are a function of the seed and the image's
number in the run. So it does not matter where or when a batch's colours are changed: in a worker
process, or on the GPU after it has received the images as bytes.

Images are [B, 3, H, W] float, RGB in [0, 1]. The changes are torchvision's (see
:mod:`u2pl.data.colors`); torchvision and kornia have no batch of them in which every image has its
own order. Nothing here waits for the device: which image is changed by what is decided by the
draws, which lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from u2pl.data.colors import (
    autocontrast_,
    blur_,
    blur_weights,
    brightness_,
    contrast_,
    equalize_,
    grayscale_,
    hue_,
    posterize_,
    saturation_,
    sharpness_,
    solarize_,
)

NUM_DRAWS = 12
"""Numbers a view: eight from [0, 1), and an order of the four changes."""

_MAX_BLUR_SIGMA = 2.0
_MIN_BLUR_SIGMA = 0.1
_CACHED_VALUES = 2**18  # so many float32 stay in a core's second-level cache while they are changed


def draw_colors(generator: torch.Generator) -> Tensor:
    """Return the random numbers of one view, [12] float64; see :func:`photometric`."""
    draws = torch.rand(8, generator=generator, dtype=torch.float64)
    return torch.cat([draws, torch.randperm(4, generator=generator).double()])


def photometric(
    images: Tensor,
    draws: Tensor,
    *,
    jitter: float,
    jitter_probability: float,
    grayscale_probability: float,
    blur_probability: float,
    intensities: int = 0,
) -> Tensor:
    """Return the images with their colours changed at random and their geometry untouched.

    Brightness, contrast and saturation by a factor in [1 - jitter, 1 + jitter] and hue by at most
    jitter / 2 of the circle, in an order of each image's own; then grey; then a Gaussian blur of
    0.1 to 2 pixels. Or, with ``intensities``, AugSeg's choice: see :data:`INTENSITIES`.

    Args:
        images: [B, 3, H, W] float, RGB in [0, 1]; they are not changed.
        draws: [B, 12] float64 on the CPU, of :func:`draw_colors`: whether the image is jittered,
            the four strengths, whether it becomes grey, whether it is blurred and how far, each a
            number in [0, 1); then the order of the four changes. With ``intensities``: how many
            changes; which, for each of three; and how strong, for each of three.
        jitter: strength, 0 or more; 0 leaves the colours alone.
        jitter_probability: of the four changes together.
        grayscale_probability: of losing all colour.
        blur_probability: of the blur.
        intensities: at most so many changes in place of all these; 0 is off, and the draws are
            enough for 3.

    Returns:
        [B, 3, H, W] like ``images``.
    """
    views = images.clone(memory_format=torch.contiguous_format)
    at_once = len(views)
    if views.device.type == "cpu" and at_once:
        at_once = max(1, _CACHED_VALUES // views[0].numel())
    for first in range(0, len(views), max(1, at_once)):
        rows = draws[first : first + at_once].tolist()
        if intensities:
            changes = [*_intensities(rows, intensities)]
        else:
            changes = [
                *_jitters(rows, jitter, jitter_probability),
                *_grays(rows, grayscale_probability),
                *_blurs(rows, blur_probability),
            ]
        _apply(views[first : first + at_once], changes)
    return views


_InPlace: TypeAlias = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class _Change:
    """One change of some images of a batch.

    Attributes:
        function: changes images [n, 3, H, W] in place by numbers [n, k].
        rows: the n images' places in the batch, rising.
        numbers: k numbers for each of them.
    """

    function: _InPlace
    rows: list[int]
    numbers: list[list[float]]


def _jitters(draws: list[list[float]], jitter: float, probability: float) -> Iterable[_Change]:
    """The four changes, in four places of the order: images that are at the same one share it."""
    if jitter <= 0:
        return
    low, most_hue = max(0.0, 1 - jitter), min(jitter / 2, 0.5)
    jittered = [row for row, own in enumerate(draws) if own[0] < probability]
    functions = (brightness_, contrast_, saturation_, hue_)
    for place in range(8, 12):
        for kind, function in enumerate(functions):
            rows = [row for row in jittered if draws[row][place] == kind]
            if not rows:
                continue
            shares = [draws[row][1 + kind] for row in rows]
            if function is hue_:
                numbers = [[most_hue * (2 * share - 1)] for share in shares]
            else:
                factors = [low + (1 + jitter - low) * share for share in shares]
                numbers = [[factor, 1 - factor] for factor in factors]
            yield _Change(function, rows, numbers)


def _grays(draws: list[list[float]], probability: float) -> Iterable[_Change]:
    rows = [row for row, own in enumerate(draws) if own[5] < probability]
    if rows:
        yield _Change(grayscale_, rows, [[] for _ in rows])


def _blurs(draws: list[list[float]], probability: float) -> Iterable[_Change]:
    rows = [row for row, own in enumerate(draws) if own[6] < probability]
    if not rows:
        return
    yield _Change(blur_, rows, _blur_numbers([draws[row][7] for row in rows]))


def _blur_numbers(shares: list[float]) -> list[list[float]]:
    """Weights of blurs of 0.1 to 2 pixels, all of one length."""
    spread = _MAX_BLUR_SIGMA - _MIN_BLUR_SIGMA
    lines = [blur_weights(_MIN_BLUR_SIGMA + spread * share) for share in shares]
    longest = max(len(line) for line in lines)
    return [line + [0.0] * (longest - len(line)) for line in lines]


def _no_numbers(shares: list[float]) -> list[list[float]]:
    return [[] for _ in shares]


def _factors(shares: list[float]) -> list[list[float]]:
    """0.05 to 0.95: duller, darker, paler or softer, never the other way."""
    factors = [0.05 + 0.9 * share for share in shares]
    return [[factor, 1 - factor] for factor in factors]


INTENSITIES: tuple[tuple[_InPlace | None, Callable[[list[float]], list[list[float]]]], ...] = (
    (None, _no_numbers),
    (autocontrast_, _no_numbers),
    (equalize_, _no_numbers),
    (blur_, _blur_numbers),
    (contrast_, _factors),
    (brightness_, _factors),
    (saturation_, _factors),
    (sharpness_, _factors),
    (posterize_, lambda shares: [[2.0 ** (4 + int(4 * share))] for share in shares]),
    (solarize_, lambda shares: [[(1 + int(255 * share)) / 255] for share in shares]),
    (hue_, lambda shares: [[share - 0.5] for share in shares]),
)
"""AugSeg's changes (arXiv 2212.04976) and their numbers from draws in [0, 1): a view undergoes 1 to
``intensities`` of them, their number, each one and its strength drawn evenly. None changes nothing;
a factor is 0.05 to 0.95, a blur 0.1 to 2 pixels, levels have 4 to 7 bits, and hue turns by half of
the circle at most."""


def _intensities(draws: list[list[float]], most: int) -> Iterable[_Change]:
    """The first change of all images that have one, then the second and the third, by kind."""
    for place in range(most):
        changed = [row for row, own in enumerate(draws) if int(own[0] * most) >= place]
        for kind, (function, numbers) in enumerate(INTENSITIES):
            rows = [row for row in changed if int(draws[row][1 + place] * len(INTENSITIES)) == kind]
            if function is not None and rows:
                yield _Change(function, rows, numbers([draws[row][4 + place] for row in rows]))


def _apply(images: Tensor, changes: list[_Change]) -> None:
    """Make the changes one after the other, in place."""
    device = images.device
    # all numbers go to the device in one message, and all places in another
    numbers = [value for change in changes for row in change.numbers for value in row]
    rows = [row for change in changes for row in change.rows]
    sizes = [len(change.rows) for change in changes]
    widths = [len(change.numbers[0]) for change in changes]
    areas = [size * width for size, width in zip(sizes, widths, strict=True)]
    all_numbers = torch.split(_placed(torch.tensor(numbers, dtype=images.dtype), device), areas)
    all_rows = torch.split(_placed(torch.tensor(rows, dtype=torch.int64), device), sizes)
    for change, width, flat, index in zip(changes, widths, all_numbers, all_rows, strict=True):
        own = flat.view(len(index), width)
        if len(index) == len(images):
            change.function(images, own)
            continue
        part = images.index_select(0, index)
        change.function(part, own)
        images.index_copy_(0, index, part)


def _placed(values: Tensor, device: torch.device) -> Tensor:
    """Return a few numbers on the device, without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
