"""``u2pl doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from u2pl import doctor as doctors
from u2pl.cli.console import JsonOption, say, write_result
from u2pl.engine import failure
from u2pl.errors import UserError


def doctor(
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Train a little, stop, go on, predict.")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(help="A failure/step-N.pt of a run: make that step again.", dir_okay=False),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show versions and devices; test the installation; look at a step that was not finite."""
    if replay is not None:
        result = failure.replay(replay)
        describe_replay(result)
        write_result(json_file, result)
        return
    result = {"versions": doctors.versions(), "devices": doctors.devices()}
    result["advice"] = doctors.advice()
    for name, version in result["versions"].items():
        say(f"{name}: {version}")
    machine = result["devices"]
    say(f"cores: {machine['cpu_count']}, threads of torch: {machine['threads']}")
    for gpu in machine["gpus"]:
        bfloat16 = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
        say(f"GPU: {gpu['name']}, {gpu['memory_gib']} GiB, {bfloat16}")
    for sentence in result["advice"] if machine["gpus"] else [*result["advice"], "No GPU."]:
        say(sentence)
    if self_test:
        result["self_test"] = doctors.self_test()
        write_result(json_file, result)
        if not result["self_test"]["resumed_exactly"]:
            raise UserError("The self-test's resumed run differs from the one that never stopped.")
        seconds = result["self_test"]["seconds"]
        say(f"The self-test trained, resumed exactly and predicted, in {seconds:.0f} s.")
        return
    write_result(json_file, result)


def describe_replay(result: dict[str, Any]) -> None:
    """Say what a second look at a step found."""
    then = ", ".join(f"{name} {value}" for name, value in result["values"].items())
    say(f"Step {result['step']}, not finite then: {then}.")
    now = ", ".join(f"{name} {value:.4g}" for name, value in result["now"].items())
    say(f"Made again with the weights of step {result['checkpoint_step']}: {now}.")
    if result["layer"] is not None:
        say(f"The first layer whose output is not finite now: {result['layer']}.")
    for row in result["images"]:
        labels = f", labels {row['labels']}" if "labels" in row else ""
        finite = "" if row["finite"] else ", NOT FINITE"
        say(f"{row['file']}: {row['low']:.3f} to {row['high']:.3f}{finite}{labels}")
