from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import u2pl
from factories import write_dataset
from tiny import tiny_overrides
from u2pl import UserError, evaluate, load, make_config, train
from u2pl.config import save_config
from u2pl.engine.checkpoint import save_weights
from u2pl.engine.run_folder import RunFolder
from u2pl.models import encoders

QUICK = tiny_overrides(train__steps=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    train(dataset, recipe="demo", out=out, overrides=QUICK)
    return out


# settings


def test_names_of_the_documentation_are_there() -> None:
    assert u2pl.train is train
    assert u2pl.load is load
    assert callable(u2pl.losses.contrastive_loss)
    assert callable(u2pl.contrast.NegativeQueues)
    assert all(hasattr(u2pl, name) for name in u2pl.__all__)


def test_overrides_win_over_seed_setting_and_recipe() -> None:
    config = make_config("demo", seed=3, overrides={"train.steps": 700})
    assert (config.recipe, config.train.seed, config.train.steps) == ("demo", 3, 700)
    assert make_config("demo", seed=3, overrides={"train.seed": 4}).train.seed == 4
    assert make_config("demo").train.seed == 0


def test_supervised_setting_leaves_the_unlabelled_images_out() -> None:
    config = make_config("demo", setting="supervised")
    assert config.setting == "supervised"
    assert config.method.unsupervised_weight == config.method.contrastive_weight == 0
    assert config.train.supervised_steps == 0


def test_recipe_may_be_a_file(tmp_path: Path) -> None:
    save_config(make_config("demo", overrides={"train.steps": 700}), tmp_path / "mine.yaml")
    config = make_config(str(tmp_path / "mine.yaml"), overrides={"train.seed": 2})
    assert (config.train.steps, config.train.seed) == (700, 2)
    with pytest.raises(UserError, match="Cannot read the configuration"):
        make_config(str(tmp_path / "none.yml"))


def test_setting_of_a_recipe_file_is_kept(tmp_path: Path) -> None:
    """A run's own config.yaml, given as a recipe, makes the same run again."""
    saved = make_config("demo", setting="supervised")
    save_config(saved, tmp_path / "config.yaml")
    assert make_config(str(tmp_path / "config.yaml")) == saved


def test_supervised_file_that_says_no_more_leaves_the_unlabelled_images_out(tmp_path: Path) -> None:
    """Its weights would be the defaults, with which a run is a semi-supervised one."""
    (tmp_path / "mine.yaml").write_text("setting: supervised\n")
    method = make_config(str(tmp_path / "mine.yaml")).method
    assert (method.unsupervised_weight, method.contrastive_weight) == (0, 0)


@pytest.mark.parametrize("setting", ["day", "semy"])
def test_setting_that_cannot_be_trained_is_refused(setting: str) -> None:
    with pytest.raises(UserError) as caught:
        make_config("demo", setting=setting)
    expected = f"Expected a setting of semi, adapt, weak, supervised, got '{setting}'."
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["setting", "recipe"])
def test_setting_and_recipe_are_no_overrides(name: str) -> None:
    """As overrides they would be names on a run that is something else."""
    with pytest.raises(UserError, match=f"Give the {name} as --{name}") as caught:
        make_config("demo", overrides={name: "supervised"})
    assert caught.value.exit_code == 2


# training


