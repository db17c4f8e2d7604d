from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import call
from factories import write_dataset
from tiny import assignments, tiny_overrides

QUICK = assignments(tiny_overrides())


def test_plan_is_what_train_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file, told = write_dataset(tmp_path / "data"), tmp_path / "plan.yaml", tmp_path / "p.json"
    line = ["plan", data, "--recipe", "demo", "--out", file, "--json", told, *QUICK]
    assert call(monkeypatch, *line) == 0
    said = capsys.readouterr().out
    assert f"u2pl train {data} --recipe {file}" in said
    result = json.loads(told.read_text())
    assert result["measured"]["seconds_semi"] > 0
    assert result["fingerprint"]["images"]["labeled"] > 0
    assert "train.steps" not in result["settings"]  # it was given
    run = tmp_path / "run"
    assert call(monkeypatch, "train", data, "--recipe", file, "--out", run) == 0
    assert json.loads((run / "eval/val.json").read_text())["step"] == 4


def test_plan_does_not_replace_an_edited_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write_dataset(tmp_path / "data"), tmp_path / "plan.yaml"
    file.write_text("train: {steps: 9}\n")
    line = ["plan", data, "--recipe", "demo", "--out", file, "--no-measure"]
    assert call(monkeypatch, *line) == 1
    assert "is there already; add --overwrite" in capsys.readouterr().err
    assert file.read_text() == "train: {steps: 9}\n"
    assert call(monkeypatch, *line, "--overwrite") == 0
    assert "steps: " in file.read_text()
