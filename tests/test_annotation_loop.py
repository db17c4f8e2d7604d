"""The commands of docs/how-to/annotation-loop.md, as they stand there, on a small folder."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from annotators import correct
from commands import call
from tiny import assignments, tiny_overrides
from u2pl.data.sources import load_dataset
from u2pl.data.synthetic import CLASSES, write_streets

PAGE = Path(__file__).parents[1] / "docs/how-to/annotation-loop.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def lay_out(photos: Path) -> dict[str, np.ndarray]:
    """A folder as the page draws it; the true masks of its unlabelled images."""
    streets = photos / "streets"
    write_streets(streets, num_labeled=8, num_unlabeled=0, num_val=2, size=(40, 56))
    names = sorted(path.name for path in (streets / "labeled/images").iterdir())
    truth = {}
    for folder in ("images", "masks", "unlabeled", "val/images", "val/masks"):
        (photos / folder).mkdir(parents=True)
    for name in names:
        image = streets / "labeled/images" / name
        mask = (streets / "labeled/masks" / name).with_suffix(".png")
        if len(truth) < 5:
            truth[image.stem] = np.array(Image.open(mask))
            truth[image.stem][:4] = 255  # what nobody can tell
            shutil.move(image, photos / "unlabeled")
        else:
            shutil.move(image, photos / "images")
            shutil.move(mask, photos / "masks")
    for kind in ("images", "masks"):
        for file in (streets / "val" / kind).iterdir():
            shutil.move(file, photos / "val" / kind)
    shutil.rmtree(streets)
    sections = {
        "labeled": {"images": "images", "masks": "masks"},
        "unlabeled": {"images": "unlabeled"},
        "val": {"images": "val/images", "masks": "val/masks"},
    }
    (photos / "dataset.yaml").write_text(yaml.safe_dump({"classes": list(CLASSES), **sections}))
    return truth


def test_every_command_of_the_page_runs_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = lay_out(Path("photos"))
    before = {path: path.read_bytes() for path in Path("photos").rglob("*") if path.is_file()}
    out, format = Path(), ""
    for command in commands():
        if command[1] == "train":  # a network and a run that take a moment
            command[command.index("default")] = "demo"
            command += assignments(tiny_overrides())
        if command[1] == "label":
            command[command.index("20")] = "2"
            format = command[command.index("--format") + 1]
            out = Path(command[command.index("--out") + 1])
        if command[1:3] == ["data", "merge"]:
            shutil.move(correct(out, format, truth), command[4])
        assert call(monkeypatch, *command[1:]) == 0, command
    assert {path: path.read_bytes() for path in before} == before
    data = load_dataset("photos/dataset-3.yaml")
    assert (len(data.labeled), len(data.unlabeled)) == (7, 1)
    for sample in data.labeled[3:]:
        assert np.array_equal(data.read_mask(sample), truth[sample.image.stem])
    with Path("photos/dataset-3-files/provenance.csv").open(newline="") as file:
        origins = [(row["origin"], row["format"]) for row in csv.DictReader(file)]
    assert sorted(origins) == sorted(
        3 * [("dataset.yaml", "dataset")]
        + 2 * [("task.zip", "cvat")]
        + 2 * [("export.json", "labelstudio")]
    )
    splits = Path("runs/round-3/splits/labeled.txt").read_text().splitlines()
    assert len(splits) == 7
