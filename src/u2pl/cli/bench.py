"""``u2pl bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from u2pl import bench as benchmark
from u2pl.bench.page import number, page
from u2pl.cli.console import JsonOption, console, say, write_result
from u2pl.config import parse_assignments
from u2pl.errors import UserError


def bench(
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value, for whole steps and input.")
    ] = None,
    parts: Annotated[
        str, typer.Option(help="Of method, step, predict, input; with commas.")
    ] = ",".join(benchmark.PARTS),
    repetitions: Annotated[int, typer.Option(help="Turns that count.")] = 5,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.  [default: a GPU where there is one]")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder whose loader is measured.  [default: painted images]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write bench-DEVICE.md and .json to this folder.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure what the method costs beside the network, as ratios within one run."""
    result = benchmark.bench(
        parts=parts.split(","),
        repetitions=repetitions,
        overrides=parse_assignments(settings or []),
        device=device,
        run=run,
        on_part=lambda part: say(f"Measuring {part} …"),
        on_result=lambda result: write_pages(result, out),
    )
    table = Table(title=f"{result['device']}, {result['threads']} threads")
    table.add_column("ratio")
    table.add_column("median", justify="right")
    for name, value in result["ratios"].items():
        table.add_row(name, number(value))
    console.print(table)
    if result["host_syncs_per_step"] is not None:
        say(f"Host synchronisations a step: {result['host_syncs_per_step']}.")
    if out is not None:
        say(f"Wrote {out / file_name(result)}.md and .json.")
    write_result(json_file, result)


def file_name(result: dict[str, Any]) -> str:
    """Of a device's result, without a suffix."""
    return "bench-" + "-".join(result["device"].lower().split())


def write_pages(result: dict[str, Any], out: Path | None) -> None:
    """Write what is measured so far, as page and as JSON, so that an end by force loses little."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        name = file_name(result)
        (out / f"{name}.md").write_text(page(result), encoding="utf-8")
        (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write to {out}: {error.strerror}.") from None
