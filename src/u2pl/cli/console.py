"""What all commands share: printing, progress, and writing a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as ProgressBar,
)
from rich.text import Text

from u2pl.engine.evaluate import Evaluation
from u2pl.engine.loop import Progress
from u2pl.errors import UserError, printable

console = Console()

MethodOption = Annotated[
    str | None,
    typer.Option(help="cutmix, unimatch, u2pl, …: settings to compare with.  [default: none]"),
]
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
        """Print the mIoU of what was scored."""
        names = {"student": "student", "ema": "teacher"}
        told = [f"{names[key]} {scores[key].miou:.2f} %" for key in names if key in scores]
        say(f"step {step}: val mIoU {', '.join(told)}")


def images_bar(*, shown: bool = True) -> ProgressBar:
    """A bar of images done, with the time taken and left, where output is a terminal."""
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal and shown),
    )


def say(text: str) -> None:
    """Print a sentence as it is: neither wrapped nor coloured, and nothing in it steers."""
    console.print(as_it_is(text), soft_wrap=True)


def complain(text: str) -> None:
    """Print a line on the error stream."""
    Console(stderr=True).print(as_it_is(text), soft_wrap=True)


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
