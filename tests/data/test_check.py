from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import write_dataset
from u2pl.data.check import CheckReport, check_dataset, quick_check
from u2pl.data.sources import load_dataset
from u2pl.data.synthetic import write_streets
from u2pl.errors import UserError


def _check(path: Path) -> CheckReport:
    return check_dataset(load_dataset(path), workers=2)


def _save(path: Path, array: object) -> None:
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


def test_sound_data_set_has_no_finding(path: Path) -> None:
    report = _check(path)
    assert report.errors == report.warnings == ()
    assert report.sections == {"labeled": 4, "unlabeled": 6, "val": 3, "test": 0}
    assert report.ignore_share == 0.0


def test_counts_are_those_of_the_masks(path: Path) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[:10], mask[10:15] = 255, 2
    _save(path.parent / "masks" / "labeled_0.png", mask)
    dataset = load_dataset(path)
    masks = [dataset.read_mask(s) for s in (*dataset.labeled, *dataset.val)]
    report = check_dataset(dataset)
    assert report.images == {
        name: sum(c in mask for mask in masks) for c, name in enumerate(dataset.classes)
    }
    assert report.pixels == {
        name: sum((mask == c).sum() for mask in masks) for c, name in enumerate(dataset.classes)
    }
    assert report.ignore_share == 10 * 56 / (7 * 40 * 56)


def test_report_is_plain_json(path: Path) -> None:
    (path.parent / "masks" / "labeled_0.png").write_bytes(b"torn")
    tree = json.loads(json.dumps(_check(path).to_json()))
    assert set(tree) == {
        "errors", "warnings", "images", "pixels", "sections", "ignore_share", "unmapped_share"
    }  # fmt: skip
    assert set(tree["errors"][0]) == {"file", "what", "remedy"}
    assert tree["errors"][0]["file"].endswith("masks/labeled_0.png")


def test_every_torn_file_is_an_error(path: Path) -> None:
    for name in ("images/labeled_1.png", "masks/labeled_1.png", "unlabeled/unlabeled_2.png"):
        file = path.parent / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    errors = _check(path).errors
    assert [Path(error.file).stem for error in errors] == ["labeled_1", "labeled_1", "unlabeled_2"]
    assert all("cannot be decoded" in error.what for error in errors)


def test_mask_of_another_size_is_an_error(path: Path) -> None:
    _save(path.parent / "masks" / "labeled_0.png", np.zeros((20, 56)))
    (error,) = _check(path).errors
    assert "the image is 56 x 40 pixels (width x height), its mask 56 x 20" in str(error)


def test_unknown_ids_and_colored_masks_are_errors(path: Path) -> None:
    _save(path.parent / "masks" / "labeled_0.png", np.full((40, 56), 9))
    _save(path.parent / "val" / "masks" / "val_0.png", np.zeros((40, 56, 3)))
    first, second = _check(path).errors
    assert "got 9" in first.what
    assert "set mask_format: rgb" in second.remedy


def test_grey_values_in_a_binary_mask_are_an_error(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_classes=2, mask_format="binary")
    assert _check(path).errors == ()
    _save(tmp_path / "masks" / "labeled_0.png", np.full((40, 56), 100))
    assert "got 100" in _check(path).errors[0].what


def test_absent_class_is_a_warning(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_val=1)
    dataset = load_dataset(path)
    present = set(np.unique(dataset.read_mask(dataset.val[0])))
    absent = [dataset.classes[c] for c in range(3) if c not in present]
    whats = [warning.what for warning in check_dataset(dataset).warnings]
    assert whats == [f"the class '{name}' has no pixel in val" for name in absent]
    tree = yaml.safe_load(path.read_text())
    tree["classes"].append("moon")
    path.write_text(yaml.safe_dump(tree))
    report = _check(path)
    assert "the class 'moon' has no pixel in labeled" in [w.what for w in report.warnings]
    assert report.images["moon"] == report.pixels["moon"] == 0


def test_mask_of_ignore_alone_is_a_warning(path: Path) -> None:
    _save(path.parent / "masks" / "labeled_0.png", np.full((40, 56), 255))
    report = _check(path)
    assert report.errors == ()
    assert "every pixel of the mask is ignored" in [w.what for w in report.warnings]


def _map_labeled(path: Path, id_map: dict[int, str]) -> None:
    tree = yaml.safe_load(path.read_text())
    tree["labeled"]["id_map"] = id_map
    path.write_text(yaml.safe_dump(tree))


def test_mapped_pixels_are_counted_and_the_share_that_the_map_ignores(path: Path) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[:10], mask[10:20] = 33, 7
    for i in range(4):
        _save(path.parent / "masks" / f"labeled_{i}.png", mask)
    assert _check(path).unmapped_share == {}
    _map_labeled(path, {33: "wall", 7: "tree"})
    dataset = load_dataset(path)
    report = check_dataset(dataset)
    val = [dataset.read_mask(sample) for sample in dataset.val]
    assert report.errors == ()
    assert report.unmapped_share == {"labeled": 0.5}
    assert report.pixels == {
        name: 4 * own * 56 + sum(int((mask == c).sum()) for mask in val)
        for c, (name, own) in enumerate({"ground": 0, "wall": 10, "tree": 10}.items())
    }
    assert report.ignore_share == 4 * 20 * 56 / (7 * 40 * 56)


