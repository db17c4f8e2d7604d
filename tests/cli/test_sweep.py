from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import call
from factories import write_dataset
from tiny import tiny_overrides

ROWS: dict[str, Any] = {
    "supervised": {"setting": "supervised", "about": "labels | alone"},
    # a learning rate that makes the second loss nan
    "bad": {"set": {"optimizer.lr": 1e30, "train.steps": 3}, "seeds": [0], "shares": "1/4"},
    "u2pl": None,
}


@pytest.fixture
def u2pl(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``u2pl("sweep", ...)`` is the exit status of that command."""
    return lambda *arguments: call(monkeypatch, *arguments)


def write_sweep(path: Path, **changes: Any) -> Path:
    """A sweep of tiny trainings on the data set in ``data`` beside it."""
    tree = {
        "name": "tiny",
        "recipe": "demo",
        "data": "data",
        "seeds": [0, 1],
        "shares": ["1/4", "1/2"],
        "common": tiny_overrides(train__steps=2),
        "rows": ROWS,
        "evaluation": {"weights": ["ema", "student"]},
    }
    path.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``data``, a sweep ``s.yaml``, and its first call's folder ``out``."""
    root = tmp_path_factory.mktemp("sweep")
    write_dataset(root / "data", num_labeled=8)
    file = write_sweep(root / "s.yaml")
    with pytest.MonkeyPatch.context() as patch:
        told = ("--json", root / "told.json")
        assert call(patch, "sweep", file, "--out", root / "out", *told) == 1
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "root"))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def states(told: Path) -> dict[str, str]:
    cells = json.loads(told.read_text())["cells"]
    return {f"{c['row']} {c['share']} {c['seed']}": c["state"] for c in cells}


def modified(out: Path) -> dict[Path, int]:
    files = sorted((out / "cells").rglob("*"))
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


# the whole table


def test_table_has_each_cell_once_and_a_failing_one_does_not_stop_the_others(
    finished: Path,
) -> None:
    told = json.loads((finished / "told.json").read_text())
    found = {(line["row"], line["share"], line["seed"]) for line in lines(finished / "out")}
    wanted = {(r, h, s) for r in ("supervised", "u2pl") for h in ("1/4", "1/2") for s in (0, 1)}
    assert found == wanted
    assert len(lines(finished / "out")) == len(wanted)
    assert list(states(finished / "told.json").values()).count("done") == 8
    (bad,) = [cell for cell in told["cells"] if cell["state"] == "failed"]
    assert bad["row"] == "bad"
    assert "At step 2 loss_s became nan" in bad["detail"]


def test_line_says_what_a_result_is_of(finished: Path) -> None:
    line = lines(finished / "out")[0]
    assert len(line["config_sha256"]) == len(line["data_sha256"]) == 64
    assert line["settings"]["train.steps"] == 2
    assert line["scores"]["val"]["ema"]["split_sha256"] == line["data"]["val"]
    assert set(line["scores"]["val"]["student"]["iou"]) == {"ground", "wall", "tree"}
    assert line["seconds"] > 0
    assert line["u2pl"]
    assert line["machine"]


def test_table_is_the_mean_of_its_lines_and_pairs_seeds(finished: Path) -> None:
    table = json.loads((finished / "out/table.json").read_text())
    by_cell = {(x["row"], x["share"], x["seed"]): x for x in lines(finished / "out")}

    def miou(row: str, seed: int) -> float:
        return float(by_cell[row, "1/4", seed]["scores"]["val"]["ema"]["miou"])

    (row,) = [r for r in table["rows"] if (r["row"], r["share"]) == ("u2pl", "1/4")]
    pair = [miou("u2pl", 0), miou("u2pl", 1)]
    assert row["scores"]["val ema"]["mean"] == pytest.approx(sum(pair) / 2)
    assert row["n"] == 2
    (gap,) = [d for d in table["differences"] if (d["row"], d["share"]) == ("u2pl", "1/4")]
    wanted = [miou("u2pl", s) - miou("supervised", s) for s in (0, 1)]
    assert gap["differences"] == pytest.approx(wanted)
    page = (finished / "out/table.md").read_text()
    assert "| supervised, 1/4 | labels \\| alone | 0, 1 |" in page
    assert "1 of 9 cells are not done." in page
    assert (finished / "out/shares.png").read_bytes().startswith(b"\x89PNG")


