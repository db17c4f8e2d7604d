"""Corrected masks become labels of a next version, and nothing else changes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import write_dataset
from u2pl.data.check import quick_check
from u2pl.data.images import write_mask
from u2pl.data.merge import merge_corrections
from u2pl.data.sources import Dataset, load_dataset
from u2pl.errors import UserError

SIZE = (40, 56)


def mask_of(number: int) -> np.ndarray:
    """Partly unknown."""
    mask = np.full(SIZE, 255)
    mask[:20], mask[20:30, number:] = number % 3, (number + 1) % 3
    return mask


def corrected(folder: Path, *names: str) -> Path:
    """A folder of PNG masks; the number at a name's end says which."""
    for name in names:
        write_mask(folder / f"{name}.png", mask_of(int(name[-1])), colors=[(1, 2, 3)] * 3)
    return folder


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def truth(dataset: Dataset, section: str = "labeled") -> dict[str, np.ndarray]:
    return {s.image.stem: dataset.read_mask(s) for s in dataset.sections[section]}


def rows_of(path: Path) -> list[dict[str, str]]:
    with (path.with_name(f"{path.stem}-files") / "provenance.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mask_format", ["index", "rgb"])
def test_corrected_images_move_to_the_labelled_ones_of_a_new_version(
    tmp_path: Path, mask_format: str
) -> None:
    path = write_dataset(tmp_path / "data", mask_format=mask_format)
    old, before = load_dataset(path), files_below(tmp_path)
    result = merge_corrections(path, corrected(tmp_path / "back", "unlabeled_3", "unlabeled_1"))
    assert result.path == tmp_path / "data/dataset-2.yaml"
    assert result.merged == ("unlabeled_1", "unlabeled_3")
    new = load_dataset(result.path)
    assert [s.image.stem for s in new.labeled] == [
        *(s.image.stem for s in old.labeled), "unlabeled_1", "unlabeled_3"
    ]  # fmt: skip
    assert [s.name for s in new.unlabeled] == [f"unlabeled_{i}" for i in (0, 2, 4, 5)]
    found = truth(new)
    assert all(np.array_equal(found[name], mask) for name, mask in truth(old).items())
    assert all(np.array_equal(found[f"unlabeled_{i}"], mask_of(i)) for i in (1, 3))
    assert (new.classes, new.colors, new.ignore_index) == (old.classes, old.colors, 255)
    assert (new.val, new.test) == (old.val, old.test)
    quick_check(new)
    assert files_below(tmp_path).items() >= before.items()


def test_provenance_says_where_each_label_came_from(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", num_labeled=2)
    second = merge_corrections(path, corrected(tmp_path / "round-1", "unlabeled_0")).path
    assert second is not None
    third = merge_corrections(second, corrected(tmp_path / "round-2", "unlabeled_4")).path
    assert third == tmp_path / "data/dataset-3.yaml"
    rows = {row["image"]: row for row in rows_of(third)}
    kept = ("origin", "format", "version")
    assert [rows["images/labeled_0.png"][key] for key in kept] == [
        "dataset.yaml", "dataset", "dataset.yaml"
    ]  # fmt: skip
    assert [rows["unlabeled/unlabeled_0.png"][key] for key in kept] == [
        "round-1", "png", "dataset-2.yaml"
    ]  # fmt: skip
    assert [rows["unlabeled/unlabeled_4.png"][key] for key in kept] == [
        "round-2", "png", "dataset-3.yaml"
    ]  # fmt: skip
    share = float((mask_of(4) != 255).mean())
    assert float(rows["unlabeled/unlabeled_4.png"]["labeled_share"]) == pytest.approx(share, 1e-3)
    for row in rows.values():
        assert (tmp_path / "data" / row["mask"]).is_file()
    head = third.read_text().splitlines()
    assert head[0] == "# u2pl data merge dataset-2.yaml round-2 (png)"
    assert head[1].startswith("# 4 labelled images: 1 merged. Where each mask came from: ")


def test_version_stands_by_itself(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    second = merge_corrections(path, corrected(tmp_path / "back", "unlabeled_0")).path
    assert second is not None
    third = merge_corrections(second, corrected(tmp_path / "again", "unlabeled_1")).path
    assert third is not None
    expected = truth(load_dataset(third))
    second.unlink()
    for folder in (tmp_path / "data/dataset-2-files", tmp_path / "data/masks"):
        shutil.rmtree(folder)
    found = truth(load_dataset(third))
    assert len(found) == 6
    assert all(np.array_equal(found[name], mask) for name, mask in expected.items())


def test_same_corrections_again_are_nothing_to_do(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "unlabeled_0", "unlabeled_1")
    second = merge_corrections(path, back).path
    assert second is not None
    before = files_below(tmp_path)
    result = merge_corrections(second, back)
    assert result.path is None
    assert result.already == ("unlabeled/unlabeled_0", "unlabeled/unlabeled_1")
    with pytest.raises(
        UserError, match=r"dataset-2\.yaml is there already, and nothing is written"
    ):
        merge_corrections(path, back)
    assert files_below(tmp_path) == before


def test_labelled_images_get_other_masks_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "labeled_2", "unlabeled_0")
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=r"1 images are labelled in .* already, with other masks: "):
        merge_corrections(path, back)
    assert files_below(tmp_path) == before
    result = merge_corrections(path, back, relabel=True)
    assert (result.merged, result.relabeled) == (("unlabeled_0",), ("labeled_2",))
    assert result.path is not None
    new = load_dataset(result.path)
    assert [s.image.stem for s in new.labeled][:4] == [f"labeled_{i}" for i in range(4)]
    assert np.array_equal(truth(new)["labeled_2"], mask_of(2))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("val_1", "unlabeled_0"), "'val_1' is an image of 'val' in .* never trained on"),
        (("frame_1", "unlabeled_0"), "1 masks belong to no image of .*: frame_1; name the folder"),
        (("unlabeled_0", "unlabeled/unlabeled_0"), "are masks of one image"),
    ],
)
def test_masks_of_other_images_are_refused_by_name(
    tmp_path: Path, names: tuple[str, ...], what: str
) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", *names)
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=what):
        merge_corrections(path, back)
    assert files_below(tmp_path) == before


