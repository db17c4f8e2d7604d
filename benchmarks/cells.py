"""What the tables of several seeds and methods share: a cell is one training, a row one method."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import u2pl


class Method(NamedTuple):
    """A row of a table.

    Attributes:
        setting: of its trainings.
        overrides: settings by dotted key.
        dataset: the file, beside the split's dataset.yaml, that it trains on.
    """

    setting: str
    overrides: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default, never written to
    dataset: str = "dataset.yaml"


Methods = dict[str, Method]


def add_arguments(parser: argparse.ArgumentParser, methods: Methods) -> None:
    """What every table may be asked."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="a local file, or none for timm's hub")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=list(methods))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")


def run_table(
    arguments: argparse.Namespace,
    methods: Methods,
    *,
    recipe: str,
    write_split: Callable[[Path, int], Path],
    overrides_of: Callable[[str, int], dict[str, Any]] = lambda name, seed: {},
) -> None:
    """Run the cells that are missing, and print the table.

    Args:
        arguments: of a parser that went through :func:`add_arguments`.
        methods: all rows.
        recipe: of every cell.
        write_split: writes a seed's dataset.yaml into a folder and returns it.
        overrides_of: settings that depend on the row and the seed.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = u2pl.config.parse_assignments(arguments.set)
    if arguments.weights != "none":
        overrides["model.weights"] = arguments.weights
    for seed in arguments.seeds:
        dataset = write_split(arguments.out / f"split-{seed}", seed)
        for name in arguments.methods:
            method = methods[name]
            run_cell(
                dataset.parent / method.dataset,
                arguments.out / f"{name}-{seed}",
                recipe=recipe,
                name=name,
                setting=method.setting,
                seed=seed,
                overrides=method.overrides | overrides_of(name, seed) | overrides,
            )
    print_tables(arguments.out, methods)


def run_cell(
    dataset: Path,
    out: Path,
    *,
    recipe: str,
    name: str,
    setting: str,
    seed: int,
    overrides: dict[str, Any],
) -> None:
    """Train one cell and score its last checkpoint, student and teacher, on val and test.

    A cell that has its ``result.json`` is not repeated, and one that was stopped goes on.
    """
    if (out / "result.json").exists():
        return
    started = time.perf_counter()
    result = u2pl.train(
        dataset,
        recipe=recipe,
        out=out,
        setting=setting,
        seed=seed,
        overrides={} if has_begun(out) else overrides,
        resume=has_begun(out),
        on_progress=lambda p: (
            print(name, seed, p.step, p.values, flush=True) if p.step % 100 == 0 else None
        ),
        on_evaluation=lambda step, scores: print(
            name, seed, step, {kind: round(score.miou, 2) for kind, score in scores.items()}
        ),
    )
    seconds = time.perf_counter() - started
    row: dict[str, Any] = {"method": name, "seed": seed, "seconds": seconds}
    for weights in ("student", "ema"):
        test = u2pl.evaluate(out, split="test", weights=weights)
        row[f"val_{weights}"] = result[weights]["miou"]
        row[f"test_{weights}"] = test["miou"]
        row[f"test_{weights}_iou"] = test["iou"]
    (out / "result.json").write_text(json.dumps(row, indent=2) + "\n")


def has_begun(out: Path) -> bool:
    """Whether a run folder can be resumed."""
    return (out / "config.yaml").exists()


def print_tables(out: Path, methods: Iterable[str]) -> None:
    """Print what is there: scores of each method, then its IoU of each class on test."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
    columns = ("val_student", "val_ema", "test_student", "test_ema")
    print("| method | seeds | " + " | ".join(columns) + " | seconds a run |")
    print("|---" * (len(columns) + 3) + "|")
    by_method = {name: [row for row in rows if row["method"] == name] for name in methods}
    by_method = {name: runs for name, runs in by_method.items() if runs}
    for name, runs in by_method.items():
        cells = [name, ", ".join(str(row["seed"]) for row in runs)]
        cells += [mean_and_spread([row[column] for row in runs]) for column in columns]
        print("| " + " | ".join(cells) + f" | {statistics.mean(r['seconds'] for r in runs):.0f} |")
    if not by_method:
        return
    classes = list(rows[0]["test_ema_iou"])
    print("\n| test IoU, teacher | " + " | ".join(classes) + " |")
    print("|---" * (len(classes) + 1) + "|")
    for name, runs in by_method.items():
        cells = [mean_iou([row["test_ema_iou"][label] for row in runs]) for label in classes]
        print(f"| {name} | " + " | ".join(cells) + " |")


def mean_and_spread(values: list[float]) -> str:
    """Mean ± standard deviation (n - 1)."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def mean_iou(values: list[float | None]) -> str:
    """Mean of a class's IoU; a dash where a seed has none."""
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.1f}" if len(known) == len(values) else "–"
