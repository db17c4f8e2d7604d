from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from factories import write_dataset
from tiny import tiny_config
from u2pl.data.sources import load_dataset
from u2pl.engine import loop
from u2pl.engine.loop import fit
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.watchdog import Watchdog


def test_hang_is_told_with_its_phase_and_ends_the_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with Watchdog(0.1 / 60, tmp_path, exit_code=75, end=end) as watch:
        watch.phase("loading the images of step 7")
        assert ended.wait(10)
    assert codes == [75]
    shown = capfd.readouterr().err
    assert shown.startswith("Error: Nothing has moved for 0.0016")
    assert "in this phase: loading the images of step 7. Where each thread stands is in" in shown
    assert shown.count("\n") == 1
    assert "test_hang_is_told_with_its_phase" in (tmp_path / "hang.txt").read_text()


@pytest.mark.parametrize("minutes", [0.4 / 60, None])
def test_beats_keep_it_quiet(tmp_path: Path, minutes: float | None) -> None:
    codes: list[int] = []
    with Watchdog(minutes, tmp_path, exit_code=75, end=codes.append) as watch:
        for _ in range(10):
            time.sleep(0.05)
            watch.beat()
    assert codes == []
    assert not list(tmp_path.iterdir())


def test_training_tells_each_of_its_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[str] = []
    original = Watchdog.phase

    def phase(self: Watchdog, name: str) -> None:
        phases.append(name)
        original(self, name)

    monkeypatch.setattr(loop.Watchdog, "phase", phase)
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    fit(tiny_config(train__steps=1), dataset, RunFolder(tmp_path / "a"))
    assert phases == [
        "loading the images of step 1",
        "step 1",
        "evaluation after step 1",
        "writing the checkpoint of step 1",  # the best one
        "writing the checkpoint of step 1",
        "loading the images of step 2",
    ]


def test_hanging_loader_ends_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process would end; here the loader wakes up instead, so that the test can."""
    wake = threading.Event()

    def watchdog(*arguments: Any, **settings: Any) -> Watchdog:
        return Watchdog(*arguments, **settings, end=lambda code: wake.set())

    def hang(*_: Any, **__: Any) -> Any:
        assert wake.wait(20)
        yield from ()

    monkeypatch.setattr(loop, "Watchdog", watchdog)
    monkeypatch.setattr(loop, "training_batches", hang)
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    config = tiny_config(train__steps=1, train__watchdog_minutes=0.2 / 60)
    fit(config, dataset, RunFolder(tmp_path / "a"))
    assert "in this phase: loading the images of step 1." in capfd.readouterr().err
