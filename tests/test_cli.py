from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from commands import call
from factories import write_dataset
from tiny import assignments, tiny_overrides
from u2pl import api, cli, demo, doctor
from u2pl.data.sources import load_dataset
from u2pl.engine.loop import Interrupted
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError

QUICK = assignments(tiny_overrides())
RECIPE = ["--recipe", "demo"]


@pytest.fixture
def u2pl(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``u2pl("train", ...)`` is the exit status of that command."""
    return lambda *arguments: call(monkeypatch, *arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``data`` and a finished run in ``run``."""
    root = tmp_path_factory.mktemp("cli")
    write_dataset(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        status = call(patch, "train", root / "data", *RECIPE, "--out", root / "run", *QUICK)
    assert status == 0
    return root


# the way of a run


def test_run_is_trained_stopped_resumed_scored_and_used(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, run = write_dataset(tmp_path / "data"), tmp_path / "runs" / "a"
    results = [tmp_path / "json" / f"{i}.json" for i in range(4)]
    stop = [*RECIPE, "--out", run, "--seed", 3, "--json", results[0], *QUICK, "train.stop_after=2"]
    assert u2pl("train", dataset, *stop) == 0
    shown = capsys.readouterr().out
    assert "The contrastive loss L_c cannot fall below 0.088 with 5 negatives." in shown
    assert "step 1/4" in shown
    assert "L_s " in shown
    assert "step 2: val mIoU student" in shown
    assert f"Go on with: u2pl train {dataset} --out {run} --resume" in shown
    first = json.loads(results[0].read_text())
    assert (first["step"], first["finished"]) == (2, False)

    assert u2pl("train", dataset, "--out", run, "--resume", "--json", results[1]) == 0
    shown = capsys.readouterr().out
    assert "step 4/4" in shown
    assert "Step 4: val mIoU teacher" in shown
    assert "Go on with" not in shown
    second = json.loads(results[1].read_text())
    assert (second["step"], second["finished"]) == (4, True)
    assert RunFolder(run).read_config().train.seed == 3

    assert u2pl("evaluate", run, "--json", results[2]) == 0
    shown = capsys.readouterr().out
    assert "val, 3 images, protocol whole, ema weights at step 4" in " ".join(shown.split())
    scored = json.loads(results[2].read_text())
    keys = {"miou", "iou", "protocol", "weights", "step", "images", "split_sha256"}
    assert keys <= set(scored)
    assert set(scored["iou"]) == {"ground", "wall", "tree"}
    assert scored["miou"] == second["ema"]["miou"]

    out = tmp_path / "labelled"
    source = tmp_path / "data" / "unlabeled"
    assert u2pl("predict", run, source, "--out", out, "--json", results[3]) == 0
    assert "Wrote 6 masks, overlays, entropy and reliable maps" in capsys.readouterr().out
    assert json.loads(results[3].read_text())["images"] == 6
    for kind in ("masks", "overlays", "entropy", "reliable"):
        assert len(list((out / kind).glob("unlabeled_*.png"))) == 6


def test_two_domains_are_trained_stopped_and_resumed_as_if_never_stopped(
    tmp_path: Path, u2pl: Callable[..., int]
) -> None:
    """Source of another size and other ids, one target class that it lacks, tags on the target."""
    source = write_dataset(tmp_path / "source", size=(60, 48), num_classes=2)
    target = write_dataset(tmp_path / "target", tags=True)
    tree = yaml.safe_load(target.read_text())
    tree["labeled"] = {
        "images": str(source.parent / "images"),
        "masks": str(source.parent / "masks"),
        "id_map": {0: "ground", 1: "wall"},
    }
    target.write_text(yaml.safe_dump(tree))
    settings = [*QUICK, "data.rare_class_temperature=0.1", "data.rare_class_min_pixels=20"]
    settings += ["data.resize_labeled=40", "train.steps=3"]
    arguments = ["train", target, "--recipe", "demo", "--setting", "adapt"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert u2pl(*arguments, "--out", whole, *settings) == 0
    assert u2pl(*arguments, "--out", stopped, *settings, "train.stop_after=2") == 0
    assert u2pl("train", target, "--out", stopped, "--resume") == 0
    config = RunFolder(stopped).read_config()
    assert (config.setting, config.method.mixing) == ("adapt", "classmix_labeled")
    assert config.train.separate_statistics
    for weights in ("ema", "student"):
        first, second = (RunFolder(run).weights(weights).read_bytes() for run in (whole, stopped))
        assert first == second


def test_options_of_evaluate_arrive(root: Path, tmp_path: Path, u2pl: Callable[..., int]) -> None:
    other, result = write_dataset(tmp_path / "data", num_val=2), tmp_path / "a.json"
    options = ["--protocol", "slide", "--weights", "student", "--checkpoint", "best"]
    status = u2pl("evaluate", root / "run", "--dataset", other, *options, "--json", result)
    assert status == 0
    scored = json.loads(result.read_text())
    assert (scored["protocol"], scored["weights"], scored["images"]) == ("slide", "student", 2)
    assert scored["checkpoint"] == "best"


def test_every_weights_stand_side_by_side(
    root: Path, tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "a.json"
    options = ["--all-weights", "--protocol", "slide-24-flip", "--json", result]
    assert u2pl("evaluate", root / "run", "evaluation.classes=[wall,tree]", *options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "protocol slide-flip (24 x 24, stride 16 x 16)" in shown
    assert "mean of 2 classes" in shown
    scored = json.loads(result.read_text())
    assert len(scored["all"]) == 4
    assert scored["miou_classes"] == ["wall", "tree"]


def test_check_of_a_sound_dataset_counts_its_classes(
    root: Path, tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "a.json"
    assert u2pl("data", "check", root / "data", "--json", result) == 0
    report = json.loads(result.read_text())
    assert {"errors", "warnings", "images", "pixels"} <= set(report)
    assert report["errors"] == []
    assert sum(report["pixels"].values()) == 7 * 40 * 56
    shown = capsys.readouterr().out
    assert "labeled 4, unlabeled 6, val 3" in shown
    assert "No errors" in shown


def test_check_says_what_an_id_map_ignores(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, result = write_dataset(tmp_path / "data"), tmp_path / "a.json"
    tree = yaml.safe_load(dataset.read_text())
    tree["labeled"]["id_map"] = {1: "wall", 2: "ground"}
    dataset.write_text(yaml.safe_dump(tree))
    assert u2pl("data", "check", dataset, "--json", result) == 0
    share = json.loads(result.read_text())["unmapped_share"]["labeled"]
    shown = capsys.readouterr().out
    assert f"The id_map of labeled ignores {100 * share:.1f} % of its pixels." in shown
    assert "warning: " in shown
    assert "maps no id to the class 'tree'" in shown


def test_check_of_a_faulty_dataset_exits_with_1(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, result = write_dataset(tmp_path / "data"), tmp_path / "a.json"
    (tmp_path / "data/unlabeled/unlabeled_1.png").write_text("no image")
    assert u2pl("data", "check", dataset, "--json", result) == 1
    (error,) = json.loads(result.read_text())["errors"]
    assert set(error) == {"file", "what", "remedy"}
    assert error["file"].endswith("unlabeled_1.png")
    captured = capsys.readouterr()
    assert f"error: {error['file']}: " in captured.out
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("setting", "first", "name"),
    [("semi", "supervised", "labels alone"), ("adapt", "source_only", "source alone")],
)
def test_demo_prints_its_table_and_writes_the_promised_keys(
    setting: str,
    first: str,
    name: str,
    tmp_path: Path,
    u2pl: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = dataclasses.replace(demo.DEMOS[setting], num_labeled=2, num_unlabeled=2, num_val=2)
    monkeypatch.setitem(demo.DEMOS, setting, few)
    monkeypatch.setattr(demo, "SIZE", (40, 40))
    out, result = tmp_path / "demo", tmp_path / "demo.json"
    arguments = ["--setting", setting, "--out", out, "--seed", 1, "--json", result]
    arguments += [*QUICK, "train.steps=1"]
    assert u2pl("demo", *arguments) == 0
    shown = capsys.readouterr().out
    assert f"U2PL+ against {name}: " in shown
    assert "mean" in shown
    written = json.loads(result.read_text())
    assert {"setting", "seed", "miou", "seconds"} <= set(written)
    assert written["report"] == str(out / "u2pl" / "report.html")
    assert f"Look at {written['report']} with a browser." in shown
    inspection = json.loads((out / "u2pl/eval/inspection.json").read_text())
    assert list(inspection["sections"]) == ["val", "unlabeled"]
    assert set(written["miou"]) == {first, "no_contrast", "u2pl"}

    assert u2pl("demo", *arguments) == 1
    assert "already holds a demo" in capsys.readouterr().err
    assert u2pl("demo", *arguments, "--overwrite") == 0


def test_report_of_a_run_is_one_file(
    root: Path, tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(root / "run", tmp_path / "run")
    result, page = tmp_path / "a.json", tmp_path / "pages" / "a.html"
    assert u2pl("report", run, "--out", page, "--images", 2, "--json", result) == 0
    shown = capsys.readouterr().out
    assert "val, 2 images: the surest " in shown
    assert f"Wrote {page}" in shown
    written = json.loads(result.read_text())
    assert (written["pictures"], written["ended"]) == (2, True)
    assert written["bytes"] == page.stat().st_size
    assert written["inspection"] == json.loads((run / "eval/inspection.json").read_text())
    # the page alone, of what was found before
    (run / "dataset.yaml").unlink()
    assert u2pl("report", run) == 1
    assert "dataset.yaml does not exist" in capsys.readouterr().err
    assert u2pl("report", run, "--no-inspect", "--json", result) == 0
    assert json.loads(result.read_text())["report"] == str(run / "report.html")


def test_report_of_a_run_that_goes_on_has_its_curves(
    root: Path, tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(root / "run", tmp_path / "run")
    (run / "model.json").unlink()
    (run / "eval/val.json").unlink()
    assert u2pl("report", run) == 0
    assert "Training has not ended" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    assert u2pl("report", tmp_path) == 1
    assert "holds no run" in capsys.readouterr().err


def test_runs_are_compared(
    root: Path, tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(root / "run", tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("  seed: 0", "  seed: 1"))
    result, page = tmp_path / "a.json", tmp_path / "a.html"
    assert u2pl("compare", root / "run", other, "--out", page, "--json", result) == 0
    assert "Note: " in capsys.readouterr().out
    (group,) = json.loads(result.read_text())["groups"]
    assert (group["n"], group["deviation"]) == (2, 0.0)
    assert page.is_file()
    assert u2pl("compare", root / "run") == 2
    assert "at least two runs" in capsys.readouterr().err


def test_training_from_tags_tells_its_stages(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", num_labeled=0, num_unlabeled=4, tags=True)
    few = ["weak.steps=3", "weak.batch_size=2", "weak.cam_scales=[1]", "weak.refine_iterations=1"]
    arguments = [tmp_path / "data", *RECIPE, "--setting", "weak", "--out", tmp_path / "run"]
    assert u2pl("train", *arguments, *QUICK, *few, "train.steps=2") == 0
    shown = capsys.readouterr().out
    stages = [shown.index(text) for text in ("classifier: 3/3", "seeds: 4/4", "training: step 2/2")]
    assert stages == sorted(stages)


def test_demos_of_several_seeds_and_settings_do_not_stand_in_each_others_way(
    tmp_path: Path, u2pl: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def noted(out: Path, **_: Any) -> None:
        folders.append(out)
        raise UserError("enough")

    monkeypatch.setattr(demo, "run_demo", noted)
    for arguments in ([], ["--seed", 1], ["--setting", "weak"], ["--out", tmp_path / "mine"]):
        assert u2pl("demo", *arguments) == 1
    names = ["demo-runs/semi-0", "demo-runs/semi-1", "demo-runs/weak-0", tmp_path / "mine"]
    assert folders == [Path(name) for name in names]


def test_interrupted_demo_says_so_in_a_sentence(
    tmp_path: Path,
    u2pl: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "data"))

    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted(7, dataset, RunFolder(tmp_path / "demo" / "u2pl"))

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert u2pl("demo", "--out", tmp_path / "demo") == 75
    assert capsys.readouterr().err.startswith("Error: Stopped after step 7; the state is saved.")


def test_predict_goes_on_and_takes_its_share_of_the_images(
    root: Path,
    tmp_path: Path,
    u2pl: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out, result = root / "data/unlabeled", tmp_path / "out", tmp_path / "a.json"
    command = ["predict", root / "run", source, "--out", out, "--save", "masks,colors"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert u2pl(*command, "--json", result) == 0
    assert "Process 1: Wrote 3 masks and colors" in capsys.readouterr().out
    assert not result.exists()  # the first process writes it
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert u2pl(*command, "--resume", "--json", result) == 0
    assert "3 images were whole before." in capsys.readouterr().out
    told = json.loads(result.read_text())
    assert (told["images"], told["skipped"], told["total"]) == (3, 3, 6)
    assert {folder.name for folder in out.iterdir() if folder.is_dir()} == {"masks", "colors"}


def test_export_is_verified_and_a_difference_is_a_failure(
    root: Path,
    tmp_path: Path,
    u2pl: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["export", root / "run", "--format", "safetensors", "--verify"]
    command += ["--out", tmp_path / "out", "--json", tmp_path / "a.json"]
    assert u2pl(*command) == 0
    shown = capsys.readouterr().out
    assert "trained from scratch" in shown
    assert "100.0000 % of the pixels of 3 images are equal" in shown
    told = json.loads((tmp_path / "a.json").read_text())
    assert (told["equal_pixels"], told["max_abs_difference"]) == (1, 0)
    worse = {"equal_pixels": 0.9989, "max_abs_difference": 2.0, "images": 3}
    monkeypatch.setattr("u2pl.exporting.export.compare", lambda *_, **__: worse)
    assert u2pl(*command) == 1
    assert "Expected at least 99.9 % equal pixels, got 99.89 %" in capsys.readouterr().err


def test_every_command_helps_with_an_example() -> None:
    runner = CliRunner()
    for command in (
        ["demo"],
        ["train"],
        ["evaluate"],
        ["predict"],
        ["export"],
        ["doctor"],
        ["data", "check"],
    ):
        result = runner.invoke(cli.app, [*command, "--help"])
        assert result.exit_code == 0
        assert f"Example: u2pl {' '.join(command)}" in " ".join(result.stdout.split())
    listed = runner.invoke(cli.app, ["--help"]).stdout
    assert all(
        name in listed for name in ("demo", "train", "evaluate", "predict", "export", "data")
    )


def test_doctor_shows_versions_and_tests_the_installation(
    tmp_path: Path,
    u2pl: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact = {"resumed_exactly": True, "predicted": [48, 48], "seconds": 9.0}
    monkeypatch.setattr(doctor, "self_test", lambda: exact)
    assert u2pl("doctor", "--self-test", "--json", tmp_path / "a.json") == 0
    shown = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in shown
    assert "The self-test trained, resumed exactly and predicted, in 9 s." in shown
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["self_test"] == exact
    assert set(written) == {"versions", "devices", "advice", "self_test"}
    monkeypatch.setattr(doctor, "self_test", lambda: exact | {"resumed_exactly": False})
    assert u2pl("doctor", "--self-test") == 1
    assert "differs from the one that never stopped" in capsys.readouterr().err


def test_doctor_replays_what_a_failed_run_kept(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    changes = tiny_overrides(optimizer__name="sgd", optimizer__lr=1e30)
    assert u2pl("train", dataset, *RECIPE, "--out", run, *assignments(changes)) == 1
    file = run / "failure" / "step-2.pt"
    assert f"`u2pl doctor --replay {file}`" in capsys.readouterr().err
    assert u2pl("doctor", "--replay", file, "--json", tmp_path / "a.json") == 0
    shown = capsys.readouterr().out
    assert "Step 2, not finite then: " in shown
    assert "Made again with the weights of step 0: " in shown
    assert json.loads((tmp_path / "a.json").read_text())["images"][0]["file"] in shown


# mistakes


def no_folder(root: Path) -> list[object]:
    return [root / "none"]


def mask_of_another_size(root: Path) -> list[object]:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "data/masks/labeled_2.png")
    return [root / "data"]


def id_outside_the_classes(root: Path) -> list[object]:
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(root / "data/val/masks/val_1.png")
    return [root / "data"]


def change(root: Path, text: Callable[[dict[str, Any]], object]) -> list[object]:
    path = root / "data" / "dataset.yaml"
    tree = yaml.safe_load(path.read_text())
    text(tree)
    path.write_text(yaml.safe_dump(tree))
    return [root / "data"]


def empty_list(root: Path) -> list[object]:
    (root / "data/labeled.txt").write_text("")
    return change(root, lambda tree: tree["labeled"].update(list="labeled.txt"))


def absent_folder(root: Path) -> list[object]:
    shutil.rmtree(root / "data/unlabeled")
    return [root / "data"]


def unknown_key_of_the_dataset(root: Path) -> list[object]:
    return change(root, lambda tree: tree.update(clases=1))


def labelled_image_in_val(root: Path) -> list[object]:
    return change(root, lambda tree: tree.update(val={"images": "images", "masks": "masks"}))


def dataset_that_is_no_yaml(root: Path) -> list[object]:
    (root / "data/dataset.yaml").write_text("classes: [")
    return [root / "data"]


def with_arguments(*arguments: str) -> Callable[[Path], list[object]]:
    return lambda root: [root / "data", *arguments]


def folder_that_holds_a_run(root: Path) -> list[object]:
    (root / "run").mkdir()
    (root / "run/config.yaml").write_text("recipe: demo\n")
    return [root / "data"]


def damaged_labelled_image(root: Path) -> list[object]:
    os.truncate(root / "data/images/labeled_0.png", 300)
    return [root / "data"]


MISTAKES: list[tuple[Callable[[Path], list[object]], int, str]] = [
    (no_folder, 1, "none does not exist"),
    (mask_of_another_size, 1, "labeled_2.png: the image is 56 x 40 pixels"),
    (id_outside_the_classes, 1, "val_1.png: expected ids 0 to 2 or 255 (ignore), got 7"),
    (empty_list, 1, "expected images in the section 'labeled', found none"),
    (absent_folder, 1, "unlabeled of 'unlabeled: images' does not exist"),
    (unknown_key_of_the_dataset, 1, "unknown key 'clases'. Did you mean 'classes'?"),
    (labelled_image_in_val, 1, "labeled"),
    (dataset_that_is_no_yaml, 1, "is not a YAML file"),
    (
        with_arguments("train.stepz=5"),
        2,
        "Unknown setting 'train.stepz'. Did you mean 'train.steps",
    ),
    (with_arguments("train.steps=many"), 2, "Setting 'train.steps'"),
    (with_arguments("steps"), 2, "Expected settings as key=value, got 'steps'"),
    (with_arguments("--setting", "day"), 2, "Expected a setting of semi, adapt, weak, supervised"),
    (with_arguments("--setting", "weak"), 1, "the setting weak needs tags of the images in"),
    (with_arguments("--recipe", "camvit"), 2, "Did you mean 'camvid'?"),
    (with_arguments("model.encoder=resnet5O"), 2, "Did you mean 'resnet50"),
    (with_arguments("method.low_rank=3"), 2, "Expected 1 <= low_rank < high_rank <= 3 classes"),
    (folder_that_holds_a_run, 1, "already holds a run; go on with it by --resume"),
    (damaged_labelled_image, 1, "labeled_0.png: the file cannot be decoded"),
]


@pytest.mark.parametrize(
    ("mistake", "status", "text"), MISTAKES, ids=[text for _, _, text in MISTAKES]
)
def test_mistake_in_train_is_one_sentence_and_no_checkpoint(
    mistake: Callable[[Path], list[object]],
    status: int,
    text: str,
    tmp_path: Path,
    u2pl: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_dataset(tmp_path / "data")
    dataset, *others = mistake(tmp_path)
    assert u2pl("train", dataset, *RECIPE, "--out", tmp_path / "run", *QUICK, *others) == status
    shown = capfd.readouterr()
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert text in shown.err
    assert "Traceback" not in shown.out + shown.err
    assert not RunFolder(tmp_path / "run").checkpoint("last").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["evaluate", "{root}/none"], 1, "holds no run"),
        (["evaluate", "{root}/run", "--split", "test"], 1, "section 'test', found none"),
        (["evaluate", "{root}/run", "--weights", "teacher"], 2, "ema or student"),
        (
            ["evaluate", "{root}/run", "--protocol", "x"],
            2,
            "protocol of whole, slide or center-crop",
        ),
        (["evaluate", "{root}/run", "train.steps=3"], 2, "'train.steps' belongs to the training"),
        (["predict", "{root}/none", "{root}/data", "--out", "{out}"], 1, "holds no run"),
        (
            ["predict", "{root}/run", "{root}/data", "--out", "{out}", "--server", "vox"],
            2,
            "server of voc, cityscapes, got 'vox'",
        ),
        (
            ["predict", "{root}/run", "{root}/data", "--out", "{out}", "--server", "voc"],
            1,
            "The voc server has no class 'ground'",
        ),
        (
            ["predict", "{root}/run", "{root}/data", "--out", "{out}", "--protocol", "middle"],
            2,
            "protocol of whole, slide or center-crop",
        ),
        (["predict", "{root}/run", "{root}/x", "--out", "{out}"], 1, "no image and no folder"),
        (
            ["predict", "{root}/run", "{root}/data", "--out", "{out}", "--save", "mask"],
            2,
            "got 'mask'. Did you mean 'masks'?",
        ),
        (
            ["predict", "{root}/run", "{root}/data", "--out", "{out}", "--tile", "100"],
            2,
            "in multiples of 32 from 64 on, or 0 for none, got 100",
        ),
        (["export", "{root}/run", "--format", "onx"], 2, "Did you mean 'onnx'?"),
        (["export", "{root}/none"], 1, "holds no run"),
        (["export", "{root}/run", "--images", "{root}/x"], 1, "no image and no folder"),
        (
            ["train", "{root}/data", "--resume", "--out", "{out}"],
            1,
            "there is no config.yaml in it",
        ),
        (
            ["train", "{root}/data", "--resume", "--seed", "1", "--out", "{out}"],
            2,
            "leave --seed out",
        ),
        (["train", "{root}/data", "--resume", "--recipe", "demo"], 2, "leave --recipe out"),
        (["data", "check", "{root}/none"], 1, "does not exist"),
        (["evaluate", "{root}/run", "--json", "{root}/run/config.yaml/a"], 1, "Cannot write"),
    ],
)
def test_mistake_in_another_command_is_one_sentence(
    arguments: list[str],
    status: int,
    text: str,
    root: Path,
    tmp_path: Path,
    u2pl: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    filled = [item.format(root=root, out=tmp_path / "out") for item in arguments]
    assert u2pl(*filled) == status
    shown = capfd.readouterr()
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert text in shown.err
    assert "Traceback" not in shown.out + shown.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "a", "--sed", "1"]])
def test_misuse_of_the_command_line_exits_with_2(
    arguments: list[str], u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert u2pl(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


# a process of its own


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "COLUMNS": "80"}


def test_mistake_in_a_real_process_shows_no_traceback(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "u2pl.cli", "train", "none.yaml", "--out", "run"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: none.yaml does not exist; ")
    assert finished.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
def test_signal_saves_and_resume_goes_on(
    number: signal.Signals, tmp_path: Path, u2pl: Callable[..., int]
) -> None:
    dataset, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    settings = assignments(tiny_overrides(train__steps=100_000, data__num_workers=1))
    process = subprocess.Popen(
        [sys.executable, "-m", "u2pl.cli", "train", dataset, *RECIPE, "--out", run, *settings],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        metrics, deadline = RunFolder(run).metrics, time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, shown = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75  # resume me
    assert "Traceback" not in shown
    assert "Warning" not in shown
    (sentence,) = [line for line in shown.splitlines() if line.startswith("Error: ")]
    step = int(sentence.removeprefix("Error: Stopped after step ").split(";")[0])
    assert f"u2pl train {dataset} --out {run} --resume" in sentence
    last = RunFolder(run).checkpoint("last")
    assert torch.load(last, weights_only=True)["step"] == step

    goal = step + 2
    assert u2pl("train", dataset, "--out", run, "--resume", f"train.stop_after={goal}") == 0
    assert torch.load(last, weights_only=True)["step"] == goal


# names and warnings on the terminal


def test_names_are_no_markup_and_no_emoji_codes(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "[bold]a:car:")
    tree = yaml.safe_load(path.read_text()) | {"classes": ["[/red]", ":car:", "tree"]}
    path.write_text(yaml.safe_dump(tree))
    assert u2pl("data", "check", path) == 0
    shown = capsys.readouterr().out
    assert "[/red]" in shown
    assert ":car:" in shown
    (path.parent / "unlabeled/x.png").write_text("no image")
    assert u2pl("data", "check", path) == 1
    assert f"error: {path.parent}/unlabeled/x.png: the file is not" in capsys.readouterr().out


def test_warning_is_a_sentence_on_the_error_stream(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "data", num_unlabeled=0)
    out = tmp_path / "a b"
    assert u2pl("train", path, *RECIPE, "--out", out, *QUICK, "train.stop_after=1") == 0
    shown = capsys.readouterr()
    assert shown.err == f"{path} has no unlabelled images: training sees the labels alone.\n"
    assert f"Go on with: u2pl train {path} --out '{out}' --resume" in shown.out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_want_of_memory_is_a_sentence(
    error: Exception,
    u2pl: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "train", fail)
    assert u2pl("train", "x") == 1
    assert capsys.readouterr().err.startswith("Error: There is not enough memory; lower data.crop")


def test_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(api, "train", fail)
    monkeypatch.setattr(sys, "argv", ["u2pl", "train", "x"])
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main()


def test_run_whose_val_masks_are_all_ignore_has_no_best_teacher(
    tmp_path: Path, u2pl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "data")
    for mask in (path.parent / "val/masks").iterdir():
        Image.fromarray(np.full((40, 56), 255, np.uint8)).save(mask)
    line = ["train", path, *RECIPE, "--out", tmp_path / "run", *QUICK, "train.steps=1"]
    assert u2pl(*line) == 0
    assert "no val pixel is known, so none is the best" in capsys.readouterr().out


def test_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["u2pl", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("u2pl", run_name="__main__")
    assert not caught.value.code
    assert "Label-efficient semantic segmentation" in capsys.readouterr().out
