"""``u2pl plan``."""

from __future__ import annotations

import math
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.table import Table

from u2pl import api
from u2pl import plan as plans
from u2pl.cli.console import JsonOption, MethodOption, as_it_is, console, say, write_result
from u2pl.config import parse_assignments
from u2pl.contrast import rank_bounds
from u2pl.data.sources import load_dataset
from u2pl.engine.loop import check_against_data
from u2pl.errors import UserError


def plan(
    dataset: Annotated[Path, typer.Argument(help="A dataset.yaml, or its folder.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value; the plan keeps these as they are.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a YAML file.")] = "default",
    out: Annotated[Path, typer.Option(help="Gets the settings, to edit.", dir_okay=False)] = Path(
        "plan.yaml"
    ),
    setting: Annotated[
        str | None, typer.Option(help="semi, adapt or supervised.  [default: the recipe's]")
    ] = None,
    method: MethodOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random draw.")] = None,
    measure: Annotated[
        bool, typer.Option(help="Make a few steps to measure time and memory.")
    ] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace a plan already there.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Say what `train` would do with a data set, and write it to a file that it takes."""
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already; add --overwrite, or choose another --out.")
    given = parse_assignments(settings or [])
    config = api.make_config(recipe, setting=setting, method=method, seed=seed, overrides=given)
    data = load_dataset(dataset, require=("labeled", "val"))
    check_against_data(config, data)
    result = plans.make_plan(
        config,
        data,
        given=tuple(given),
        measure=measure,
        on_trial=lambda parts: say(
            f"Trying a few steps, each batch in {parts} part{'s' * (parts > 1)}."
        ),
    )
    describe(result)
    plans.write_plan(result, out)
    write_result(json_file, result.to_json())
    say(f"Train with: u2pl train {quote(str(dataset))} --recipe {quote(str(out))} --out runs/a")


def describe(result: plans.Plan) -> None:
    """Print what the numbers are derived from, the numbers, and what they cost."""
    found, method = result.fingerprint, result.config.method
    counts = ", ".join(f"{name} {number}" for name, number in found.images.items())
    say(
        f"{found.classes} classes; images: {counts}; median size {found.size[0]} x {found.size[1]}."
    )
    table = Table("setting", "value", "why", title=as_it_is(f"recipe {result.config.recipe}"))
    for choice in result.choices:
        table.add_row(*map(as_it_is, (choice.key, choice.value, choice.reason)))
    console.print(table)
    low, high = rank_bounds(found.classes, low_rank=method.low_rank, high_rank=method.high_rank)
    say(
        f"Ranks of {found.classes} classes: r_l {low}, r_h {high}; queues take "
        f"{result.queue_bytes / 1e6:.0f} MB."
    )
    trial = result.trial
    if trial is None or result.hours is None:
        return
    memory = f", {trial.memory / 2**30:.1f} GiB at the peak" if trial.memory else ""
    say(
        f"On {found.device}: {trial.seconds_supervised:.2f} s a step on labels alone, "
        f"{trial.seconds_semi:.2f} s with everything{memory}; about {duration(result.hours)} for "
        f"{result.config.train.steps} steps."
    )


def duration(hours: float) -> str:
    """Hours, or minutes where there is less than one.

    >>> duration(2.34), duration(0.2)
    ('2.3 hours', '12 minutes')
    """
    return f"{hours:.1f} hours" if hours >= 1 else f"{math.ceil(60 * hours)} minutes"
