"""The command line: each command parses, calls one function, and prints."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import typer

from u2pl.cli import (
    bench,
    browser,
    data,
    demo,
    doctor,
    export,
    label,
    plan,
    predict,
    report,
    sweep,
    train,
)
from u2pl.cli.console import complain
from u2pl.errors import UserError, out_of_memory

app = typer.Typer(
    help="Label-efficient semantic segmentation: every pixel trains the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Describe, look at and split a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

app.command(epilog="Example: `u2pl demo --seed 1`")(demo.demo)
app.command(epilog="Example: `u2pl plan dataset.yaml --out plan.yaml`")(plan.plan)
app.command(
    epilog="Example: `u2pl train dataset.yaml --recipe camvid --out runs/a train.steps=4000`"
)(train.train)
app.command(epilog="Example: `u2pl sweep docs/experiments/camvid.yaml --data camvid --dry-run`")(
    sweep.sweep
)
app.command(epilog="Example: `u2pl evaluate runs/a --split test --weights student`")(train.evaluate)
app.command(epilog="Example: `u2pl predict runs/a photos --out labelled`")(predict.predict)
app.command(epilog="Example: `u2pl label runs/a photos --out to-label --format cvat --top 20`")(
    label.label
)
app.command(name="app", epilog="Example: `u2pl app runs`")(browser.open_app)
app.command(epilog="Example: `u2pl report runs/a --out a.html`")(report.report)
app.command(epilog="Example: `u2pl compare runs/labels-* runs/u2pl-* --out compare.html`")(
    report.compare
)
app.command(epilog="Example: `u2pl bench --parts method --out benchmarks/results`")(bench.bench)
app.command(epilog="Example: `u2pl export runs/a --format onnx --verify`")(export.export)
app.command(epilog="Example: `u2pl doctor --self-test`")(doctor.doctor)

data_app.command(epilog="Example: `u2pl data init photos`")(data.init)
data_app.command(epilog="Example: `u2pl data prepare voc downloads --out voc --variant blender`")(
    data.prepare
)
data_app.command(epilog="Example: `u2pl data check dataset.yaml`")(data.check)
data_app.command(epilog="Example: `u2pl data split dataset.yaml --labeled 1/16 --seed 0 --seed 1`")(
    data.split
)
data_app.command(epilog="Example: `u2pl data merge dataset.yaml task.zip`")(data.merge)


class Sentences(logging.Handler):
    """Prints warnings as sentences of their own on the error stream."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        complain(record.getMessage())


def main() -> None:
    """Run the command line; a user's mistake is one sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the characters of a name
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters in a file is an error
    # Fabric's advice is for those who choose a precision; here the settings do
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    handler = Sentences(logging.WARNING)
    logging.getLogger("u2pl").addHandler(handler)
    try:
        app()
    except UserError as error:
        complain(f"Error: {error}")
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        complain(
            "Error: There is not enough memory; lower data.crop or the batch sizes, or raise "
            "train.accumulation (docs/how-to/memory.md says more)."
        )
        sys.exit(1)
    finally:
        logging.getLogger("u2pl").removeHandler(handler)
