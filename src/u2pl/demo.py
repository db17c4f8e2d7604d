"""The demo: painted streets, three trainings, one table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from u2pl.api import make_config, train
from u2pl.data.synthetic import write_streets
from u2pl.engine.checkpoint import write_json
from u2pl.engine.loop import Progress
from u2pl.errors import UserError

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {}),
    "no_contrast": ("semi", {"method.contrastive_weight": 0.0}),
    "u2pl": ("semi", {}),
}
"""Setting and overrides of each row of the table: labels alone, mean teacher with CutMix, all."""

NUM_LABELED, NUM_UNLABELED, NUM_VAL = 12, 400, 100
SIZE = (96, 96)


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_start: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Paint a street data set and train on it three times, with the same number of steps.

    Args:
        out: gets ``streets/`` and a run folder a method; it must not hold a demo yet.
        seed: of the streets and of the trainings.
        overrides: settings by dotted key, for all three trainings.
        overwrite: remove an earlier demo's streets and runs first, and nothing else.
        on_start: called with each method's name.
        on_progress: called with each row of training metrics.

    Returns:
        ``setting``, ``seed``, ``miou`` (method → percent on val, the last checkpoint's teacher),
        ``miou_student`` likewise, ``iou`` (method → class → percent) and ``seconds``.

    Raises:
        UserError: where the folder holds a demo already.
    """
    started = time.perf_counter()
    for setting, changes in METHODS.values():  # a mistake is told before anything is painted
        make_config("demo", setting=setting, seed=seed, overrides={**changes, **(overrides or {})})
    on_start("streets")
    dataset = paint(out, seed=seed, overwrite=overwrite)
    results = {}
    for name, (setting, changes) in METHODS.items():
        on_start(name)
        results[name] = train(
            dataset,
            recipe="demo",
            out=out / name,
            setting=setting,
            seed=seed,
            overrides={**changes, **(overrides or {})},
            on_progress=on_progress,
        )
    result = {
        "setting": "semi",
        "seed": seed,
        "miou": {name: run["ema"]["miou"] for name, run in results.items()},
        "miou_student": {name: run["student"]["miou"] for name, run in results.items()},
        "iou": {name: run["ema"]["iou"] for name, run in results.items()},
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "demo.json", result)
    return result


def paint(out: Path, *, seed: int, overwrite: bool) -> Path:
    """Paint the demo's streets and return their dataset.yaml; see :func:`run_demo`."""
    if overwrite:
        for name in ("streets", *METHODS):
            shutil.rmtree(out / name, ignore_errors=True)
    if (out / "streets").exists():
        raise UserError(
            f"{out} already holds a demo; add --overwrite, or choose another folder with --out."
        )
    return write_streets(
        out / "streets",
        num_labeled=NUM_LABELED,
        num_unlabeled=NUM_UNLABELED,
        num_val=NUM_VAL,
        size=SIZE,
        style="clear",
        seed=seed,
        with_tags=False,  # they come from the true masks, and would be labels in disguise
    )
