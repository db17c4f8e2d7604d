"""``u2pl data``."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from u2pl.cli.console import (
    JsonOption,
    TrainingDisplay,
    as_it_is,
    console,
    say,
    write_result,
)
from u2pl.data.check import check_dataset
from u2pl.data.check_page import write_check_page
from u2pl.data.corrections import FORMATS as CORRECTED
from u2pl.data.init import FORMATS, init_dataset
from u2pl.data.init.draft import some
from u2pl.data.merge import MergeResult, merge_corrections
from u2pl.data.prepare import BENCHMARKS, prepare_dataset
from u2pl.data.sources import load_dataset
from u2pl.data.split import Split, import_split, split_dataset
from u2pl.errors import UserError


class UncoveredChoice(str, Enum):
    """What pixels without an annotation are."""

    background = "background"
    ignore = "ignore"


def init(
    source: Annotated[Path, typer.Argument(help="A folder, a .json, or CVAT's .zip.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. [default: dataset.yaml in the folder]")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(FORMATS)}. [default: found out]"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where the images are that annotations name.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names by commas, in the order of their ids.")
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(help="Hold this out where there is no val: 1/5, 0.2, or a number of images."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that choice.", min=0)] = 0,
    uncovered: Annotated[
        UncoveredChoice | None,
        typer.Option(help="What pixels without an annotation are. [default: background]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset.yaml that is there.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Look at a folder and write its dataset.yaml: classes, kind of masks, sections, and why."""
    names = None if classes is None else tuple(name.strip() for name in classes.split(","))
    result = init_dataset(
        source,
        out=out,
        format=format,
        images=images,
        classes=names,
        val=val,
        seed=seed,
        uncovered=None if uncovered is None else uncovered.value,
        overwrite=overwrite,
    )
    say(f"Format: {result.format}.")
    for sentence in result.conclusions:
        say(sentence)
    sections = ", ".join(f"{n} {len(rows)}" for n, rows in result.dataset.sections.items() if rows)
    say(f"Wrote {result.path}: {sections}. Next: u2pl data check {shlex.quote(str(result.path))}")
    write_result(json_file, result.to_json())


def prepare(
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}.")],
    source: Annotated[Path, typer.Argument(help="A folder with archives, or with their trees.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    variant: Annotated[
        str | None,
        typer.Option(help="voc: classic, blender, fine; synthia: 16, 13; … [default: the first]"),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="gta5, synthia: the dataset.yaml to adapt to.")
    ] = None,
    split_list: Annotated[
        Path | None,
        typer.Option("--split", help="A published list of labelled images.", dir_okay=False),
    ] = None,
    split_unlabeled: Annotated[
        Path | None,
        typer.Option(help="With --split: the unlabelled ones, too.", dir_okay=False),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch what needs no account: voc.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Make a dataset.yaml of a published data set, from its archives or what they unpack to."""
    if split_unlabeled is not None and split_list is None:
        raise UserError("--split-unlabeled needs --split.", exit_code=2)
    with TrainingDisplay() as display:
        made = prepare_dataset(
            name,
            source,
            out=out,
            variant=variant,
            target=target,
            split=split_list,
            split_unlabeled=split_unlabeled,
            download=download,
            on_progress=display.seeds,
        )
    if made.was_there:
        say(f"{made.path} is there already, of an earlier call; nothing was done.")
    for sentence in made.notes:
        say(sentence)
    say(f"Licence: {made.benchmark.licence}")
    sections = ", ".join(f"{section} {count}" for section, count in made.sections.items())
    word = "It has" if made.was_there else f"Wrote {made.path}:"
    say(f"{word} {sections}. Next: u2pl data check {shlex.quote(str(made.path))}")
    if made.split is not None:
        say(_describe(made.split))
    write_result(json_file, made.to_json())


def check(
    dataset: Annotated[Path, typer.Argument(help="A dataset.yaml, or its folder.")],
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with images under their masks.", dir_okay=False),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Open every file: pairs, sizes, ids, corrupt images, images in two splits; 1 on errors."""
    data = load_dataset(dataset)
    found = check_dataset(data)
    report = found.to_json()
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
    if html is not None:
        write_check_page(html, data, found)
        say(f"Wrote {html}.")
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


def merge(
    dataset: Annotated[Path, typer.Argument(help="A dataset.yaml, or its folder.")],
    corrected: Annotated[
        Path, typer.Argument(help="Masks that came back: a folder, a .zip, or a .json.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. [default: the next number, dataset-2.yaml]"),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help=f"{', '.join(CORRECTED)}. [default: found out]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder that names of masks count from.")
    ] = None,
    uncovered: Annotated[
        str, typer.Option(help="What pixels without an annotation are: ignore, or a class.")
    ] = "ignore",
    pseudo_labels: Annotated[
        Path | None,
        typer.Option(help="What u2pl label wrote: leave out masks that are still equal to it."),
    ] = None,
    relabel: Annotated[
        bool, typer.Option("--relabel", help="Give labelled images, too, the masks that came.")
    ] = False,
    skip_unmatched: Annotated[
        bool, typer.Option("--skip-unmatched", help="Leave out masks that belong to no image.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Take corrected masks back: the next version of a data set, with more labels."""
    result = merge_corrections(
        dataset,
        corrected,
        out=out,
        format=format,
        images=images,
        uncovered=uncovered,
        pseudo_labels=pseudo_labels,
        relabel=relabel,
        skip_unmatched=skip_unmatched,
    )
    _describe_merge(result)
    write_result(json_file, result.to_json())


def _describe_merge(result: MergeResult) -> None:
    """Say what was merged, and by name what was not."""
    say(f"Format: {result.format}.")
    left = {
        "labelled already with these masks": result.already,
        "left unlabelled, since no pixel of their masks is labelled": result.empty,
        "left unlabelled, since their masks are still the pseudo-labels": result.unchanged,
        "masks left out, since they belong to no image": result.unmatched,
    }
    for why, names in left.items():
        if names:
            say(f"{len(names)} {why}: {some(names)}.")
    if result.path is None:
        say("Nothing to merge: all of it is in the data set already.")
        return
    relabeled = f", {len(result.relabeled)} relabelled" if result.relabeled else ""
    say(
        f"{len(result.merged)} images moved from unlabeled to labeled{relabeled}; "
        f"{100 * result.labeled_share:.1f} % of their pixels are labelled, the rest is ignored."
    )
    say(
        f"Wrote {result.path}: labeled {result.num_labeled}, unlabeled {result.num_unlabeled}. "
        f"Next: u2pl train {shlex.quote(str(result.path))}"
    )
