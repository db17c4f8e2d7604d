"""``u2pl demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from u2pl import demo as demos
from u2pl.cli.console import JsonOption, TrainingDisplay, console, say, write_result
from u2pl.config import parse_assignments

METHOD_NAMES = {
    "supervised": "labels alone",
    "source_only": "source alone",
    "seeds": "the seeds themselves",
    "seeds_only": "seeds alone",
    "no_contrast": "+ unlabelled (mean teacher, mixing)",
    "u2pl": "+ unreliable pixels (U2PL+)",
    "ceiling": "all true masks",
}


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for streets and runs.  [default: demo-runs/SETTING-SEED]"),
    ] = None,
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
    out = out or Path("demo-runs") / f"{setting}-{seed}"
    with TrainingDisplay() as display:
        result = demos.run_demo(
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
    first, *_ = demos.DEMOS[setting].methods
    gain = result["miou"]["u2pl"] - result["miou"][first]
    say(
        f"U2PL+ against {METHOD_NAMES[first]}: {gain:+.1f} mIoU, "
        f"in {result['seconds'] / 60:.1f} minutes. Runs are in {out}."
    )
    say(f"Look at {result['report']} with a browser.")
    write_result(json_file, result)


def describe_start(setting: str, what: str) -> str:
    """What a demo does next: paint ``streets``, or the ``training``.

    >>> describe_start("semi", "streets")
    'Painting 16 labelled, 400 unlabelled and 400 val streets.'
    """
    plan = demos.DEMOS[setting]
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
    num_val = demos.DEMOS[result["setting"]].num_val
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
