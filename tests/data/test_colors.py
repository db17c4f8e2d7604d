from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from u2pl.bench.host_syncs import HostSyncs
from u2pl.data import colors

# isort: split
from torchvision.transforms.v2 import functional as vision


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of_all_kinds(count: int = 6, height: int = 12, width: int = 14) -> Tensor:
    """Noise, with grey, black, white and purely coloured pixels among it."""
    images = torch.rand(count, 3, height, width, generator=_generator(7))
    images[:, :, 0, :5] = torch.tensor([[0.5, 0, 1, 0, 1], [0.5, 0, 1, 1, 1], [0.5, 0, 1, 0, 0]])
    return images


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur by a convolution over repeated borders; torchvision's would reflect them."""
    radius = math.ceil(3 * sigma)
    padded = vision.pad(image, [radius] * 4, padding_mode="edge")
    size = 2 * radius + 1
    whole = vision.gaussian_blur(padded, [size, size], [sigma, sigma])
    return whole[:, radius:-radius, radius:-radius]


FACTORS = (0.0, 0.4, 1.0, 1.9)
NONE = (0.0, 0.0, 0.0, 0.0)  # of what takes no number


@pytest.mark.parametrize(
    ("change", "by_torchvision", "strengths"),
    [
        (colors.brightness_, vision.adjust_brightness, FACTORS),
        (colors.contrast_, vision.adjust_contrast, FACTORS),
        (colors.saturation_, vision.adjust_saturation, FACTORS),
        (colors.sharpness_, vision.adjust_sharpness, FACTORS),
        (colors.hue_, vision.adjust_hue, (-0.5, -0.13, 0.0, 0.31)),
        (colors.solarize_, vision.solarize, (0.0, 0.25, 0.5, 1.0)),
        (colors.grayscale_, lambda image, _: vision.rgb_to_grayscale(image, 3), NONE),
        (colors.autocontrast_, lambda image, _: vision.autocontrast(image), NONE),
        (colors.equalize_, lambda image, _: vision.equalize(image), NONE),
        (
            colors.posterize_,
            lambda image, levels: vision.posterize(image, int(math.log2(levels))),
            (16.0, 32.0, 128.0, 2.0),
        ),
    ],
)
def test_each_change_equals_torchvisions(
    change: Any, by_torchvision: Any, strengths: tuple[float, ...]
) -> None:
    images = images_of_all_kinds(4)
    images[1] *= 0.5
    images[2] = images[2] * 0.25 + 0.5  # what autocontrast stretches
    images[3, 1] = 0.4  # a channel of one value
    numbers = torch.tensor([[strength, 1 - strength] for strength in strengths])
    views = images.clone()
    change(views, numbers[:, :1] if change is colors.hue_ else numbers)
    for image, strength, view in zip(images, strengths, views, strict=True):
        expected = by_torchvision(image, strength)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
    assert (views != images).any()


def test_blur_has_a_width_for_each_image() -> None:
    images, sigmas = images_of_all_kinds(3, 31, 29), (0.1, 0.8, 2.0)
    lines = [colors.blur_weights(sigma) for sigma in sigmas]
    views = images.clone()
    colors.blur_(views, torch.tensor([line + [0.0] * (7 - len(line)) for line in lines]))
    for image, sigma, view in zip(images, sigmas, views, strict=True):
        torch.testing.assert_close(view, blurred(image, sigma), atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", [colors.autocontrast_, colors.sharpness_, colors.posterize_])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_image_stays_within_its_levels(change: Any, value: float) -> None:
    for size in ((1, 1), (2, 5), (4, 4)):
        image = torch.full((1, 3, *size), value)
        view = image.clone()
        change(view, torch.tensor([[0.5 if change is not colors.posterize_ else 16.0, 0.5]]))
        if change is colors.posterize_:
            assert view.unique().tolist() == [min(int(value * 16), 15) / 16]
        else:
            torch.testing.assert_close(view, image)


@pytest.mark.parametrize(
    "change", [colors.autocontrast_, colors.equalize_, colors.sharpness_, colors.solarize_]
)
def test_nothing_waits_for_the_device(change: Any) -> None:
    with HostSyncs() as syncs:
        change(images_of_all_kinds(3), torch.full((3, 2), 0.5))
    assert dict(syncs.found) == {}
