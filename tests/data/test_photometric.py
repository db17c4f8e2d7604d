from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from u2pl.bench.host_syncs import HostSyncs
from u2pl.data.photometric import (
    NUM_DRAWS,
    blur_,
    blur_weights,
    brightness_,
    contrast_,
    draw_colors,
    grayscale_,
    hue_,
    photometric,
    saturation_,
)

# isort: split
from torchvision.transforms.v2 import functional as vision

from waiting import waiting_is_an_error

OFF: dict[str, float] = {
    "jitter": 0.0,
    "jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": 0.0,
}
ON: dict[str, float] = {
    "jitter": 0.5,
    "jitter_probability": 0.8,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 6, height: int = 12, width: int = 14) -> Tensor:
    """Noise, with grey, black, white and purely coloured pixels among it."""
    images = torch.rand(count, 3, height, width, generator=_generator(7))
    images[:, :, 0, :5] = torch.tensor([[0.5, 0, 1, 0, 1], [0.5, 0, 1, 1, 1], [0.5, 0, 1, 0, 0]])
    return images


def _draws(count: int, first: int = 0) -> Tensor:
    return torch.stack([draw_colors(_generator(first + row)) for row in range(count)])


def _photometric(image: Tensor, seed: int = 0, **changes: Any) -> Tensor:
    """One image's view."""
    return photometric(image[None], _draws(1, seed), **OFF | changes)[0]


def _reference(image: Tensor, draws: list[float], settings: dict[str, float]) -> Tensor:
    """One image by torchvision's functions, a branch for each draw."""
    jitter = settings["jitter"]
    if jitter > 0 and draws[0] < settings["jitter_probability"]:
        low = max(0.0, 1 - jitter)
        factors = [low + (1 + jitter - low) * draw for draw in draws[1:4]]
        for change in draws[8:]:
            if change == 0:
                image = vision.adjust_brightness(image, factors[0])
            elif change == 1:
                image = vision.adjust_contrast(image, factors[1])
            elif change == 2:
                image = vision.adjust_saturation(image, factors[2])
            else:
                image = vision.adjust_hue(image, min(jitter / 2, 0.5) * (2 * draws[4] - 1))
    if draws[5] < settings["grayscale_probability"]:
        image = vision.rgb_to_grayscale(image, num_output_channels=3)
    if draws[6] < settings["blur_probability"]:
        image = _blurred(image, 0.1 + 1.9 * draws[7])
    return image


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur by a convolution over repeated borders; torchvision's would reflect them."""
    radius = math.ceil(3 * sigma)
    padded = vision.pad(image, [radius] * 4, padding_mode="edge")
    size = 2 * radius + 1
    whole = vision.gaussian_blur(padded, [size, size], [sigma, sigma])
    return whole[:, radius:-radius, radius:-radius]


