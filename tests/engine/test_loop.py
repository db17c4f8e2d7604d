from __future__ import annotations

import errno
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from factories import write_dataset
from tiny import tiny_config
from u2pl.config import Config
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine import loop, step
from u2pl.engine.evaluate import Evaluation
from u2pl.engine.loop import Interrupted, Progress, check_against_data, fit
from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.engine.state import TrainState
from u2pl.errors import UserError
from u2pl.signals import STOP_SIGNALS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data")))


def start(config: Config, dataset: Dataset, path: Path, **arguments: Any) -> dict[str, Any]:
    return fit(config, dataset, RunFolder(path), **arguments)


def step_of(path: Path, name: str = "last") -> int:
    state = torch.load(RunFolder(path).checkpoint(name), weights_only=True)
    return int(state["step"])


def test_run_leaves_everything_that_a_user_takes_home(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run"
    config = tiny_config(data__resize=48, evaluation__protocol="slide", train__steps=2)
    result = start(config, dataset, path)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert {
        "config.yaml",
        "dataset.yaml",
        "environment.json",
        "metrics.jsonl",
        "model.json",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "weights/ema.safetensors",
        "weights/student.safetensors",
        "eval/val.json",
    } <= files
    assert not [file for file in files if ".part" in file]
    assert json.loads((path / "eval/val.json").read_text()) == result
    assert (result["step"], result["finished"]) == (2, True)
    assert result["best"] == {"step": 2, "miou": result["ema"]["miou"]}
    assert (result["ema"]["weights"], result["student"]["weights"]) == ("ema", "student")
    card = json.loads((path / "model.json").read_text())
    assert card["classes"] == list(dataset.classes)
    assert card["colors"] == [list(color) for color in dataset.colors]
    assert (card["resize"], card["protocol"], card["crop"]) == (48, "slide", [32, 32])
    assert 0 < card["reliable_entropy"] <= 1.1
    assert card["model"]["feature_size"] == 8


def test_watchers_hear_of_every_row_and_score(dataset: Dataset, tmp_path: Path) -> None:
    rows: list[Progress] = []
    scores: list[tuple[int, set[str]]] = []

    def on_evaluation(step: int, found: dict[str, Evaluation]) -> None:
        scores.append((step, set(found)))

    config = tiny_config(train__steps=5, train__log_every=2, train__eval_every=3)
    start(config, dataset, tmp_path / "a", on_progress=rows.append, on_evaluation=on_evaluation)
    assert [row.step for row in rows] == [2, 4, 5]
    assert {row.total_steps for row in rows} == {5}
    assert all(row.steps_per_second > 0 for row in rows)
    assert scores == [(3, {"ema"}), (5, {"student", "ema"})]
    written = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in written] == [
        ("train", 2),
        ("val", 3),
        ("train", 4),
        ("train", 5),
        ("val", 5),
    ]
    assert written[0]["loss"] == rows[0].values["loss"]
    assert {"loss_s", "loss_u", "loss_c", "lr", "reliable_share"} <= set(written[0])
    assert set(written[1]) == {"kind", "step", "miou_ema"}
    assert set(written[-1]) == {"kind", "step", "miou_student", "miou_ema"}


def test_student_is_scored_in_between_where_that_is_asked_for(
    dataset: Dataset, tmp_path: Path
) -> None:
    scores: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for asked, found in scores.items():
        config = tiny_config(train__steps=3, train__eval_every=1, train__eval_student=asked)
        start(
            config,
            dataset,
            tmp_path / str(asked),
            on_evaluation=lambda _, each, found=found: found.append(
                {name: score.miou for name, score in each.items()}
            ),
        )
    assert [set(each) for each in scores[False]] == [{"ema"}, {"ema"}, {"student", "ema"}]
    assert [set(each) for each in scores[True]] == 3 * [{"student", "ema"}]
    # what is scored changes nothing of the training
    assert [each["ema"] for each in scores[False]] == [each["ema"] for each in scores[True]]
    assert scores[False][-1] == scores[True][-1]


def test_checkpoints_are_written_as_often_as_asked(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[str, int]] = []
    monkeypatch.setattr(
        loop, "save_checkpoint", lambda path, state, keep: saved.append((path.stem, state["step"]))
    )
    start(tiny_config(train__steps=5, train__checkpoint_every=2), dataset, tmp_path / "a")
    assert [step for name, step in saved if name == "last"] == [2, 4, 5]


