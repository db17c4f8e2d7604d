"""The painted streets: exact masks, and the same scenes for the same seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from u2pl.data import streets
from u2pl.data.streets import CLASSES, COLORS, IGNORE_INDEX, STYLES, paint_scene
from u2pl.errors import UserError

Scene = tuple[np.ndarray, np.ndarray]


def paint(seed: int, **settings: Any) -> Scene:
    return paint_scene(generator=np.random.default_rng(seed), **settings)


@pytest.fixture(scope="module")
def day_scenes() -> list[Scene]:
    return [paint(seed) for seed in range(50)]


class TestPaintScene:
    def test_same_generator_state_paints_the_same_scene(self) -> None:
        first, second = paint(7), paint(7)
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])

    def test_a_scene_does_not_depend_on_those_painted_before(self) -> None:
        alone = paint(3)
        paint(1)
        paint(2, style=STYLES["dusk"])
        np.testing.assert_array_equal(paint(3)[0], alone[0])

    def test_another_seed_paints_another_scene(self) -> None:
        first, second = paint(7), paint(8)
        assert (first[0] != second[0]).mean() > 0.5
        assert (first[1] != second[1]).mean() > 0.1

    def test_chance_comes_from_the_generator_alone(self) -> None:
        state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
        paint(0)
        after = np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
        np.testing.assert_array_equal(after, state)

    @pytest.mark.parametrize("size", [(32, 32), (96, 96), (64, 150), (151, 33), (300, 280)])
    def test_image_and_mask_have_the_size_asked_for(self, size: tuple[int, int]) -> None:
        image, mask = paint(0, size=size)
        assert image.shape == (*size, 3)
        assert mask.shape == size
        assert image.dtype == mask.dtype == np.uint8
        image[0, 0], mask[0, 0] = 0, 0  # both are the caller's own to write to

    def test_every_mask_id_is_a_class(self, day_scenes: list[Scene]) -> None:
        assert max(int(mask.max()) for _, mask in day_scenes) < len(CLASSES) == len(COLORS)

    def test_every_class_has_its_share_of_the_pixels(self, day_scenes: list[Scene]) -> None:
        masks = np.stack([mask for _, mask in day_scenes])
        share = np.bincount(masks.ravel(), minlength=len(CLASSES)) / masks.size
        assert dict(zip(CLASSES, share > 0.007, strict=True)) == dict.fromkeys(CLASSES, True)
        assert share.max() < 0.4

    def test_every_class_is_in_many_scenes_and_missing_from_some(
        self, day_scenes: list[Scene]
    ) -> None:
        """Otherwise the tags of an image would tell nothing."""
        seen = np.mean([np.isin(np.arange(len(CLASSES)), mask) for _, mask in day_scenes], axis=0)
        assert (seen > 0.4).all()
        assert (seen < 1).all()

    def test_sky_is_above_and_road_below(self, day_scenes: list[Scene]) -> None:
        masks = np.stack([mask for _, mask in day_scenes])
        rows = np.arange(masks.shape[1])[:, None]
        height = {
            name: (rows * (masks == CLASSES.index(name))).sum()
            / (masks == CLASSES.index(name)).sum()
            for name in ("sky", "car", "road")
        }
        assert height["sky"] < height["car"] < height["road"]

    def test_mask_borders_lie_where_the_image_changes(self, day_scenes: list[Scene]) -> None:
        steps_on, steps_off = [], []
        for image, mask in day_scenes:
            step = np.abs(np.diff(image.astype(int), axis=1)).sum(-1)
            border = mask[:, 1:] != mask[:, :-1]
            steps_on.append(step[border].mean())
            steps_off.append(step[~border].mean())
        assert np.mean(steps_on) > 2.5 * np.mean(steps_off)

    def test_no_single_colour_tells_a_class(self, day_scenes: list[Scene]) -> None:
        """Even fitted on these very scenes, the nearest mean colour gets few pixels right."""
        images = np.stack([image for image, _ in day_scenes]).reshape(-1, 3).astype(float)
        labels = np.stack([mask for _, mask in day_scenes]).ravel()
        means = np.stack([images[labels == i].mean(0) for i in range(len(CLASSES))])
        guess = ((images[:, None] - means) ** 2).sum(-1).argmin(1)
        recall = [(guess[labels == i] == i).mean() for i in range(1, len(CLASSES))]
        assert np.mean(recall) < 0.35

    def test_styles_differ_in_colour(self, day_scenes: list[Scene]) -> None:
        day = np.mean([image.mean() for image, _ in day_scenes[:20]])
        dusk = np.mean([paint(seed, style=STYLES["dusk"])[0].mean() for seed in range(20)])
        assert day - dusk > 25

    def test_styles_share_classes_and_layout(self, day_scenes: list[Scene]) -> None:
        day = np.stack([mask for _, mask in day_scenes])
        dusk = np.stack([paint(seed, style=STYLES["dusk"])[1] for seed in range(50)])
        shares = [np.bincount(m.ravel(), minlength=len(CLASSES)) / m.size for m in (day, dusk)]
        np.testing.assert_allclose(shares[0], shares[1], atol=0.04)

    @pytest.mark.parametrize(
        ("change", "means"),
        [({"light": 0.5}, "darker"), ({"saturation": 0.0}, "greyer"), ({"warmth": 0.4}, "redder")],
    )
    def test_style_settings_do_what_they_say(self, change: dict[str, float], means: str) -> None:
        plain, mask = paint(5)
        changed, same_mask = paint(5, style=replace(STYLES["day"], **change))
        np.testing.assert_array_equal(mask, same_mask)
        before, after = plain.astype(float), changed.astype(float)
        measure = {
            "darker": lambda x: -x.mean(),
            "greyer": lambda x: -np.ptp(x, axis=-1).mean(),
            "redder": lambda x: (x[..., 0] - x[..., 2]).mean(),
        }[means]
        assert measure(after) > measure(before) + 5

    def test_texture_and_noise_can_be_switched_off(self) -> None:
        flat = replace(STYLES["day"], texture=0.0, noise=0.0)

        def roughness(image: np.ndarray) -> float:
            return float(np.median(np.abs(np.diff(image.astype(int), axis=1))))

        assert roughness(paint(5, style=flat)[0]) < roughness(paint(5)[0])

    def test_no_pixel_is_void_unless_asked(self, day_scenes: list[Scene]) -> None:
        assert not any((mask == IGNORE_INDEX).any() for _, mask in day_scenes)

    def test_void_border_is_one_pixel_along_class_borders(self) -> None:
        plain_image, plain = paint(2)
        image, mask = paint(2, void_border=True)
        np.testing.assert_array_equal(image, plain_image)
        kept = mask != IGNORE_INDEX
        np.testing.assert_array_equal(mask[kept], plain[kept])
        assert 0.02 < 1 - kept.mean() < 0.4
        for row in range(plain.shape[0]):
            for column in range(plain.shape[1]):
                around = plain[row : row + 2, column], plain[row, column : column + 2]
                differs = any((part != plain[row, column]).any() for part in around)
                assert differs == (not kept[row, column])

    @pytest.mark.parametrize("size", [(31, 96), (96, 8), (0, 0)])
    def test_too_small_a_size_is_the_users_error(self, size: tuple[int, int]) -> None:
        with pytest.raises(UserError, match=f"at least 32 x 32 pixels, got {size[0]} x {size[1]}"):
            paint(0, size=size)

    def test_unknown_palette_is_named(self) -> None:
        with pytest.raises(UserError, match=r"got 'evenin'; .* Did you mean 'evening'\?"):
            paint(0, style=replace(STYLES["day"], palette="evenin"))


class TestTextures:
    def test_textures_are_built_once_and_repeat_without_a_seam(self) -> None:
        stack, clouds = streets._textures()
        assert streets._textures()[0] is stack
        seam = np.abs(clouds[:, 0] - clouds[:, -1]).mean()
        assert seam < 3 * np.abs(np.diff(clouds, axis=1)).mean()

    def test_textures_keep_the_mean_brightness(self) -> None:
        stack, _ = streets._textures()
        assert np.abs(stack.mean((1, 2))).max() < 0.1
        assert np.isfinite(stack).all()
