from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from factories import write_dataset
from tiny import tiny_config
from u2pl.config import load_config
from u2pl.data.sources import load_dataset
from u2pl.engine.run_folder import MetricsLog, RunFolder, absolute_dataset, read_metrics
from u2pl.errors import UserError


def test_created_folder_says_all_about_the_run(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    folder, config = RunFolder(tmp_path / "runs" / "a"), tiny_config()
    folder.create(config, dataset)
    assert folder.read_config() == config
    copy = load_dataset(folder.dataset)
    assert copy.sections == dataset.sections
    assert copy.classes == dataset.classes
    for name in ("labeled", "unlabeled", "val"):
        listed = (folder.path / "splits" / f"{name}.txt").read_text().split()
        assert listed == [sample.name for sample in dataset.sections[name]]
    about = json.loads((folder.path / "environment.json").read_text())
    assert set(about["split_sha256"]) == {"labeled", "unlabeled", "val"}
    assert {"torch", "timm", "numpy"} <= set(about["packages"])
    assert about["dataset"] == str((tmp_path / "data" / "dataset.yaml").resolve())


def test_run_is_never_overwritten(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_config(), dataset)
    with pytest.raises(UserError) as caught:
        folder.create(tiny_config(train__steps=99), dataset)
    assert str(caught.value) == (
        f"{folder.path} already holds a run; go on with it by --resume, or choose another folder "
        "with --out."
    )
    assert folder.read_config().train.steps == 4


def test_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the run folder .*/a: File exists\."):
        RunFolder(tmp_path / "a").create(tiny_config(), dataset)


def test_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path).read_config()
    assert str(caught.value) == f"{tmp_path} holds no run: there is no config.yaml in it."


@pytest.mark.parametrize("root", [None, ".", "sub", "absent"])
def test_dataset_reads_the_same_files_from_anywhere(
    tmp_path: Path, root: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ``root`` is relative, left out, or stands there without a value."""
    inside = tmp_path / "data" / (root if root == "sub" else ".")
    path = write_dataset(inside)
    tree = yaml.safe_load(path.read_text())
    if root != "absent":
        tree["root"] = root
    path = tmp_path / "data" / "dataset.yaml"
    path.write_text(yaml.safe_dump(tree))
    expected = load_dataset(path).sections
    monkeypatch.chdir(tmp_path / "data")
    text = absolute_dataset(Path("dataset.yaml"))
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(text)
    monkeypatch.chdir("/")
    assert load_dataset(elsewhere).sections == expected


def test_names_of_the_files_in_a_run() -> None:
    folder = RunFolder(Path("runs/a"))
    assert folder.checkpoint("best") == Path("runs/a/checkpoints/best.pt")
    assert folder.weights("student") == Path("runs/a/weights/student.safetensors")
    assert folder.metrics.name == "metrics.jsonl"


def rows_of(folder: RunFolder) -> list[tuple[Any, ...]]:
    return [(row["kind"], row["step"], row["loss"]) for row in read_metrics(folder.metrics)]


def test_rows_are_written_at_once_and_go_to_tensorboard(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = MetricsLog(folder, step=0)
    log.write("train", 1, {"loss": 0.5})
    assert rows_of(folder) == [("train", 1, 0.5)]
    log.write("val", 1, {"loss": 0.25})
    log.close()
    assert rows_of(folder) == [("train", 1, 0.5), ("val", 1, 0.25)]
    assert [f for f in os.listdir(tmp_path / "tensorboard") if f.startswith("events.")]


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = MetricsLog(folder, step=0)
    for step in range(1, 6):
        log.write("train", step, {"loss": float(step)})
    log.close()
    log = MetricsLog(folder, step=3)
    log.write("train", 4, {"loss": 44.0})
    log.close()
    assert rows_of(folder) == [
        ("train", 1, 1.0),
        ("train", 2, 2.0),
        ("train", 3, 3.0),
        ("train", 4, 44.0),
    ]


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    assert read_metrics(path) == [{"kind": "train", "step": 1}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_resolved_settings_make_the_same_run_again(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "data"))
    config = tiny_config(data__resize=48, method__denoise_temperature=None)
    folder = RunFolder(tmp_path / "a")
    folder.create(config, dataset)
    assert load_config(folder.config) == config


def test_line_torn_in_the_middle_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste\xff\n3\n{}\n' + b"[" * 100_000 + b'\n{"step": 2}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_number_that_is_not_finite_is_null_in_the_metrics(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path), step=0)
    log.write("val", 1, {"miou_ema": float("nan"), "threshold": float("inf"), "loss": 0.5})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "kind": "val",
        "step": 1,
        "miou_ema": None,
        "threshold": None,
        "loss": 0.5,
    }


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "splits/val.txt"])
def test_link_out_of_the_run_folder_is_told(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    place = folder.path / name
    place.parent.mkdir(parents=True)
    folder.refuse_links()
    (folder.path / "inner").symlink_to(".")
    folder.refuse_links()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link to .*elsewhere, out of the run folder"):
        folder.refuse_links()
