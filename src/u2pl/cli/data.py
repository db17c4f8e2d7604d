"""``u2pl data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from u2pl.cli.console import JsonOption, as_it_is, console, say, write_result
from u2pl.data.check import check_dataset
from u2pl.data.sources import load_dataset


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
