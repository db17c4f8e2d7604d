from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories import CLASS_COLORS, write_dataset
from u2pl.data.init import init_dataset
from u2pl.errors import UserError


def user_folder(folder: Path, **options: object) -> Path:
    write_dataset(folder, **options).unlink()  # type: ignore[arg-type]
    return folder


def move(root: Path, moves: dict[str, str]) -> None:
    for source, target in moves.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / source, root / target)


@pytest.mark.parametrize(
    "moves",
    [
        {},
        {"images": "train/images", "masks": "train/masks"},
        {"images": "Images", "masks": "Labels", "unlabeled": "Unlabeled/images"},
        {
            "images": "train", "masks": "trainannot", "val/images": "v", "val/masks": "valannot",
            "v": "val",
        },
        {
            "images": "images_", "masks": "masks_", "val/images": "images/val",
            "val/masks": "masks/val", "images_": "images/train", "masks_": "masks/train",
            "unlabeled": "images/unlabeled",
        },
        {"val": "validation", "masks": "gt", "images": "imgs"},
    ],
    ids=str,
)  # fmt: skip
def test_usual_names_of_folders_are_found(tmp_path: Path, moves: dict[str, str]) -> None:
    user_folder(tmp_path)
    if (moves.get("v")) == "val":
        move(tmp_path, {k: v for k, v in moves.items() if k != "v"})
        (tmp_path / "val").rmdir()
        move(tmp_path, {"v": "val"})
    else:
        move(tmp_path, moves)
    sections = init_dataset(tmp_path).to_json()["sections"]
    assert sections == {"labeled": 4, "unlabeled": 6, "val": 3, "test": 0}


def test_image_without_a_mask_becomes_unlabelled(tmp_path: Path) -> None:
    user_folder(tmp_path)
    (tmp_path / "masks" / "labeled_1.png").unlink()
    result = init_dataset(tmp_path)
    assert [s.name for s in result.dataset.labeled] == ["labeled_0", "labeled_2", "labeled_3"]
    assert len(result.dataset.unlabeled) == 7
    assert "images/labeled_1" in {s.name for s in result.dataset.unlabeled}
    assert "1 images of images/ have no mask: unlabeled." in result.conclusions


def test_val_image_without_a_mask_is_left_out_and_told(tmp_path: Path) -> None:
    user_folder(tmp_path)
    (tmp_path / "val/masks/val_0.png").unlink()
    result = init_dataset(tmp_path)
    assert len(result.dataset.val) == 2
    assert len(result.dataset.unlabeled) == 6
    assert "1 images of val/images/ have no mask and are left out." in result.conclusions


def test_tail_of_mask_names_is_found(tmp_path: Path) -> None:
    user_folder(tmp_path)
    for mask in [*tmp_path.glob("masks/*.png"), *tmp_path.glob("val/masks/*.png")]:
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    (tmp_path / "masks/stray_mask.png").write_bytes(
        (tmp_path / "masks/labeled_0_mask.png").read_bytes()
    )
    result = init_dataset(tmp_path)
    assert result.dataset.labeled[2].mask == tmp_path.resolve() / "masks/labeled_2_mask.png"
    assert any("whose names end in '_mask'" in text for text in result.conclusions)
    assert "1 masks of masks/ have no image: stray_mask." in result.conclusions


def test_masks_as_tiff_in_subfolders_are_read(tmp_path: Path) -> None:
    user_folder(tmp_path)
    for folder in ("images", "masks"):
        move(tmp_path, {f"{folder}/labeled_0.png": f"{folder}/deep/labeled_0.png"})
    for mask in tmp_path.rglob("masks/**/*.png"):
        Image.open(mask).save(mask.with_suffix(".tif"))
        mask.unlink()
    assert {s.name for s in init_dataset(tmp_path).dataset.labeled} >= {"deep/labeled_0"}


def test_rgb_masks_without_names_are_named_by_their_colors(tmp_path: Path) -> None:
    data = init_dataset(user_folder(tmp_path, mask_format="rgb")).dataset
    assert set(data.classes) == {f"color_{r:02x}{g:02x}{b:02x}" for r, g, b in CLASS_COLORS[:3]}
    assert set(data.colors) == set(CLASS_COLORS[:3])


def test_rgb_masks_with_a_class_dict_have_its_names_and_its_void(tmp_path: Path) -> None:
    user_folder(tmp_path, mask_format="rgb")
    names = ("ground", "Void", "tree")
    rows = [f"{n},{','.join(map(str, c))}" for n, c in zip(names, CLASS_COLORS, strict=False)]
    (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]))
    data = init_dataset(tmp_path).dataset
    assert data.classes == ("ground", "tree")
    assert data.ignore_color == CLASS_COLORS[1]


def test_tagged_images_without_masks_need_no_labelled_section(tmp_path: Path) -> None:
    user_folder(tmp_path, num_labeled=0, tags=True)
    move(tmp_path, {"unlabeled": "images"})
    (tmp_path / "classes.txt").write_text("ground\nwall\ntree\n")
    data = init_dataset(tmp_path).dataset
    assert (len(data.labeled), len(data.unlabeled), len(data.val)) == (0, 6, 3)
    assert all(sample.tags for sample in data.unlabeled)


def test_two_pairs_of_folders_for_one_section_are_told(tmp_path: Path) -> None:
    user_folder(tmp_path)
    shutil.copytree(tmp_path / "masks", tmp_path / "labels")
    with pytest.raises(UserError, match=r"2 pairs of folders for 'labeled': images with masks"):
        init_dataset(tmp_path)


def test_masks_that_lose_ids_or_fit_no_image_are_refused(tmp_path: Path) -> None:
    user_folder(tmp_path)
    for mask in tmp_path.glob("masks/*.png"):
        Image.open(mask).save(mask.with_suffix(".jpg"))
        mask.unlink()
    with pytest.raises(UserError, match=r"Expected masks as PNG in .*, got \.jpg"):
        init_dataset(tmp_path)
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(tmp_path / "masks" / "other.png")
    with pytest.raises(UserError, match="Expected masks named like their images, got other"):
        init_dataset(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    user_folder(tmp_path)
    Image.open(tmp_path / "images/labeled_0.png").save(tmp_path / "images/labeled_0.jpg")
    with pytest.raises(UserError, match="have the same name"):
        init_dataset(tmp_path)
