from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import write_dataset
from u2pl.data.images import write_mask
from u2pl.data.sources import default_colors, load_dataset, split_hash, write_lists
from u2pl.errors import UserError


def _edit(path: Path, **changes: Any) -> Path:
    """Change keys of a dataset.yaml; None takes a key out."""
    tree = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}))
    return path


def _touch(folder: Path, *names: str) -> None:
    """Make empty files: load_dataset opens none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _names(samples: Any) -> list[str]:
    return [sample.name for sample in samples]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


def test_plain_folders_are_paired(path: Path) -> None:
    dataset = load_dataset(path)
    assert dataset.classes == ("ground", "wall", "tree")
    assert dataset.num_classes == 3
    assert _names(dataset.labeled) == [f"labeled_{i}" for i in range(4)]
    assert _names(dataset.unlabeled) == [f"unlabeled_{i}" for i in range(6)]
    assert dataset.labeled[1].mask == path.parent.resolve() / "masks" / "labeled_1.png"
    assert all(sample.mask is None for sample in dataset.unlabeled)
    assert dataset.test == ()
    assert dataset.colors == default_colors(3)
    assert load_dataset(path.parent) == dataset
    assert dataset.read_mask(dataset.val[0].mask or Path()).shape == (40, 56)


def test_no_image_is_opened(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    for image in tmp_path.rglob("*.png"):
        image.write_bytes(b"")
    assert len(load_dataset(path).labeled) == 4


def test_names_are_paths_inside_the_images_folder(path: Path) -> None:
    _touch(path.parent, "images/town/a.JPG", "masks/town/a.png", "images/.hidden.png")
    assert "town/a" in _names(load_dataset(path).labeled)
    assert ".hidden" not in _names(load_dataset(path).labeled)


def test_globs_pair_by_what_the_wildcards_match(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    _touch(tmp_path, "left/ulm/ulm_0_left.png", "left/bonn/b_1_left.png", "left/bonn/note.txt")
    _touch(tmp_path, "fine/ulm/ulm_0_ids.png", "fine/bonn/b_1_ids.png", "fine/bonn/b_1_color.png")
    _edit(path, labeled={"images": "left/*/*_left.png", "masks": "fine/*/*_ids.png"})
    labeled = load_dataset(path).labeled
    assert _names(labeled) == ["bonn/b_1_left", "ulm/ulm_0_left"]
    assert [sample.mask.name for sample in labeled if sample.mask] == [
        "b_1_ids.png",
        "ulm_0_ids.png",
    ]


def test_globs_with_a_fixed_stem_pair_by_folder(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    _touch(tmp_path, "scenes/a/photo.jpg", "scenes/a/mask.png", "scenes/b/photo.jpg")
    _touch(tmp_path, "scenes/b/mask.png")
    _edit(path, labeled={"images": "scenes/*/photo.jpg", "masks": "scenes/*/mask.png"})
    labeled = load_dataset(path).labeled
    assert [s.mask.parent.name for s in labeled if s.mask] == ["a", "b"]


def test_lists_of_files_pair_by_stem(path: Path) -> None:
    images = ["images/labeled_2.png", "images/labeled_0.png"]
    masks = ["masks/labeled_0.png", "masks/labeled_2.png"]
    _edit(path, labeled={"images": images, "masks": masks})
    labeled = load_dataset(path).labeled
    assert _names(labeled) == ["labeled_2", "labeled_0"]
    assert [sample.mask.stem for sample in labeled if sample.mask] == ["labeled_2", "labeled_0"]
    _edit(path, labeled={"images": ["images/none.png"], "masks": masks})
    with pytest.raises(UserError, match=r"1 files of 'labeled: images' do not exist: .*none\.png"):
        load_dataset(path)


def test_stems_that_are_not_unique_are_never_guessed(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    _touch(tmp_path, "pics/a/0.jpg", "pics/b/0.jpg", "flat/0.png")
    _edit(path, labeled={"images": "pics", "masks": ["flat/0.png"]})
    with pytest.raises(UserError, match="2 of 2 images in 'labeled' have no mask"):
        load_dataset(path)


def test_list_selects_and_orders(path: Path) -> None:
    lines = "# best ones\nlabeled_3\n\nlabeled_0.png\nimages/labeled_1.png\n"
    (path.parent / "labeled.txt").write_text(lines)
    _edit(path, labeled={"images": "images", "masks": "masks", "list": "labeled.txt"})
    assert _names(load_dataset(path).labeled) == ["labeled_3", "labeled_0", "labeled_1"]


def test_one_folder_can_serve_all_sections_by_lists(path: Path) -> None:
    lists = {"labeled": "0", "unlabeled": "1\n2", "val": "3"}
    for section, numbers in lists.items():
        names = [f"labeled_{n}" for n in numbers.split()]
        (path.parent / f"{section}.txt").write_text("\n".join(names))
    both = {"images": "images", "masks": "masks"}
    _edit(path, **{section: both | {"list": f"{section}.txt"} for section in lists})
    dataset = load_dataset(path)
    assert [len(s) for s in dataset.sections.values()] == [1, 2, 1, 0]
    assert dataset.unlabeled[0].mask is None


def test_folders_are_listed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    walk = os.walk

    def count(top: str, **options: Any) -> Any:
        listed.append(top)
        return walk(top, **options)

    monkeypatch.setattr(os, "walk", count)
    _edit(path, unlabeled={"images": "images"})
    load_dataset(path)
    assert len(listed) == len(set(listed)) == 4


def test_root_moves_the_folders(path: Path) -> None:
    moved = path.parent / "settings"
    moved.mkdir()
    path.rename(moved / "dataset.yaml")
    _edit(moved / "dataset.yaml", root="..")
    assert len(load_dataset(moved / "dataset.yaml").labeled) == 4


def test_written_lists_read_back_in_order(path: Path) -> None:
    dataset = load_dataset(path)
    write_lists(dataset, path.parent)
    assert (path.parent / "val.txt").read_text() == "val_0\nval_1\nval_2\n"
    assert not (path.parent / "test.txt").exists()
    _edit(path, val={"images": "val/images", "masks": "val/masks", "list": "val.txt"})
    assert load_dataset(path).val == dataset.val


def test_split_hash_follows_names_and_order(path: Path) -> None:
    val = load_dataset(path).val
    assert split_hash(val) == hashlib.sha256(b"val_0\nval_1\nval_2").hexdigest()
    assert split_hash(val[::-1]) != split_hash(val)


def test_default_colors_are_distinct() -> None:
    assert len(set(default_colors(256))) == 256
    assert default_colors(256)[255] == (224, 224, 192)


def test_tags_come_with_unlabeled_images_only(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, tags=True)
    (tmp_path / "tags.csv").write_text(
        "image,classes\nunlabeled_0.png,tree; ground\nunlabeled_3,wall\nlabeled_0,wall\n"
    )
    dataset = load_dataset(path)
    assert [s.tags for s in dataset.unlabeled] == [(0, 2), None, None, (1,), None, None]
    assert all(sample.tags is None for sample in dataset.labeled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,classes\nunlabeled_0,tre\n", "unknown class 'tre' for 'unlabeled_0'.*'tree'"),
        ("image,classes\nunlabeled_0,\n", "leave out images whose classes are not known"),
        ("image,classes\nunlabeled_0\n", "leave out images whose classes are not known"),
        ("name,tags\n", "expected the header 'image,classes'"),
        ("image,classes\nother,tree\n", "no row names an image of 'unlabeled'"),
    ],
)
def test_faulty_tags_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write_dataset(tmp_path, tags=True)
    (tmp_path / "tags.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dataset(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": []}, "unknown key 'clases'. Did you mean 'classes'?"),
        ({"classes": None}, "expected 'classes' to be a list of names, got None"),
        ({"classes": ["a", "b", "a"]}, "the class 'a' stands there twice"),
        ({"classes": ["a", False]}, "expected a class name, got False; put it in quotes"),
        ({"classes": [{"color": [1, 2, 3]}]}, "expected a class as {name, color}"),
        ({"classes": ["a", {"name": "b", "color": [1, 2, 3]}]}, "give all or none"),
        ({"classes": [{"name": "b", "color": [1, 2]}]}, r"expected a color as \[red"),
        ({"ignore_index": 2}, "expected ignore_index between 3"),
        ({"ignore_index": "none"}, "got 'none'"),
        ({"mask_format": "grey"}, "expected mask_format to be one of index, rgb, binary"),
        ({"mask_format": "binary"}, "binary needs exactly two classes, got 3"),
        ({"mask_format": "rgb"}, "rgb needs a color for each class"),
        ({"root": "nowhere"}, "the root folder .*nowhere does not exist"),
        ({"labeled": None}, "expected images in the section 'labeled', found none"),
        ({"labeled": {"images": "empty", "masks": "masks"}}, "section 'labeled', found none"),
        ({"labeled": {"images": "none", "masks": "masks"}}, "none of 'labeled: images' does not"),
        ({"labeled": {"images": "images", "masks": "none"}}, "'labeled: masks' does not exist"),
        ({"labeled": {"images": "images"}}, "the section 'labeled' needs 'masks'"),
        ({"labeled": {"masks": "masks"}}, "expected 'labeled' to have 'images'"),
        ({"labeled": {"images": 3, "masks": "masks"}}, "a folder, a glob or a list of files"),
        ({"unlabeled": {"images": "images", "lst": "x"}}, "'lst' in 'unlabeled'.*'list'"),
        ({"unlabeled": {"images": "images", "list": "no.txt"}}, "list .*no.txt of 'unlabeled'"),
        ({"unlabeled": {"images": "val/images"}}, "3 images stand in 'unlabeled' and .*'val'"),
        ({"tags": "no.csv"}, "no.csv do not exist"),
    ],
)
def test_faulty_yaml_is_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    (path.parent / "empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_dataset(_edit(path, **changes))
    assert "\n" not in str(error.value)


def test_colors_that_clash_in_rgb_masks_are_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, mask_format="rgb")
    assert load_dataset(path).colors[0] == (40, 40, 60)
    with pytest.raises(UserError, match="share a color"):
        load_dataset(_edit(path, ignore_color=[40, 40, 60]))
    assert load_dataset(_edit(path, ignore_color=[0, 0, 0])).ignore_color == (0, 0, 0)


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [", "\x00"])
def test_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.yaml"):
        load_dataset(tmp_path / "dataset.yaml")


def test_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_dataset(tmp_path / "none.yaml")


def test_require_says_which_sections_must_hold_images(path: Path) -> None:
    _edit(path, labeled=None)
    assert load_dataset(path, require=("unlabeled", "val")).labeled == ()
    with pytest.raises(UserError, match="section 'test'"):
        load_dataset(path, require=("test",))


def test_first_three_missing_masks_are_named(path: Path) -> None:
    for mask in (path.parent / "masks").iterdir():
        mask.unlink()
    message = r"4 of 4 images .* mask in masks: labeled_0, labeled_1, labeled_2, \.\.\.;"
    with pytest.raises(UserError, match=message):
        load_dataset(path)


def test_list_entries_without_image_or_twice_are_refused(path: Path) -> None:
    _edit(path, unlabeled={"images": "unlabeled", "list": "u.txt"})
    (path.parent / "u.txt").write_text("x\nunlabeled_0\ny\nz\nw\n")
    with pytest.raises(UserError, match=r"4 of 5 entries have no image .*: x, y, z, \.\.\.;"):
        load_dataset(path)
    (path.parent / "u.txt").write_text("unlabeled_0\nunlabeled_0.png\n")
    with pytest.raises(UserError, match=r"'unlabeled_0\.png' stands there twice"):
        load_dataset(path)


def test_two_images_of_one_name_are_refused(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path.parent / "images" / "labeled_0.jpg")
    with pytest.raises(UserError, match="belong to more than one file: labeled_0;"):
        load_dataset(path)


def test_mask_of_its_own_format_is_read_as_such(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path, mask_format="rgb"))
    ids = np.array([[0, 2, 255]])
    write_mask(tmp_path / "seed.png", ids, colors=dataset.colors)
    with pytest.raises(UserError, match="no class has the color"):
        dataset.read_mask(tmp_path / "seed.png")
    read = dataset.read_mask(tmp_path / "seed.png", mask_format="index")
    assert read.tolist() == ids.tolist()
