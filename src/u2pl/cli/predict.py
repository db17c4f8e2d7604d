"""``u2pl predict``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from u2pl import api
from u2pl.cli.console import JsonOption, complain, images_bar, say, write_result
from u2pl.engine.pictures import DEFAULT_KINDS, KINDS
from u2pl.engine.tiles import Tiling
from u2pl.launch import world_of

_NAMES = {"reliable": "reliable maps", "entropy": "entropy maps"}


def predict(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    source: Annotated[
        Path,
        typer.Argument(help="An image, a folder, a glob in quotes, a list (.txt), or a video."),
    ],
    out: Annotated[Path, typer.Option(help="Gets a folder for each kind of picture.")],
    save: Annotated[
        str | None,
        typer.Option(
            help=f"Kinds of pictures, with commas: {', '.join(KINDS)}.  "
            f"[default: {','.join(DEFAULT_KINDS)}]"
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="voc or cityscapes: write the folder that this test server takes."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="whole, slide-769, slide-ms-flip, …  [default: the run's]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Pass over images whose results are whole.")
    ] = False,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Count images that cannot be read, and go on.")
    ] = False,
    tile: Annotated[
        int, typer.Option(help="Side of the tiles of a large image in pixels; 0 for none.")
    ] = Tiling.size,
    overlap: Annotated[
        int, typer.Option(help="Pixels that neighbouring tiles share.")
    ] = Tiling.overlap,
    every: Annotated[int, typer.Option(help="Of a video, label each so many frames.")] = 1,
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    json_file: JsonOption = None,
) -> None:
    """Label images: class ids, overlays, entropy, and where the network is sure."""
    world = world_of(os.environ)
    kinds = None if save is None else [kind.strip() for kind in save.split(",") if kind.strip()]
    with images_bar(shown=world.is_first) as bar:
        task = bar.add_task("predicting", total=None)
        result = api.predict(
            run,
            source,
            out=out,
            save=kinds,
            server=server,
            protocol=protocol,
            weights=weights,
            checkpoint=checkpoint,
            resume=resume,
            skip_damaged=skip_damaged,
            tile=tile,
            overlap=overlap,
            every=every,
            on_image=lambda done, total: bar.update(task, completed=done, total=total or None),
            world=world,
        )
    if kinds is None:
        kinds = list(DEFAULT_KINDS) if server is None else []
    if server is not None:
        kinds.insert(0, f"results for the {server} server")
    describe(result, kinds, out, "" if world.size == 1 else f"Process {world.rank}: ")
    if world.is_first:
        write_result(json_file, result)


def describe(result: dict[str, Any], kinds: list[str], out: Path, process: str) -> None:
    """Say what was written, and what was not."""
    names = [_NAMES.get(kind, kind) for kind in kinds]
    if {"entropy", "reliable"} <= set(kinds):
        names[kinds.index("entropy")] = "entropy"  # "entropy and reliable maps"
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    say(
        f"{process}Wrote {result['images']} {listed} to {out}; "
        f"{100 * result['reliable_share']:.0f} % of the pixels are reliable."
    )
    if result["skipped"]:
        say(f"{process}{result['skipped']} images were whole before.")
    if result["damaged"]:
        complain(
            f"{process}{result['damaged']} images could not be read; the manifest in {out} "
            "names them."
        )
