"""Archives and annotations of other tools, damaged: a result or a sentence.

Of `data init`, and of `data merge`, which leaves nothing behind where it refuses.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from factories import write_dataset
from fuzz.trial import mutations, rounds, trials
from u2pl.data.init import init_dataset
from u2pl.data.merge import merge_corrections

LABEL_STUDIO = Path(__file__).parent.parent / "data/init/label_studio.json"
ODD: list[Any] = [None, -1, 10**30, 1e308, float("nan"), "", "\x1b[2J", [], {}, [[]], True]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for place in range(3):
        Image.new("RGB", (56, 40)).save(tmp_path / f"images/labeled_{place}.png")
    return tmp_path


def coco() -> dict[str, Any]:
    size = {"height": 40, "width": 56}
    images = [{"id": i, "file_name": f"labeled_{i}.png", **size} for i in range(3)]
    shapes = [
        [[1, 1, 20, 1, 20, 20]],
        {"size": [40, 56], "counts": [40, 40 * 55]},
        {"size": [40, 56], "counts": "X1hT2"},
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": shape}
        for i, shape in enumerate(shapes)
    ]
    categories = [{"id": 1, "name": "car"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON, without the numbers of long lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict) or (isinstance(value, list) and len(value) < 20):
            found += places(value, (*path, key))
    return found


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(tree))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def attempt(group: Any, case: str, source: Path) -> None:
    group.attempt(case, lambda: init_dataset(source, val="1", overwrite=True))
    left = {path.name for path in source.parent.iterdir()}
    group.expect(case, left <= {"images", source.name, "dataset.yaml", "dataset-files"}, str(left))
    shutil.rmtree(source.parent / "dataset-files", ignore_errors=True)


@pytest.mark.parametrize("kind", ["coco", "labelstudio"])
def test_json_with_odd_values_ends_in_a_result_or_a_sentence(folder: Path, kind: str) -> None:
    tree = coco() if kind == "coco" else json.loads(LABEL_STUDIO.read_text())
    file, generator = folder / "export.json", np.random.default_rng(0)
    found = places(tree)
    with trials(f"{kind} annotations") as group:
        for turn in range(rounds(120, long=3000)):
            path = found[turn % len(found)]
            value = ODD[int(generator.integers(len(ODD)))]
            file.write_text(json.dumps(replaced(tree, path, value)))
            attempt(group, f"{path} = {value!r}", file)
        file.write_text(json.dumps(tree))
        attempt(group, "as it is", file)
        group.expect("as it is", (folder / "dataset.yaml").exists(), "no result")


def test_damaged_json_ends_in_a_result_or_a_sentence(folder: Path) -> None:
    file = folder / "export.json"
    content = json.dumps(coco()).encode()
    with trials("torn annotations") as group:
        for case, damaged in mutations(content, count=rounds(15, long=300), seed=0):
            file.write_bytes(damaged)
            attempt(group, case, file)


def test_damaged_archive_ends_in_a_result_or_a_sentence(folder: Path) -> None:
    file = folder / "task.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "background:0,0,0::\ncar:9,9,9::\n")
        for place in range(3):
            mask = np.zeros((40, 56, 3), np.uint8)
            mask[place:20] = 9
            Image.fromarray(mask).save(folder / "mask.png")
            archive.write(folder / "mask.png", f"SegmentationClass/labeled_{place}.png")
    (folder / "mask.png").unlink()
    content = file.read_bytes()
    with trials("torn archives") as group:
        attempt(group, "as it is", file)
        for case, damaged in mutations(content, count=rounds(15, long=300), seed=1):
            file.write_bytes(damaged)
            attempt(group, case, file)


def attempt_merge(group: Any, case: str, dataset: Path, source: Path) -> None:
    out = dataset.with_name("next.yaml")
    result = group.attempt(case, lambda: merge_corrections(dataset, source, out=out))
    left = [path for path in dataset.parent.iterdir() if path.name.startswith("next")]
    group.expect(case, len(left) == (2 if result is not None and result.path else 0), str(left))
    out.unlink(missing_ok=True)
    shutil.rmtree(dataset.with_name("next-files"), ignore_errors=True)


def to_merge(folder: Path) -> Path:
    """A data set whose unlabelled images are called as the annotations call theirs."""
    dataset = write_dataset(folder / "data", num_labeled=0, num_unlabeled=3, size=(40, 56))
    for place in range(3):
        old = folder / f"data/unlabeled/unlabeled_{place}.png"
        old.rename(old.with_name(f"labeled_{place}.png"))
    text = dataset.read_text().replace("ground", "car")
    dataset.write_text(text)
    return dataset


@pytest.mark.parametrize("kind", ["coco", "labelstudio"])
def test_merged_json_with_odd_values_ends_in_a_result_or_a_sentence(
    tmp_path: Path, kind: str
) -> None:
    tree = coco() if kind == "coco" else json.loads(LABEL_STUDIO.read_text())
    dataset = to_merge(tmp_path)
    file, generator = tmp_path / "export.json", np.random.default_rng(1)
    found = places(tree)
    with trials(f"{kind} corrections") as group:
        for turn in range(rounds(80, long=2000)):
            path = found[int(generator.integers(len(found)))]
            value = ODD[turn % len(ODD)]
            file.write_text(json.dumps(replaced(tree, path, value)))
            attempt_merge(group, f"{path} = {value!r}", dataset, file)
        file.write_text(json.dumps(tree))
        attempt_merge(group, "as it is", dataset, file)
        group.expect("as it is", group.refused < rounds(80, long=2000), "all of it was refused")


def test_damaged_yolo_ends_in_a_result_or_a_sentence(tmp_path: Path) -> None:
    dataset = to_merge(tmp_path)
    tree = tmp_path / "yolo"
    (tree / "labels/train").mkdir(parents=True)
    texts = {
        tree / "data.yaml": b"names: {0: car, 1: wall}\n",
        tree / "labels/train/labeled_0.txt": b"0 0.1 0.1 0.9 0.1 0.9 0.9\n1 0 0 1e-3 0 1 1 0 1\n",
    }
    with trials("yolo corrections") as group:
        for path, content in texts.items():
            for other, whole in texts.items():
                other.write_bytes(whole)
            attempt_merge(group, "as it is", dataset, tree)
            group.expect("as it is", group.refused == 0 or path.suffix == ".txt", "refused")
            for case, damaged in mutations(content, count=rounds(10, long=200), seed=2):
                path.write_bytes(damaged)
                attempt_merge(group, f"{path.name}: {case}", dataset, tree)