def test_supervised_training_opens_no_unlabelled_image(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    for file in (tmp_path / "data/unlabeled").iterdir():
        file.write_text("no image")
    result = train(
        dataset, recipe="demo", setting="supervised", out=tmp_path / "a", overrides=QUICK
    )
    assert result["finished"]


def test_dataset_may_be_named_by_its_folder(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset.parent, recipe="demo", out=tmp_path / "a", overrides=QUICK)
    assert result["step"] == 2
    copied = yaml.safe_load((tmp_path / "a/dataset.yaml").read_text())
    assert copied["root"] == str(dataset.parent.resolve())


def test_same_seed_gives_the_same_run_and_another_seed_another(
    dataset: Path, run: Path, tmp_path: Path
) -> None:
    train(dataset, recipe="demo", out=tmp_path / "same", overrides=QUICK)
    train(dataset, recipe="demo", out=tmp_path / "other", seed=1, overrides=QUICK)
    weights = [RunFolder(p).weights("ema").read_bytes() for p in (run, tmp_path / "same")]
    assert weights[0] == weights[1]
    assert RunFolder(tmp_path / "other").weights("ema").read_bytes() != weights[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method.background_class": 9}, "background_class is 9"),
        ({"train.stepz": 9}, "Did you mean 'train.steps'"),
    ],
)
def test_wrong_settings_leave_no_run_folder(
    dataset: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        train(dataset, recipe="demo", out=tmp_path / "a", overrides=QUICK | changes)
    assert not (tmp_path / "a").exists()


def test_network_that_cannot_be_built_leaves_the_folder_free_for_the_next_try(
    dataset: Path, tmp_path: Path
) -> None:
    wrong = QUICK | {"model.encoder": "smal"}
    with pytest.raises(UserError, match="timm has no model 'smal'"):
        train(dataset, recipe="demo", out=tmp_path / "a", overrides=wrong)
    result = train(dataset, recipe="demo", out=tmp_path / "a", overrides=QUICK)
    assert result["finished"]


def test_resumed_run_keeps_its_settings(dataset: Path, tmp_path: Path) -> None:
    overrides = QUICK | {"train.stop_after": 1}
    train(dataset, recipe="demo", out=tmp_path / "a", overrides=overrides)
    with pytest.raises(UserError) as caught:
        train(dataset, out=tmp_path / "a", resume=True, overrides={"train.steps": 9})
    assert str(caught.value) == (
        "A resumed run keeps its settings; 'train.steps' cannot be changed now. "
        "Only train.stop_after can."
    )
    assert caught.value.exit_code == 2
    # without a word of its recipe: the folder knows
    result = train(dataset, out=tmp_path / "a", resume=True)
    assert (result["step"], result["finished"]) == (2, True)


def test_resumed_run_needs_its_encoders_weights_no_more(dataset: Path, tmp_path: Path) -> None:
    name, file = "test_efficientnet", tmp_path / "encoder.safetensors"
    save_weights(file, encoders.timm.create_model(name, pretrained=False).state_dict())
    model = {"model.encoder": name, "model.pretrained": True, "model.weights": str(file)}
    overrides = QUICK | model | {"train.stop_after": 1}
    train(dataset, recipe="demo", out=tmp_path / "a", overrides=overrides)
    file.unlink()
    assert train(dataset, out=tmp_path / "a", resume=True)["finished"]


# evaluation


def test_evaluation_repeats_the_runs_own_score(run: Path) -> None:
    own = json.loads((run / "eval/val.json").read_text())
    for weights in ("ema", "student"):
        result = evaluate(run, weights=weights)
        assert result["miou"] == own[weights]["miou"]
        assert result["confusion"] == own[weights]["confusion"]
        assert result["split_sha256"] == own[weights]["split_sha256"]
        assert (result["weights"], result["step"], result["images"]) == (weights, 2, 3)
        assert (result["split"], result["checkpoint"]) == ("val", "last")
        file = run / "eval" / f"val-whole-{weights}-last.json"
        assert json.loads(file.read_text()) == result


def test_evaluation_takes_protocol_checkpoint_and_another_dataset(
    run: Path, tmp_path: Path
) -> None:
    other = write_dataset(tmp_path, num_val=5, seed=9)
    result = evaluate(run, dataset=other, protocol="slide", checkpoint="best")
    assert (result["protocol"], result["images"], result["checkpoint"]) == ("slide", 5, "best")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"split": "train"}, "Expected the split val or test, got 'train'"),
        ({"protocol": "center"}, "Expected a protocol of whole, slide or center-crop"),
        ({"weights": "teacher"}, "got 'teacher' and 'last'"),
        ({"checkpoint": "first"}, "got 'ema' and 'first'"),
    ],
)
def test_wrong_choices_are_told(run: Path, arguments: dict[str, str], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        evaluate(run, **arguments)
    assert caught.value.exit_code == 2


def test_split_that_the_dataset_lacks_is_told(run: Path) -> None:
    with pytest.raises(UserError, match="expected images in the section 'test', found none"):
        evaluate(run, split="test")


def test_other_classes_are_refused(run: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path, num_classes=4)
    with pytest.raises(UserError, match=r"The run's classes are ground, wall, tree; .* car\."):
        evaluate(run, dataset=other)


def test_loaded_model_predicts(run: Path, dataset: Path) -> None:
    model = load(run, device="cpu")
    mask, entropy, reliable = model.predict(dataset.parent / "val/images/val_0.png")
    assert mask.shape == entropy.shape == reliable.shape == (40, 56)


def test_weights_side_by_side_are_those_one_by_one(run: Path) -> None:
    result = evaluate(run, all_weights=True, weights="student")
    keys = [(one["weights"], one["checkpoint"]) for one in result["all"]]
    assert sorted(keys) == sorted((w, c) for w in ("ema", "student") for c in ("last", "best"))
    for one in result["all"]:
        weights, checkpoint = one["weights"], one["checkpoint"]
        assert one == evaluate(run, weights=weights, checkpoint=checkpoint)
        file = run / "eval" / f"val-whole-{weights}-{checkpoint}.json"
        assert json.loads(file.read_text()) == one
    assert {key: value for key, value in result.items() if key != "all"} == result["all"][0]
    assert result["weights"] == "student"


def test_results_of_other_numbers_do_not_replace_each_other(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "run")
    for file in (moved / "eval").iterdir():
        file.unlink()
    other = write_dataset(tmp_path / "other", num_val=2, seed=9)
    evaluate(moved, protocol="center-crop-24")
    evaluate(moved, protocol="center-crop-32")
    evaluate(moved, protocol="slide-24", overrides={"evaluation.stride_fraction": 0.5})
    evaluate(moved, overrides={"evaluation.classes": ["wall"]})
    result = evaluate(moved, dataset=other)
    names = {file.name for file in (moved / "eval").iterdir()}
    assert names == {
        "val-center-crop-24-ema-last.json",
        "val-center-crop-32-ema-last.json",
        "val-slide-24-stride0.5-ema-last.json",
        "val-whole-1classes-ema-last.json",
        f"val-whole-{result['split_sha256'][:8]}-ema-last.json",
    }
    scored = json.loads((moved / "eval/val-slide-24-stride0.5-ema-last.json").read_text())
    assert scored["protocol_settings"] == {
        "kind": "slide", "crop": [24, 24], "stride": [12, 12], "scales": [1.0], "flip": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"train.steps": 5}, "'train.steps' belongs to the training"),
        ({"evaluation.classes": ["car"]}, "no class 'car'"),
        ({"evaluation.scales": []}, r"evaluation\.scales"),
    ],
)
def test_settings_that_no_scoring_has_are_told(
    run: Path, overrides: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        evaluate(run, overrides=overrides)
    assert caught.value.exit_code == 2


def test_run_may_be_moved(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    assert evaluate(moved)["miou"] == evaluate(run)["miou"]


def test_every_public_name_is_there() -> None:
    assert [name for name in u2pl.__all__ if not hasattr(u2pl, name)] == []
    assert set(u2pl.__all__) < set(dir(u2pl))
    assert u2pl.train is train
    assert u2pl.models.Segmenter
    with pytest.raises(AttributeError, match="module 'u2pl' has no attribute 'trian'"):
        u2pl.trian  # noqa: B018


def test_method_is_imported_without_networks_and_commands() -> None:
    """Somebody with a loop of their own does not wait for what they do not use."""
    heavy = "{'timm', 'torchvision', 'torchmetrics', 'lightning_fabric', 'pydantic', 'matplotlib'}"
    code = f"import sys, u2pl; print(sorted({heavy} & set(sys.modules)), u2pl.losses.__name__)"
    source = str(Path(u2pl.__file__).parents[1])
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert finished.stdout.split("\n")[0] == "[] u2pl.losses", finished.stderr