def test_masks_of_no_image_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "frame_1", "unlabeled_0")
    result = merge_corrections(path, back, skip_unmatched=True)
    assert (result.merged, result.unmatched) == (("unlabeled_0",), ("frame_1",))


def test_names_that_two_images_have_need_their_folder(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    for folder in ("images", "unlabeled"):
        shutil.copy(tmp_path / "data/unlabeled/unlabeled_0.png", tmp_path / f"data/{folder}/x1.png")
    shutil.copy(tmp_path / "data/masks/labeled_0.png", tmp_path / "data/masks/x1.png")
    back = corrected(tmp_path / "back", "x1")
    with pytest.raises(UserError, match=r"'x1' may be .*; name the folder that names count from"):
        merge_corrections(path, back)
    result = merge_corrections(path, back, images=tmp_path / "data/unlabeled")
    assert result.merged == ("x1",)
    assert result.path is not None
    assert len(load_dataset(result.path).labeled) == 6


def test_images_in_both_training_sections_stay_there(tmp_path: Path) -> None:
    """Many data sets name the labelled images among the unlabelled ones, too."""
    path = write_dataset(tmp_path / "data")
    tree = yaml.safe_load(path.read_text())
    tree["unlabeled"]["images"] = ["unlabeled/unlabeled_0.png", "images/labeled_0.png"]
    path.write_text(yaml.safe_dump(tree))
    result = merge_corrections(path, corrected(tmp_path / "back", "unlabeled_0"))
    assert result.path is not None
    new = load_dataset(result.path)
    assert [s.image.stem for s in new.unlabeled] == ["labeled_0"]
    assert len(new.labeled) == 5


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "unlabeled_0")
    Image.new("L", (56, 41)).save(back / "unlabeled_1.png")
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=r"unlabeled_1\.png: the mask is 56 x 41 pixels"):
        merge_corrections(path, back)
    assert files_below(tmp_path) == before


def test_masks_without_a_label_and_those_nobody_touched_stay_unlabelled(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "unlabeled_0", "unlabeled_1")
    Image.new("L", (56, 40), 255).save(back / "unlabeled_2.png")
    handed_out = tmp_path / "out"
    corrected(handed_out / "masks", "unlabeled_0")
    result = merge_corrections(path, back, pseudo_labels=handed_out)
    assert result.merged == ("unlabeled_1",)
    assert (result.unchanged, result.empty) == (("unlabeled_0",), ("unlabeled_2",))
    (back / "unlabeled_1.png").unlink()
    with pytest.raises(UserError, match=r"corrects no image: 1 have no labelled pixel .*; 1 are"):
        merge_corrections(path, back, pseudo_labels=handed_out, out=tmp_path / "data/other.yaml")
    with pytest.raises(UserError, match="Expected the folder that u2pl label wrote"):
        merge_corrections(path, back, pseudo_labels=back, out=tmp_path / "data/other.yaml")


def test_new_version_may_lie_elsewhere(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", tags=True)
    out = tmp_path / "versions/mine.yaml"
    result = merge_corrections(path, corrected(tmp_path / "back", "unlabeled_5"), out=out)
    new, old = load_dataset(out), load_dataset(path)
    assert result.path == out
    assert new.val == old.val
    assert new.unlabeled == old.unlabeled[:5]  # their tags, too
    assert all(sample.tags for sample in new.unlabeled)
    assert np.array_equal(truth(new)["unlabeled_5"], mask_of(5))


def test_last_unlabelled_image_takes_the_section_with_it(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", num_unlabeled=1)
    result = merge_corrections(path, corrected(tmp_path / "back", "unlabeled_0"))
    assert result.path is not None
    assert load_dataset(result.path).unlabeled == ()


def test_data_set_without_labels_gets_its_first(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", num_labeled=0)
    result = merge_corrections(path, corrected(tmp_path / "back", "unlabeled_0"))
    assert result.path is not None
    assert len(load_dataset(result.path).labeled) == 1


def test_faulty_mask_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "unlabeled_0")
    (back / "unlabeled_1.png").write_bytes(b"no image")
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=r"unlabeled_1\.png"):
        merge_corrections(path, back)
    assert files_below(tmp_path) == before
    assert not (tmp_path / "data/dataset-2-files").exists()


def test_out_must_be_a_new_yaml_file(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data")
    back = corrected(tmp_path / "back", "unlabeled_0")
    for out in (tmp_path / "x", tmp_path / "x.txt"):
        with pytest.raises(UserError, match=r"Expected a file name with \.yaml for --out"):
            merge_corrections(path, back, out=out)
    (tmp_path / "data/dataset-2-files").mkdir()
    with pytest.raises(UserError, match="dataset-2-files is there already"):
        merge_corrections(path, back)
