"""``u2pl data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from u2pl.cli.console import JsonOption, as_it_is, console, say, write_result
from u2pl.data.check import check_dataset
from u2pl.data.sources import load_dataset
from u2pl.data.split import Split, import_split, split_dataset
from u2pl.errors import UserError


def check(
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


def split(
    dataset: Annotated[Path, typer.Argument(help="A dataset.yaml, or its folder.")],
    labeled: Annotated[
        list[str] | None,
        typer.Option(help="How much to label: 1/16, 0.05 or 23 images. May be given again."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of the choice. May be given again. [default: 0]")
    ] = None,
    import_list: Annotated[
        Path | None,
        typer.Option("--import", help="Take the labelled images of this list.", dir_okay=False),
    ] = None,
    import_unlabeled: Annotated[
        Path | None,
        typer.Option(help="With --import: the unlabelled ones, too.", dir_okay=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="With --import: of the new file, without suffix.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Label few images of many: nested lists, stratified by class pixels, or published ones."""
    if import_list is None:
        if import_unlabeled is not None or name is not None:
            raise UserError("--import-unlabeled and --name need --import.", exit_code=2)
        if not labeled:
            raise UserError("Expected --labeled 1/16, or --import LIST; give one.", exit_code=2)
        splits = split_dataset(dataset, labeled=labeled, seeds=seed or [0])
    else:
        if labeled or seed:
            raise UserError("Expected --labeled or --import, got both; give one.", exit_code=2)
        splits = [import_split(dataset, labeled=import_list, unlabeled=import_unlabeled, name=name)]
    for made in splits:
        say(_describe(made))
    write_result(json_file, {"splits": [made.to_json() for made in splits]})


def _describe(made: Split) -> str:
    """One line of what was written, and of what the labelled images lack."""
    text = (
        f"{made.path}: {len(made.labeled)} labelled, {made.num_unlabeled} unlabelled; "
        f"class shares within {100 * made.share_difference:.2f} points"
    )
    return text + (f"; no pixel of {', '.join(made.absent)}." if made.absent else ".")
