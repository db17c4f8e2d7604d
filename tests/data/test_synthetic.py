"""The data set of painted streets on disk."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from u2pl.data import synthetic
from u2pl.data.synthetic import CLASSES, COLORS, paint_scene, write_streets
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

    def test_several_painters_write_the_same_bytes(self, streets: Path, tmp_path: Path) -> None:
        write(tmp_path / "any", num_test=1, keep_hidden_masks=True, workers=2)
        assert files(tmp_path / "any") == files(streets)
        for name, workers in (("one", 1), ("two", 2)):
            write(tmp_path / name, zoom=(1.0, 2.0), choose_from=2, workers=workers)
        assert files(tmp_path / "one") == files(tmp_path / "two")

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

    def test_close_up_is_a_window_of_a_larger_view_with_its_mask(self, tmp_path: Path) -> None:
        write(tmp_path, zoom=(2.0, 2.0))
        chance = np.random.SeedSequence(0, spawn_key=(0, 0))
        generator = np.random.default_rng(chance)
        generator.uniform()  # the zoom's own draw
        image, mask = paint_scene(size=(64, 80), generator=generator)
        found = read(tmp_path / "labeled/images/labeled-0000.png")
        places = [
            (top, left)
            for top in range(33)
            for left in range(41)
            if np.array_equal(image[top : top + 32, left : left + 40], found)
        ]
        assert len(places) == 1
        top, left = places[0]
        np.testing.assert_array_equal(
            read(tmp_path / "labeled/masks/labeled-0000.png"),
            mask[top : top + 32, left : left + 40],
        )

    def test_close_ups_show_fewer_classes(self, tmp_path: Path) -> None:
        counts = []
        for name, zoom in (("far", (1.0, 1.0)), ("near", (2.0, 4.0))):
            write(tmp_path / name, num_unlabeled=20, zoom=zoom)
            with (tmp_path / name / "tags.csv").open(newline="") as file:
                counts.append(sum(len(r["classes"].split(";")) for r in csv.DictReader(file)) / 20)
        assert counts[1] < counts[0] - 1

    def test_close_up_is_of_a_small_thing_as_often_as_of_a_large_one(self) -> None:
        mask = np.zeros((20, 30), np.uint8)
        mask[3, 7] = 6
        chance = np.random.default_rng(0)
        small = [synthetic._draw_pixel(mask, chance) == (3, 7) for _ in range(400)]
        assert 0.4 < np.mean(small) < 0.6  # 600 to 1 by area

    def test_chosen_streets_show_rare_classes_better(self, tmp_path: Path) -> None:
        pixels = []
        for name, choose_from in (("any", 1), ("chosen", 8)):
            folder = tmp_path / name
            write(folder, num_labeled=8, choose_from=choose_from)
            masks = [read(path) for path in sorted((folder / "labeled/masks").iterdir())]
            pixels.append(np.bincount(np.ravel(masks), minlength=len(CLASSES)))
        assert np.log(1 + pixels[1]).sum() > np.log(1 + pixels[0]).sum()
        assert pixels[1].min() > pixels[0].min()

    def test_choice_touches_the_labelled_streets_alone_and_does_not_depend_on_their_number(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "any", num_labeled=3)
        write(tmp_path / "chosen", num_labeled=3, choose_from=4)
        write(tmp_path / "fewer", num_labeled=1, choose_from=4)
        every, chosen = files(tmp_path / "any"), files(tmp_path / "chosen")
        differ = {name for name in every if every[name] != chosen[name]}
        assert differ
        assert all(name.startswith("labeled/") for name in differ)
        fewer = files(tmp_path / "fewer")
        assert {name: chosen[name] for name in fewer} == fewer

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"style": "night"}, "Expected a style out of day, clear, plain, dusk, got 'night'"),
            ({"unlabeled_style": "dask"}, "got 'dask'; choose one of them. Did you mean 'dusk'?"),
            ({"val_style": ""}, "Expected a style out of day, clear, plain, dusk, got ''"),
            ({"num_unlabeled": -1}, "Expected num_unlabeled of 0 or more, got -1"),
            ({"seed": -2}, "Expected seed of 0 or more, got -2"),
            ({"size": (16, 96)}, "at least 32 x 32 pixels, got 16 x 96"),
            ({"zoom": (0.5, 2.0)}, "Expected a zoom of 1 <= low <= high, got (0.5, 2.0)"),
            ({"zoom": (3.0, 2.0)}, "Expected a zoom of 1 <= low <= high, got (3.0, 2.0)"),
            ({"choose_from": 0}, "Expected choose_from of 1 or more, got 0"),
            ({"workers": 0}, "Expected workers of 1 or more, got 0"),
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