def test_best_checkpoint_is_that_of_the_best_teacher(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, mious = loop.evaluate, iter([30.0, 50.0, 40.0])

    def scripted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        scores = original(*args, **kwargs)
        monkeypatch.setattr(Evaluation, "miou", next(mious))
        return scores

    monkeypatch.setattr(loop, "evaluate", scripted)
    config = tiny_config(train__steps=3, train__eval_every=1)
    result = start(config, dataset, tmp_path / "a")
    assert result["best"] == {"step": 2, "miou": 50.0}
    assert (step_of(tmp_path / "a", "best"), step_of(tmp_path / "a")) == (2, 3)


def test_stopped_run_says_that_it_is_not_finished_and_goes_on(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = tiny_config(train__stop_after=2)
    result = start(config, dataset, tmp_path / "a")
    assert (result["step"], result["finished"]) == (2, False)
    whole = config.with_overrides({"train.stop_after": None})
    result = fit(whole, dataset, RunFolder(tmp_path / "a"), resume=True)
    assert (result["step"], result["finished"]) == (4, True)


def test_resuming_a_finished_run_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    config, folder = tiny_config(train__steps=2), RunFolder(tmp_path / "a")
    first = start(config, dataset, folder.path)
    weights, rows = folder.weights("ema").read_bytes(), folder.metrics.read_text()
    again = fit(config, dataset, folder, resume=True)
    assert again == first
    assert folder.weights("ema").read_bytes() == weights
    assert folder.metrics.read_text() == rows


def test_resuming_with_other_images_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_config(train__steps=2, train__stop_after=1)
    start(config, dataset, tmp_path / "a")
    other = load_dataset(write_dataset(tmp_path / "other", num_unlabeled=5))
    with pytest.raises(UserError, match=r"The images of .* have changed since it was started"):
        fit(config, other, RunFolder(tmp_path / "a"), resume=True)


def test_run_killed_before_its_first_checkpoint_begins_anew(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = tiny_config(train__steps=2)
    folder = RunFolder(tmp_path / "a")
    folder.create(config, dataset)
    resumed = fit(config, dataset, folder, resume=True)
    whole = start(config, dataset, tmp_path / "b")
    assert resumed["ema"]["confusion"] == whole["ema"]["confusion"]


def test_half_precision_runs_and_keeps_weights_whole(dataset: Dataset, tmp_path: Path) -> None:
    result = start(
        tiny_config(train__precision="bf16-mixed", train__steps=2), dataset, tmp_path / "a"
    )
    state = torch.load(RunFolder(tmp_path / "a").checkpoint("last"), weights_only=True)
    assert {t.dtype for t in state["student"].values()} == {torch.float32, torch.int64}
    assert result["ema"]["miou"] >= 0


# settings against data


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method__low_rank": 3}, "method.low_rank and method.high_rank: Expected 1 <= low_rank"),
        ({"method__high_rank": 4}, "got low_rank 1 and high_rank 4"),
        ({"method__background_class": 3}, "background_class is 3, but the classes end at 2"),
        ({"train__accumulation": 3}, "only 2 labelled images in a batch to split"),
        ({"train__supervised_steps": 5}, "supervised_steps is 5, more than the 4 steps"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    dataset: Dataset, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        check_against_data(tiny_config(**changes), dataset)
    assert caught.value.exit_code == 2


def test_single_class_is_refused_in_words_of_classes(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_classes=2)
    path.write_text(path.read_text().replace("- wall\n", ""))
    with pytest.raises(UserError, match="classes") as caught:
        check_against_data(tiny_config(), load_dataset(path))
    assert "low_rank" not in str(caught.value)  # nobody has set it


def test_unlabelled_images_are_read_only_where_a_loss_looks_at_them(
    dataset: Dataset, tmp_path: Path
) -> None:
    none = {"method__unsupervised_weight": 0.0, "method__contrastive_weight": 0.0}
    assert loop.uses_unlabeled(tiny_config(), dataset)
    assert not loop.uses_unlabeled(tiny_config(**none), dataset)
    assert loop.uses_unlabeled(tiny_config(method__unsupervised_weight=0.0), dataset)
    alone = load_dataset(write_dataset(tmp_path / "alone", num_unlabeled=0))
    assert not loop.uses_unlabeled(tiny_config(), alone)
    result = start(tiny_config(train__steps=1), alone, tmp_path / "a")
    assert result["step"] == 1


# a loss that is not finite

EXPLODING = {"optimizer__name": "sgd", "optimizer__lr": 1e30, "train__steps": 12}


def test_loss_that_is_not_finite_ends_the_run(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        start(tiny_config(**EXPLODING), dataset, tmp_path / "a")
    file = next((tmp_path / "a" / "failure").iterdir())
    step = int(file.stem.removeprefix("step-"))
    assert re.fullmatch(
        rf"At step {step} (loss_[suc]|grad_norm) became (nan|inf|-inf); training stopped before "
        rf"the update\. The batch and the names of its images are in {file}; look at them with "
        rf"`u2pl doctor --replay {file}`\. Lower optimizer\.lr, or set optimizer\.max_grad_norm\.",
        str(caught.value),
    )
    assert not RunFolder(tmp_path / "a").checkpoint("last").exists()


@pytest.mark.parametrize("log_every", [1, 5])
def test_failure_is_noticed_in_its_own_step(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """On a CPU, where nothing has to be waited for, however seldom the losses are reported."""
    original = loop.training_step
    steps: list[int] = []

    def spoiled(
        fabric: Any, state: TrainState, *others: Any, **named: Any
    ) -> dict[str, torch.Tensor]:
        values = original(fabric, state, *others, **named)
        steps.append(state.step)
        return values | ({"loss_c": torch.tensor(torch.nan)} if state.step == 3 else {})

    monkeypatch.setattr(loop, "training_step", spoiled)
    config = tiny_config(train__log_every=log_every, train__steps=9)
    with pytest.raises(UserError, match="At step 3 loss_c became nan"):
        start(config, dataset, tmp_path / "a")
    assert steps == [1, 2, 3]


def test_clipped_gradient_that_is_not_finite_ends_the_run_alike(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"became -?(nan|inf)"):
        start(tiny_config(**EXPLODING, optimizer__max_grad_norm=1.0), dataset, tmp_path / "a")


def test_spoilt_weights_are_not_saved_between_two_reports(dataset: Dataset, tmp_path: Path) -> None:
    """However seldom the losses are looked at, a checkpoint is worth resuming from."""
    config = tiny_config(**EXPLODING, train__log_every=10, train__checkpoint_every=6)
    with pytest.raises(UserError, match=r"became (nan|inf)"):
        start(config, dataset, tmp_path / "a")
    last = RunFolder(tmp_path / "a").checkpoint("last")
    if last.exists():
        weights = torch.load(last, weights_only=True)["student"].values()
        assert all(torch.isfinite(tensor).all() for tensor in weights)


def test_update_that_spoils_the_weights_is_not_saved(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss may have a gradient that is not, so that only the weights show it."""
    original = loop.training_step

    def spoiled(
        fabric: Any, state: TrainState, *others: Any, **named: Any
    ) -> dict[str, torch.Tensor]:
        values = original(fabric, state, *others, **named)
        if state.step == 3:
            next(state.student.parameters()).detach().fill_(torch.nan)
        return values

    monkeypatch.setattr(loop, "training_step", spoiled)
    config = tiny_config(train__checkpoint_every=1, train__steps=6)
    with pytest.raises(UserError):
        start(config, dataset, tmp_path / "a")
    weights = torch.load(RunFolder(tmp_path / "a").checkpoint("last"), weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in weights["student"].values())


# float16


class ScaledFloat32(MixedPrecision):
    """A scaled loss without float16, which CPUs compute a hundred times slower."""

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        return data


def scaled_fabric(**_: Any) -> Fabric:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return Fabric(
        accelerator="cpu", devices=1, plugins=[ScaledFloat32("16-mixed", "cpu", scaler=scaler)]
    )


def overflow_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let a gradient overflow in these steps, counted from 0."""
    original = step.backward_in_parts

    def spoil(fabric: Fabric, state: TrainState, *rest: Any) -> dict[str, torch.Tensor]:
        terms = original(fabric, state, *rest)
        if state.step in steps:
            next(p for p in state.student.parameters() if p.grad is not None).grad.fill_(torch.inf)
        return terms

    monkeypatch.setattr(step, "backward_in_parts", spoil)


def test_scale_and_number_of_skipped_updates_go_on_where_they_were(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under float16 updates overflow by design: they are counted, over a stop and a resume too."""
    monkeypatch.setattr(loop, "Fabric", scaled_fabric)
    overflow_at(monkeypatch, 1, 3)
    config = tiny_config(train__steps=5, train__precision="16-mixed")
    start(config, dataset, tmp_path / "a")
    start(config.with_overrides({"train.stop_after": 3}), dataset, tmp_path / "b")
    fit(config, dataset, RunFolder(tmp_path / "b"), resume=True)
    for run in "ab":
        rows = read_metrics(tmp_path / run / "metrics.jsonl")
        counts = [row["skipped_updates"] for row in rows if row["kind"] == "train"]
        assert counts == [0, 1, 1, 2, 2]
        saved = torch.load(RunFolder(tmp_path / run).checkpoint("last"), weights_only=True)
        assert saved["skipped_updates"] == 2
        assert saved["precision"]["scale"] == 2.0**8  # halved at each of them


# signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_ends_the_step_and_saves(
    number: signal.Signals, dataset: Dataset, tmp_path: Path
) -> None:
    before = [signal.getsignal(n) for n in STOP_SIGNALS]

    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(number)

    with pytest.raises(Interrupted) as caught:
        start(tiny_config(), dataset, tmp_path / "a", on_progress=interrupt)
    assert caught.value.step == step_of(tmp_path / "a") == 2
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before
    assert caught.value.exit_code == 75
    result = fit(tiny_config(), dataset, RunFolder(tmp_path / "a"), resume=True)
    assert result["finished"]


def test_signal_in_the_last_step_lets_the_run_finish(dataset: Dataset, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGTERM)

    result = start(tiny_config(train__steps=2), dataset, tmp_path / "a", on_progress=interrupt)
    assert result["finished"]
    assert step_of(tmp_path / "a") == 2


def test_signal_that_comes_after_the_question_whether_to_save_loses_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment: a run that says that it is saved has saved."""
    answers = iter([False, True])

    @contextmanager
    def late_signal() -> Iterator[Callable[[], bool]]:
        yield lambda: next(answers, True)

    monkeypatch.setattr(loop, "noticing_signals", late_signal)
    with pytest.raises(Interrupted) as caught:
        start(tiny_config(), dataset, tmp_path / "a")
    assert step_of(tmp_path / "a") == caught.value.step


# the disk


def test_full_disk_under_the_metrics_is_one_sentence(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = tiny_config(train__checkpoint_every=1), tmp_path / "a"
    original = loop.MetricsLog.write

    def write(self: loop.MetricsLog, kind: str, step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, kind, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(loop.MetricsLog, "write", write)
        with pytest.raises(UserError) as caught:
            start(config, dataset, path)
    assert str(caught.value) == (
        f"Cannot write to {path} (No space left on device); what was saved before is kept. Free "
        "space or mend the disk, then go on with --resume."
    )
    assert step_of(path) == 2
    assert fit(config, dataset, RunFolder(path), resume=True)["finished"]


def test_other_faults_of_the_system_are_not_taken_for_a_full_disk() -> None:
    with pytest.raises(ConnectionResetError), loop.telling_of_the_disk(RunFolder(Path("a"))):
        raise ConnectionResetError


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(train__checkpoint_every=1, train__stop_after=3)
    start(config, dataset, tmp_path / "a")
    last = RunFolder(tmp_path / "a").checkpoint("last")
    last.write_bytes(last.read_bytes()[:1000])
    whole = config.with_overrides({"train.stop_after": None})
    result = fit(whole, dataset, RunFolder(tmp_path / "a"), resume=True)
    assert "The one before is taken." in caplog.text
    assert result["finished"]
    straight = start(whole, dataset, tmp_path / "b")
    assert result["ema"]["confusion"] == straight["ema"]["confusion"]
    rows = [row["step"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl")]
    assert rows == [1, 2, 3, 4, 4]  # each step once, and val after the last


# damaged checkpoints


@pytest.mark.parametrize("key", ["splits", "best", "optimizer", "queues", "step"])
@pytest.mark.parametrize("value", [None, "x", []])
def test_checkpoint_with_a_part_of_another_kind_is_told(
    dataset: Dataset, tmp_path: Path, key: str, value: Any
) -> None:
    config, folder = tiny_config(train__steps=1), RunFolder(tmp_path / "a")
    start(config, dataset, folder.path)
    state = torch.load(folder.checkpoint("last"), weights_only=True)
    torch.save(state | {key: value}, folder.checkpoint("last"))
    with pytest.raises(UserError, match=r"does not fit its config\.yaml|would mix two data sets"):
        fit(config, dataset, folder, resume=True)


def test_way_to_go_on_can_be_pasted_whatever_the_folder_is_called(dataset: Dataset) -> None:
    text = str(Interrupted(3, dataset, RunFolder(Path("a b; rm -rf"))))
    assert text.endswith("--out 'a b; rm -rf' --resume")


def test_only_the_last_scores_are_made_in_float32_where_training_is_not(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bfloat16: list[bool] = []
    scored = loop.evaluate

    def evaluate(*arguments: Any, **given: Any) -> dict[str, Evaluation]:
        in_bfloat16.append(torch.is_autocast_enabled("cpu"))
        return scored(*arguments, **given)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    config = tiny_config(train__precision="bf16-mixed", train__steps=3, train__eval_every=1)
    start(config, dataset, tmp_path / "run")
    assert in_bfloat16 == [True, True, False]
