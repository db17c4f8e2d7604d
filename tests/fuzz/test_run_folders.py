"""Run folders that were cut off, damaged, mixed up or forged."""

from __future__ import annotations

import copy
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from factories import write_dataset
from fuzz.test_dataset_yaml import places, put
from fuzz.trial import attempt_command, mutations, rounds, trials
from tiny import tiny_config, tiny_overrides, tiny_state
from u2pl import train
from u2pl.data.class_counts import class_pixels
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.checkpoint import load_checkpoint, load_weights
from u2pl.engine.loop import restore
from u2pl.engine.predict import load_model
from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.models import encoders
from u2pl.weak import classifier

IMAGE = np.random.default_rng(0).integers(0, 255, (17, 23, 3), np.uint8)
ODD: list[Any] = [None, True, -1, 0, 1, 2**70, 0.5, float("nan"), float("inf"), "", "x", "\x1b[m"]
ODD += [[], {}, [1], [-1, -1], [float("inf")] * 3, ["a", "b"], {"a": 1}, [[1, 2, 3]] * 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    root = tmp_path_factory.mktemp("runs")
    dataset = write_dataset(root / "data")
    overrides = tiny_overrides(train__steps=2, train__eval_every=1)
    train(dataset, recipe="demo", out=root / "run", overrides=overrides)
    return root / "run"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(run, tmp_path / "run"))


def use(folder: RunFolder, **options: Any) -> Any:
    """Load a run and label an image; what it says must have a meaning."""
    prediction = load_model(folder.path, **options).predict(IMAGE)
    assert prediction.mask.shape == IMAGE.shape[:2]
    assert np.isfinite(prediction.entropy).all()
    return prediction


def test_description_of_a_run_is_used_or_refused(copied: RunFolder) -> None:
    text = copied.model.read_bytes()
    tree = json.loads(text)
    with trials("run folders") as group:
        for case, data in mutations(text, count=rounds(12, long=300), seed=0, header=len(text)):
            copied.model.write_bytes(data)
            group.attempt(case, lambda: use(copied))
        for word in ("", "3", "[]", "[" * 100_000, '"' * 9, "NaN", "{}", "\ufeff{}", "\0"):
            copied.model.write_text(word)
            found = group.attempt(word[:9], lambda: use(copied))
            group.expect(word[:9], found is None, "it was used")
        for number, place in enumerate(places(tree)):
            for value in ODD[number % 3 :: 3]:
                changed = copy.deepcopy(tree)
                put(changed, place, value)
                copied.model.write_text(json.dumps(changed))
                group.attempt(f"{place} = {value!r}", lambda: use(copied))
        for key in tree:
            copied.model.write_text(json.dumps({k: v for k, v in tree.items() if k != key}))
            group.attempt(f"without {key}", lambda: use(copied))


