"""Settings on the command line and in files: odd values, torn files, hostile YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import write_dataset
from fuzz.test_dataset_yaml import NOT_YAML, PATHS, WORDS
from fuzz.trial import SOAK, Trials, attempt_command, mutations, rounds, trials
from u2pl.api import make_config
from u2pl.config import Config, all_keys, load_config, parse_assignments, parse_config, save_config
from u2pl.data.sources import load_dataset
from u2pl.engine.loop import check_against_data
from u2pl.models import Segmenter
from u2pl.recipes import RECIPES

ODD = ["", "~", "true", "yes", "-1", "0", "1", "1.5", "1e-3", "1e400", ".inf", "-.inf", ".nan"]
ODD += ["9" * 40, "9" * 5000, "0x" + "f" * 5000, "2020-13-45", "!!int x", "[", "[]", "[1]"]
ODD += ["[1,1]", "[64,64]", "[1,2,3]", "[-1,-1]", "[.inf,1]", "[.nan,.nan]", "[" * 900, "{}"]
ODD += ["{a: 1}", "text", "'", '"\\ud800"', '"\\0"', "&a [*a]", "[[]]", "none/none.pth"]
ODD += ["!!python/object/apply:os.system [true]", "/dev/zero", "[/red]", "\x1b[31m", "a\nb", "é"]
ODD += ["=", "a=b", "~/x"]


def finite(tree: Any) -> bool:
    """Whether all numbers of a configuration can be computed with."""
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(finite, tree))
    return not isinstance(tree, int | float) or abs(tree) < 1e308


def require_sound(group: Trials, case: str, config: Config | None, path: Path) -> None:
    """What was accepted is finite, and reads back equal from a file."""
    if config is None:
        return
    group.expect(case, finite(config.model_dump()), "a number that is not finite")

    def there_and_back() -> Config:
        save_config(config, path)
        return load_config(path)

    group.expect(case, group.attempt(case, there_and_back) == config, "the file reads otherwise")


def test_each_setting_takes_or_refuses_each_odd_value(tmp_path: Path) -> None:
    keys = [
        *all_keys(),
        "train",
        "data",
        "train.stepz",
        "a.b.c",
        "",
        ".",
        "train.steps.x",
        "[/red]",
    ]
    with trials("settings") as group:
        for number, key in enumerate(keys):
            # in the short form each key has a sixth of the values, and its neighbour the next
            for value in ODD if SOAK else ODD[number % 6 :: 6]:
                case = f"{key[:20]}={value[:20]}"
                config = group.attempt(
                    case,
                    lambda key=key, value=value: make_config(
                        "demo", overrides=parse_assignments([f"{key}={value}"])
                    ),
                )
                require_sound(group, case, config, tmp_path / "config.yaml")
        assert group.refused > len(keys) * 3


def test_assignments_are_read_or_refused(tmp_path: Path) -> None:
    with trials("settings") as group:
        for text in (
            *ODD,
            *WORDS,
            *PATHS,
            "=",
            "==",
            "=1",
            "a",
            "a=",
            " =1",
            "\0=1",
            "x" * 100_000,
        ):
            group.attempt(text[:20], lambda text=text: parse_assignments([text]))
        for case, text in NOT_YAML.items():
            if len(text) < 100_000:
                group.attempt(case, lambda text=text: parse_assignments([f"train.steps={text}"]))


def test_settings_files_are_read_or_refused(tmp_path: Path) -> None:
    path, copy = tmp_path / "recipe.yaml", tmp_path / "copy.yaml"
    with trials("settings files") as group:
        for case, text in NOT_YAML.items():
            path.write_bytes(text.encode())
            group.attempt(case, lambda: load_config(path))
        for recipe in RECIPES:
            save_config(make_config(recipe), path)
            require_sound(group, recipe, group.attempt(recipe, lambda: load_config(path)), copy)
        text = path.read_bytes()
        for case, data in mutations(text, count=rounds(40, long=800), seed=0, header=len(text)):
            path.write_bytes(data)
            require_sound(group, case, group.attempt(case, lambda: load_config(path)), copy)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([*WORDS, 2**64, -(2**64)]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


def test_random_trees_of_settings_are_read_or_refused(tmp_path: Path) -> None:
    with trials("settings") as group:

        @settings(
            max_examples=rounds(150, long=2000),
            deadline=None,
            derandomize=not SOAK,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.dictionaries(st.sampled_from(all_keys()), json_like, min_size=1, max_size=3))
        def attempt(overrides: dict[str, Any]) -> None:
            case = str(overrides)
            config = group.attempt(case, lambda: Config().with_overrides(overrides))
            require_sound(group, case, config, tmp_path / "config.yaml")

        attempt()

        @settings(
            max_examples=rounds(50, long=1000),
            deadline=None,
            derandomize=not SOAK,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.dictionaries(
                st.text(max_size=5) | st.sampled_from(list(Config.model_fields)), json_like
            )
        )
        def parse(tree: dict[str, Any]) -> None:
            group.attempt(str(tree), lambda: parse_config(tree))

        parse()


def test_commands_answer_odd_arguments_in_clean_text(tmp_path: Path) -> None:
    arguments = [
        ["[/red]"],
        ["trian"],
        ["train"],
        ["train", "[/red]", "--out", tmp_path / "a"],
        ["train", "\x1b[31m", "--out", tmp_path / "a"],
        ["train", "n" * 5000, "--out", tmp_path / "a"],
        ["train", ".", "--[/red]"],
        ["train", ".", "--seed", "[/red]"],
        ["train", ".", "--seed", "-1"],
        ["train", ".", "--seed", "9" * 5000],
        ["train", ".", "--recipe", "\x1b[31m"],
        ["train", ".", "--recipe", "[/red].yaml"],
        ["train", ".", "--recipe", "n" * 5000 + ".yaml"],
        ["train", ".", "--setting", "[/red]"],
        ["train", ".", "train.steps=\x1b[31m"],
        ["train", ".", "[/red]=1"],
        ["train", ".", "\udcff=1"],
        ["train", ".", "--recipe", "demo", "model.weights=/dev/zero"],
        ["evaluate", "\udcff"],
        ["evaluate", "n" * 5000],
        ["evaluate", ".", "--split", "\x1b[31m"],
        ["predict", "[/red]", ".", "--out", tmp_path / "a"],
        ["predict", "n" * 5000, ".", "--out", tmp_path / "a"],
        ["data", "check", "n" * 5000],
        ["data", "check", "a\nb"],
        ["data", "check", "\udcff"],
        ["demo", "--setting", "[/red]"],
        ["demo", "--seed", "x"],
        ["demo", "\x1b[31m=1", "--out", tmp_path / "a"],
    ]
    with trials("command lines") as group:
        for line in arguments:
            case = " ".join(str(item)[:20] for item in line)
            answer = attempt_command(group, case, *line)
            assert answer is not None, group.crashes
            group.expect(case, answer.status in (1, 2), f"status {answer.status}")
            group.expect(case, not (tmp_path / "a").exists(), "something was written")


def test_networks_of_odd_settings_answer_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    choices: dict[str, list[Any]] = {
        "encoder": ["small", "test_efficientnet", "test_resnet", "test_vit", "test_vit2", "vgg11"],
        "decoder": ["deeplabv3plus", "fpn", "segformer", "dpt"],
        "output_stride": [8, 16, 32],
        "atrous_rates": [[1, 1, 1], [6, 12, 18], [1, 2, 50], [1000, 1, 7]],
        "decoder_channels": [8, 9, 15, 16, 128],
        "head_channels": [8, 9, 13],
        "feature_size": [2, 3],
        "dropout": [0.0, 0.5],
    }
    with trials("networks") as group:
        for turn in range(rounds(40, long=600)):
            chosen = {key: values[rng.integers(len(values))] for key, values in choices.items()}
            size = [(1, 1), (8, 8), (3, 70), (64, 64)][turn % 4]

            def answer(chosen: dict[str, Any] = chosen, size: tuple[int, int] = size) -> bool:
                settings = parse_config({"model": chosen | {"pretrained": False}}).model
                network = Segmenter(settings, 3).eval()
                with torch.no_grad():
                    output = network(torch.zeros(1, 3, *size))
                return bool(torch.isfinite(output.logits).all())

            group.expect(str(chosen), group.attempt(str(chosen), answer) in (True, None), "nan")
        assert 0 < group.refused < turn


def test_settings_that_data_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = load_dataset(write_dataset(tmp_path))
    odd = [("method.low_rank", n) for n in (1, 2, 3, 4, 2**32)]
    odd += [("method.high_rank", n) for n in (1, 2, 3, 4, 2**32)]
    odd += [("method.background_class", n) for n in (0, 2, 3, 2**32)]
    odd += [("train.accumulation", n) for n in (1, 8, 9, 2**32)]
    with trials("settings") as group:
        for key, value in odd:
            config = make_config("demo", overrides={key: value})
            group.attempt(f"{key}={value}", lambda config=config: check_against_data(config, data))
        assert group.refused >= 8
