from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from u2pl.bench.host_syncs import HostSyncs
from u2pl.data import colors
from u2pl.data.photometric import INTENSITIES, NUM_DRAWS, draw_colors, photometric

# isort: split
from torchvision.transforms.v2 import functional as vision

from data.test_colors import blurred, images_of_all_kinds
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


AUGSEG: dict[str, Any] = {**ON, "intensities": 3}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
        image = blurred(image, 0.1 + 1.9 * draws[7])
    return image


@pytest.mark.parametrize("jitter", [0.5, 3.0])
def test_batch_equals_torchvision_on_each_image(jitter: float) -> None:
    images, settings = images_of_all_kinds(24), ON | {"jitter": jitter}
    draws = _draws(24)
    views = photometric(images, draws, **settings)
    for image, own, view in zip(images, draws.tolist(), views, strict=True):
        torch.testing.assert_close(view, _reference(image, own, settings), atol=2e-5, rtol=0)


def _augseg(image: Tensor, draws: list[float], most: int) -> tuple[Tensor, list[int]]:
    """One image by AugSeg's table, one change after the other; and which they were."""
    view, names = image[None].clone(), list[int]()

    def numbers(*values: float) -> Tensor:
        return torch.tensor([values])

    for place in range(1 + math.floor(draws[0] * most)):
        kind, share = math.floor(draws[1 + place] * 11), draws[4 + place]
        factor = 0.05 + (0.95 - 0.05) * share
        if kind == 1:
            colors.autocontrast_(view, numbers())
        elif kind == 2:
            colors.equalize_(view, numbers())
        elif kind == 3:
            colors.blur_(view, numbers(*colors.blur_weights(0.1 + (2.0 - 0.1) * share)))
        elif kind in (4, 5, 6, 7):
            change = [colors.contrast_, colors.brightness_, colors.saturation_, colors.sharpness_]
            change[kind - 4](view, numbers(factor, 1 - factor))
        elif kind == 8:
            colors.posterize_(view, numbers(2 ** (4 + math.floor(4 * share))))
        elif kind == 9:
            colors.solarize_(view, numbers((1 + math.floor(255 * share)) / 255))
        elif kind == 10:
            colors.hue_(view, numbers(share - 0.5))
        names.append(kind)
    return view[0], names


@pytest.mark.parametrize("most", [1, 2, 3])
def test_intensities_are_each_images_own_changes_one_after_the_other(most: int) -> None:
    images, draws = images_of_all_kinds(60), _draws(60)
    views = photometric(images, draws, **ON, intensities=most)
    lengths, kinds = set(), set()
    for image, own, view in zip(images, draws.tolist(), views, strict=True):
        expected, names = _augseg(image, own, most)
        # a blur is summed in another order where others of the batch are blurred further
        torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)
        lengths.add(len(names))
        kinds |= set(names)
    assert lengths == set(range(1, most + 1))
    assert most == 1 or kinds == set(range(len(INTENSITIES)))
    assert views.min() >= 0
    assert views.max() <= 1


def test_intensities_take_the_place_of_jitter_grey_and_blur() -> None:
    images, draws = images_of_all_kinds(8), _draws(8)
    off = photometric(images, draws, **OFF, intensities=3)
    assert torch.equal(off, photometric(images, draws, **ON, intensities=3))
    assert not torch.equal(off, images)


@pytest.mark.parametrize("settings", [ON, AUGSEG])
@pytest.mark.parametrize("threads", [1, 3])
def test_view_does_not_depend_on_the_other_images_of_the_batch(
    threads: int, settings: dict[str, Any]
) -> None:
    """Processes that share a batch see the views that one process would see."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in ((13, 15), (190, 201)):
            images, draws = images_of_all_kinds(7, *size), _draws(7)
            whole = photometric(images, draws, **settings)
            for part in (slice(0, 1), slice(2, 5), slice(6, 7)):
                assert torch.equal(photometric(images[part], draws[part], **settings), whole[part])
    finally:
        torch.set_num_threads(before)


def test_photometric_at_zero_is_the_identity() -> None:
    image = images_of_all_kinds()[0]
    assert torch.equal(_photometric(image), image)
    assert torch.equal(_photometric(image, jitter_probability=1.0), image)


def test_no_image_has_no_view() -> None:
    assert photometric(torch.rand(0, 3, 4, 4), torch.rand(0, NUM_DRAWS), **ON).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("jitter", [0.3, 3.0])
def test_photometric_keeps_shape_range_and_input(jitter: float) -> None:
    images = images_of_all_kinds(20)
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
    images = images_of_all_kinds(1).expand(200, -1, -1, -1)
    views = photometric(images, _draws(200), **OFF | {"grayscale_probability": 0.3})
    assert 40 < (views != images).flatten(1).any(dim=1).sum() < 80


@pytest.mark.parametrize("settings", [ON, AUGSEG])
def test_nothing_waits_for_the_device(settings: dict[str, Any]) -> None:
    images, draws = images_of_all_kinds(16), _draws(16)
    with HostSyncs() as syncs:
        photometric(images, draws, **settings)
    assert dict(syncs.found) == {}


@pytest.mark.parametrize("settings", [ON, AUGSEG])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_makes_the_same_views_without_waiting(settings: dict[str, Any]) -> None:
    images, draws = images_of_all_kinds(16), _draws(16)
    on_gpu = images.cuda()
    photometric(on_gpu, draws, **settings)  # kernels are loaded
    with waiting_is_an_error():
        views = photometric(on_gpu, draws, **settings)
    torch.testing.assert_close(
        views.cpu(), photometric(images, draws, **settings), atol=2e-5, rtol=0
    )
