from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from factories import write_dataset
from tiny import tiny_overrides
from u2pl.config import Config
from u2pl.errors import UserError
from u2pl.report.compare import flat
from u2pl.sweep.cells import Cell, differences, identity, planned
from u2pl.sweep.results import look
from u2pl.sweep.schedule import Schedule
from u2pl.sweep.train import Outcome


def cells_of(folder: Path, **changes: Any) -> list[Cell]:
    """The cells of a sweep on tiny data, results in ``out``."""
    if not (folder / "data").exists():
        write_dataset(folder / "data", num_labeled=8, tags=True)
    tree = {
        "name": "tiny",
        "recipe": "demo",
        "data": "data",
        "seeds": [0, 1],
        "common": tiny_overrides(train__steps=2),
        "rows": {"a": None, "b": None},
    }
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))
    with planned(path, out=folder / "out") as plan:
        return list(plan.cells)


def test_all_rows_of_the_first_seed_begin_first(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, shares=["1/2", "1/4"])
    assert [(c.seed, c.share, c.row) for c in cells][:5] == [
        (0, "1/2", "a"),
        (0, "1/2", "b"),
        (0, "1/4", "a"),
        (0, "1/4", "b"),
        (1, "1/2", "a"),
    ]
    assert cells[2].folder == tmp_path / "out/cells/a/1of4/seed-0"
    assert cells[0].data["labeled"] == cells[1].data["labeled"] != cells[4].data["labeled"]


def test_dealt_images_are_those_of_the_seed_for_every_row(tmp_path: Path) -> None:
    data = {"file": "data", "deal": {"val": {"unlabeled": 1}}}
    cells = cells_of(tmp_path, data=data, seeds=[0, 1, 2, 3])
    by_seed = {cell.seed: cell.data["val"] for cell in cells if cell.row == "a"}
    assert {cell.seed: cell.data["val"] for cell in cells if cell.row == "b"} == by_seed
    assert len(set(by_seed.values())) > 1


def test_bookkeeping_and_places_are_no_part_of_an_identity(tmp_path: Path) -> None:
    config = Config()
    files = [tmp_path / name for name in ("a.pth", "b.pth", "c.pth")]
    for file, content in zip(files, (b"1", b"1", b"2"), strict=True):
        file.write_bytes(content)
    same = config.with_overrides({"train.log_every": 7, "data.num_workers": 3})
    assert identity(config, {}) == identity(same, {})
    first, copy, other = (
        identity(config.with_overrides({"model.weights": file}), {}) for file in files
    )
    assert first == copy
    assert differences(first, other)[0].startswith("model.weights was sha256:")
    with pytest.raises(UserError, match=r"model.weights: cannot read .*none\.pth"):
        identity(config.with_overrides({"model.weights": tmp_path / "none.pth"}), {})


def test_setting_that_came_later_had_its_default() -> None:
    now = flat(Config().model_dump(mode="json"))
    before = {key: value for key, value in now.items() if key != "method.temperature"}
    assert differences(before, now) == []
    assert differences(before, now | {"method.temperature": 0.1}) == [
        "method.temperature was 0.5, is 0.1"
    ]
    assert differences(now | {"method.gone": 1}, now) == ["method.gone was 1, is None"]


def test_cell_that_takes_from_another_changes_with_it(tmp_path: Path) -> None:
    def taker(setting: dict[str, Any]) -> Cell:
        rows = {"makes": {"set": setting}, "takes": {"take": {"weak.seeds_from": "makes"}}}
        return cells_of(tmp_path, setting="weak", rows=rows, seeds=[0])[1]

    first, same, other = (taker({"weak.steps": steps}) for steps in (5, 5, 6))
    assert first.overrides["weak.seeds_from"] == str(tmp_path / "out/cells/makes/seed-0")
    assert first.sha256 == same.sha256 != other.sha256
    assert [text.split(" was ")[0] for text in differences(first.settings, other.settings)] == [
        "weak.seeds_from"
    ]


def test_run_of_another_command_is_left_alone(tmp_path: Path) -> None:
    cell = cells_of(tmp_path)[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text("recipe: demo\n")
    status = look(cell, [])
    assert (status.state, status.detail) == (
        "changed",
        "the folder holds a run that no sweep has begun",
    )


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"row": "a"}', '{"row": "a", "share": null, "seed": 0, "scores": {}}']
)
def test_damaged_result_counts_as_none(tmp_path: Path, text: str) -> None:
    cell = cells_of(tmp_path)[0]
    cell.folder.mkdir(parents=True)
    cell.result.write_text(text)
    cell.begun.write_text(text)
    cell.failure.write_text(text)
    assert look(cell, []).state in ("missing", "changed", "failed")


def test_failure_elsewhere_is_taken_over_and_an_old_one_is_tried_again(tmp_path: Path) -> None:
    first, second, *_ = cells_of(tmp_path)
    for cell in (first, second):
        cell.folder.mkdir(parents=True)
    second.failure.write_text('{"attempt": "1", "error": "Old."}')
    schedule = Schedule([first, second])
    first.failure.write_text('{"attempt": "2", "error": "New."}')
    assert schedule.next() == second
    assert schedule.outcomes == {first.folder: Outcome("failed", "New.")}


def test_cell_of_another_sweep_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("u2pl.sweep.schedule.POLL_SECONDS", 0.0)
    cell = cells_of(tmp_path)[0]
    schedule = Schedule([cell])
    cell.lock.parent.mkdir(parents=True)
    cell.lock.write_text('{"host": "far", "process": 1, "machine": "far"}')
    assert look(cell, []).detail == "process 1 on far"
    assert schedule.next() is None
    assert [schedule.begin_to_wait() for _ in range(3)] == [True, False, False]
    assert not schedule.is_over
    cell.lock.unlink()
    assert schedule.next() == cell
    schedule.end(cell, Outcome("elsewhere"))
    assert not schedule.is_over
    assert schedule.next() == cell
