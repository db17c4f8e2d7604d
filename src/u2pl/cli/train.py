"""``u2pl train`` and ``u2pl evaluate``."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.table import Table

from u2pl import api
from u2pl.cli.console import (
    JsonOption,
    MethodOption,
    TrainingDisplay,
    as_it_is,
    console,
    percent,
    say,
    write_result,
)
from u2pl.config import MethodSettings, parse_assignments
from u2pl.errors import UserError
from u2pl.launch import world_of
from u2pl.losses import contrastive_floor


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
    method: MethodOption = None,
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
        chosen = {"recipe": recipe, "setting": setting, "method": method, "seed": seed}
        for name, value in chosen.items():
            if value is not None:
                raise UserError(f"A resumed run keeps its {name}; leave --{name} out.", exit_code=2)
    recipe = recipe or "default"
    if not resume:
        config = api.make_config(
            recipe, setting=setting, method=method, seed=seed, overrides=overrides
        )
        say_floor(config.method)
    with TrainingDisplay() as display:
        result = api.train(
            dataset,
            recipe=recipe,
            out=out,
            setting=setting,
            method=method,
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


def say_floor(method: MethodSettings) -> None:
    """Say how low the contrastive loss can get, lest it looks stuck there."""
    if method.contrastive_weight > 0:
        floor = contrastive_floor(method.num_negatives, temperature=method.temperature)
        say(
            f"The contrastive loss L_c cannot fall below {floor:.3f} "
            f"with {method.num_negatives} negatives."
        )


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


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="evaluation.KEY=value; see docs/reference/settings.md."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Another dataset.yaml with the same classes.")
    ] = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="whole, slide-769, center-crop-513, whole-ms-flip, …  [default: the run's]"
        ),
    ] = None,
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    all_weights: Annotated[
        bool,
        typer.Option("--all-weights", help="Teacher and student, last and best, side by side."),
    ] = False,
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
        all_weights=all_weights,
        overrides=parse_assignments(settings or []),
    )
    console.print(scores_table(result.get("all", [result]), split))
    write_result(json_file, result)


def scores_table(results: list[dict[str, Any]], split: str) -> Table:
    """IoU of each class, and the means; a column for each of the networks."""
    first = results[0]
    title = f"{split}, {first['images']} images, protocol {described(first)}"
    if len(results) == 1:
        title += f", {first['weights']} weights at step {first['step']}"
    table = Table(title=as_it_is(title))
    table.add_column("class")
    for result in results:
        several = f"{result['weights']} {result['checkpoint']}\nstep {result['step']}"
        table.add_column("IoU %" if len(results) == 1 else several, justify="right")
    for name in first["iou"]:
        table.add_row(as_it_is(name), *(percent(result["iou"][name]) for result in results))
    counted = first["miou_classes"]
    mean = "mean" if counted is None else f"mean of {len(counted)} classes"
    table.add_row(mean, *(percent(result["miou"]) for result in results), style="bold")
    for name in first["miou_of_sets"]:
        means = (percent(result["miou_of_sets"][name]) for result in results)
        table.add_row(f"mean of {name}", *means, style="bold")
    return table


def described(result: dict[str, Any]) -> str:
    """A result's protocol with its numbers.

    >>> numbers = {"crop": [769, 769], "stride": [513, 513], "scales": [1.0], "flip": False}
    >>> described({"protocol": "slide", "protocol_settings": numbers})
    'slide (769 x 769, stride 513 x 513)'
    """
    numbers = result["protocol_settings"]
    said = []
    if numbers["crop"] is not None:
        said.append(" x ".join(map(str, numbers["crop"])))
    if numbers["stride"] is not None:
        said.append("stride " + " x ".join(map(str, numbers["stride"])))
    if numbers["scales"] != [1.0]:
        said.append("sizes " + " ".join(f"{scale:g}" for scale in numbers["scales"]))
    return str(result["protocol"]) + (f" ({', '.join(said)})" if said else "")
