from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import tiny_overrides
from u2pl import demo
from u2pl.config import load_config
from u2pl.data.sources import load_dataset
from u2pl.data.synthetic import write_streets
from u2pl.demo import Method, run_demo
from u2pl.errors import UserError
from u2pl.recipes import SETTINGS

QUICK = tiny_overrides(train__steps=3, train__supervised_steps=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, plan in demo.DEMOS.items():
        num_labeled = min(plan.num_labeled, 2)
        few = dataclasses.replace(plan, num_labeled=num_labeled, num_unlabeled=3, num_val=2)
        monkeypatch.setitem(demo.DEMOS, setting, few)
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
    assert result["report"] == str(out / "u2pl" / "report.html")
    inspection = json.loads((out / "u2pl" / "eval" / "inspection.json").read_text())
    assert inspection["sections"]["unlabeled"]["images"] == 3
    assert (out / "u2pl" / "report.html").is_file()
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
    assert {name for name, _ in seen} == set(demo.DEMOS["semi"].methods)


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


@pytest.mark.parametrize(
    ("setting", "first"), [("semi", "supervised"), ("adapt", "source_only"), ("weak", "seeds_only")]
)
def test_methods_differ_in_the_contrasts_weight_and_the_setting_alone(
    setting: str, first: str
) -> None:
    methods = dict(demo.DEMOS[setting].methods)
    assert next(iter(methods)) == first
    assert methods["no_contrast"] == Method(setting, {"method.contrastive_weight": 0.0})
    assert methods["u2pl"] == Method(setting)
    if setting != "weak":
        assert methods[first] == Method("supervised")
        return
    alone = SETTINGS["supervised"]
    assert methods[first] == Method("weak", alone)
    assert methods["ceiling"] == Method("supervised", true_masks=True)


@pytest.mark.usefixtures("small")
def test_weak_demo_trains_every_row_on_the_same_seeds(tmp_path: Path) -> None:
    stages: set[str] = set()
    out = tmp_path / "demo"
    overrides = QUICK | {
        "weak.steps": 2,
        "weak.batch_size": 2,
        "weak.cam_scales": [1.0],
        "weak.refine_dilations": [1],
    }
    result = run_demo(
        out,
        setting="weak",
        overrides=overrides,
        workers=2,
        on_seeds=lambda stage, done, total: stages.add(stage),
    )
    assert stages == {"classifier", "seeds"}
    rows = ["seeds", "seeds_only", "no_contrast", "u2pl", "ceiling"]
    assert list(result["miou"]) == list(result["iou"]) == rows
    assert result["miou"]["seeds"] == result["seeds"]["miou_sure"]
    assert json.loads((out / "demo.json").read_text()) == result
    seeds = {file.name: file.read_bytes() for file in (out / "seeds" / "seeds").iterdir()}
    assert len(seeds) == 3
    for name in ("seeds_only", "no_contrast", "u2pl"):
        assert {f.name: f.read_bytes() for f in (out / name / "seeds").iterdir()} == seeds
    true = load_dataset(out / "streets" / "true.yaml")
    assert [sample.name for sample in true.labeled] == [f"unlabeled-{i:04d}" for i in range(3)]
    assert not true.unlabeled
    tagged = load_dataset(out / "streets", require=("unlabeled", "val"))
    assert not tagged.labeled
    for sample, known in zip(tagged.unlabeled, true.labeled, strict=True):
        assert sample.image == known.image
        assert sample.tags == tuple(np.unique(true.read_mask(known)))
    config = load_config(out / "seeds_only" / "config.yaml")
    assert config.method.unsupervised_weight == config.method.contrastive_weight == 0


@pytest.mark.usefixtures("small")
def test_adapt_demo_labels_one_style_and_is_scored_on_another(tmp_path: Path) -> None:
    result = run_demo(tmp_path / "demo", setting="adapt", overrides=QUICK, workers=1)
    assert result["setting"] == "adapt"
    assert list(result["miou"]) == ["source_only", "no_contrast", "u2pl"]
    plan = demo.DEMOS["adapt"]
    assert plan.style != plan.target_style
    dataset = load_dataset(tmp_path / "demo" / "streets")
    write_streets(
        tmp_path / "target",
        num_labeled=0,
        num_unlabeled=3,
        num_val=2,
        size=(48, 48),
        style=plan.target_style,
        with_tags=False,
    )
    for section, samples in (("unlabeled", dataset.unlabeled), ("val", dataset.val)):
        for sample in samples:
            same = tmp_path / "target" / section / "images" / sample.image.name
            assert sample.image.read_bytes() == same.read_bytes()
    config = load_config(tmp_path / "demo" / "u2pl" / "config.yaml")
    assert (config.setting, config.method.mixing) == ("adapt", "classmix_labeled")


@pytest.mark.usefixtures("small")
def test_unknown_demo_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected a demo of semi, adapt, weak") as caught:
        run_demo(tmp_path / "demo", setting="adapted")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "demo").exists()


@pytest.mark.usefixtures("small")
def test_another_demo_replaces_all_of_an_earlier_one(tmp_path: Path) -> None:
    run_demo(tmp_path / "demo", overrides=QUICK, workers=1)
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    run_demo(tmp_path / "demo", setting="adapt", overrides=QUICK, workers=1, overwrite=True)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"streets", "source_only", "no_contrast", "u2pl", "demo.json", "notes.txt"}