def other_states(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield weights that are whole files and fit no network, or only seem to."""
    first = next(key for key, tensor in state.items() if tensor.dim() > 1)
    yield "nothing", {}
    yield "another name", {"other": torch.zeros(2)}
    yield "one missing", {k: v for k, v in state.items() if k != first}
    yield "one more", state | {"other": torch.zeros(2)}
    yield "another shape", state | {first: torch.zeros(2, 2)}
    yield "no shape", state | {first: torch.tensor(1.0)}
    yield "infinite", state | {first: torch.full_like(state[first], torch.inf)}
    yield "not a number", state | {first: torch.full_like(state[first], torch.nan)}
    yield "names of markup", {f"[/red]\n{k}": v for k, v in state.items()}


def test_damaged_weights_are_refused(copied: RunFolder) -> None:
    path = copied.weights("ema")
    content = path.read_bytes()
    # copied: what is loaded lies in the file until it has gone into a network
    state = {key: tensor.clone() for key, tensor in load_weights(path).items()}
    with trials("weights") as group:
        head = 8 + int.from_bytes(content[:8], "little")
        for case, data in mutations(content, count=rounds(20, long=300), seed=0, header=head):
            path.write_bytes(data)
            found = group.attempt(case, lambda: load_weights(path))
            if data[:head] == content[:head] and data != content:  # the checksum's part
                group.expect(case, found is None, "it was read")
        for length in (0, 1, 7, 8, 9, head - 1, head, head + 1, len(content) - 1):
            path.write_bytes(content[:length])
            found = group.attempt(f"cut at {length}", lambda: use(copied))
            group.expect(f"cut at {length}", found is None, "it was used")
        for case, other in other_states(state):
            path.write_bytes(save_tensors(other))
            found = group.attempt(case, lambda: use(copied))
            group.expect(case, found is None, "it was used")
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool):
            path.write_bytes(save_tensors({k: v.to(dtype) for k, v in state.items()}))
            group.attempt(str(dtype), lambda: use(copied))
        path.unlink()
        path.mkdir()
        group.attempt("a folder", lambda: use(copied))


def forged(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield checkpoints that are whole files and hold something else."""
    for key in state:
        yield f"without {key}", {k: v for k, v in state.items() if k != key}
        for value in (
            None,
            -1,
            1.5,
            "x",
            [],
            {},
            {"a": 1},
            {1: 2},
            torch.zeros(2),
            state["student"],
        ):
            yield f"{key} = {str(value)[:20]}", state | {key: value}
    for part in ("student", "teacher", "queues", "prototypes"):
        for case, other in other_states(state[part] if part != "queues" else {**state[part]}):
            yield f"{part}: {case}", state | {part: other}
        key = next(iter(state[part]))
        yield f"{part}: no tensor", state | {part: state[part] | {key: "x"}}
    optimizer = state["optimizer"]
    for memory in ({}, {0: {}}, {0: {"momentum_buffer": torch.zeros(3)}}, {"a": 1}, None):
        yield f"memory {str(memory)[:20]}", state | {"optimizer": {**optimizer, "state": memory}}
    for groups in (
        [],
        [{}],
        [{"params": [0]}],
        None,
        [{**optimizer["param_groups"][0], "lr": "x"}],
    ):
        changed = {**optimizer, "param_groups": groups}
        yield f"groups {str(groups)[:20]}", state | {"optimizer": changed}
    yield "a list", [state]
    yield "a tensor", torch.zeros(2)
    yield "nothing", {}
    yield "only a student", {"student": state["student"]}


def restorer(copied: RunFolder) -> tuple[Dataset, Callable[[], Any]]:
    """A call that brings a run back from its last checkpoint, as resuming does."""
    data, config = load_dataset(copied.dataset), copied.read_config()

    def bring_back() -> Any:
        fabric, state = tiny_state(config, num_classes=data.num_classes)
        return restore(state, fabric, data, copied), state

    return data, bring_back


def test_damaged_checkpoints_are_refused(copied: RunFolder) -> None:
    path = copied.checkpoint("last")
    content = path.read_bytes()
    _, bring_back = restorer(copied)
    with trials("checkpoints") as group:
        assert bring_back()[1].step == 2
        for case, data in mutations(content, count=rounds(12, long=200), seed=0, header=2000):
            path.write_bytes(data)
            group.attempt(case, lambda: load_checkpoint(path))
        rng = np.random.default_rng(1)
        for turn in range(rounds(40, long=500)):
            data = bytearray(content)
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(data))
            state = group.attempt(f"a bit flipped, {turn}", lambda: load_checkpoint(path))
            # what no checksum covers are names and times of the archive, not numbers
            same = state is None or same_numbers(state, load_back(content, path))
            group.expect(f"a bit flipped, {turn}", same, "other numbers were loaded")
        assert group.refused > 60


def load_back(content: bytes, path: Path) -> Any:
    path.write_bytes(content)
    return torch.load(path, weights_only=True)


def same_numbers(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same_numbers(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same_numbers, ours, theirs))
    return bool(ours == theirs)


