from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_overrides
from u2pl import demo
from u2pl.config import load_config
from u2pl.data.sources import load_dataset
from u2pl.demo import run_demo
from u2pl.errors import UserError

QUICK = tiny_overrides(train__steps=3, train__supervised_steps=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NUM_LABELED": 2, "NUM_UNLABELED": 3, "NUM_VAL": 2}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "SIZE", (48, 48))


@pytest.mark.usefixtures("small")
def test_demo_trains_three_times_on_the_same_streets(tmp_path: Path) -> None:
    stages: list[str] = []
    rows: list[tuple[str, int]] = []
    out = tmp_path / "demo"
    result = run_demo(
        out,
        seed=5,
        overrides=QUICK,
        workers=1,
        on_start=stages.append,
        on_progress=lambda name, progress: rows.append((name, progress.step)),
    )
    assert stages == ["streets", "training"]
    names = ("supervised", "no_contrast", "u2pl")
    assert rows == [(name, step) for name in names for step in (1, 2, 3)]
    assert (result["setting"], result["seed"]) == ("semi", 5)
    for key in ("miou", "miou_student", "iou"):
        assert set(result[key]) == {"supervised", "no_contrast", "u2pl"}
    assert all(0 <= value <= 100 for value in result["miou"].values())
    assert result["seconds"] > 0
    assert json.loads((out / "demo.json").read_text()) == result
    dataset = load_dataset(out / "streets")
    counts = {name: len(samples) for name, samples in dataset.sections.items()}
    assert (counts["labeled"], counts["unlabeled"], counts["val"]) == (2, 3, 2)
    configs = {name: load_config(out / name / "config.yaml") for name in names}
    assert configs["supervised"].setting == "supervised"
    assert configs["supervised"].method.unsupervised_weight == 0
    assert configs["no_contrast"].method.contrastive_weight == 0
    assert configs["no_contrast"].method.unsupervised_weight == 1
    assert configs["u2pl"].method.contrastive_weight > 0
    assert {config.train.seed for config in configs.values()} == {5}
    assert {config.train.steps for config in configs.values()} == {3}


@pytest.mark.usefixtures("small")
def test_trainings_side_by_side_give_what_they_give_one_by_one(tmp_path: Path) -> None:
    seen: set[tuple[str, int]] = set()
    together = run_demo(
        tmp_path / "a",
        overrides=QUICK,
        workers=2,
        on_progress=lambda name, progress: seen.add((name, progress.step)),
    )
    one_by_one = run_demo(tmp_path / "b", overrides=QUICK, workers=1)
    assert together["miou"] == one_by_one["miou"]
    assert together["iou"] == one_by_one["iou"]
    assert {name for name, _ in seen} == set(demo.METHODS)


@pytest.mark.usefixtures("small")
def test_mistake_in_a_worker_arrives_as_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.accumulation is 9") as caught:
        run_demo(tmp_path / "a", overrides=QUICK | {"train.accumulation": 9}, workers=2)
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("small")
def test_demo_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "streets").mkdir()
    with pytest.raises(UserError) as caught:
        run_demo(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} already holds a demo; add --overwrite, or choose another folder with --out."
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("wrong", [{"train.stepz": 3}, {"train.steps": 0}])
def test_wrong_setting_is_told_before_anything_is_painted(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    """Else the corrected command would find a demo already there."""
    with pytest.raises(UserError) as caught:
        run_demo(tmp_path / "demo", overrides=wrong)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "demo" / "streets").exists()


def test_overrides_win_in_all_three_trainings() -> None:
    """The methods differ in the contrast's weight and the setting, in nothing else."""
    assert set(demo.METHODS) == {"supervised", "no_contrast", "u2pl"}
    assert demo.METHODS["u2pl"] == ("semi", {})
    assert demo.METHODS["supervised"] == ("supervised", {})
    assert demo.METHODS["no_contrast"] == ("semi", {"method.contrastive_weight": 0.0})
