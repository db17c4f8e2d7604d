"""Data sets on disk: odd files, odd names, links, and what does not fit together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import write_dataset
from fuzz.test_images import bad_files, encoded, exif, picture, sound_files
from fuzz.test_masks import mask_files
from fuzz.trial import attempt_command, trials

Case = Callable[[Path], object]
CASES: dict[str, tuple[int, Case]] = {}
"""By name: the exit status of `u2pl data check`, and what is done to a sound data set."""


def case(status: int) -> Callable[[Case], Case]:
    def keep(change: Case) -> Case:
        CASES[change.__name__.replace("_", " ")] = (status, change)
        return change

    return keep


def edit(root: Path, **changes: Any) -> None:
    path = root / "dataset.yaml"
    tree = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")


def blank(path: Path | bytes, *, size: tuple[int, int] = (40, 56), value: int = 0) -> None:
    """Write a PNG whose pixels all have one value."""
    image = np.full(size, value, np.uint8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.fromarray(image).save(file, format="PNG")


@case(0)
def nothing_is_changed(root: Path) -> None:
    pass


@case(0)
def folder_named_like_an_image(root: Path) -> None:
    (root / "unlabeled/x.png").mkdir()
    (root / "images/y.jpg").mkdir()


@case(1)
def folder_named_like_an_image_meets_a_glob(root: Path) -> None:
    (root / "unlabeled/x.png").mkdir()
    edit(root, unlabeled={"images": "unlabeled/*.png"})


@case(1)
def pipe_named_like_an_image(root: Path) -> None:
    os.mkfifo(root / "unlabeled/x.png")


@case(1)
def pipe_as_a_mask(root: Path) -> None:
    (root / "masks/labeled_0.png").unlink()
    os.mkfifo(root / "masks/labeled_0.png")


@case(1)
def pipe_as_a_list(root: Path) -> None:
    os.mkfifo(root / "list.txt")
    edit(root, unlabeled={"images": "unlabeled", "list": "list.txt"})


@case(1)
def device_as_tags(root: Path) -> None:
    edit(root, tags="/dev/zero")


@case(1)
def link_that_leads_back(root: Path) -> None:
    (root / "unlabeled/again").symlink_to("..", target_is_directory=True)


@case(1)
def links_that_lead_back_many_ways(root: Path) -> None:
    for name in "abcd":
        (root / "unlabeled" / name).symlink_to(".", target_is_directory=True)


@case(1)
def link_that_leads_back_below_a_glob(root: Path) -> None:
    for name in "ab":
        (root / "unlabeled" / name).symlink_to("../unlabeled", target_is_directory=True)
    edit(root, unlabeled={"images": "unlabeled/**/*.png"})


@case(1)
def folders_linked_a_million_times(root: Path) -> None:
    for level in range(20):
        (root / f"unlabeled/{level}").mkdir()
        for name in "ab":
            (root / f"unlabeled/{level}/{name}").symlink_to(f"../{level + 1}")


@case(0)
def folder_linked_twice(root: Path) -> None:
    shutil.move(root / "unlabeled", root / "store")
    (root / "unlabeled").mkdir()
    for name in "ab":
        (root / "unlabeled" / name).symlink_to("../store", target_is_directory=True)


@case(1)
def link_to_itself(root: Path) -> None:
    (root / "unlabeled/x.png").symlink_to("x.png")


@case(1)
def link_to_nowhere(root: Path) -> None:
    (root / "unlabeled/x.png").symlink_to("none.png")


@case(1)
def folder_that_is_a_link_to_itself(root: Path) -> None:
    shutil.rmtree(root / "unlabeled")
    (root / "unlabeled").symlink_to("unlabeled")


@case(1)
def file_name_that_is_no_text(root: Path) -> None:
    blank(os.fsencode(root / "unlabeled") + b"/\xff\xfe.png")


@case(1)
def file_name_with_a_line_end(root: Path) -> None:
    blank(root / "unlabeled/a\nb.png")


@case(1)
def file_name_that_colours_the_terminal(root: Path) -> None:
    blank(root / "unlabeled/\x1b[31mred\x1b[0m\x07.png")


@case(1)
def file_name_with_a_separator_of_lines(root: Path) -> None:
    blank(root / "unlabeled/a\u2028b.png")


@case(0)
def folder_of_other_files_with_odd_names(root: Path) -> None:
    (root / "unlabeled/a\nb.txt").touch()
    (root / "unlabeled/.hidden\x1b.png").touch()


@case(0)
def file_names_of_many_alphabets(root: Path) -> None:
    for name in (
        "Straße",
        "猫",
        "кот",
        "🌲",
        "a b",
        "a\u00a0b",
        "-rf",
        "%s",
        "{x}",
        "$(id)",
        "a;b",
    ):
        blank(root / f"unlabeled/{name}.png", value=len(name))


@case(0)
def file_names_of_markup(root: Path) -> None:
    for name in ("[red]", "[/]", "[/red]", "[link=http:x]y", "[bold/]", ":warning:", "[[x]]"):
        blank(root / f"unlabeled/{name}.png", value=len(name))


@case(0)
def file_name_as_long_as_can_be(root: Path) -> None:
    blank(root / "unlabeled" / ("n" * 251 + ".png"))


@case(1)
def damaged_file_of_markup(root: Path) -> None:
    (root / "unlabeled/[").mkdir()
    (root / "unlabeled/[/red]:warning:.png").write_text("no image")


@case(0)
def classes_of_markup(root: Path) -> None:
    edit(root, classes=["[/red]", "[bold]wall", ":car:"])


@case(0)
def classes_of_formulas_and_quotes(root: Path) -> None:
    edit(root, classes=["=1+1", '"wall"', "a,b\\;c"])


@case(1)
def class_that_colours_the_terminal(root: Path) -> None:
    edit(root, classes=["ground", "\x1b[31mwall", "tree"])


@case(1)
def class_of_two_lines(root: Path) -> None:
    edit(root, classes=["ground", "wall\nwall", "tree"])


@case(1)
def class_of_blanks(root: Path) -> None:
    edit(root, classes=["ground", " ", "tree"])


@case(1)
def class_of_half_a_character(root: Path) -> None:
    edit(root, classes=["ground", "\ud800", "tree"])


@case(0)
def class_that_turns_the_line_around(root: Path) -> None:
    edit(root, classes=["ground", "a\u202eb", "tree"])


@case(0)
def many_classes(root: Path) -> None:
    edit(root, classes=[f"class {i}" for i in range(300)], ignore_index=65535)


@case(1)
def one_class_too_few(root: Path) -> None:
    edit(root, classes=["ground", "wall"])


@case(1)
def mask_of_another_size(root: Path) -> None:
    blank(root / "masks/labeled_1.png", size=(56, 40))


@case(1)
def mask_of_one_pixel(root: Path) -> None:
    blank(root / "masks/labeled_1.png", size=(1, 1))


@case(1)
def mask_that_is_a_photo(root: Path) -> None:
    shutil.copy(root / "images/labeled_1.png", root / "masks/labeled_1.png")


@case(0)
def masks_that_are_all_ignore(root: Path) -> None:
    for path in (root / "masks").iterdir():
        blank(path, value=255)


@case(0)
def images_of_one_pixel(root: Path) -> None:
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        is_mask = path.parent.name == "masks"
        blank(path, size=(1, 1), value=number % 3 if is_mask else number)


@case(1)
def image_turned_and_mask_not(root: Path) -> None:
    Image.new("RGB", (56, 40)).save(root / "images/labeled_0.png", exif=exif(6))


@case(0)
def image_and_mask_turned(root: Path) -> None:
    Image.new("RGB", (56, 40)).save(root / "images/labeled_0.png", exif=exif(6))
    blank(root / "masks/labeled_0.png", size=(56, 40))


@case(1)
def empty_image(root: Path) -> None:
    (root / "unlabeled/unlabeled_0.png").write_bytes(b"")


@case(1)
def empty_mask(root: Path) -> None:
    (root / "val/masks/val_0.png").write_bytes(b"")


@case(1)
def no_mask(root: Path) -> None:
    (root / "masks/labeled_0.png").unlink()


@case(1)
def same_file_in_training_and_val(root: Path) -> None:
    shutil.copy(root / "val/images/val_0.png", root / "unlabeled/copy.png")


@case(1)
def list_with_control_characters(root: Path) -> None:
    (root / "list.txt").write_text("unlabeled_0\n\x1b[2J\n\0\n../../etc/passwd\n")
    edit(root, unlabeled={"images": "unlabeled", "list": "list.txt"})


@case(1)
def list_that_is_an_image(root: Path) -> None:
    edit(root, unlabeled={"images": "unlabeled", "list": "unlabeled/unlabeled_0.png"})


@case(1)
def list_that_is_a_folder(root: Path) -> None:
    edit(root, unlabeled={"images": "unlabeled", "list": "unlabeled"})


@case(0)
def list_with_a_byte_order_mark(root: Path) -> None:
    (root / "list.txt").write_bytes("\ufeffunlabeled_0\r\nunlabeled_1\r\n".encode())
    edit(root, unlabeled={"images": "unlabeled", "list": "list.txt"})


@case(1)
def list_of_long_lines(root: Path) -> None:
    (root / "list.txt").write_text("x" * 1_000_000 + "\n" + "a/" * 5000 + "\n")
    edit(root, unlabeled={"images": "unlabeled", "list": "list.txt"})


@case(1)
def list_that_climbs_out(root: Path) -> None:
    blank(root.parent / "outside.png")
    (root / "list.txt").write_text("../outside.png\n")
    edit(root, unlabeled={"images": "unlabeled", "list": "list.txt"})


@case(1)
def glob_that_climbs_out_behind_a_wildcard(root: Path) -> None:
    edit(root, unlabeled={"images": "*/../unlabeled/*.png"})


@case(0)
def glob_of_many_stars(root: Path) -> None:
    edit(root, unlabeled={"images": "unlabeled/**/**/**/**/**/**/*.png"})


@case(0)
def files_given_by_long_ways(root: Path) -> None:
    edit(root, unlabeled={"images": [f"../{root.name}/unlabeled/unlabeled_0.png"]})


@case(1)
def tags_of_unknown_classes(root: Path) -> None:
    (root / "tags.csv").write_text("image,classes\nunlabeled_0,\x1b[31mwal\n")
    edit(root, tags="tags.csv")


@case(1)
def tags_of_markup(root: Path) -> None:
    (root / "tags.csv").write_text("image,classes\nunlabeled_0,[/red]\n")
    edit(root, tags="tags.csv")


@case(1)
def folder_of_the_data_set_that_is_no_text(root: Path) -> None:
    moved = os.fsencode(root.parent) + b"/data\xff"
    os.rename(root, moved)
    root.symlink_to(os.fsdecode(moved))


@case(1)
def yaml_that_is_a_folder(root: Path) -> None:
    (root / "dataset.yaml").unlink()
    (root / "dataset.yaml").mkdir()


@case(1)
def yaml_that_is_a_pipe(root: Path) -> None:
    (root / "dataset.yaml").unlink()
    os.mkfifo(root / "dataset.yaml")


@pytest.mark.parametrize("name", CASES)
def test_check_of_an_odd_data_set_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    status, change = CASES[name]
    root = write_dataset(tmp_path / "data", num_labeled=3, num_unlabeled=3, num_val=2).parent
    change(root)
    with trials("data sets") as group:
        answer = attempt_command(group, name, "data", "check", root, "--json", tmp_path / "a.json")
        assert answer is not None
        group.expect(name, answer.status == status, f"status {answer.status}: {answer}")
        if (tmp_path / "a.json").exists():
            report = json.loads((tmp_path / "a.json").read_text())
            group.expect(name, bool(report["errors"]) == (status == 1), "the report differs")
        group.expect(name, not list(tmp_path.rglob(".*.tmp")), "a half file is left")


def test_check_finds_every_file_that_cannot_be_read(tmp_path: Path) -> None:
    """All kinds of image and mask files at once, in one data set."""
    root = write_dataset(tmp_path / "data", num_labeled=1, num_unlabeled=1, num_val=1).parent
    number_of_bad = 0
    with trials("data sets") as group:
        for number, (_, suffix, content) in enumerate(bad_files()):
            if len(content) < 100_000:
                (root / f"unlabeled/bad_{number}.{suffix}").write_bytes(content)
                number_of_bad += 1
        for number, (_, suffix, content) in enumerate(sound_files()):
            (root / f"unlabeled/sound_{number}.{suffix}").write_bytes(content)
        answer = attempt_command(group, "images", "data", "check", root)
        assert answer is not None
        errors = [line for line in answer.out.split("\n") if line.startswith("error: ")]
        group.expect("images", len(errors) == number_of_bad, f"{len(errors)} of {number_of_bad}")
        group.expect("images", all("/bad_" in line for line in errors), "a sound one is refused")
        for number, (_, _, content) in enumerate(mask_files()):
            files = {f"images/m_{number}": encoded(picture(9, 14, seed=number), "png")}
            files[f"masks/m_{number}"] = content
            for place, data in files.items():
                (root / f"{place}.png").write_bytes(data)
        answer = attempt_command(group, "masks", "data", "check", root)
        assert answer is not None
        group.expect("masks", answer.status == 1 and answer.err == "", "no report")