def test_forged_checkpoints_are_refused_or_can_be_trained_on(copied: RunFolder) -> None:
    from tiny import tiny_batch
    from u2pl.engine.step import training_step

    path = copied.checkpoint("last")
    state = torch.load(path, weights_only=True)
    data, config = load_dataset(copied.dataset), copied.read_config()

    def go_on() -> float:
        fabric, fresh = tiny_state(config, num_classes=data.num_classes)
        restore(fresh, fabric, data, copied)
        return training_step(fabric, fresh, tiny_batch(), config)["loss"].item()

    with trials("checkpoints") as group:
        for number, (case, other) in enumerate(forged(state)):
            if rounds(number % 9, long=0):
                continue
            torch.save(other, path)
            group.attempt(case, go_on)
            torch.save(other, copied.checkpoint("best"))
            group.attempt(f"best: {case}", lambda: use(copied, checkpoint="best"))


def test_torn_metrics_are_read_without_their_torn_lines(copied: RunFolder) -> None:
    content = copied.metrics.read_bytes()
    lines = len(content.splitlines())
    with trials("run folders") as group:
        for case, data in mutations(
            content, count=rounds(20, long=300), seed=0, header=len(content)
        ):
            copied.metrics.write_bytes(data)
            rows = group.attempt(case, lambda: read_metrics(copied.metrics))
            assert rows is not None
            group.expect(case, all(isinstance(row["step"], int) for row in rows), "a row is none")
        copied.metrics.write_bytes(content + b"[" * 100_000 + b"\n3\n{}\n\xff\n" + content)
        rows = group.attempt("lines of others", lambda: read_metrics(copied.metrics))
        assert rows is not None
        assert len(rows) == 2 * lines


def test_commands_refuse_a_broken_run_in_one_line(copied: RunFolder, tmp_path: Path) -> None:
    data = copied.path.parent / "data"
    write_dataset(data)
    broken: dict[str, Callable[[RunFolder], object]] = {
        "no model.json": lambda run: run.model.unlink(),
        "no weights": lambda run: run.weights("ema").unlink(),
        "empty weights": lambda run: run.weights("ema").write_bytes(b""),
        "checkpoint as weights": lambda run: shutil.copy(
            run.checkpoint("last"), run.weights("ema")
        ),
        "empty config": lambda run: run.config.write_bytes(b""),
        "config of bytes": lambda run: run.config.write_bytes(b"\xff\xfe\x00"),
        "config of another": lambda run: run.config.write_text("train: {stepz: 1}"),
        "no dataset.yaml": lambda run: run.dataset.unlink(),
        "empty dataset.yaml": lambda run: run.dataset.write_bytes(b""),
        "dataset.yaml of another": lambda run: run.dataset.write_text("classes: [a, b]"),
        "folder as config": lambda run: (run.config.unlink(), run.config.mkdir()),
        "folder as weights": lambda run: (run.weights("ema").unlink(), run.weights("ema").mkdir()),
        "eval that is a file": lambda run: (
            shutil.rmtree(run.path / "eval"),
            (run.path / "eval").touch(),
        ),
        "nothing at all": lambda run: (shutil.rmtree(run.path), run.path.mkdir()),
    }
    good = copied.path.with_name("good")
    shutil.copytree(copied.path, good)
    with trials("run folders") as group:
        for case, damage in broken.items():
            shutil.rmtree(copied.path)
            shutil.copytree(good, copied.path)
            damage(copied)
            answer = attempt_command(group, case, "evaluate", copied.path)
            assert answer is not None
            group.expect(case, answer.status in (1, 2), f"status {answer.status}: {answer.out}")
            answer = attempt_command(
                group, case, "predict", copied.path, data / "unlabeled", "--out", tmp_path / "out"
            )
            assert answer is not None


def test_resuming_a_broken_run_is_refused_in_one_line(copied: RunFolder) -> None:
    state = torch.load(copied.checkpoint("last"), weights_only=True)
    data = copied.path.parent / "data"
    write_dataset(data)
    lacking = {key: value for key, value in state.items() if key != "splits"}
    torch.save(lacking, copied.checkpoint("last"))
    with trials("run folders") as group:
        line = ("train", data, "--out", copied.path, "--resume")
        answer = attempt_command(group, "no splits", *line)
        assert answer is not None
        group.expect("no splits", answer.status == 1, f"status {answer.status}")
        copied.checkpoint("last").write_bytes(b"")
        answer = attempt_command(group, "empty checkpoint", *line)
        assert answer is not None
        group.expect("empty checkpoint", answer.status == 1, f"status {answer.status}")


