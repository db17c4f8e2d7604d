from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference.weak as reference
from u2pl.refinement import pixel_affinity, refine_maps


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("num_classes", "height", "width", "dilations", "iterations"),
    [
        (1, 1, 1, [1], 1),
        (1, 4, 5, [1], 1),
        (3, 5, 4, [1, 2], 2),
        (2, 3, 6, [1, 2, 4, 8], 2),  # wider than the image: the border stands for what is beyond
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_refinement_equals_the_reference(
    num_classes: int, height: int, width: int, dilations: list[int], iterations: int, seed: int
) -> None:
    maps = rand(2, num_classes, height, width, seed=seed)
    images = rand(2, 3, height, width, seed=seed + 10)
    refined = refine_maps(
        maps,
        images,
        dilations=dilations,
        iterations=iterations,
        bandwidth=0.4,
        position_weight=0.05,
    )
    for own, image, result in zip(maps, images, refined, strict=True):
        expected = reference.refine(own.tolist(), image.tolist(), dilations, iterations, 0.4, 0.05)
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("dilations", [[1], [1, 2, 5]])
def test_padding_has_no_say_as_in_the_reference(dilations: list[int], iterations: int) -> None:
    maps, images = rand(2, 3, 6, 7), rand(2, 3, 6, 7, seed=1)
    valid = torch.ones(2, 6, 7, dtype=torch.bool)
    valid[0, 4:] = False
    valid[1, :, 2:] = False
    maps[~valid.unsqueeze(1).expand_as(maps)] = 1e3
    given = {"dilations": dilations, "iterations": iterations}
    refined = refine_maps(maps, images, valid=valid, **given)
    for own, image, seen, result in zip(maps, images, valid, refined, strict=True):
        plain = own.tolist(), image.tolist(), dilations, iterations, 0.3, 0.01, seen.tolist()
        expected = torch.tensor(reference.refine(*plain), dtype=torch.float64)
        torch.testing.assert_close(result[:, seen], expected[:, seen])
        assert result[:, seen].max() <= 1


def test_valid_everywhere_is_no_mask_at_all() -> None:
    maps, images = rand(2, 3, 6, 7), rand(2, 3, 6, 7, seed=1)
    given = {"dilations": [1, 2], "iterations": 2}
    everywhere = torch.ones(2, 6, 7, dtype=torch.bool)
    torch.testing.assert_close(
        refine_maps(maps, images, valid=everywhere, **given), refine_maps(maps, images, **given)
    )


def test_pixel_with_no_neighbour_to_hear_stays_finite() -> None:
    nowhere = torch.zeros(1, 3, 3, dtype=torch.bool)
    maps, images = rand(1, 2, 3, 3), rand(1, 3, 3, 3)
    refined = refine_maps(maps, images, dilations=[1], iterations=2, valid=nowhere)
    assert refined.isfinite().all()


def test_one_colour_and_no_position_is_a_plain_mean_of_the_neighbours() -> None:
    maps = torch.zeros(1, 1, 5, 5)
    maps[..., 2, 2] = 8.0
    image = torch.full((1, 3, 5, 5), 0.7)
    refined = refine_maps(maps, image, dilations=[1], iterations=1, position_weight=0.0)
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 1.0
    expected[2, 2] = 0.0  # a pixel is not its own neighbour
    torch.testing.assert_close(refined[0, 0], expected)


def test_nearer_neighbours_count_more_where_colours_say_nothing() -> None:
    affinity = pixel_affinity(torch.zeros(1, 3, 3, 3), dilations=[1, 4])[0, :, 1, 1]
    near, far = affinity[:8], affinity[8:]
    assert near.min() > far.max()
    assert near[1] > near[0]  # straight above, against the corner


def test_scores_stop_at_an_edge() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1.0
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., 3:6] = 1.0  # laps over the edge by two columns
    maps[..., :3] = 0.8
    refined = refine_maps(maps, image, dilations=[1, 2], iterations=10)
    assert refined[..., :4].min() > 0.75
    assert refined[..., 6:].max() < 0.7


@pytest.mark.parametrize("value", [0.0, 0.35, 1.0])
def test_flat_map_stays_as_it_is(value: float) -> None:
    """Why a flat background score can be left out of the refinement."""
    maps = torch.full((1, 2, 6, 7), value)
    refined = refine_maps(maps, rand(1, 3, 6, 7).float(), dilations=[1, 2, 24], iterations=10)
    torch.testing.assert_close(refined, maps)


def test_weights_of_a_pixel_sum_to_one_and_none_is_below_zero() -> None:
    affinity = pixel_affinity(rand(2, 3, 5, 6), dilations=[1, 3])
    assert affinity.shape == (2, 16, 5, 6)
    assert affinity.min() >= 0
    torch.testing.assert_close(affinity.sum(dim=1), torch.ones(2, 5, 6, dtype=torch.float64))


def test_classes_and_images_do_not_touch_each_other() -> None:
    maps, images = rand(2, 3, 5, 6), rand(2, 3, 5, 6, seed=1)
    rule = {"dilations": [1, 2], "iterations": 3}
    whole = refine_maps(maps, images, **rule)
    for image in range(2):
        for class_id in range(3):
            part = slice(image, image + 1), slice(class_id, class_id + 1)
            alone = refine_maps(maps[part], images[image : image + 1], **rule)
            torch.testing.assert_close(alone, whole[part])


def test_brightness_and_contrast_of_the_image_do_not_matter() -> None:
    maps, images = rand(1, 2, 5, 6), rand(1, 3, 5, 6, seed=1)
    rule = {"dilations": [1, 2], "iterations": 2}
    torch.testing.assert_close(
        refine_maps(maps, 255 * images + 3, **rule), refine_maps(maps, images, **rule)
    )


def test_mirrored_input_gives_mirrored_maps() -> None:
    maps, images = rand(1, 2, 5, 6), rand(1, 3, 5, 6, seed=1)
    rule = {"dilations": [1, 2], "iterations": 2}
    mirrored = refine_maps(maps.flip(-1), images.flip(-1), **rule)
    torch.testing.assert_close(mirrored.flip(-1), refine_maps(maps, images, **rule))


def test_no_iteration_and_no_class_change_nothing() -> None:
    maps, images = rand(1, 2, 3, 3), rand(1, 3, 3, 3)
    assert torch.equal(refine_maps(maps, images, dilations=[1], iterations=0), maps)
    none = refine_maps(maps[:, :0], images, dilations=[1], iterations=2)
    assert none.shape == (1, 0, 3, 3)


def test_dtype_follows_the_maps() -> None:
    refined = refine_maps(rand(1, 1, 3, 3).float(), rand(1, 3, 3, 3), dilations=[1], iterations=1)
    assert refined.dtype == torch.float32


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 1, 3, 3\) and \(1, 3, 4, 3\)"):
        refine_maps(rand(1, 1, 3, 3), rand(1, 3, 4, 3), dilations=[1], iterations=1)
