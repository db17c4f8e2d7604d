from __future__ import annotations

from pathlib import Path

from factories import write_dataset
from tiny import tiny_config
from u2pl.data.sources import load_dataset
from u2pl.engine.trial import try_steps


def test_trial_makes_both_kinds_of_step_and_leaves_nothing(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    before = sorted(tmp_path.rglob("*"))
    trial = try_steps(tiny_config(), dataset, num_steps=1)
    assert trial.seconds_supervised > 0
    assert trial.seconds_semi > 0
    assert sorted(tmp_path.rglob("*")) == before
