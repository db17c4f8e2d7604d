"""The painted streets: exact masks, the same scenes for the same seed, and a readable data set."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from u2pl.data import synthetic
from u2pl.data.synthetic import CLASSES, COLORS, IGNORE_INDEX, STYLES, paint_scene, write_streets
from u2pl.errors import UserError

Scene = tuple[np.ndarray, np.ndarray]


def paint(seed: int, **settings: Any) -> Scene:
    return paint_scene(generator=np.random.default_rng(seed), **settings)


def write(folder: Path, **settings: Any) -> Path:
    numbers = {"num_labeled": 2, "num_unlabeled": 3, "num_val": 1, "size": (32, 40)}
    return write_streets(folder, **{**numbers, **settings})


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def day_scenes() -> list[Scene]:
    return [paint(seed) for seed in range(50)]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    write(folder, num_test=1, keep_hidden_masks=True)
    return folder


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
        stack, clouds = synthetic._textures()
        assert synthetic._textures()[0] is stack
        seam = np.abs(clouds[:, 0] - clouds[:, -1]).mean()
        assert seam < 3 * np.abs(np.diff(clouds, axis=1)).mean()

    def test_textures_keep_the_mean_brightness(self) -> None:
        stack, _ = synthetic._textures()
        assert np.abs(stack.mean((1, 2))).max() < 0.1
        assert np.isfinite(stack).all()


class TestWriteStreets:
    def test_every_section_holds_what_was_asked_for(self, streets: Path) -> None:
        names = [name for name in files(streets) if name.endswith(".png")]
        assert names == [
            "labeled/images/labeled-0000.png",
            "labeled/images/labeled-0001.png",
            "labeled/masks/labeled-0000.png",
            "labeled/masks/labeled-0001.png",
            "test/images/test-0000.png",
            "test/masks/test-0000.png",
            "unlabeled/hidden_masks/unlabeled-0000.png",
            "unlabeled/hidden_masks/unlabeled-0001.png",
            "unlabeled/hidden_masks/unlabeled-0002.png",
            "unlabeled/images/unlabeled-0000.png",
            "unlabeled/images/unlabeled-0001.png",
            "unlabeled/images/unlabeled-0002.png",
            "val/images/val-0000.png",
            "val/masks/val-0000.png",
        ]

    def test_dataset_yaml_says_where_everything_is(self, streets: Path) -> None:
        assert yaml.safe_load((streets / "dataset.yaml").read_text()) == {
            "classes": [
                {"name": n, "color": list(c)} for n, c in zip(CLASSES, COLORS, strict=True)
            ],
            "ignore_index": 255,
            "mask_format": "index",
            "labeled": {"images": "labeled/images", "masks": "labeled/masks"},
            "unlabeled": {"images": "unlabeled/images"},
            "val": {"images": "val/images", "masks": "val/masks"},
            "test": {"images": "test/images", "masks": "test/masks"},
            "tags": "tags.csv",
        }

    def test_mask_is_a_palette_image_whose_pixel_value_is_the_class(self, streets: Path) -> None:
        path = streets / "labeled/masks/labeled-0001.png"
        chance = np.random.SeedSequence(0, spawn_key=(0, 1))
        image, mask = paint_scene(size=(32, 40), generator=np.random.default_rng(chance))
        with Image.open(path) as picture:
            assert picture.mode == "P"
            shown = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(read(path), mask)
        np.testing.assert_array_equal(shown, np.array(COLORS)[mask])
        np.testing.assert_array_equal(read(streets / "labeled/images/labeled-0001.png"), image)

    def test_tags_are_the_classes_in_the_hidden_mask(self, streets: Path) -> None:
        with (streets / "tags.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["image"] for row in rows] == [f"unlabeled-{i:04d}" for i in range(3)]
        for row in rows:
            mask = read(streets / "unlabeled/hidden_masks" / f"{row['image']}.png")
            assert row["classes"].split(";") == [CLASSES[i] for i in np.unique(mask)]

    def test_unlabeled_images_get_no_mask_unless_asked(self, tmp_path: Path) -> None:
        write(tmp_path)
        assert [path.name for path in (tmp_path / "unlabeled").iterdir()] == ["images"]

    def test_tags_can_be_left_out(self, tmp_path: Path) -> None:
        tree = yaml.safe_load(write(tmp_path, with_tags=False).read_text())
        assert "tags" not in tree
        assert not (tmp_path / "tags.csv").exists()

    def test_a_section_of_no_images_is_left_out(self, tmp_path: Path) -> None:
        path = write(tmp_path / "deep" / "new", num_unlabeled=0, num_labeled=0)
        assert sorted(yaml.safe_load(path.read_text())) == [
            "classes", "ignore_index", "mask_format", "val",
        ]  # fmt: skip
        assert sorted(p.name for p in path.parent.iterdir()) == ["dataset.yaml", "val"]

    def test_same_seed_writes_the_same_bytes(self, streets: Path, tmp_path: Path) -> None:
        write(tmp_path, num_test=1, keep_hidden_masks=True)
        assert files(tmp_path) == files(streets)

    def test_first_scenes_stay_whatever_the_numbers_are(
        self, streets: Path, tmp_path: Path
    ) -> None:
        write(tmp_path, num_labeled=4, num_unlabeled=1, num_val=2)
        few, many = files(streets), files(tmp_path)
        shared = [name for name in few if name in many and name.endswith(".png")]
        assert len(shared) == 4 + 1 + 2
        assert all(few[name] == many[name] for name in shared)

    def test_no_scene_stands_in_two_sections_or_under_two_seeds(
        self, streets: Path, tmp_path: Path
    ) -> None:
        write(tmp_path, seed=1)
        images = [
            content
            for folder in (streets, tmp_path)
            for name, content in files(folder).items()
            if "/images/" in name
        ]
        assert len(set(images)) == len(images) == 7 + 6

    def test_unlabeled_and_val_can_have_a_style_of_their_own(
        self, streets: Path, tmp_path: Path
    ) -> None:
        write(tmp_path, num_test=1, unlabeled_style="dusk", val_style="dusk")
        day, dusk = files(streets), files(tmp_path)
        changed = {
            name.split("/")[0] for name in dusk if "/images/" in name and day[name] != dusk[name]
        }
        assert changed == {"unlabeled", "val", "test"}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"style": "night"}, "Expected a style out of day, clear, dusk, got 'night'"),
            ({"unlabeled_style": "dask"}, "got 'dask'; choose one of them. Did you mean 'dusk'?"),
            ({"val_style": ""}, "Expected a style out of day, clear, dusk, got ''"),
            ({"num_unlabeled": -1}, "Expected num_unlabeled of 0 or more, got -1"),
            ({"seed": -2}, "Expected seed of 0 or more, got -2"),
            ({"size": (16, 96)}, "at least 32 x 32 pixels, got 16 x 96"),
        ],
    )
    def test_bad_requests_are_the_users_errors_and_write_nothing(
        self, tmp_path: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            write(tmp_path / "new", **settings)
        assert not (tmp_path / "new").exists()

    def test_a_folder_in_use_is_not_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="Expected an empty folder"):
            write(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_file_in_place_of_the_folder_is_the_users_error(self, tmp_path: Path) -> None:
        (tmp_path / "streets").write_text("a file")
        with pytest.raises(UserError, match="Expected a folder to write to"):
            write(tmp_path / "streets")
