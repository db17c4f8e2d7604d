"""The commands of docs/how-to/folders-to-model.md, as they stand there, on a small folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import call
from tiny import assignments, tiny_overrides
from u2pl.data.synthetic import CLASSES, write_streets

PAGE = Path(__file__).parents[1] / "docs/how-to/folders-to-model.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def lay_out(photos: Path, streets: Path) -> None:
    """A folder as the page draws it."""
    write_streets(streets, num_labeled=4, num_unlabeled=2, num_val=2, size=(40, 56))
    photos.mkdir()
    (photos / "val").mkdir()
    (photos / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for old, new in (
        ("labeled/images", "images"),
        ("labeled/masks", "masks"),
        ("unlabeled/images", "unlabeled"),
        ("val/images", "val/images"),
        ("val/masks", "val/masks"),
    ):
        (streets / old).rename(photos / new)


def test_every_command_of_the_page_runs_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "photos", tmp_path / "streets")
    for command in commands():
        if command[1] == "plan":  # a network and a run that take a moment
            command[command.index("default")] = "demo"
            command += assignments(tiny_overrides())
        assert call(monkeypatch, *command[1:]) == 0, command
    names = {command[1] for command in commands()}
    assert names == {"data", "plan", "train", "evaluate", "report", "compare", "predict", "export"}
    for page in ("check.html", "report.html", "compare.html"):
        assert "</html>" in (tmp_path / page).read_text()
    for photo in (tmp_path / "photos/unlabeled").iterdir():
        with Image.open(tmp_path / "labelled/masks" / f"{photo.stem}.png") as mask:
            assert mask.size == (56, 40)
            assert np.asarray(mask).max() < len(CLASSES)
    result = json.loads((tmp_path / "runs/u2pl/eval/val.json").read_text())
    assert list(result["ema"]["iou"]) == list(CLASSES)
    assert (tmp_path / "runs/u2pl/export/onnx/model.onnx").stat().st_size > 100_000
