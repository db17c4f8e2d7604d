"""``u2pl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2pl import api
from u2pl.cli.console import JsonOption, complain, say, write_result
from u2pl.errors import UserError
from u2pl.exporting import EQUAL_PIXELS, FORMATS


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the files; RUN/export/FORMAT by default.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare masks with u2pl's own; 1 where they differ.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Compare on these instead of the run's val images.")
    ] = None,
    num_images: Annotated[int, typer.Option(help="Compare on the first so many.")] = 16,
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    json_file: JsonOption = None,
) -> None:
    """Write the network as ONNX, torch.export, safetensors, or a folder for the Hub."""
    result = api.export(
        run,
        format=format,
        out=out,
        weights=weights,
        checkpoint=checkpoint,
        verify=verify or images is not None,
        images=images,
        num_images=num_images,
    )
    for file in result["files"]:
        say(f"Wrote {file}")
    if result["size"] is not None:
        height, width = result["size"]
        say(f"The graph takes images of {width} x {height} pixels (width x height) alone.")
    license = result["encoder_license"]
    speak = say if license["verdict"] in ("none", "free") else complain
    speak(license["sentence"])
    write_result(json_file, result)
    if "equal_pixels" not in result:
        return
    say(
        f"{100 * result['equal_pixels']:.4f} % of the pixels of {result['images']} images are "
        f"equal; logits differ by {result['max_abs_difference']:.2g} at most."
    )
    if result["equal_pixels"] < EQUAL_PIXELS:
        raise UserError(
            f"Expected at least {100 * EQUAL_PIXELS} % equal pixels, got "
            f"{100 * result['equal_pixels']:.2f} %; use another format, or report the network's "
            "settings."
        )
