"""``u2pl app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2pl import api
from u2pl.app.server import is_local
from u2pl.cli.console import complain, say


def open_app(
    run: Annotated[
        Path, typer.Argument(help="A run folder, or a folder of runs to choose from.")
    ] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="The port.  [default: the first free one from 7860 on]"
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Look at images through a run in a browser: mask, entropy, and what a pixel surely is not."""

    def ready(address: str) -> None:
        say(f"The page is at {address} – Ctrl-C ends it.")
        if not is_local(host):
            complain(
                f"Listening at {host}: whoever reaches this machine can use the page, without a "
                "password."
            )

    api.open_app(run, host=host, port=port, browser=browser, on_ready=ready)
