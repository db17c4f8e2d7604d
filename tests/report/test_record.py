from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from records import write_run
from u2pl.errors import UserError
from u2pl.report.record import read_record


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_run_that_has_ended_is_read_whole(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run"))
    assert record.name == "run"
    assert record.result is not None
    assert record.result.ema.miou == 60.0
    assert record.inspection is not None
    assert record.inspection.sections["val"].classes["road"].support == 100
    assert record.colors["car"] == (2, 100, 200)
    assert len(record.rows) == 42


def test_run_that_goes_on_has_its_metrics(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", ended=False))
    assert record.result is record.inspection is None
    assert record.rows
    assert record.colors == {}


def test_numbers_that_are_not_finite_are_left_out_of_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    odd = [
        {"kind": "train", "step": 3, "loss": None, "loss_s": "x", "loss_u": 2.0},
        {"kind": "odd", "step": 3},
        {"kind": "val", "step": "3"},
        {"kind": "val", "step": -1},
    ]
    lines = [json.dumps(row) for row in odd] + [
        '{"kind": "train", "step": 4, "loss": 1e999}',
        "[1]",
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert read_record(run).rows == (
        {"kind": "train", "step": 3, "loss_u": 2.0},
        {"kind": "train", "step": 4},
    )


def test_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_record(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no run: there is no config.yaml in it."


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("eval/val.json", lambda t: t["ema"].update(miou=1e9), "'ema.miou' is not"),
        ("eval/val.json", lambda t: t["ema"]["confusion"].pop(), "'ema' is not"),
        ("eval/val.json", lambda t: t["ema"]["confusion"][0].pop(), "'ema' is not"),
        ("eval/val.json", lambda t: t.pop("student"), "'student' is not"),
        ("eval/inspection.json", lambda t: t.update(pictures=[{}]), "'pictures.0.section' is not"),
        ("eval/inspection.json", lambda t: t["sections"]["val"].update(reliable=-1), "is not what"),
        ("model.json", lambda t: t.update(colors=[[0, 0, 300]]), "'colors.0.2' is not"),
    ],
)
def test_values_that_cannot_be_are_told(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    run = write_run(tmp_path / "run")
    changed(run / file, change)
    with pytest.raises(UserError) as caught:
        read_record(run)
    text = str(caught.value)
    assert text.startswith(f"{run / file} is damaged: ")
    assert what in text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("no json", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[1]", "it is not what u2pl writes"),
        ('{"step": NaN}', "is not what u2pl writes"),
    ],
)
def test_files_that_are_something_else_are_told(tmp_path: Path, content: str, what: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "eval/val.json").write_text(content)
    with pytest.raises(UserError, match=what):
        read_record(run)
