from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from u2pl.data.transforms import (
    CELL,
    View,
    draw_view,
    eval_image,
    resized_size,
    view_image,
    view_labels,
    wider_view,
)
from u2pl.errors import UserError
from u2pl.models.segmenter import STRIDE

IGNORE = 255


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _image(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _geometry(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.int64] | None, seed: int = 0, **changes: Any
) -> tuple[Tensor, Tensor | None, Tensor]:
    settings: dict[str, Any] = {
        "crop": (16, 24),
        "scale": (1.0, 1.0),
        "flip": False,
        "resize": None,
    }
    size = (image.shape[0], image.shape[1])
    view = draw_view(size, **settings | changes, generator=_generator(seed))
    pixels, valid = view_image(image, view)
    crop = pixels.float().div(255)
    labels = None if mask is None else view_labels(mask, view, ignore_index=IGNORE)
    return crop, labels, valid


def _coded(height: int, width: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return an image that spells each pixel's label in red, and the labels."""
    labels = np.random.default_rng(1).integers(0, 9, (height, width))
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = labels * 20
    return image, labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(40, 50), (10, 50), (40, 12), (9, 11)])
def test_image_mask_and_valid_move_together(size: tuple[int, int], seed: int) -> None:
    image, labels = _coded(*size)
    crop, mask, valid = _geometry(image, labels, seed, flip=True)
    assert crop.shape == (3, 16, 24)
    assert crop.dtype == torch.float32
    assert crop.is_contiguous()
    assert mask is not None
    assert mask.dtype == torch.int64
    assert valid.sum() == min(size[0], 16) * min(size[1], 24)
    spelled = (crop[0] * 255 / 20).round().long()
    assert torch.equal(spelled[valid], mask[valid])
    assert (mask[~valid] == IGNORE).all()
    assert (crop[:, ~valid] == 0).all()


def test_flip_mirrors_half_of_the_draws() -> None:
    image, labels = _coded(16, 24)
    flipped = 0
    for seed in range(40):
        mask = _geometry(image, labels, seed, flip=True)[1]
        assert mask is not None
        is_flipped = torch.equal(mask, torch.from_numpy(labels).flip(1))
        assert is_flipped or torch.equal(mask, torch.from_numpy(labels))
        flipped += is_flipped
    assert 10 < flipped < 30


def test_padding_is_right_and_below() -> None:
    _, _, valid = _geometry(_image(10, 12), None)
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[:10, :12] = True
    assert torch.equal(valid, expected)


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.6])
def test_window_equals_a_crop_of_the_whole_resized_image(factor: float) -> None:
    image = _image(60, 80)
    h, w = round(60 * factor), round(80 * factor)
    whole = np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    crop, _, _ = _geometry(image, None, seed=3, scale=(factor, factor))
    windows = torch.from_numpy(whole).permute(2, 0, 1).float().div(255)
    windows = windows.unfold(1, 16, 1).unfold(2, 24, 1)  # [3, rows, columns, 16, 24]
    distance = (windows - crop[:, None, None]).abs().amax((0, 3, 4))
    assert distance.min() < 1.5 / 255


@pytest.mark.parametrize("context", [4, 8, 20])
@pytest.mark.parametrize("size", [(40, 50), (60, 80), (10, 50), (40, 12), (9, 11), (19, 27)])
@pytest.mark.parametrize("seed", range(5))
def test_wider_view_holds_the_view_cell_by_cell(
    size: tuple[int, int], context: int, seed: int
) -> None:
    image = _image(*size)
    view = draw_view(
        size, crop=(16, 24), scale=(0.8, 1.4), flip=True, resize=None, generator=_generator(seed)
    )
    wide, (top, left) = wider_view(view, context)
    assert wide.crop == (16 + 2 * context, 24 + 2 * context)
    assert (top % CELL, left % CELL) == (0, 0)
    around, seen = view_image(image, wide)
    inner, valid = view_image(image, view)
    assert torch.equal(seen[top : top + 16, left : left + 24], valid)
    # the filter reads the same pixels; Pillow's box may round them to another neighbour
    cut = around[:, top : top + 16, left : left + 24].int()
    assert (cut - inner.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("window", "wide", "offset"),
    [
        ((32, 32), (16, 64), 16),  # in the middle
        ((0, 32), (0, 64), 0),  # at the left end: moved inwards
        ((6, 32), (2, 64), 4),  # and onto the same cells
        ((64, 32), (32, 64), 32),  # at the right end
        ((61, 32), (33, 63), 28),  # onto the same cells there: three columns lie beyond the image
    ],
)
def test_wider_view_sees_as_much_of_the_image_as_there_is(
    window: tuple[int, int], wide: tuple[int, int], offset: int
) -> None:
    (left, width) = window
    view = View(size=(32, 96), window=(0, left, 32, width), crop=(32, 32), is_flipped=False)
    found, offsets = wider_view(view, 16)
    assert (found.window[1], found.window[3]) == wide
    assert (found.window[0], found.window[2]) == (0, 32)  # there is no more of it
    assert offsets == (0, offset)