@pytest.mark.parametrize("jitter", [0.5, 3.0])
def test_batch_equals_torchvision_on_each_image(jitter: float) -> None:
    images, settings = _images(24), ON | {"jitter": jitter}
    draws = _draws(24)
    views = photometric(images, draws, **settings)
    for image, own, view in zip(images, draws.tolist(), views, strict=True):
        torch.testing.assert_close(view, _reference(image, own, settings), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "by_torchvision", "strengths"),
    [
        (brightness_, vision.adjust_brightness, (0.0, 0.4, 1.0, 1.9)),
        (contrast_, vision.adjust_contrast, (0.0, 0.4, 1.0, 1.9)),
        (saturation_, vision.adjust_saturation, (0.0, 0.4, 1.0, 1.9)),
        (hue_, vision.adjust_hue, (-0.5, -0.13, 0.0, 0.31)),
        (grayscale_, lambda image, _: vision.rgb_to_grayscale(image, 3), (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_each_change_equals_torchvisions(
    change: Any, by_torchvision: Any, strengths: tuple[float, ...]
) -> None:
    images = _images(4)
    numbers = torch.tensor([[strength, 1 - strength] for strength in strengths])
    views = images.clone()
    change(views, numbers[:, :1] if change is hue_ else numbers)
    for image, strength, view in zip(images, strengths, views, strict=True):
        expected = by_torchvision(image, strength)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_blur_has_a_width_for_each_image() -> None:
    images, sigmas = _images(3, 31, 29), (0.1, 0.8, 2.0)
    lines = [blur_weights(sigma) for sigma in sigmas]
    views = images.clone()
    blur_(views, torch.tensor([line + [0.0] * (7 - len(line)) for line in lines]))
    for image, sigma, view in zip(images, sigmas, views, strict=True):
        torch.testing.assert_close(view, _blurred(image, sigma), atol=1e-6, rtol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_view_does_not_depend_on_the_other_images_of_the_batch(threads: int) -> None:
    """Processes that share a batch see the views that one process would see."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in ((13, 15), (190, 201)):
            images, draws = _images(7, *size), _draws(7)
            whole = photometric(images, draws, **ON)
            for part in (slice(0, 1), slice(2, 5), slice(6, 7)):
                assert torch.equal(photometric(images[part], draws[part], **ON), whole[part])
    finally:
        torch.set_num_threads(before)


def test_photometric_at_zero_is_the_identity() -> None:
    image = _images()[0]
    assert torch.equal(_photometric(image), image)
    assert torch.equal(_photometric(image, jitter_probability=1.0), image)


def test_no_image_has_no_view() -> None:
    assert photometric(torch.rand(0, 3, 4, 4), torch.rand(0, NUM_DRAWS), **ON).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("jitter", [0.3, 3.0])
def test_photometric_keeps_shape_range_and_input(jitter: float) -> None:
    images = _images(20)
    before = images.clone()
    views = photometric(images, _draws(20), **ON | {"jitter": jitter, "jitter_probability": 1.0})
    assert torch.equal(images, before)
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert all((view - image).abs().max() > 0 for view, image in zip(views, images, strict=True))


def test_draws_follow_their_generator_alone() -> None:
    torch.manual_seed(0)
    first = draw_colors(_generator(3))
    torch.manual_seed(1)
    assert torch.equal(first, draw_colors(_generator(3)))
    assert first.shape == (NUM_DRAWS,)
    assert sorted(first[8:].tolist()) == [0, 1, 2, 3]


def test_images_have_orders_of_their_own() -> None:
    assert len({tuple(own) for own in _draws(200)[:, 8:].tolist()}) == 24


def test_grayscale_has_equal_channels() -> None:
    view = _photometric(torch.rand(3, 5, 5, generator=_generator()), grayscale_probability=1.0)
    assert torch.equal(view[0], view[1])
    assert torch.equal(view[0], view[2])


def test_blur_equals_a_plain_gaussian_sum() -> None:
    image = torch.zeros(3, 31, 31)
    image[:, 15, 15] = 1
    view = _photometric(image, blur_probability=1.0)
    draw = torch.rand(8, generator=_generator(), dtype=torch.float64)[7].item()
    sigma = 0.1 + 1.9 * draw
    radius = math.ceil(3 * sigma)
    line = torch.tensor(
        [math.exp(-((d / sigma) ** 2) / 2) if abs(d) <= radius else 0.0 for d in range(-15, 16)]
    )
    line = line / line.sum()
    assert torch.allclose(view, (line[:, None] * line).expand(3, -1, -1), atol=1e-6)


def test_blur_keeps_a_constant_image_even_if_tiny() -> None:
    image = torch.full((3, 2, 1), 0.4)
    assert torch.allclose(_photometric(image, blur_probability=1.0), image)


def test_probabilities_are_those_of_the_draws() -> None:
    images = _images(1).expand(200, -1, -1, -1)
    views = photometric(images, _draws(200), **OFF | {"grayscale_probability": 0.3})
    assert 40 < (views != images).flatten(1).any(dim=1).sum() < 80


def test_nothing_waits_for_the_device() -> None:
    images, draws = _images(16), _draws(16)
    with HostSyncs() as syncs:
        photometric(images, draws, **ON)
    assert dict(syncs.found) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_makes_the_same_views_without_waiting() -> None:
    images, draws = _images(16), _draws(16)
    on_gpu = images.cuda()
    photometric(on_gpu, draws, **ON)  # kernels are loaded
    with waiting_is_an_error():
        views = photometric(on_gpu, draws, **ON)
    torch.testing.assert_close(views.cpu(), photometric(images, draws, **ON), atol=2e-5, rtol=0)
