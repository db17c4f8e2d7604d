from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from u2pl import config
from u2pl.config import Config
from u2pl.errors import UserError


def error_of(tree: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        config.parse_config(tree)
    return caught.value


# values


def test_defaults_are_the_papers_numbers() -> None:
    method = Config().method
    assert method.contrastive_weight == 0.1
    assert method.unsupervised_weight == 1.0
    assert method.initial_unreliable_fraction == 0.2
    assert method.anchor_threshold == 0.3
    assert (method.num_anchors, method.num_negatives, method.temperature) == (256, 50, 0.5)
    assert (method.queue_size, method.background_queue_size) == (30_000, 50_000)
    assert Config().model.feature_size == 256


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.steps = 3  # type: ignore[misc]


def test_part_of_a_tree_takes_defaults_for_the_rest() -> None:
    parsed = config.parse_config({"train": {"steps": 7}, "setting": "weak"})
    assert (parsed.train.steps, parsed.setting) == (7, "weak")
    assert parsed.method == Config().method


# overrides


def test_overrides_are_applied_and_checked() -> None:
    changed = Config().with_overrides(
        {"train.steps": 500, "data.crop": [64, 96], "optimizer.lr": "1e-3", "recipe": "mine"}
    )
    assert (changed.train.steps, changed.data.crop) == (500, (64, 96))
    assert (changed.optimizer.lr, changed.recipe) == (0.001, "mine")


def test_overrides_leave_the_original_alone() -> None:
    original = Config()
    original.with_overrides({"train.steps": 500})
    assert original == Config()


def test_no_override_is_an_equal_copy() -> None:
    assert Config().with_overrides({}) == Config()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.stepz", " Did you mean 'train.steps'?"),
        ("steps", " Did you mean 'train.steps'?"),  # the right name in no group
        ("model.lr", " Did you mean 'optimizer.lr'?"),  # the right name in a wrong group
        ("train.steps.more", ""),
        ("train.", None),
        ("", None),
        ("qqqqq.wwwww", ""),
    ],
)
def test_unknown_override_is_named_with_the_nearest_key(key: str, hint: str | None) -> None:
    with pytest.raises(UserError) as caught:
        Config().with_overrides({key: 1})
    assert str(caught.value).startswith(f"Unknown setting '{key}'.")
    assert caught.value.exit_code == 2
    if hint:
        assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 0),
        ("train.steps", None),
        ("train.steps", "many"),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", 0),
        ("method.temperature", 0),
        ("method.initial_unreliable_fraction", 1.0),
        ("method.initial_unreliable_fraction", -0.1),
        ("method.mixing", "mixup"),
        ("method.queue_dtype", "float16"),
        ("model.output_stride", 12),
        ("setting", "full"),
        ("train", 5),
    ],
)
def test_bad_value_is_named_with_its_setting(key: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        Config().with_overrides({key: value})
    assert str(caught.value).startswith(f"Setting '{key}': ")
    assert str(caught.value).endswith(f" Got {value!r}.")
    assert caught.value.exit_code == 2


# trees


def test_unknown_key_in_a_tree_is_named_with_the_nearest_key() -> None:
    error = error_of({"train": {"stepz": 5}})
    assert str(error) == "Unknown setting 'train.stepz'. Did you mean 'train.steps'?"
    assert error.exit_code == 2


def test_message_says_what_was_expected_and_what_came() -> None:
    error = error_of({"train": {"steps": -3}})
    expected = "Setting 'train.steps': Input should be greater than or equal to 1. Got -3."
    assert str(error) == expected


@pytest.mark.parametrize("scale", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_scale_out_of_order_is_named(scale: tuple[float, float]) -> None:
    error = error_of({"data": {"scale": scale}})
    assert str(error) == f"Setting 'data': scale must be 0 < low <= high, got {scale}."


@pytest.mark.parametrize(
    ("weak", "text"),
    [
        ({"scale": [2.0, 1.0]}, "scale must be 0 < low <= high, got (2.0, 1.0)."),
        ({"low": 0.6, "high": 0.5}, "low must not exceed high, got 0.6 and 0.5."),
    ],
)
def test_impossible_seeds_are_refused(weak: dict[str, Any], text: str) -> None:
    assert str(error_of({"weak": weak})) == f"Setting 'weak': {text}"


@pytest.mark.parametrize(
    "weak", [{"cam_scales": []}, {"cam_scales": [0]}, {"refine_dilations": []}]
)
def test_seeds_need_a_view_and_a_neighbour(weak: dict[str, Any]) -> None:
    assert "Setting 'weak." in str(error_of({"weak": weak}))


def test_crop_too_small_is_named() -> None:
    error = error_of({"data": {"crop": (64, 7)}})
    assert str(error) == "Setting 'data': crop must be at least 8 x 8 pixels, got (64, 7)."


def test_all_keys_are_those_of_the_written_tree() -> None:
    tree = Config().model_dump()
    written = [
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in tree.items()
        for inner in (value if isinstance(value, dict) else [name])
    ]
    assert config.all_keys() == written


def test_every_key_can_be_overridden_with_its_own_default() -> None:
    tree = Config().model_dump()
    for key in config.all_keys():
        group, _, name = key.rpartition(".")
        value = tree[group][name] if group else tree[name]
        assert Config().with_overrides({key: value}) == Config()


# assignments


def test_assignments_are_yaml() -> None:
    assert config.parse_assignments(
        ["train.steps=5", "data.crop=[64,96]", "model.weights=null", "recipe=a=b", "recipe2="]
    ) == {
        "train.steps": 5,
        "data.crop": [64, 96],
        "model.weights": None,
        "recipe": "a=b",
        "recipe2": None,
    }


@pytest.mark.parametrize("item", ["train.steps", "=5", ""])
def test_assignment_without_key_or_value_is_named(item: str) -> None:
    with pytest.raises(UserError) as caught:
        config.parse_assignments([item])
    expected = f"Expected settings as key=value, got '{item}'. Example: train.steps=2000"
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[64", "{a", "2020-13-45", "0x_"])
def test_assignment_that_is_no_yaml_is_named(text: str) -> None:
    with pytest.raises(UserError) as caught:
        config.parse_assignments([f"data.crop={text}"])
    assert str(caught.value) == f"Setting 'data.crop': '{text}' is not valid YAML."
    assert caught.value.exit_code == 2


# files


def test_saved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    saved = Config().with_overrides(
        {
            "model.weights": "weights/encoder.safetensors",
            "optimizer.lr": 3e-7,
            "data.resize": 240,
            "method.denoise_temperature": None,
            "recipe": "für CamVid",
        }
    )
    path = tmp_path / "config.yaml"
    config.save_config(saved, path)
    assert config.load_config(path) == saved


def test_saved_file_holds_every_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config.save_config(Config(), path)
    tree = yaml.safe_load(path.read_text())
    for key in config.all_keys():
        group, _, name = key.rpartition(".")
        assert name in (tree[group] if group else tree)


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(UserError) as caught:
        config.load_config(path)
    assert str(caught.value) == f"Cannot read the configuration {path}: No such file or directory."


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"recipe: 2020-13-45"])
def test_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load_config(path)
    assert str(caught.value) == f"{path} is not a YAML file."


@pytest.mark.parametrize(("content", "kind"), [("", "NoneType"), ("- 1", "list"), ("word", "str")])
def test_file_without_a_mapping_is_named(tmp_path: Path, content: str, kind: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        config.load_config(path)
    assert str(caught.value) == f"Expected settings in {path}, got {kind}."


def test_faulty_setting_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {stepz: 5}")
    with pytest.raises(UserError, match=r"Unknown setting 'train.stepz'"):
        config.load_config(path)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("optimizer.lr", float("inf"), "finite"),
        ("optimizer.lr", float("nan"), "finite"),
        ("data.scale", [0.5, float("inf")], "finite"),
        ("weak.cam_scales", [float("inf")], "finite"),
        ("train.steps", 2**40, "whole numbers go up to 4294967296"),
        ("train.seed", 16**3000, "Got a number of 12001 bits"),
        ("data.crop", [10**9, 64], "crop must be at most 65536 x 65536 pixels"),
        ("data.batch_labeled", 10**9, "less than or equal to 65536"),
        ("data.num_workers", 10**6, "less than or equal to 256"),
        ("model.atrous_rates", [0, 1, 2], "greater than or equal to 1"),
    ],
)
def test_numbers_that_no_run_can_work_with_are_refused(key: str, value: Any, text: str) -> None:
    with pytest.raises(UserError) as caught:
        Config().with_overrides({key: value})
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_single_image_of_a_single_cell_is_refused_before_it_reaches_batchnorm() -> None:
    small = {"data.crop": [16, 16], "data.batch_labeled": 2}
    assert Config().with_overrides(small).data.crop == (16, 16)
    with pytest.raises(UserError, match=r"^Settings: data\.crop is \(16, 16\), one cell of the"):
        Config().with_overrides(small | {"train.accumulation": 2})


def test_settings_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("recipe: für 猫\n".encode())
    assert config.load_config(path).recipe == "für 猫"


@pytest.mark.parametrize("text", ["[" * 5000, "a: !!int x", "a: 1\na: 2"])
def test_settings_file_that_would_crash_a_yaml_reader_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is not a YAML file"):
        config.load_config(path)


def test_ohem_and_distrust_of_labels_contradict_each_other() -> None:
    changes = {"train.ohem": True, "method.labeled_symmetric_weight": 0.1}
    with pytest.raises(UserError, match=r"train\.ohem seeks .* leave one of them out"):
        Config().with_overrides(changes)