def test_grid_of_the_network_is_the_grid_of_the_views() -> None:
    assert CELL == STRIDE


def test_mask_is_resampled_at_pixel_centres() -> None:
    labels = np.array([[0, 1], [2, 3]])
    _, mask, _ = _geometry(np.zeros((2, 2, 3), np.uint8), labels, crop=(8, 8), scale=(4.0, 4.0))
    assert mask is not None
    assert mask.tolist() == labels.repeat(4, 0).repeat(4, 1).tolist()


def test_resize_and_scale_multiply() -> None:
    settings: dict[str, Any] = {"crop": (64, 64), "scale": (0.5, 0.5)}
    _, _, valid = _geometry(_image(60, 90), None, resize=40, **settings)
    assert valid.sum() == 20 * 30


def test_scale_stays_in_its_range_and_crops_differ() -> None:
    shapes, crops = set(), []
    for seed in range(30):
        crop, _, valid = _geometry(_image(20, 20), None, seed, crop=(64, 64), scale=(0.5, 2.0))
        shapes.add(int(valid[:, 0].sum()))
        crops.append(crop)
    assert min(shapes) >= 10
    assert max(shapes) <= 40
    assert len(shapes) > 10


def test_geometry_follows_its_generator_alone() -> None:
    image = _image(60, 60)
    torch.manual_seed(0)
    first = _geometry(image, None, seed=5, scale=(0.5, 2.0), flip=True)[0]
    torch.manual_seed(1)
    assert torch.equal(first, _geometry(image, None, seed=5, scale=(0.5, 2.0), flip=True)[0])
    assert not torch.equal(first, _geometry(image, None, seed=6, scale=(0.5, 2.0), flip=True)[0])


def test_one_pixel_image_survives() -> None:
    crop, mask, valid = _geometry(_image(1, 1), np.zeros((1, 1), np.int64), scale=(0.5, 0.5))
    assert valid.sum() == 1
    assert mask is not None
    assert (mask == 0).sum() == 1
    assert torch.isfinite(crop).all()


def test_evaluation_image_is_resized_by_its_short_side() -> None:
    image = _image(30, 61)
    assert resized_size(30, 61, 15) == (15, 30)
    small = eval_image(image, resize=15)
    assert small.shape == (3, 15, 30)
    expected = np.array(Image.fromarray(image).resize((30, 15), Image.Resampling.BILINEAR))
    assert torch.equal((small * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))


def test_evaluation_image_without_resize_is_unchanged() -> None:
    image = _image(7, 9)
    same = eval_image(image, resize=None)
    assert same.dtype == torch.float32
    assert torch.equal((same * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))


def test_image_that_would_grow_beyond_every_file_is_refused() -> None:
    long = np.zeros((3, 30_000, 3), np.uint8)
    assert eval_image(long, resize=None).shape == (3, 3, 30_000)
    assert eval_image(long, resize=8).shape == (3, 8, 80_000)
    with pytest.raises(
        UserError,
        match=r"^a\.png: 30000 x 3 pixels .* would become 5120000 x 512 with data\.resize",
    ):
        eval_image(long, resize=512, file="a.png")
