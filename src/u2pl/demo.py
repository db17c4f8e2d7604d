"""The demo: painted streets, three trainings, one table."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

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

NUM_LABELED, NUM_UNLABELED, NUM_VAL = 16, 400, 100
SIZE = (96, 96)


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on_start: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[str, Progress], None] = lambda *_: None,
) -> dict[str, Any]:
    """Paint a street data set and train on it three times, with the same number of steps.

    Args:
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
        UserError: where the folder holds a demo already, or a setting is wrong.
    """
    started = time.perf_counter()
    jobs: dict[str, dict[str, Any]] = {}
    for name, (setting, changes) in METHODS.items():
        settings: dict[str, Any] = {"setting": setting, "seed": seed}
        settings["overrides"] = changes | dict(overrides or {})
        make_config("demo", **settings)  # a mistake is told before anything is painted
        jobs[name] = settings | {"recipe": "demo", "out": out / name}
    on_start("streets")
    dataset = paint(out, seed=seed, overwrite=overwrite)
    on_start("training")
    results = train_side_by_side(dataset, jobs, workers or default_workers(), on_progress)
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


def default_workers() -> int:
    """Trainings at a time: a small net makes better use of a core each than of two together."""
    return 1 if torch.cuda.is_available() else min(len(METHODS), os.cpu_count() or 1)


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
