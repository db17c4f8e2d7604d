from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import write_dataset
from u2pl.data.check import check_dataset
from u2pl.data.init import init_dataset
from u2pl.data.sources import load_dataset
from u2pl.errors import UserError


def user_folder(folder: Path, **options: object) -> Path:
    """Folders of images and masks as a user has them: no dataset.yaml."""
    write_dataset(folder, **options).unlink()  # type: ignore[arg-type]
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_loads_and_passes_the_check(tmp_path: Path) -> None:
    folder = user_folder(tmp_path, tags=True)
    (folder / "classes.txt").write_text("ground\nwall\ntree\n")
    before = content(folder)
    result = init_dataset(folder)
    assert result.path == folder / "dataset.yaml"
    assert result.format == "folders"
    assert check_dataset(load_dataset(folder)).errors == ()
    data = load_dataset(folder)
    assert data.classes == ("ground", "wall", "tree")
    assert {name: len(rows) for name, rows in data.sections.items()} == {
        "labeled": 4, "unlabeled": 6, "val": 3, "test": 0
    }  # fmt: skip
    assert all(sample.tags for sample in data.unlabeled)
    after = content(folder)
    assert set(after) - set(before) == {folder / "dataset.yaml"}
    assert before.items() <= after.items()


def test_every_conclusion_is_a_sentence_and_names_its_reason(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    (folder / "classes.txt").write_text("ground\nwall\ntree\n")
    said = " ".join(init_dataset(folder).conclusions)
    for text in (
        "3 names of classes.txt.",
        "Masks: 7 files (7 grey).",
        "labeled: 4 images of images/ with masks of masks/.",
        "unlabeled: 6 images of unlabeled/.",
    ):
        assert text in said


def test_result_is_plain_values(tmp_path: Path) -> None:
    tree = init_dataset(user_folder(tmp_path, num_classes=2, mask_format="binary")).to_json()
    assert tree["mask_format"] == "binary"
    assert tree["sections"] == {"labeled": 4, "unlabeled": 6, "val": 3, "test": 0}
    assert tree["made"] is None
    assert all(isinstance(sentence, str) for sentence in tree["conclusions"])


def test_dataset_that_is_there_is_not_overwritten_unless_told(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    (folder / "dataset.yaml").write_text("mine: true\n")
    with pytest.raises(UserError, match="is there already; give --overwrite"):
        init_dataset(folder)
    assert (folder / "dataset.yaml").read_text() == "mine: true\n"
    init_dataset(folder, overwrite=True)
    assert len(load_dataset(folder).labeled) == 4


def test_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    (folder / "images" / "extra.png").write_bytes((folder / "images/labeled_0.png").read_bytes())
    init_dataset(folder)
    before = content(folder)
    assert folder / "dataset-files/labeled.txt" in before
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "masks" / "extra.png")
    before = content(folder)
    with pytest.raises(UserError, match="its mask 3 x 3"):
        init_dataset(folder, overwrite=True)
    assert content(folder) == before


def test_folder_of_files_that_somebody_else_made_is_never_replaced(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    (folder / "dataset-files").mkdir()
    (folder / "dataset-files" / "thesis.txt").write_text("all I have")
    with pytest.raises(UserError, match="dataset-files is there already"):
        init_dataset(folder, overwrite=True)
    assert (folder / "dataset-files" / "thesis.txt").read_text() == "all I have"


def test_file_elsewhere_reads_the_same_images(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "data")
    result = init_dataset(folder, out=tmp_path / "sets" / "mine.yaml")
    assert load_dataset(result.path).labeled == result.dataset.labeled
    assert result.dataset.labeled[0].image.is_relative_to(folder)
    assert not (folder / "dataset.yaml").exists()


def test_without_val_nothing_is_guessed(tmp_path: Path) -> None:
    folder = user_folder(tmp_path, num_labeled=10, num_val=0)
    with pytest.raises(UserError, match=r"images to score on .* or let --val 1/5 hold"):
        init_dataset(folder)
    assert not (folder / "dataset.yaml").exists()
    result = init_dataset(folder, val="1/5", seed=1)
    data = result.dataset
    assert (len(data.labeled), len(data.val)) == (8, 2)
    assert not {s.image for s in data.labeled} & {s.image for s in data.val}
    assert any("val: 2 of the 10 labelled images" in text for text in result.conclusions)
    again = init_dataset(folder, val="1/5", seed=1, overwrite=True).dataset
    assert (again.labeled, again.val) == (data.labeled, data.val)


@pytest.mark.parametrize(("num_val", "val"), [(0, "1/1"), (0, "99"), (3, "1/5")])
def test_val_that_cannot_be_held_out_is_refused(tmp_path: Path, num_val: int, val: str) -> None:
    folder = user_folder(tmp_path, num_val=num_val)
    with pytest.raises(UserError, match=r"--val|--labeled|ask for fewer"):
        init_dataset(folder, val=val)
    assert not (folder / "dataset.yaml").exists()
    assert not (folder / "dataset-files").exists()


def test_folder_that_can_be_read_in_two_ways_is_told_and_the_way_can_be_chosen(
    tmp_path: Path,
) -> None:
    folder = user_folder(tmp_path)
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir()
    with pytest.raises(UserError, match=r"looks like folders \(.*\) and like voc .* --format"):
        init_dataset(folder)
    assert init_dataset(folder, format="folders").format == "folders"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"format": "yolo"}, "Expected a format of folders, voc"),
        ({"format": "coco"}, "does not look like coco"),
        ({"images": Path("/no/such/folder")}, "Expected a folder of images"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path: Path, arguments: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        init_dataset(user_folder(tmp_path), **arguments)  # type: ignore[arg-type]


def test_folder_of_nothing_known_is_told_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected images/ and masks/ in"):
        init_dataset(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        init_dataset(tmp_path / "none")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"Expected a folder, a \.json or a \.zip"):
        init_dataset(tmp_path / "a.txt")


def test_yaml_is_plain_and_says_who_wrote_it(tmp_path: Path) -> None:
    path = init_dataset(user_folder(tmp_path)).path
    assert path.read_text().startswith("# u2pl data init\n")
    assert set(yaml.safe_load(path.read_text())) == {
        "classes", "ignore_index", "mask_format", "labeled", "unlabeled", "val"
    }  # fmt: skip