def test_shares_of_a_seed_are_drawn_once_for_all_rows(finished: Path) -> None:
    drawn = {(x["share"], x["seed"]): set[str]() for x in lines(finished / "out")}
    for line in lines(finished / "out"):
        drawn[line["share"], line["seed"]].add(line["data"]["labeled"])
    assert all(len(hashes) == 1 for hashes in drawn.values())
    assert len({next(iter(hashes)) for hashes in drawn.values()}) == 4


# the second call


def test_each_row_is_trained_by_its_own_method_and_settings(
    tmp_path: Path, u2pl: Callable[..., int]
) -> None:
    write_dataset(tmp_path / "data", num_labeled=4)
    rows = {
        "no_contrast": {"method": "no-contrast"},
        "fixmatch": {"method": "fixmatch", "set": {"method.pseudo_threshold": 0.8}},
        "u2pl": None,
    }
    file = write_sweep(tmp_path / "s.yaml", rows=rows, seeds=[0], shares=["1/2"])
    assert u2pl("sweep", file, "--out", tmp_path / "out") == 0
    trained = {
        name: yaml.safe_load(
            (tmp_path / "out" / "cells" / name / "1of2" / "seed-0" / "config.yaml").read_text()
        )["method"]
        for name in rows
    }
    assert trained["no_contrast"]["contrastive_weight"] == 0
    assert trained["fixmatch"]["contrastive_weight"] == 0
    assert trained["fixmatch"]["pseudo_threshold"] == 0.8
    assert trained["fixmatch"]["unsupervised_scaling"] == "share"
    assert trained["u2pl"]["contrastive_weight"] > 0
    for line in lines(tmp_path / "out"):
        for key, value in trained[line["row"]].items():
            assert line["settings"][f"method.{key}"] == value


def test_training_by_other_settings_than_the_rows_is_no_result(
    root: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "out" / "cells" / "u2pl" / "1of4" / "seed-0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["method"]["temperature"] = 0.25
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").unlink()
    (root / "out" / "results.jsonl").unlink()
    told = root / "again.json"
    assert u2pl("sweep", root / "s.yaml", "--out", root / "out", "--json", told) == 1
    assert states(told)["u2pl 1/4 0"] == "failed"
    (cell,) = [
        c
        for c in json.loads(told.read_text())["cells"]
        if c["state"] == "failed" and c["row"] == "u2pl"
    ]
    assert "trained by other settings than the row's: method.temperature was 0.25" in cell["detail"]


def test_second_call_trains_nothing_that_is_done(root: Path, u2pl: Callable[..., int]) -> None:
    before = modified(root / "out")
    assert u2pl("sweep", root / "s.yaml", "--out", root / "out", "--row", "u2pl") == 0
    assert modified(root / "out") == before
    assert len(lines(root / "out")) == 8


def test_lost_and_torn_lines_come_back_from_the_cells(root: Path, u2pl: Callable[..., int]) -> None:
    file = root / "out/results.jsonl"
    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join(text[:6]) + text[6][:100])
    before = lines_that_are_whole(file)
    assert u2pl("sweep", root / "s.yaml", "--out", root / "out", "--row", "u2pl") == 0
    after = lines_that_are_whole(file)
    assert len(after) == 8
    assert after[:6] == before


def lines_that_are_whole(path: Path) -> list[Any]:
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_results_outlive_their_run_folders(root: Path, u2pl: Callable[..., int]) -> None:
    shutil.rmtree(root / "out/cells")
    told = root / "b.json"
    assert u2pl("sweep", root / "s.yaml", "--out", root / "out", "--dry-run", "--json", told) == 0
    found = states(told)
    assert found.pop("bad 1/4 0") == "missing"
    assert set(found.values()) == {"done"}


def test_another_score_is_made_without_another_training(
    root: Path, u2pl: Callable[..., int]
) -> None:
    file = write_sweep(
        root / "s.yaml", evaluation={"weights": ["ema", "student"], "protocol": "slide"}
    )
    weights = root / "out/cells/u2pl/1of4/seed-0/weights/ema.safetensors"
    before = weights.stat().st_mtime_ns
    chosen = ["--row", "u2pl", "--share", "1/4", "--seed", 0]
    assert u2pl("sweep", file, "--out", root / "out", *chosen) == 0
    assert weights.stat().st_mtime_ns == before
    last = lines(root / "out")[-1]
    assert (last["row"], last["protocol"], last["seed"]) == ("u2pl", "slide", 0)
    assert last["scores"]["val"]["ema"]["protocol"] == "slide"