def test_damaged_encoder_weights_are_refused(tmp_path: Path) -> None:
    name = "test_efficientnet"
    state = encoders.timm.create_model(name, pretrained=False).state_dict()
    first = next(iter(state))
    with trials("weights") as group:

        def attempt(case: str, path: Path) -> None:
            found = group.attempt(case, lambda: encoders.read_weights(name, path))
            fits = found is None or found[first].shape == state[first].shape
            group.expect(case, fits, "another shape was accepted")

        for suffix in ("safetensors", "pth"):
            path = tmp_path / f"encoder.{suffix}"
            if suffix == "pth":
                torch.save(state, path)
            else:
                path.write_bytes(save_tensors(state))
            content = path.read_bytes()
            for case, data in mutations(content, count=rounds(6, long=100), seed=0, header=4000):
                path.write_bytes(data)
                attempt(f"{suffix} {case}", path)
        path = tmp_path / "encoder.pth"
        others: list[Any] = [other for _, other in other_states(state)]
        others += [None, 3, "x", [state], {"state_dict": "x"}, {"model": 3}, {first: "x"}]
        others += [{1: torch.zeros(2)}, {"a": {"b": state}}, {"model": {"model": state}}]
        others += [state | {first: None}, {f"module.{k}": v for k, v in state.items()}]
        for number, other in enumerate(others):
            torch.save(other, path)
            attempt(f"forged {number}", path)


def test_damaged_classifiers_are_refused(tmp_path: Path) -> None:
    config = tiny_config(weak__output_stride=8)
    model = classifier.build_classifier(config, 3, load_pretrained=False)
    optimizer = classifier.build_optimizer(model, config.optimizer)
    folder = RunFolder(tmp_path)
    path = folder.checkpoint(classifier.NAME)
    path.parent.mkdir(parents=True)
    whole = {
        classifier.NAME: model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 1,
        "losses": [],
    }
    with trials("checkpoints") as group:
        for key in whole:
            for value in (None, "x", -1, [], {}, {"a": 1}):
                torch.save(whole | {key: value}, path)
                group.attempt(
                    f"{key} = {value}",
                    lambda: classifier._restore(model, optimizer, folder, torch.device("cpu")),
                )
            torch.save({k: v for k, v in whole.items() if k != key}, path)
            group.attempt(
                f"without {key}",
                lambda: classifier._restore(model, optimizer, folder, torch.device("cpu")),
            )


def test_damaged_memory_of_pixels_is_counted_anew(tmp_path: Path) -> None:
    data = load_dataset(write_dataset(tmp_path, num_labeled=2, num_unlabeled=0, num_val=1))
    truth = class_pixels(data, data.labeled)
    (cache,) = tmp_path.glob(".u2pl-class-pixels-*")
    content = cache.read_bytes()
    with trials("run folders") as group:
        for case, damaged in mutations(
            content, count=rounds(25, long=400), seed=0, header=len(content)
        ):
            cache.write_bytes(damaged)
            found = group.attempt(case, lambda: class_pixels(data, data.labeled))
            group.expect(case, found is not None and np.array_equal(found, truth), "other counts")
        with np.load(io.BytesIO(content)) as saved:
            key = saved["key"]
        for shape in ((2, 3), (0, 3), (3,), (), (10**9, 10**6), (-1, 3)):
            head = {"descr": "<i8", "fortran_order": False, "shape": shape}
            array = io.BytesIO()
            np.lib.format.write_array_header_1_0(array, head)
            key_array = io.BytesIO()
            np.lib.format.write_array(key_array, key)
            with zipfile.ZipFile(cache, "w") as archive:
                archive.writestr("pixels.npy", array.getvalue() + bytes(20))
                archive.writestr("key.npy", key_array.getvalue())
            found = group.attempt(str(shape), lambda: class_pixels(data, data.labeled))
            group.expect(str(shape), found is not None and np.array_equal(found, truth), "other")
