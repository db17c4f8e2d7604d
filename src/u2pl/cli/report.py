"""``u2pl report`` and ``u2pl compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress as ProgressBar
from rich.table import Table

from u2pl import api
from u2pl.cli.console import JsonOption, as_it_is, console, percent, say, write_result


def report(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    out: Annotated[
        Path | None, typer.Option(help="The page.  [default: RUN/report.html]", dir_okay=False)
    ] = None,
    inspect: Annotated[
        bool,
        typer.Option(help="Look at the data first; without, what was found before is shown."),
    ] = True,
    true_masks: Annotated[
        Path | None,
        typer.Option(help="A folder of masks of unlabelled images, to measure by."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="To look at, of each section at most.")] = 500,
    json_file: JsonOption = None,
) -> None:
    """Write one HTML page about a run: curves, classes, and where it can be trusted."""
    with ProgressBar(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at images", total=None)
        result = api.make_report(
            run,
            out=out,
            look=inspect,
            true_masks=true_masks,
            max_images=images,
            on_image=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if not result["ended"]:
        say("Training has not ended: the page has its curves, scores and pictures come later.")
    for name, section in ((result["inspection"] or {}).get("sections") or {}).items():
        say(describe_section(name, section))
    say(f"Wrote {result['report']}, {result['bytes'] / 1e6:.1f} MB, everything inside.")
    write_result(json_file, result)


def describe_section(name: str, section: dict[str, Any]) -> str:
    """What was measured on a section's images, in a sentence.

    >>> describe_section("val", {"images": 9, "reliable_share": 0.8, "reliable_precision": 95.0,
    ...     "unreliable_precision": None, "negatives_error_rate": 1.5})
    'val, 9 images: the surest 80 % of the pixels are 95.00 % right, the others – %; 1.50 % of the \
negative keys are wrong.'
    """
    return (
        f"{name}, {section['images']} images: the surest {100 * section['reliable_share']:.0f} % "
        f"of the pixels are {percent(section['reliable_precision'])} % right, the others "
        f"{percent(section['unreliable_precision'])} %; "
        f"{percent(section['negatives_error_rate'])} % of the negative keys are wrong."
    )


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is the base.")],
    scores: Annotated[
        str | None,
        typer.Option(help="A file of each run's eval/ without .json.  [default: last, on val]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="An HTML page to write.", dir_okay=False)] = None,
    json_file: JsonOption = None,
) -> None:
    """Set runs side by side: mean and deviation over seeds, and what differences show."""
    result = api.compare(runs, scores=scores, out=out)
    console.print(groups_table(result["groups"], result["scored"]))
    for item in result["differences"]:
        say(f"{item['label']} against {item['base']}: {item['statement']}")
    for note in result["notes"]:
        say(f"Note: {note}")
    if out is not None:
        say(f"Wrote {out}.")
    write_result(json_file, result)


def groups_table(groups: list[dict[str, Any]], scored: str) -> Table:
    """Each group's seeds, mean, deviation, and runs."""
    title = f"mIoU in % of {scored}, by settings without the seed"
    table = Table(title=as_it_is(title))
    table.add_column("group", overflow="fold")
    for column in ("seeds", "mean", "±", "student", "runs"):
        table.add_column(column, justify="right")
    for group in groups:
        table.add_row(
            as_it_is(group["label"]),
            as_it_is(", ".join(map(str, group["seeds"]))),
            percent(group["mean"]),
            percent(group["deviation"]),
            percent(group["mean_student"]),
            str(len(group["runs"])),
        )
    return table
