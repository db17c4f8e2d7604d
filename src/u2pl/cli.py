"""The command line: each command parses, calls one function, and prints."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as ProgressBar,
)
from rich.table import Table
from rich.text import Text

from u2pl import api
from u2pl import demo as demo_module
from u2pl import doctor as doctor_module
from u2pl.config import parse_assignments
from u2pl.data.check import check_dataset
from u2pl.data.sources import load_dataset
from u2pl.engine import failure
from u2pl.engine.evaluate import Evaluation
from u2pl.engine.loop import Progress
from u2pl.engine.predict import KINDS, predict_images
from u2pl.errors import UserError, printable
from u2pl.launch import world_of
from u2pl.losses import contrastive_floor

app = typer.Typer(
    help="Label-efficient semantic segmentation: every pixel trains the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Look at a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()

METHOD_NAMES = {
    "supervised": "labels alone",
    "source_only": "source alone",
    "seeds": "the seeds themselves",
    "seeds_only": "seeds alone",
    "no_contrast": "+ unlabelled (mean teacher, mixing)",
    "u2pl": "+ unreliable pixels (U2PL+)",
    "ceiling": "all true masks",
}

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
]


class TrainingDisplay:
    """A live line a training on a terminal; a plain line now and then where output is a file."""

    def __init__(self) -> None:
        self.bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.tenths: dict[str, int] = {}

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def progress(self, name: str, progress: Progress) -> None:
        """Show a row of a training's metrics."""
        step, total = progress.step, progress.total_steps
        text = describe_losses(progress.values, progress.steps_per_second)
        if self.advance(name, step, total, text):
            left = (total - step) / max(progress.steps_per_second, 1e-9)
            say(f"{name}: step {step}/{total}, {left:.0f} s left, {text}")

    def seeds(self, stage: str, done: int, total: int) -> None:
        """Show how far the way from tags to seed masks is."""
        if self.advance(stage, done, total, ""):
            say(f"{stage}: {done}/{total}")

    def advance(self, name: str, done: int, total: int, text: str) -> bool:
        """Move a bar; return whether a sentence is due, each tenth where there are no bars."""
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=total, text="")
        self.bar.update(self.tasks[name], completed=done, text=text)
        tenth = 10 * done // total
        is_due = not console.is_terminal and tenth > self.tenths.get(name, 0)
        self.tenths[name] = max(tenth, self.tenths.get(name, 0))
        return is_due

    def evaluation(self, step: int, scores: dict[str, Evaluation]) -> None:
        """Print student's and teacher's mIoU."""
        student, teacher = scores["student"].miou, scores["ema"].miou
        say(f"step {step}: val mIoU student {student:.2f} %, teacher {teacher:.2f} %")


def say(text: str) -> None:
    """Print a sentence as it is: neither wrapped nor coloured, and nothing in it steers."""
    console.print(as_it_is(text), soft_wrap=True)


def as_it_is(text: object) -> Text:
    """What a name or a path looks like on a terminal: no markup, no emoji code, no escape."""
    return Text(printable(str(text)))


def describe_losses(values: dict[str, float], steps_per_second: float) -> str:
    """One short text: rate, the three losses, and the reliable share.

    >>> describe_losses({"loss_s": 0.5, "loss_u": 0.25, "loss_c": 3.0, "reliable_share": 0.8}, 4.0)
    '4.00 steps/s, L_s 0.500, L_u 0.250, L_c 3.000, reliable 80 %'
    """
    text = f"{steps_per_second:.2f} steps/s"
    for name in ("loss_s", "loss_u", "loss_c"):
        text += f", L_{name[-1]} {values[name]:.3f}"
    if "reliable_share" in values:
        text += f", reliable {100 * values['reliable_share']:.0f} %"
    return text


