"""The demos: painted streets, three trainings, one table."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from u2pl.api import make_config, train
from u2pl.data.synthetic import write_streets
from u2pl.engine.checkpoint import write_json
from u2pl.engine.loop import Progress
from u2pl.errors import UserError, nearest_name

SIZE = (96, 96)
WITHOUT_CONTRAST = {"method.contrastive_weight": 0.0}


@dataclass(frozen=True)
class Demo:
    """What one of the demos paints and trains.

    Attributes:
        recipe: of all its trainings.
        num_labeled, num_unlabeled, num_val: streets.
        style, target_style: of the labelled streets, and of the others.
        methods: setting and overrides of each row of the table.
    """

    recipe: str
    num_labeled: int
    num_unlabeled: int
    num_val: int
    style: str
    target_style: str
    methods: dict[str, tuple[str, dict[str, Any]]]


DEMOS: dict[str, Demo] = {
    "semi": Demo(
        recipe="demo",
        num_labeled=16,
        num_unlabeled=400,
        num_val=100,
        style="clear",
        target_style="clear",
        methods={
            "supervised": ("supervised", {}),
            "no_contrast": ("semi", WITHOUT_CONTRAST),
            "u2pl": ("semi", {}),
        },
    ),
    "adapt": Demo(
        recipe="demo-adapt",
        num_labeled=200,
        num_unlabeled=400,
        num_val=100,
        style="clear",
        target_style="dusk",
        methods={
            "source_only": ("supervised", {}),
            "no_contrast": ("adapt", WITHOUT_CONTRAST),
            "u2pl": ("adapt", {}),
        },
    ),
}
"""By setting. In each the last row is the whole method, and the first the one to beat."""


def run_demo(
    out: Path,
    *,
    setting: str = "semi",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on_start: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[str, Progress], None] = lambda *_: None,
) -> dict[str, Any]:
    """Paint a street data set and train on it three times, with the same number of steps.

    Args:
        setting: ``semi``, or ``adapt``: labelled streets of one style, all others of another.
        out: gets ``streets/`` and a run folder a method; it must not hold a demo yet.
        seed: of the streets and of the trainings.
        overrides: settings by dotted key, for all three trainings.
        overwrite: remove an earlier demo's streets and runs first, and nothing else.
        workers: trainings at a time; None takes one on a GPU and otherwise one a core.
        on_start: called with ``streets`` and then with ``training``.
        on_progress: called with a method's name and each row of its training metrics.

    Returns:
        ``setting``, ``seed``, ``miou`` (method → percent on val, the last checkpoint's teacher),
        ``miou_student`` likewise, ``iou`` (method → class → percent) and ``seconds``.

    Raises:
        UserError: for a setting without a demo, where the folder holds a demo already, or where
            a training's setting is wrong.
    """
    started = time.perf_counter()
    if setting not in DEMOS:
        raise UserError(
            f"Expected a demo of {', '.join(DEMOS)}, got '{setting}'."
            f"{nearest_name(setting, DEMOS)}",
            exit_code=2,
        )
    demo = DEMOS[setting]
    jobs: dict[str, dict[str, Any]] = {}
    for name, (training_setting, changes) in demo.methods.items():
        settings: dict[str, Any] = {"setting": training_setting, "seed": seed}
        settings["overrides"] = changes | dict(overrides or {})
        make_config(demo.recipe, **settings)  # a mistake is told before anything is painted
        jobs[name] = settings | {"recipe": demo.recipe, "out": out / name}
    on_start("streets")
    dataset = paint(demo, out, seed=seed, overwrite=overwrite)
    on_start("training")
    results = train_side_by_side(dataset, jobs, workers or default_workers(len(jobs)), on_progress)
    result = {
        "setting": setting,
        "seed": seed,
        "miou": {name: run["ema"]["miou"] for name, run in results.items()},
        "miou_student": {name: run["student"]["miou"] for name, run in results.items()},
        "iou": {name: run["ema"]["iou"] for name, run in results.items()},
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "demo.json", result)
    return result


def default_workers(num_jobs: int) -> int:
    """Trainings at a time: a small net makes better use of a core each than of two together."""
    return 1 if torch.cuda.is_available() else min(num_jobs, os.cpu_count() or 1)


def train_side_by_side(
    dataset: Path,
    jobs: dict[str, dict[str, Any]],
    workers: int,
    on_progress: Callable[[str, Progress], None],
) -> dict[str, dict[str, Any]]:
    """Call :func:`u2pl.train` with each job's arguments, in processes that share the cores.

    Returns:
        Each job's result, in the order of the jobs.

    Raises:
        UserError: the first that a training ended with.
    """
    if workers == 1:
        return {
            name: train(dataset, **job, on_progress=partial(on_progress, name))
            for name, job in jobs.items()
        }
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(
            workers, context, initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool,
    ):
        events = manager.Queue()
        # the last job is the longest: started first, the others fill the cores beside it
        futures: dict[str, Future[dict[str, Any]]] = {
            name: pool.submit(_train_in_worker, dataset, name, jobs[name], events)
            for name in reversed(jobs)
        }
        while not all(future.done() for future in futures.values()):
            try:
                on_progress(*events.get(timeout=0.2))
            except queue.Empty:
                continue
        results = {name: futures[name].result() for name in jobs}
    for result in results.values():
        if "error" in result:
            raise UserError(result["error"], exit_code=result["exit_code"])
    return results


def _train_in_worker(dataset: Path, name: str, job: dict[str, Any], events: Any) -> dict[str, Any]:
    try:
        return train(dataset, **job, on_progress=lambda progress: events.put((name, progress)))
    except UserError as error:
        return {"error": str(error), "exit_code": error.exit_code}


def paint(demo: Demo, out: Path, *, seed: int, overwrite: bool) -> Path:
    """Paint a demo's streets and return their dataset.yaml; see :func:`run_demo`."""
    if overwrite:
        for name in ("streets", *{name for each in DEMOS.values() for name in each.methods}):
            shutil.rmtree(out / name, ignore_errors=True)
    if (out / "streets").exists():
        raise UserError(
            f"{out} already holds a demo; add --overwrite, or choose another folder with --out."
        )
    return write_streets(
        out / "streets",
        num_labeled=demo.num_labeled,
        num_unlabeled=demo.num_unlabeled,
        num_val=demo.num_val,
        size=SIZE,
        style=demo.style,
        unlabeled_style=demo.target_style,
        val_style=demo.target_style,
        seed=seed,
        with_tags=False,  # they come from the true masks, and would be labels in disguise
    )
