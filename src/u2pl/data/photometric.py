"""The strong view: colours changed at random, a whole batch at a time and each image by its draws.

The loader draws the numbers (:func:`draw_colors`), which are a function of the seed and the image's
number in the run. So it does not matter where or when a batch's colours are changed: in a worker
process, or on the GPU after it has received the images as bytes.

Images are [B, 3, H, W] float, RGB in [0, 1]. Each change equals torchvision's function of the same
name on each image alone, but for rounding; torchvision and kornia have no batch of them in which
every image has its own order. No function waits for the device: which image is changed by what is
decided by the draws, which lie on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_DRAWS = 12
"""Numbers a view: eight from [0, 1), and an order of the four changes."""

_MAX_BLUR_SIGMA = 2.0
_MIN_BLUR_SIGMA = 0.1
_GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision and Pillow have them
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
) -> Tensor:
    """Return the images with their colours changed at random and their geometry untouched.

    Brightness, contrast and saturation by a factor in [1 - jitter, 1 + jitter] and hue by at most
    jitter / 2 of the circle, in an order of each image's own; then grey; then a Gaussian blur of
    0.1 to 2 pixels.

    Args:
        images: [B, 3, H, W] float, RGB in [0, 1]; they are not changed.
        draws: [B, 12] float64 on the CPU, of :func:`draw_colors`: whether the image is jittered,
            the four strengths, whether it becomes grey, whether it is blurred and how far, each a
            number in [0, 1); then the order of the four changes.
        jitter: strength, 0 or more; 0 leaves the colours alone.
        jitter_probability: of the four changes together.
        grayscale_probability: of losing all colour.
        blur_probability: of the blur.

    Returns:
        [B, 3, H, W] like ``images``.
    """
    views = images.clone(memory_format=torch.contiguous_format)
    at_once = len(views)
    if views.device.type == "cpu" and at_once:
        at_once = max(1, _CACHED_VALUES // views[0].numel())
    for first in range(0, len(views), max(1, at_once)):
        rows = draws[first : first + at_once].tolist()
        changes = [
            *_jitters(rows, jitter, jitter_probability),
            *_grays(rows, grayscale_probability),
            *_blurs(rows, blur_probability),
        ]
        _apply(views[first : first + at_once], changes)
    return views


@dataclass(frozen=True)
class _Change:
    """One change of some images of a batch.

    Attributes:
        function: changes images [n, 3, H, W] in place by numbers [n, k].
        rows: the n images' places in the batch, rising.
        numbers: k numbers for each of them.
    """

    function: Callable[[Tensor, Tensor], object]
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
    spread = _MAX_BLUR_SIGMA - _MIN_BLUR_SIGMA
    lines = [blur_weights(_MIN_BLUR_SIGMA + spread * draws[row][7]) for row in rows]
    longest = max(len(line) for line in lines)
    yield _Change(blur_, rows, [line + [0.0] * (longest - len(line)) for line in lines])


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


def brightness_(images: Tensor, numbers: Tensor) -> None:
    """Multiply each image by its factor, in place.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 2], the factor and 1 less it.
    """
    images.mul_(_column(numbers, 0)).clamp_(0, 1)


def contrast_(images: Tensor, numbers: Tensor) -> None:
    """Bring each image nearer to its mean grey, or further from it, in place; as brightness_."""
    # float64: the order of a sum depends on how many images there are, an image's view must not
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).to(images.dtype)
    images.mul_(_column(numbers, 0)).add_(mean.mul_(_column(numbers, 1))).clamp_(0, 1)


def saturation_(images: Tensor, numbers: Tensor) -> None:
    """Bring each pixel nearer to its grey, or further from it, in place; as brightness_."""
    gray = _gray(images)
    images.mul_(_column(numbers, 0)).add_(gray.mul_(_column(numbers, 1))).clamp_(0, 1)


def hue_(images: Tensor, numbers: Tensor) -> None:
    """Turn each image's hues, in place.

    A hue h in [0, 6) is a place on the circle red, yellow, green, cyan, blue, magenta. With V the
    largest of the three values and D its distance to the smallest, red is V - D·clip(2 - |h - 3|)
    with clip to [0, 1]; green and blue are the same two steps further on and back. So there is no
    choice between six cases.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 1], the turn in circles, -0.5 to 0.5.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    range_ = value - torch.minimum(torch.minimum(red, green), blue)
    over = range_.clamp_min(torch.finfo(images.dtype).tiny)
    greenest = torch.where(green == value, blue - red + 2 * range_, red - green + 4 * range_)
    hue = torch.where(red == value, green - blue, greenest)
    hue = hue.div_(over).add_(6 * numbers.view(-1, 1, 1))
    for channel, shift in zip((red, green, blue), (0, -2, 2), strict=True):
        turned = hue + shift
        turned.sub_(turned.div(6).floor_().mul_(6))  # in [0, 6)
        share = turned.sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, share, range_, value=-1, out=channel)


def grayscale_(images: Tensor, numbers: Tensor) -> None:
    """Take all colour away, in place.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 0].
    """
    images.copy_(_gray(images).expand_as(images))


def blur_weights(sigma: float) -> list[float]:
    """Return a Gaussian's weights at distance 0, 1, … up to three times sigma pixels.

    With those of the negative distances they add up to 1.
    """
    radius = math.ceil(3 * sigma)
    half = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(radius + 1)]
    total = half[0] + 2 * sum(half[1:])
    return [value / total for value in half]


def blur_(images: Tensor, numbers: Tensor) -> None:
    """Blur each image, its border repeated, in place: sums of shifted rows, then of columns.

    On a CPU this is several times faster than a convolution, and under autocast or with TF32 a
    convolution would round.

    Args:
        images: [n, 3, H, W].
        numbers: [n, r + 1], weights at distance 0 to r.
    """
    radius = numbers.shape[1] - 1
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        length = images.shape[axis]
        padded = F.pad(images, padding, mode="replicate")
        images.mul_(_column(numbers, 0))
        for distance in range(1, radius + 1):
            weights = _column(numbers, distance)
            for start in (radius - distance, radius + distance):
                images.addcmul_(padded.narrow(axis, start, length), weights)
    images.clamp_(0, 1)


def _gray(images: Tensor) -> Tensor:
    """Return the grey of images [n, 3, H, W] as [n, 1, H, W]."""
    red, green, blue = torch.split(images, 1, dim=1)
    return red.mul(_GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def _column(numbers: Tensor, place: int) -> Tensor:
    """Return a number of each image, [n, 1, 1, 1]."""
    return numbers[:, place].view(-1, 1, 1, 1)
