from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tiny import tiny_config
from u2pl.weak.cam import class_activation_maps
from u2pl.weak.classifier import TagClassifier

EVERY = torch.ones(2, 3, dtype=torch.bool)


@pytest.fixture(scope="module")
def model() -> TagClassifier:
    torch.manual_seed(0)
    return TagClassifier(tiny_config().model, 3, output_stride=16).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def test_each_possible_class_reaches_one_and_none_leaves_the_range(
    model: TagClassifier, images: Tensor
) -> None:
    maps = class_activation_maps(model, images, EVERY, scales=(0.5, 1.0), flip=True)
    assert maps.shape == (2, 3, 48, 64)
    assert maps.min() >= 0
    highest = maps.amax(dim=(-2, -1))
    # a class that the untrained net votes against everywhere has no map at all
    torch.testing.assert_close(highest, (highest > 0).float())
    assert (highest > 0).any()


def test_absent_class_is_zero_and_changes_no_other(model: TagClassifier, images: Tensor) -> None:
    every = class_activation_maps(model, images, EVERY, scales=(1.0,), flip=False)
    possible = torch.tensor([[True, False, True], [False, False, False]])
    some = class_activation_maps(model, images, possible, scales=(1.0,), flip=False)
    assert torch.equal(some, every * possible[..., None, None])


def test_class_that_is_seen_nowhere_has_a_map_of_zeros(images: Tensor) -> None:
    model = TagClassifier(tiny_config().model, 3, output_stride=16).eval()
    model.classifier.weight.data.fill_(-1.0)  # the features before it are never below 0
    maps = class_activation_maps(model, images, EVERY, scales=(1.0,), flip=True)
    assert maps.abs().max() == 0


def test_probability_is_the_sigmoid_of_the_mean_over_the_views(
    model: TagClassifier, images: Tensor
) -> None:
    possible = torch.tensor([[True, False, True], [True, True, True]])
    maps = class_activation_maps(
        model, images, possible, scales=(1.0, 1.0), flip=True, scores="probability"
    )
    grid = (model(images).maps + model(images.flip(-1)).maps.flip(-1)) / 2
    full = torch.nn.functional.interpolate(grid, scale_factor=16, mode="bilinear").sigmoid()
    torch.testing.assert_close(maps, (full * possible[..., None, None]).detach())


def test_probability_tells_apart_what_lies_below_zero(images: Tensor) -> None:
    model = TagClassifier(tiny_config().model, 3, output_stride=16).eval()
    model.classifier.weight.data.copy_(torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1, 1))
    maps = class_activation_maps(
        model, images, EVERY, scales=(1.0,), flip=True, scores="probability"
    )
    assert (maps[:, 0] >= maps[:, 1]).all()
    assert (maps[:, 0] > maps[:, 2]).any()
    assert (maps > 0).all()
    assert (maps <= 0.5).all()


def test_single_view_is_the_enlarged_map_over_its_maximum(
    model: TagClassifier, images: Tensor
) -> None:
    """By hand: 48 x 64 pixels are 3 x 4 cells of 16, so nothing is resized before."""
    maps = class_activation_maps(model, images, EVERY, scales=(1.0,), flip=False)
    grid = model(images).maps
    assert grid.shape == (2, 3, 3, 4)
    full = torch.nn.functional.interpolate(grid, scale_factor=16, mode="bilinear").relu()
    highest = full.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(maps, (full / highest).detach())


def test_views_are_summed_before_the_maximum_is_taken(model: TagClassifier, images: Tensor) -> None:
    once = class_activation_maps(model, images, EVERY, scales=(1.0,), flip=True)
    twice = class_activation_maps(model, images, EVERY, scales=(1.0, 1.0), flip=True)
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("size", [(48, 64), (41, 59)])
def test_mirrored_image_gives_mirrored_maps(model: TagClassifier, size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    rule = {"scales": (0.5, 1.0, 1.5), "flip": True}
    maps = class_activation_maps(model, images, EVERY[:1], **rule)
    mirrored = class_activation_maps(model, images.flip(-1), EVERY[:1], **rule)
    torch.testing.assert_close(mirrored.flip(-1), maps, atol=1e-4, rtol=1e-4)


def test_order_of_the_scales_does_not_matter(model: TagClassifier, images: Tensor) -> None:
    up, down = (
        class_activation_maps(model, images, EVERY, scales=scales, flip=False)
        for scales in ((0.5, 1.0, 2.0), (2.0, 1.0, 0.5))
    )
    torch.testing.assert_close(up, down, atol=1e-5, rtol=1e-4)


def test_image_smaller_than_a_cell_has_maps(model: TagClassifier) -> None:
    maps = class_activation_maps(
        model, torch.rand(1, 3, 5, 7), EVERY[:1], scales=(0.5, 1.0), flip=True
    )
    assert maps.shape == (1, 3, 5, 7)
    assert maps.isfinite().all()
