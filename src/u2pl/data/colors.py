"""Changes of colour of a batch of images, each image by its own numbers, in place.

Images are [n, 3, H, W] float, RGB in [0, 1], and stay there. Each change equals torchvision's
function of the same name on each image alone, but for rounding; the blur repeats the border. None
waits for the device, and an image's result does not depend on the others of the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

_GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision and Pillow have them


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


def autocontrast_(images: Tensor, numbers: Tensor) -> None:
    """Stretch each channel to the whole range, in place; one of a single value stays.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 0].
    """
    low = images.amin(dim=(2, 3), keepdim=True)
    range_ = images.amax(dim=(2, 3), keepdim=True) - low
    flat = range_ == 0
    images.sub_(torch.where(flat, 0, low)).div_(torch.where(flat, 1, range_)).clamp_(0, 1)


def equalize_(images: Tensor, numbers: Tensor) -> None:
    """Spread each channel's values, in 8 bits, evenly over the range, in place.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 0].
    """
    images.copy_(vision.equalize(images))


def sharpness_(images: Tensor, numbers: Tensor) -> None:
    """Bring each image nearer to a smoothed one, or further from it, in place; as brightness_.

    The outermost pixels stay, as in Pillow; so does an image of less than 3 x 3 pixels.
    """
    smooth = vision.adjust_sharpness(images, 0.0)  # of tiny images the very same tensor
    smooth = smooth * _column(numbers, 1)
    images.mul_(_column(numbers, 0)).add_(smooth).clamp_(0, 1)


def posterize_(images: Tensor, numbers: Tensor) -> None:
    """Keep as many levels of each channel, in place.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 1], levels, 2 to the power of the bits.
    """
    levels = _column(numbers, 0)
    images.mul_(levels).floor_().clamp_min_(0)
    torch.minimum(images, levels - 1, out=images)
    images.div_(levels)


def solarize_(images: Tensor, numbers: Tensor) -> None:
    """Invert what is at or above a threshold, in place.

    Args:
        images: [n, 3, H, W].
        numbers: [n, 1], thresholds in [0, 1].
    """
    images.copy_(torch.where(images >= _column(numbers, 0), 1 - images, images))


def _gray(images: Tensor) -> Tensor:
    """Return the grey of images [n, 3, H, W] as [n, 1, H, W]."""
    red, green, blue = torch.split(images, 1, dim=1)
    return red.mul(_GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def _column(numbers: Tensor, place: int) -> Tensor:
    """Return a number of each image, [n, 1, 1, 1]."""
    return numbers[:, place].view(-1, 1, 1, 1)
