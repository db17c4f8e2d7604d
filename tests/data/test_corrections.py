"""Corrected masks of every kind, those that ``u2pl label`` writes among them."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories import write_dataset
from u2pl.data.corrections import Correction, read_corrections
from u2pl.data.images import write_mask
from u2pl.data.sources import Dataset, load_dataset
from u2pl.errors import UserError
from u2pl.labeling.formats import Entry, Wishes, write_format

SIZE = (40, 56)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_dataset(tmp_path / "data"))


def true_mask(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 4, (5, 7))
    return np.array([0, 1, 2, 255])[blocks].repeat(8, 0).repeat(8, 1)


def handed_out(format: str, folder: Path, dataset: Dataset) -> Path:
    """What ``u2pl label`` writes of two images, as it may be merged."""
    entries = []
    for number in range(2):
        path = folder / "masks" / f"{number}.png"
        write_mask(path, true_mask(number), colors=dataset.colors)
        entries.append(Entry(f"sub/unlabeled_{number}.png", SIZE, path, 0.75))
    wishes = Wishes(dataset.classes, dataset.colors, 255, simplify=0.0, min_area=0.0)
    files = write_format(format, folder, entries, wishes)
    if format == "labelstudio":  # an annotator accepts what is there
        tasks = json.loads(files[0].read_text())
        for task in tasks:
            task["annotations"] = task["predictions"]
        files[0].write_text(json.dumps(tasks))
    return files[0]


def read(source: Path, dataset: Dataset, **options: str) -> tuple[str, tuple[Correction, ...]]:
    scratch = source.parent / f"scratch-{len(list(source.parent.glob('scratch-*')))}"
    found = read_corrections(source, dataset, scratch=scratch, **options)  # type: ignore[arg-type]
    return found.format, found.items


@pytest.mark.parametrize("format", ["png", "coco", "cvat", "labelstudio", "yolo"])
def test_what_label_writes_comes_back_pixel_for_pixel(
    tmp_path: Path, dataset: Dataset, format: str
) -> None:
    found, items = read(handed_out(format, tmp_path / "out", dataset), dataset)
    assert found == format
    assert len(items) == 2
    for number, item in enumerate(items):
        assert f"sub/unlabeled_{number}" in item.names
        assert item.size in (None, SIZE)
        assert np.array_equal(item.read(SIZE), true_mask(number))


def test_polygons_of_coco_come_back(tmp_path: Path, dataset: Dataset) -> None:
    pytest.importorskip("pycocotools")
    source = handed_out("coco", tmp_path / "out", dataset).with_name("coco-polygons.json")
    for number, item in enumerate(read(source, dataset)[1]):
        assert np.array_equal(item.read(SIZE), true_mask(number))


@pytest.mark.parametrize("format", ["cvat", "yolo"])
def test_folders_and_archives_are_the_same(tmp_path: Path, dataset: Dataset, format: str) -> None:
    source = handed_out(format, tmp_path / "out", dataset)
    if format == "cvat":
        other = tmp_path / "tree"
        with zipfile.ZipFile(source) as archive:
            archive.extractall(other)
    else:
        packed = tmp_path / "packed"
        shutil.copytree(source, packed / "export")
        other = Path(shutil.make_archive(str(tmp_path / "task"), "zip", packed))
    found, items = read(other, dataset)
    assert found == format
    assert np.array_equal(items[1].read(SIZE), true_mask(1))


def test_class_background_is_black_in_cvat_and_unknown_pixels_have_a_label(
    tmp_path: Path, dataset: Dataset
) -> None:
    text = dataset.path.read_text().replace("ground", "background")
    dataset.path.write_text(text)
    dataset = load_dataset(dataset.path)
    _, items = read(handed_out("cvat", tmp_path / "out", dataset), dataset)
    assert np.array_equal(items[0].read(SIZE), true_mask(0))


@pytest.mark.parametrize("format", ["coco", "cvat", "labelstudio", "yolo"])
def test_uncovered_pixels_are_what_the_user_says(
    tmp_path: Path, dataset: Dataset, format: str
) -> None:
    source = handed_out(format, tmp_path / "out", dataset)
    _, items = read(source, dataset, uncovered="tree")
    mask = true_mask(0)
    assert np.array_equal(items[0].read(SIZE), np.where(mask == 255, 2, mask))


def test_masks_in_the_classes_colors_are_read(tmp_path: Path, dataset: Dataset) -> None:
    """As an editor saves them that knows no palettes: unknown pixels are white."""
    folder = tmp_path / "edited"
    write_mask(folder / "unlabeled_0.png", true_mask(0), colors=dataset.colors)
    with Image.open(folder / "unlabeled_0.png") as image:
        image.convert("RGB").save(folder / "unlabeled_0.png")
    found, items = read(folder, dataset)
    assert found == "png"
    assert np.array_equal(items[0].read(SIZE), true_mask(0))


def test_labels_of_no_class_are_refused_by_name(tmp_path: Path, dataset: Dataset) -> None:
    source = handed_out("coco", tmp_path / "out", dataset)
    source.write_text(source.read_text().replace('"tree"', '"treee"'))
    with pytest.raises(UserError, match=r"the label 'treee' is no class of .* mean 'tree'\?"):
        read(source, dataset)


def test_labels_that_say_unknown_are_ignored(tmp_path: Path, dataset: Dataset) -> None:
    source = handed_out("coco", tmp_path / "out", dataset)
    source.write_text(source.read_text().replace('"tree"', '"void"'))
    mask = true_mask(0)
    assert np.array_equal(read(source, dataset)[1][0].read(SIZE), np.where(mask == 2, 255, mask))


def test_masks_of_ids_that_are_no_class_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    folder = tmp_path / "edited"
    folder.mkdir()
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(folder / "unlabeled_0.png")
    with pytest.raises(UserError, match=r"expected ids 0 to 2 or 255 \(ignore\), got 7"):
        read(folder, dataset)[1][0].read(SIZE)


@pytest.mark.parametrize(
    "line",
    ["0 0.1 0.1 0.5 0.5", "9 0 0 1 0 1 1", "0 0 0 1 0 1", "0 0 0 1 0 1 nan", "x 0 0 1 0 1 1",
     "0 0 0 1 0 1 99"],
)  # fmt: skip
def test_lines_that_are_no_polygons_are_refused(
    tmp_path: Path, dataset: Dataset, line: str
) -> None:
    source = handed_out("yolo", tmp_path / "out", dataset)
    (source / "labels/train/sub/unlabeled_0.txt").write_text(f"\n{line}\n")
    _, items = read(source, dataset)
    with pytest.raises(UserError, match=r"line 2: expected a class of data\.yaml and three"):
        items[0].read(SIZE)


@pytest.mark.parametrize("text", ["names: 3", "names: {a: b}", "nothing: 1", "- 1", "{"])
def test_yolo_without_names_is_refused(tmp_path: Path, dataset: Dataset, text: str) -> None:
    source = handed_out("yolo", tmp_path / "out", dataset)
    (source / "data.yaml").write_text(text)
    with pytest.raises(UserError, match="expected 'names' of the classes"):
        read(source, dataset)


def test_folder_of_nothing_and_of_two_things_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"Expected masks in .*, as PNG or as CVAT, COCO"):
        read(tmp_path / "empty", dataset)
    source = handed_out("coco", tmp_path / "two", dataset)
    handed_out("labelstudio", tmp_path / "two", dataset)
    with pytest.raises(UserError, match="looks like coco and like labelstudio; say which by"):
        read(source.parent, dataset)
    with pytest.raises(UserError, match=r"Expected one JSON file of coco in .*coco-polygons\.json"):
        read(source.parent, dataset, format="coco")


def test_what_nobody_has_corrected_is_not_taken_by_mistake(
    tmp_path: Path, dataset: Dataset
) -> None:
    out = handed_out("png", tmp_path / "out", dataset).parent
    for name in ("manifest.jsonl", "ranking.csv"):
        (out / name).touch()
    with pytest.raises(UserError, match="is what u2pl label has written, before anybody"):
        read(out, dataset)
    tasks = handed_out("labelstudio", tmp_path / "out", dataset)
    rows = json.loads(tasks.read_text())
    for row in rows:
        row["annotations"] = []
    tasks.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="holds no mask of any image"):
        read(tasks, dataset)


def test_unknown_formats_and_classes_are_a_malformed_request(
    tmp_path: Path, dataset: Dataset
) -> None:
    source = handed_out("png", tmp_path / "out", dataset)
    for options in ({"format": "bmp"}, {"uncovered": "grond"}):
        with pytest.raises(UserError) as caught:
            read(source, dataset, **options)
        assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere", dataset)


def test_archive_that_leads_outside_writes_nothing(tmp_path: Path, dataset: Dataset) -> None:
    archive = tmp_path / "task.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("labelmap.txt", "background:0,0,0::\n")
        file.writestr("SegmentationClass/../../evil.png", b"x")
    with pytest.raises(UserError, match="would be written outside of"):
        read(archive, dataset)
    assert not list(tmp_path.rglob("evil.png"))