def test_class_that_no_source_id_maps_to_is_a_warning_of_its_own(path: Path) -> None:
    _map_labeled(path, {0: "ground", 1: "wall", 9: "wall"})
    (warning,) = _check(path).warnings
    assert warning.what == "the id_map of labeled maps no id to the class 'tree'"
    _map_labeled(path, {0: "ground", 1: "wall", 9: "tree"})
    (warning,) = _check(path).warnings
    assert warning.what == "the class 'tree' has no pixel in labeled"


def test_tiny_image_is_a_warning(path: Path) -> None:
    _save(path.parent / "unlabeled" / "unlabeled_0.png", np.zeros((31, 90, 3)))
    (warning,) = _check(path).warnings
    assert "only 90 x 31 pixels" in warning.what


@pytest.mark.parametrize(
    ("source", "copy", "is_error"),
    [
        ("images/labeled_0.png", "unlabeled/copy.png", False),
        ("images/labeled_0.png", "val/images/val_0.png", True),
        ("unlabeled/unlabeled_0.png", "val/images/val_1.png", True),
        ("unlabeled/unlabeled_0.png", "unlabeled/copy.png", False),
    ],
)
def test_copies_are_errors_only_across_training_and_scoring(
    path: Path, source: str, copy: str, is_error: bool
) -> None:
    shutil.copy(path.parent / source, path.parent / copy)
    report = _check(path)
    # An image copied onto another one leaves the mask of that one, which is noticed, too.
    warnings = [warning for warning in report.warnings if "the mask looks" not in warning.what]
    assert len(report.errors) == is_error
    assert len(warnings) == (not is_error)
    assert "has the same content as" in (*report.errors, *warnings)[0].what


def test_image_in_both_training_sections_is_told_once(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    tree["unlabeled"]["images"] = "images"
    path.write_text(yaml.safe_dump(tree))
    report = _check(path)
    assert report.errors == ()
    (warning,) = report.warnings
    assert warning.what == "4 images stand in labeled and in unlabeled"
    assert sum(report.images.values()) == sum(_check(path).images.values())


def test_data_set_without_masks_has_zero_counts(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_labeled=0, num_val=0)
    report = check_dataset(load_dataset(path, require=("unlabeled",)))
    assert set(report.pixels.values()) == {0}
    assert report.ignore_share == 0.0


def test_quick_check_passes_a_sound_data_set_without_decoding_images(path: Path) -> None:
    for file in path.parent.rglob("*.png"):
        if "masks" not in str(file.relative_to(path.parent)):
            file.write_bytes(file.read_bytes()[:400])
    dataset = load_dataset(path)
    quick_check(dataset)
    assert len(check_dataset(dataset).errors) == 13


def test_quick_check_names_the_first_fault_and_counts_the_others(path: Path) -> None:
    _save(path.parent / "masks" / "labeled_1.png", np.zeros((20, 56)))
    with pytest.raises(UserError, match=r"labeled_1\.png: the image is 56 x 40 .* image\.$"):
        quick_check(load_dataset(path))
    _save(path.parent / "masks" / "labeled_2.png", np.full((40, 56), 9))
    _save(path.parent / "val" / "masks" / "val_0.png", np.full((40, 56), 9))
    with pytest.raises(UserError, match=r"labeled_1\.png.*\(2 more; see `u2pl data check`\.\)"):
        quick_check(load_dataset(path))


def test_mask_that_was_not_turned_with_its_image_is_told_so(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path.parent / "images/labeled_0.png") as image:
        image.save(path.parent / "images/labeled_0.png", exif=exif)
    with pytest.raises(UserError, match="images are turned upright as their EXIF data say, masks"):
        quick_check(load_dataset(path))
    (error,) = check_dataset(load_dataset(path)).errors
    assert "turn the mask as its image is turned" in error.remedy


def test_misplaced_masks_are_warnings_that_say_where(tmp_path: Path) -> None:
    path = write_streets(tmp_path / "s", num_labeled=8, num_unlabeled=0, num_val=2, seed=5)
    assert _misplaced(path) == []
    masks = path.parent / "labeled/masks"
    with Image.open(masks / "labeled-0003.png") as image:
        mask = np.asarray(image)
    _save(masks / "labeled-0003.png", np.roll(mask, -8, axis=0))
    one, other = masks / "labeled-0005.png", masks / "labeled-0006.png"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    first, second, third = _misplaced(path)
    assert re.search(r"0003\.png: the mask looks shifted: .* 8 % of the height further down", first)
    assert re.search(r"0005\.png: the mask looks swapped: .*0006\.png would fit", second)
    assert re.search(r"0006\.png: the mask looks swapped: .*0005\.png would fit", third)


def _misplaced(path: Path) -> list[str]:
    report = _check(path)
    assert report.errors == ()
    return [str(warning) for warning in report.warnings if "the mask looks" in warning.what]