def describe_best(best: dict[str, Any]) -> str:
    """The best teacher's score and step.

    >>> describe_best({"step": 500, "miou": 61.234})
    'best teacher 61.23 % at step 500'
    >>> describe_best({"step": 0, "miou": -1.0})
    'no val pixel is known, so none is the best'
    """
    if best["miou"] < 0:
        return "no val pixel is known, so none is the best"
    return f"best teacher {percent(best['miou'])} % at step {best['step']}"


def percent(value: float | None) -> str:
    """Two digits, or a dash where no pixel was known."""
    return "–" if value is None else f"{value:.2f}"


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Write a command's result where ``--json`` says."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None


@app.command(epilog="Example: `u2pl demo --seed 1 --out demo-runs/seed-1`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for streets and runs.")] = Path(
        "demo-runs/demo"
    ),
    setting: Annotated[
        str,
        typer.Option(
            help="semi; adapt: labelled by day, all else at dusk; or weak: tags in place of masks."
        ),
    ] = "semi",
    seed: Annotated[int, typer.Option(min=0, help="Of the streets and the trainings.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a demo already there.")] = False,
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value, for all trainings.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Paint streets, train with and without 400 unlabelled images, compare.

    No download; about ten minutes on two CPU cores.
    """
    with TrainingDisplay() as display:
        result = demo_module.run_demo(
            out,
            setting=setting,
            seed=seed,
            overrides=parse_assignments(settings or []),
            overwrite=overwrite,
            on_start=lambda what: say(describe_start(setting, what)),
            on_progress=display.progress,
            on_seeds=display.seeds,
        )
    console.print(demo_table(result))
    first, *_ = demo_module.DEMOS[setting].methods
    gain = result["miou"]["u2pl"] - result["miou"][first]
    say(
        f"U2PL+ against {METHOD_NAMES[first]}: {gain:+.1f} mIoU, "
        f"in {result['seconds'] / 60:.1f} minutes. Runs are in {out}."
    )
    write_result(json_file, result)


def describe_start(setting: str, what: str) -> str:
    """What a demo does next: paint ``streets``, or the ``training``.

    >>> describe_start("semi", "streets")
    'Painting 16 labelled, 400 unlabelled and 100 val streets.'
    """
    plan = demo_module.DEMOS[setting]
    if what == "training":
        seeds = "Making seeds of the tags, then training" if plan.tagged else "Training"
        return f"{seeds}: {', '.join(METHOD_NAMES[name] for name in plan.methods)}."
    if plan.tagged:
        return f"Painting {plan.num_unlabeled} streets with tags and {plan.num_val} val streets."
    return (
        f"Painting {plan.num_labeled} labelled, {plan.num_unlabeled} unlabelled and "
        f"{plan.num_val} val streets."
    )


def demo_table(result: dict[str, Any]) -> Table:
    """The demo's mIoU and IoU of each class, in percent."""
    num_val = demo_module.DEMOS[result["setting"]].num_val
    table = Table(
        title=f"IoU in %, seed {result['seed']}, last checkpoint's teacher, {num_val} val streets"
    )
    table.add_column("")
    for method in result["miou"]:
        table.add_column(METHOD_NAMES[method], justify="right", max_width=16)
    table.add_row("mean", *(f"{v:.1f}" for v in result["miou"].values()), style="bold")
    for name in next(iter(result["iou"].values())):
        cells = (iou[name] for iou in result["iou"].values())
        table.add_row(name, *("–" if value is None else f"{value:.1f}" for value in cells))
    return table


