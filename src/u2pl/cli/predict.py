"""``u2pl predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as ProgressBar

from u2pl import api
from u2pl.cli.console import JsonOption, console, say, write_result
from u2pl.engine.predict import KINDS, predict_images


def predict(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    source: Annotated[
        Path, typer.Argument(help="An image, a folder, or a glob pattern in quotes.")
    ],
    out: Annotated[Path, typer.Option(help="Gets a folder for each kind of picture.")],
    weights: Annotated[str, typer.Option(help="ema (the teacher) or student.")] = "ema",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    json_file: JsonOption = None,
) -> None:
    """Label images: class ids, overlays, entropy, and where the network is sure."""
    model = api.load(run, weights=weights, checkpoint=checkpoint)
    with ProgressBar(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("predicting", total=None)
        result = predict_images(
            model,
            source,
            out,
            kinds=KINDS,
            on_image=lambda done, total: bar.update(task, completed=done, total=total),
        )
    say(
        f"Wrote {result['images']} masks, overlays, entropy and reliable maps to {out}; "
        f"{100 * result['reliable_share']:.0f} % of the pixels are reliable."
    )
    write_result(json_file, result)
