"""``u2pl label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from u2pl import api
from u2pl.cli.console import JsonOption, complain, images_bar, say, write_result
from u2pl.labeling import LabelOptions
from u2pl.labeling.formats import FORMATS


def label(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    images: Annotated[
        Path, typer.Argument(help="An image, a folder, a glob in quotes, or a list (.txt).")
    ],
    out: Annotated[Path, typer.Option(help="Gets masks, annotations and the ranking.")],
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.")] = LabelOptions.format,
    top: Annotated[
        int | None,
        typer.Option(help="Hand out so many images, the first of the ranking. [default: all]"),
    ] = None,
    max_entropy: Annotated[
        float | None,
        typer.Option(help="Nats above which a pixel is unreliable. [default: the run's]"),
    ] = None,
    simplify: Annotated[
        float, typer.Option(help="Pixels that a polygon may lie off the outline; 0 is exact.")
    ] = LabelOptions.simplify,
    min_area: Annotated[
        float, typer.Option(help="Parts of fewer pixels have no polygon.")
    ] = LabelOptions.min_area,
    url: Annotated[
        str, typer.Option(help="Label Studio: what stands before an image's path.")
    ] = LabelOptions.url,
    resume: Annotated[
        bool, typer.Option("--resume", help="Pass over images whose labels are whole.")
    ] = False,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Count images that cannot be read, and go on.")
    ] = False,
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    json_file: JsonOption = None,
) -> None:
    """Pseudo-labels for annotation tools, and a ranked list of what to label next."""
    with images_bar() as bar:
        task = bar.add_task("labelling", total=None)
        result = api.label(
            run,
            images,
            out=out,
            format=format,
            top=top,
            max_entropy=max_entropy,
            simplify=simplify,
            min_area=min_area,
            url=url,
            weights=weights,
            checkpoint=checkpoint,
            resume=resume,
            skip_damaged=skip_damaged,
            on_image=lambda done, total: bar.update(task, completed=done, total=total or None),
        )
    describe(result, is_the_runs=max_entropy is None)
    write_result(json_file, result)


def describe(result: dict[str, Any], *, is_the_runs: bool) -> None:
    """Say what was written, by which threshold, and what was not."""
    whose = "the run's threshold" if is_the_runs else "as --max-entropy says"
    say(
        f"Labelled {result['images'] + result['skipped']} images; "
        f"{100 * result['reliable_share']:.0f} % of the pixels are reliable: entropy up to "
        f"{result['max_entropy']:.3f} nats, {whose}."
    )
    if result["left_out"]:
        say(f"Left out {result['left_out']} images that the run's data set has masks of.")
    if result["skipped"]:
        say(f"{result['skipped']} images were whole before.")
    if result["damaged"]:
        complain(
            f"{result['damaged']} images could not be read; the manifest in {result['out']} "
            "names them."
        )
    say(f"Wrote {result['handed_out']} images for {result['format']}: {', '.join(result['files'])}")
    say(f"What to label next: {result['page']} and {result['ranking']}, such as {result['top'][0]}")
