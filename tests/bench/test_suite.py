"""The whole benchmark, of sizes that take a moment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from u2pl import bench, cli
from u2pl.bench import suite
from u2pl.bench.page import page
from u2pl.bench.workload import VOC, Workload
from u2pl.errors import UserError

SMALL = Workload(VOC.name, 1, 1, (40, 40), 5, feature_size=8, queue_size=50, num_anchors=8)


def test_result_has_the_keys_that_scripts_read_and_a_page() -> None:
    result = bench.bench(parts=["method"], repetitions=1, workloads=[SMALL], device="cpu")
    assert set(result["ratios"]) == set(suite.RATIOS)
    assert result["ratios"]["method_vs_loops_voc513"] > 0
    assert result["ratios"]["step_vs_bare"] is None
    assert result["host_syncs_per_step"] is None
    assert set(result["phases"]["voc513"]["method"]) == set(result["phases"]["voc513"]["loops"])
    phases, held = result["phases"]["voc513"], result["phase_memory"]["voc513"]
    for work in ("method", "loops"):
        assert set(held[work]) == set(phases[work])
        assert min(held[work].values()) > 0
    row = next(
        line for line in page(json.loads(json.dumps(result))).splitlines() if "| masks |" in line
    )
    assert row.count("|") == 6
    assert "–" not in row


@pytest.mark.parametrize("given", [{"parts": ["speed"]}, {"repetitions": 0}, {"device": "tpu"}])
def test_what_cannot_be_measured_is_named(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match="Expected") as caught:
        bench.bench(**given)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_command_writes_page_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = suite.bench
    monkeypatch.setattr(
        bench,
        "bench",
        lambda **given: run(**given, workloads=[SMALL]),  # as large as a test may be
    )
    arguments = ["--parts", "method", "--repetitions", "1", "--device", "cpu", "--out"]
    monkeypatch.setattr(sys, "argv", ["u2pl", "bench", *arguments, str(tmp_path / "results")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    written = json.loads((tmp_path / "results" / "bench-cpu.json").read_text())
    assert written["device"] == "cpu"
    assert (tmp_path / "results" / "bench-cpu.md").read_text().startswith("# `u2pl bench`")


def test_an_end_by_force_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = suite.bench

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure_steps", ended)
    monkeypatch.setattr(bench, "bench", lambda **given: run(**given, workloads=[SMALL]))
    arguments = ["--parts", "method,step", "--repetitions", "1", "--device", "cpu", "--out"]
    monkeypatch.setattr(sys, "argv", ["u2pl", "bench", *arguments, str(tmp_path)])
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        cli.main()
    written = json.loads((tmp_path / "bench-cpu.json").read_text())
    assert written["ratios"]["method_vs_loops_voc513"] > 0
    assert written["ratios"]["step_vs_bare"] is None