@app.command(
    epilog="Example: `u2pl train dataset.yaml --recipe camvid --out runs/a train.steps=4000`"
)
def train(
    dataset: Annotated[Path, typer.Argument(help="A dataset.yaml, or its folder.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value; see docs/reference/settings.md.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name, or a YAML file.  [default: default]")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/run"),
    setting: Annotated[
        str | None,
        typer.Option(help="semi, adapt, weak or supervised.  [default: the recipe's]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random draw.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Train. Ctrl-C and SIGTERM save first; `--resume` goes on exactly where it stopped.

    Several GPUs: `torchrun --nproc-per-node 4 -m u2pl.cli train …`, or `srun u2pl train …`.
    """
    world = world_of(os.environ)
    if not world.is_first:
        console.quiet = True
        logging.getLogger("u2pl").setLevel(logging.ERROR)
    overrides = parse_assignments(settings or [])
    if resume:
        for name, value in (("recipe", recipe), ("setting", setting), ("seed", seed)):
            if value is not None:
                raise UserError(f"A resumed run keeps its {name}; leave --{name} out.", exit_code=2)
    recipe = recipe or "default"
    if not resume:
        method = api.make_config(recipe, setting=setting, seed=seed, overrides=overrides).method
        if method.contrastive_weight > 0:
            floor = contrastive_floor(method.num_negatives, temperature=method.temperature)
            say(
                f"The contrastive loss L_c cannot fall below {floor:.3f} "
                f"with {method.num_negatives} negatives."
            )
    with TrainingDisplay() as display:
        result = api.train(
            dataset,
            recipe=recipe,
            out=out,
            setting=setting,
            seed=seed,
            overrides=overrides,
            resume=resume,
            on_progress=partial(display.progress, "training"),
            on_evaluation=display.evaluation,
            on_seeds=display.seeds,
            world=world,
        )
    say(
        f"Step {result['step']}: val mIoU teacher {percent(result['ema']['miou'])} %, "
        f"student {percent(result['student']['miou'])} %; "
        f"{describe_best(result['best'])}. Run folder: {out}"
    )
    if not result["finished"]:
        say(f"Go on with: u2pl train {quote(str(dataset))} --out {quote(str(out))} --resume")
    if world.is_first:
        write_result(json_file, result)


@app.command(epilog="Example: `u2pl evaluate runs/a --split test --weights student`")
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    dataset: Annotated[
        Path | None, typer.Option(help="Another dataset.yaml with the same classes.")
    ] = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    protocol: Annotated[str | None, typer.Option(help="whole or slide.")] = None,
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    json_file: JsonOption = None,
) -> None:
    """Score a run: one confusion matrix over all images of a split."""
    result = api.evaluate(
        run,
        dataset=dataset,
        split=split,
        protocol=protocol,
        weights=weights,
        checkpoint=checkpoint,
    )
    table = Table(
        title=as_it_is(
            f"{split}, {result['images']} images, protocol {result['protocol']}, "
            f"{weights} weights at step {result['step']}"
        )
    )
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for name, value in result["iou"].items():
        table.add_row(as_it_is(name), percent(value))
    table.add_row("mean", percent(result["miou"]), style="bold")
    console.print(table)
    write_result(json_file, result)


@app.command(epilog="Example: `u2pl predict runs/a photos --out labelled`")
def predict(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    source: Annotated[
        Path, typer.Argument(help="An image, a folder, or a glob pattern in quotes.")
    ],
    out: Annotated[Path, typer.Option(help="Gets a folder for each kind of picture.")],
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    json_file: JsonOption = None,
) -> None:
    """Label images: class ids, overlays, entropy, and where the network is sure."""
    model = api.load(run, weights=weights, checkpoint=checkpoint)
    with ProgressBar(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("predicting", total=None)
        result = predict_images(
            model,
            source,
            out,
            kinds=KINDS,
            on_image=lambda done, total: bar.update(task, completed=done, total=total),
        )
    say(
        f"Wrote {result['images']} masks, overlays, entropy and reliable maps to {out}; "
        f"{100 * result['reliable_share']:.0f} % of the pixels are reliable."
    )
    write_result(json_file, result)


@app.command(epilog="Example: `u2pl doctor --self-test`")
def doctor(
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Train a little, stop, go on, predict.")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(help="A failure/step-N.pt of a run: make that step again.", dir_okay=False),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show versions and devices; test the installation; look at a step that was not finite."""
    if replay is not None:
        result = failure.replay(replay)
        describe_replay(result)
        write_result(json_file, result)
        return
    result = {"versions": doctor_module.versions(), "devices": doctor_module.devices()}
    result["advice"] = doctor_module.advice()
    for name, version in result["versions"].items():
        say(f"{name}: {version}")
    machine = result["devices"]
    say(f"cores: {machine['cpu_count']}, threads of torch: {machine['threads']}")
    for gpu in machine["gpus"]:
        bfloat16 = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
        say(f"GPU: {gpu['name']}, {gpu['memory_gib']} GiB, {bfloat16}")
    for sentence in result["advice"] if machine["gpus"] else [*result["advice"], "No GPU."]:
        say(sentence)
    if self_test:
        result["self_test"] = doctor_module.self_test()
        write_result(json_file, result)
        if not result["self_test"]["resumed_exactly"]:
            raise UserError("The self-test's resumed run differs from the one that never stopped.")
        seconds = result["self_test"]["seconds"]
        say(f"The self-test trained, resumed exactly and predicted, in {seconds:.0f} s.")
        return
    write_result(json_file, result)


def describe_replay(result: dict[str, Any]) -> None:
    """Say what a second look at a step found."""
    then = ", ".join(f"{name} {value}" for name, value in result["values"].items())
    say(f"Step {result['step']}, not finite then: {then}.")
    now = ", ".join(f"{name} {value:.4g}" for name, value in result["now"].items())
    say(f"Made again with the weights of step {result['checkpoint_step']}: {now}.")
    if result["layer"] is not None:
        say(f"The first layer whose output is not finite now: {result['layer']}.")
    for row in result["images"]:
        labels = f", labels {row['labels']}" if "labels" in row else ""
        finite = "" if row["finite"] else ", NOT FINITE"
        say(f"{row['file']}: {row['low']:.3f} to {row['high']:.3f}{finite}{labels}")


@data_app.command("check", epilog="Example: `u2pl data check dataset.yaml`")
def data_check(
    dataset: Annotated[Path, typer.Argument(help="A dataset.yaml, or its folder.")],
    json_file: JsonOption = None,
) -> None:
    """Open every file: pairs, sizes, ids, corrupt images, images in two splits; 1 on errors."""
    data = load_dataset(dataset)
    report = check_dataset(data).to_json()
    table = Table(title=as_it_is(data.path))
    for column in ("id", "class", "images", "pixels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for index, name in enumerate(data.classes):
        counts = str(report["images"][name]), f"{report['pixels'][name]:,}"
        table.add_row(str(index), as_it_is(name), *counts)
    console.print(table)
    sections = ", ".join(f"{name} {count}" for name, count in report["sections"].items())
    say(f"Images: {sections}. Ignored pixels: {100 * report['ignore_share']:.1f} %.")
    for name, share in report["unmapped_share"].items():
        say(f"The id_map of {name} ignores {100 * share:.1f} % of its pixels.")
    for kind in ("errors", "warnings"):
        for finding in report[kind]:
            say(f"{kind[:-1]}: {finding['file']}: {finding['what']}; {finding['remedy']}")
    write_result(json_file, report)
    if report["errors"]:
        raise typer.Exit(1)
    say(f"No errors, {len(report['warnings'])} warnings.")


class Sentences(logging.Handler):
    """Prints warnings as sentences of their own on the error stream."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        complain(record.getMessage())


def complain(text: str) -> None:
    """Print a line on the error stream."""
    Console(stderr=True).print(as_it_is(text), soft_wrap=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up; torch has its own words on a CPU."""
    words = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def main() -> None:
    """Run the command line; a user's mistake is one sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the characters of a name
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters in a file is an error
    handler = Sentences(logging.WARNING)
    logging.getLogger("u2pl").addHandler(handler)
    try:
        app()
    except UserError as error:
        complain(f"Error: {error}")
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        complain(
            "Error: There is not enough memory; lower data.crop or the batch sizes, or raise "
            "train.accumulation (docs/how-to/memory.md says more)."
        )
        sys.exit(1)
    finally:
        logging.getLogger("u2pl").removeHandler(handler)


if __name__ == "__main__":
    main()