# a changed file


def test_changed_configuration_is_told_and_never_mixed(
    root: Path, u2pl: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    rows = {"supervised": ROWS["supervised"], "u2pl": {"set": {"method.queue_size": 32}}}
    file = write_sweep(root / "s.yaml", rows=rows, shares=["1/4"])
    before = modified(root / "out")
    assert u2pl("sweep", file, "--out", root / "out") == 1
    shown = capfd.readouterr()
    assert "2 of 4 cells were trained with another configuration" in shown.err
    assert "method.queue_size was 64, is 32" in shown.err
    assert modified(root / "out") == before
    table = json.loads((root / "out/table.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["supervised"]

    assert u2pl("sweep", file, "--out", root / "out", "--redo") == 0
    kept = root / "out/cells/u2pl/1of4/seed-0-before-1"
    assert yaml.safe_load((kept / "config.yaml").read_text())["method"]["queue_size"] == 64
    table = json.loads((root / "out/table.json").read_text())
    assert [(row["row"], row["n"]) for row in table["rows"]] == [("supervised", 2), ("u2pl", 2)]
    assert len(lines(root / "out")) == 10  # the old results are kept, and not in the table


def test_other_images_are_a_change_and_another_place_is_none(
    root: Path, u2pl: Callable[..., int]
) -> None:
    (root / "data").rename(root / "moved")
    line = ["sweep", root / "s.yaml", "--out", root / "out", "--dry-run", "--json", root / "b.json"]
    write_sweep(root / "s.yaml", data="moved")
    assert u2pl(*line) == 0
    assert states(root / "b.json")["u2pl 1/4 0"] == "done"
    (root / "moved/unlabeled/unlabeled_0.png").unlink()
    assert u2pl(*line) == 0
    assert states(root / "b.json")["u2pl 1/4 0"] == "changed"
    cells = json.loads((root / "b.json").read_text())["cells"]
    assert cells[0]["detail"].startswith("the data have other unlabeled")


# before anything is trained


def test_dry_run_lists_every_cell_and_leaves_nothing(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", num_labeled=8)
    file, told = write_sweep(tmp_path / "s.yaml"), tmp_path / "told.json"
    line = ["sweep", file, "--out", tmp_path / "out", "--dry-run", "--json", told]
    assert u2pl(*line) == 0
    assert "9 missing. What the rest costs is not known; add --measure." in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert u2pl(*line, "--measure", "--row", "u2pl", "--jobs", 2) == 0
    assert "4 missing. About 1 minutes, 2 at a time." in capsys.readouterr().out
    found = json.loads(told.read_text())
    assert all(cell["cost"] > 0 for cell in found["cells"])
    assert found["total_seconds"] == pytest.approx(sum(c["cost"] for c in found["cells"]) / 2)
    assert not (tmp_path / "out").exists()


def test_cost_is_that_of_cells_of_the_same_row(
    finished: Path, u2pl: Callable[..., int], tmp_path: Path
) -> None:
    file = write_sweep(finished / "more.yaml", seeds=[0, 1, 2], shares=["1/4"])
    told = tmp_path / "told.json"
    assert u2pl("sweep", file, "--out", finished / "out", "--dry-run", "--json", told) == 0
    found = json.loads(told.read_text())
    seconds = [line["seconds"] for line in lines(finished / "out") if line["row"] == "u2pl"]
    (cell,) = [c for c in found["cells"] if (c["row"], c["seed"]) == ("u2pl", 2)]
    quarter = [x for x in found["cells"] if x["row"] == "u2pl" and x["state"] == "done"]
    assert cell["cost"] == pytest.approx(sum(c["seconds"] for c in quarter) / 2)
    assert len(seconds) == 4
    assert found["unknown"] == 0
    guessed = [c for c in found["cells"] if c["guessed"]]
    assert {c["row"] for c in guessed} == {"bad"}  # which fails, so nothing is known of it
    a_step = max(c["cost"] for c in found["cells"] if c["seed"] == 2) / 2
    assert guessed[0]["cost"] == pytest.approx(a_step * (3 - guessed[0]["step"]))


def test_cost_of_which_nothing_is_known_is_said_to_be_unknown(
    u2pl: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", num_labeled=8)
    file, told = write_sweep(tmp_path / "s.yaml"), tmp_path / "told.json"
    assert u2pl("sweep", file, "--out", tmp_path / "out", "--dry-run", "--json", told) == 0
    found = json.loads(told.read_text())
    assert found["unknown"] == len(found["cells"])
    assert not any(cell["guessed"] for cell in found["cells"])
    assert "What the rest costs is not known; add --measure." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words", "text"),
    [
        ({"rows": {"a": {"recipe": "dmo"}}}, [], "Row 'a': There is no recipe 'dmo'. Did you mean"),
        ({"rows": {"a": {"setting": "sem"}}}, [], "Row 'a': Expected a setting of semi"),
        (
            {"rows": {"a": None, "b": {"set": {"method.tau": 1}}}},
            [],
            "Row 'b': Unknown setting 'method.tau'",
        ),
        ({"common": {"train.steps": 0}}, [], "Row 'supervised': Setting 'train.steps'"),
        ({"common": {"train.seed": 0}}, [], "'train.seed' is set by 'seeds'"),
        ({"rows": {"a": {"set": {"model.encoder": "resnot18"}}}}, [], "Row 'a': timm has no model"),
        ({"common": {"model.weights": "no.pth", "model.pretrained": True}}, [], "cannot read no"),
        ({"shares": ["1/3000000000"]}, [], "Row 'supervised': Expected a fraction such as 1/16"),
        ({"shares": ["90"]}, [], "Expected at most 8 images"),
        ({"data": "none.yaml"}, [], "none.yaml does not exist"),
        ({"data": "$DATA/x"}, [], "paths are below $DATA; add --data"),
        ({"data": None}, [], "The sweep names no data; add --data"),
        ({"rows": {"a": {"dataset": {"val": None}}}}, [], "Row 'a': "),
        ({"rows": {"a": {"dataset": {"vla": 1}}}}, [], "unknown key 'vla'. Did you mean 'val'?"),
        ({"rows": {"a": {"setting": "weak"}}}, [], "Row 'a': "),
        ({"evaluation": {"split": "test"}}, [], "expected images in the section 'test'"),
        (
            {"rows": {"a": {"seeds": 5}, "b": {"take": {"weak.seeds_from": "a"}}}},
            [],
            "Row 'b': It takes weak.seeds_from of the row 'a', which has no cell of share 1/4",
        ),
        ({}, ["--set", "optimizer.lr=1"], "Row 'bad' sets optimizer.lr itself"),
        ({}, ["--row", "u2lp"], "The sweep has no row 'u2lp'. Did you mean 'u2pl'?"),
        ({}, ["--share", "1/3"], "The sweep has no share '1/3'."),
        ({}, ["--seed", "7"], "The sweep has no seed '7'."),
        ({}, ["--jobs", "0"], "Expected at least one job, got 0"),
        ({}, ["--measure"], "--measure needs --dry-run"),
    ],
)
def test_mistake_is_one_sentence_before_anything_is_trained(
    changes: dict[str, Any],
    words: list[str],
    text: str,
    finished: Path,
    tmp_path: Path,
    u2pl: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    file = write_sweep(tmp_path / "s.yaml", **changes)
    assert u2pl("sweep", file, "--out", tmp_path / "out", *words) in (1, 2)
    shown = capfd.readouterr()
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert text in shown.err
    assert not (tmp_path / "out/cells").exists()


# rows that need each other


def test_rows_share_the_seed_masks_of_another_and_the_table_judges_them(
    tmp_path: Path, u2pl: Callable[..., int]
) -> None:
    write_dataset(tmp_path / "data", num_labeled=2, tags=True)
    weak = {"weak.steps": 2, "weak.batch_size": 2, "weak.cam_scales": [1.0], "weak.low": 0.0}
    rows = {
        "u2pl": {"take": {"weak.seeds_from": "makes"}},
        "makes": {"set": {"method.contrastive_weight": 0}},
        "true": {"setting": "supervised", "dataset": {"tags": None}},
    }
    common = tiny_overrides(train__steps=2) | weak
    file = write_sweep(
        tmp_path / "s.yaml", rows=rows, setting="weak", common=common, shares=[], seeds=[0],
        base="makes",
    )  # fmt: skip
    out = tmp_path / "out"
    assert u2pl("sweep", file, "--out", out, "--row", "u2pl") == 0
    assert [line["row"] for line in lines(out)] == ["makes", "u2pl"]
    ours, theirs = (sorted((out / f"cells/{n}/seed-0/seeds").iterdir()) for n in ("u2pl", "makes"))
    assert [f.read_bytes() for f in ours] == [f.read_bytes() for f in theirs]
    assert u2pl("sweep", file, "--out", out) == 0
    table = json.loads((out / "table.json").read_text())
    assert [row["row"] for row in table["seeds"]] == ["makes"]
    assert {row["row"] for row in table["rows"]} == set(rows)


def test_cell_whose_need_has_failed_fails_with_it(
    tmp_path: Path, u2pl: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", num_labeled=2, tags=True)
    rows = {
        "makes": {"set": {"optimizer.lr": 1e30}},
        "takes": {"take": {"weak.seeds_from": "makes"}},
    }
    common = tiny_overrides(train__steps=3) | {"weak.steps": 3, "weak.batch_size": 2}
    file = write_sweep(
        tmp_path / "s.yaml", rows=rows, setting="weak", common=common, shares=[], seeds=[0]
    )
    told = tmp_path / "told.json"
    assert u2pl("sweep", file, "--out", tmp_path / "out", "--json", told) == 1
    first, second = json.loads(told.read_text())["cells"]
    assert first["state"] == second["state"] == "failed"
    assert second["detail"] == "It needs the cell makes, seed 0, which has failed."
    assert "2 of 2 cells have failed" in capfd.readouterr().err


# several processes, and signals


def start(file: Path, out: Path, *words: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "u2pl.cli", "sweep", file, "--out", out, *words]
    return subprocess.Popen(
        [str(word) for word in line],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_two_sweeps_at_once_train_every_cell_once(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_labeled=8)
    rows = {"supervised": ROWS["supervised"], "u2pl": None}
    file = write_sweep(tmp_path / "s.yaml", rows=rows, shares="1/4")
    out = tmp_path / "out"
    both = [start(file, out) for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    found = [(line["row"], line["share"], line["seed"]) for line in lines(out)]
    assert len(found) == len(set(found)) == 4
    for text, _ in answers:  # both end with the whole table
        assert "are not done" not in text
    for log in out.rglob("log.txt"):
        assert log.read_text().count("step 1/2") == 1, log
    assert not list(out.rglob("*.lock*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_sweep_that_is_stopped_saves_and_goes_on_as_if_never_stopped(
    jobs: int, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data", num_labeled=8)
    common = tiny_overrides(train__steps=40, train__eval_every=40)
    file = write_sweep(
        tmp_path / "s.yaml", rows={"u2pl": None}, common=common, shares="1/2", seeds=[0]
    )
    out = tmp_path / "out"
    process = start(file, out, "--jobs", jobs)
    log = out / "cells/u2pl/1of2/seed-0/log.txt"
    wait_for(lambda: log.exists() and "step 3/40" in log.read_text())
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 75, (shown, errors)
    assert "Stopped; 0 of 1 cells are done, and what was trained is saved." in errors
    assert not (out / "results.jsonl").exists()
    assert not list(out.rglob("*.lock*"))
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "sweep", file, "--out", out) == 0
        assert call(patch, "sweep", file, "--out", tmp_path / "whole") == 0
    steps = [line.split(":")[0] for line in log.read_text().splitlines() if ": loss " in line]
    assert steps == [f"step {i}/40" for i in range(1, 41)]  # none was made twice
    weights = "cells/u2pl/1of2/seed-0/weights/ema.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_worker_that_is_killed_fails_its_cell_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_labeled=8)
    rows = {"long": {"set": {"train.steps": 100_000}}, "short": None}
    file = write_sweep(tmp_path / "s.yaml", rows=rows, shares="1/2", seeds=[0])
    out = tmp_path / "out"
    process = start(file, out, "--jobs", 2)
    log = out / "cells/long/1of2/seed-0/log.txt"
    wait_for(lambda: log.exists() and "step 3/" in log.read_text())
    lock = json.loads((out / "cells/long/1of2/seed-0.lock").read_text())
    os.kill(lock["process"], signal.SIGKILL)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 1, (shown, errors)
    assert "long, 1/2, seed 0: failed: Its process ended by signal 9" in shown
    assert [line["row"] for line in lines(out)] == ["short"]
