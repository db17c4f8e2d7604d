"""The demos: painted streets, several trainings, one table."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from u2pl.api import make_config, make_report, train
from u2pl.config import Config
from u2pl.data.class_counts import num_threads
from u2pl.data.sources import load_dataset
from u2pl.data.synthetic import write_streets
from u2pl.engine.checkpoint import write_json
from u2pl.engine.loop import Progress
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError, nearest_name
from u2pl.recipes import SETTINGS
from u2pl.weak import make_seeds

SIZE = (96, 96)
WITHOUT_CONTRAST = {"method.contrastive_weight": 0.0}


@dataclass(frozen=True)
class Method:
    """A row of a demo's table: one training.

    Attributes:
        setting: of the training.
        overrides: settings by dotted key.
        true_masks: train on the masks that all other rows never see.
    """

    setting: str
    overrides: dict[str, Any] = field(default_factory=dict)
    true_masks: bool = False


@dataclass(frozen=True)
class Demo:
    """What one of the demos paints and trains.

    Attributes:
        recipe: of all its trainings.
        num_labeled, num_unlabeled, num_val: streets.
        style, target_style: of the labelled streets, and of the others.
        methods: each row of the table; the first is the one to beat.
        zoom: range of the close-ups; see :func:`~u2pl.data.synthetic.write_streets`.
        tagged: streets have tags and no masks; seeds are made of them once, for all rows.
    """

    recipe: str
    num_labeled: int
    num_unlabeled: int
    num_val: int
    style: str
    target_style: str
    methods: dict[str, Method]
    zoom: tuple[float, float] = (1.0, 1.0)
    tagged: bool = False


DEMOS: dict[str, Demo] = {
    "semi": Demo(
        recipe="demo",
        num_labeled=16,
        num_unlabeled=400,
        num_val=400,  # fewer would blur what seeds differ by
        style="clear",
        target_style="clear",
        methods={
            "supervised": Method("supervised"),
            "no_contrast": Method("semi", WITHOUT_CONTRAST),
            "u2pl": Method("semi"),
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
            "source_only": Method("supervised"),
            "no_contrast": Method("adapt", WITHOUT_CONTRAST),
            "u2pl": Method("adapt"),
        },
    ),
    "weak": Demo(
        recipe="demo-weak",
        num_labeled=0,
        num_unlabeled=600,
        num_val=100,
        style="plain",
        target_style="plain",
        zoom=(2.5, 6.0),
        tagged=True,
        methods={
            "seeds_only": Method("weak", SETTINGS["supervised"]),
            "no_contrast": Method("weak", WITHOUT_CONTRAST),
            "u2pl": Method("weak"),
            "ceiling": Method("supervised", true_masks=True),
        },
    ),
}
"""By setting."""

HIDDEN_MASKS = Path("unlabeled") / "hidden_masks"
"""In the folder of the streets: what no training sees, and pseudo-labels are measured by."""

REPORTED_IMAGES = 100
"""Of val, and of the unlabelled streets: the report of a demo takes seconds."""

SEEDS = "seeds"
"""The run folder, and the row of the table, of the seed masks themselves."""


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
    on_seeds: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Paint a street data set and train on it several times, with the same number of steps.

    Args:
        out: gets ``streets/`` and a run folder a method; it must not hold a demo yet.
        setting: ``semi``; ``adapt``: labelled streets of one style, all others of another; or
            ``weak``: no masks, but tags that say which classes a street shows.
        seed: of the streets and of the trainings.
        overrides: settings by dotted key, for all trainings.
        overwrite: remove an earlier demo's streets and runs first, and nothing else.
        workers: trainings at a time, and processes that paint; None takes one a core, of painters
            at most 8, and on a GPU one training.
        on_start: called with ``streets`` and then with ``training``.
        on_progress: called with a method's name and each row of its training metrics.
        on_seeds: called on the way from tags to seeds; see :func:`u2pl.weak.make_seeds`.

    Returns:
        ``setting``, ``seed``, ``miou`` (method → percent on val, the last checkpoint's teacher),
        ``miou_student`` likewise, ``iou`` (method → class → percent), ``seconds`` of painting and
        training, and ``report``, the page about the run ``u2pl``. With tags
        ``miou`` and ``iou`` begin with ``seeds``, whose figures are over the pixels that they
        label, and ``seeds`` is their :func:`~u2pl.weak.quality.seed_quality`.

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
    jobs = plan_jobs(demo, out, seed=seed, overrides=overrides or {})
    on_start("streets")
    paint(demo, out, seed=seed, overwrite=overwrite, workers=num_threads(workers))
    on_start("training")
    listener = Listener(on_progress, on_seeds)
    results: dict[str, dict[str, Any]] = {}
    for group in jobs:
        results |= run_side_by_side(group, workers or default_workers(len(group)), listener)
    runs = {name: results[name] for name in demo.methods}
    result: dict[str, Any] = {
        "setting": setting,
        "seed": seed,
        "miou": {name: run["ema"]["miou"] for name, run in runs.items()},
        "miou_student": {name: run["student"]["miou"] for name, run in runs.items()},
        "iou": {name: run["ema"]["iou"] for name, run in runs.items()},
        "seconds": time.perf_counter() - started,
    }
    if demo.tagged:
        quality = results[SEEDS]
        result["miou"] = {SEEDS: quality["miou_sure"], **result["miou"]}
        result["iou"] = {SEEDS: quality["iou_sure"], **result["iou"]}
        result[SEEDS] = quality
    result["report"] = str(out / "u2pl" / "report.html")
    write_json(out / "demo.json", result)
    make_report(
        out / "u2pl",
        true_masks=out / "streets" / HIDDEN_MASKS,
        max_images=REPORTED_IMAGES,
    )
    return result


@dataclass(frozen=True)
class Job:
    """What a worker process does: a training, or the seeds for several.

    Attributes:
        dataset: the dataset.yaml, painted before the job begins.
        recipe, out, setting, seed, overrides: see :func:`u2pl.train`.
        seeds_alone: end when the seeds are made.
    """

    dataset: Path
    recipe: str
    out: Path
    setting: str
    seed: int
    overrides: dict[str, Any]
    seeds_alone: bool = False

    def config(self) -> Config:
        """The settings of the job.

        Raises:
            UserError: for a wrong one.
        """
        return make_config(
            self.recipe, setting=self.setting, seed=self.seed, overrides=self.overrides
        )

    def run(
        self,
        on_progress: Callable[[Progress], None],
        on_seeds: Callable[[str, int, int], None],
    ) -> dict[str, Any]:
        """Train and return the result of it, or return the quality of the seeds."""
        if self.seeds_alone:
            data = load_dataset(self.dataset, require=("unlabeled", "val"))
            folder = RunFolder(self.out)
            make_seeds(self.config(), data, folder, on_progress=on_seeds)
            quality: dict[str, Any] = json.loads((self.out / "eval" / "seeds.json").read_text())
            return quality
        return train(
            self.dataset,
            recipe=self.recipe,
            out=self.out,
            setting=self.setting,
            seed=self.seed,
            overrides=self.overrides,
            on_progress=on_progress,
            on_seeds=on_seeds,
        )


def plan_jobs(
    demo: Demo, out: Path, *, seed: int, overrides: Mapping[str, Any]
) -> list[dict[str, Job]]:
    """The jobs of a demo by name, in groups: the jobs of a group may run side by side.

    Raises:
        UserError: for a wrong setting; it is told before anything is painted.
    """
    streets = out / "streets"
    common: dict[str, Any] = {}
    if demo.tagged:
        common = {"weak.true_masks": str((streets / HIDDEN_MASKS).resolve())}
    jobs = {
        name: Job(
            dataset=streets / ("true.yaml" if method.true_masks else "dataset.yaml"),
            recipe=demo.recipe,
            out=out / name,
            setting=method.setting,
            seed=seed,
            overrides=common | method.overrides | dict(overrides),
        )
        for name, method in demo.methods.items()
    }
    for job in jobs.values():
        job.config()
    if not demo.tagged:
        return [jobs]
    # what needs no seeds runs beside the making of them
    first = {name: job for name, job in jobs.items() if demo.methods[name].true_masks}
    making = replace(jobs["u2pl"], out=out / SEEDS, seeds_alone=True)
    taken = {"weak.seeds_from": str(making.out)}
    second = {
        name: replace(job, overrides=job.overrides | taken)
        for name, job in jobs.items()
        if name not in first
    }
    return [first | {SEEDS: making}, second]


@dataclass(frozen=True)
class Listener:
    """Who hears of the progress of jobs; see :func:`run_demo`."""

    on_progress: Callable[[str, Progress], None]
    on_seeds: Callable[[str, int, int], None]


def default_workers(num_jobs: int) -> int:
    """Trainings at a time: a small net makes better use of a core each than of two together."""
    return 1 if torch.cuda.is_available() else min(num_jobs, os.cpu_count() or 1)


def run_side_by_side(
    jobs: dict[str, Job], workers: int, listener: Listener
) -> dict[str, dict[str, Any]]:
    """Do jobs in processes that share the cores, or one by one here where there is one worker.

    Returns:
        Each job's result, in the order of the jobs.

    Raises:
        UserError: the first that a job ended with.
    """
    if workers == 1:
        return {
            name: job.run(partial(listener.on_progress, name), listener.on_seeds)
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
            name: pool.submit(_run_in_worker, name, jobs[name], events) for name in reversed(jobs)
        }
        while not all(future.done() for future in futures.values()):
            try:
                is_training, event = events.get(timeout=0.2)
            except queue.Empty:
                continue
            (listener.on_progress if is_training else listener.on_seeds)(*event)
        results = {name: futures[name].result() for name in jobs}
    for result in results.values():
        if "error" in result:
            raise UserError(result["error"], exit_code=result["exit_code"])
    return results


def _run_in_worker(name: str, job: Job, events: Any) -> dict[str, Any]:
    try:
        return job.run(
            lambda progress: events.put((True, (name, progress))),
            lambda *event: events.put((False, event)),
        )
    except UserError as error:
        return {"error": str(error), "exit_code": error.exit_code}


def paint(demo: Demo, out: Path, *, seed: int, overwrite: bool, workers: int = 1) -> None:
    """Paint a demo's streets, in as many processes; see :func:`run_demo`.

    Where they have tags there is a second ``true.yaml`` beside their ``dataset.yaml``, in which
    all streets have their masks.
    """
    if overwrite:
        names = {name for each in DEMOS.values() for name in each.methods}
        for name in ("streets", SEEDS, *names):
            shutil.rmtree(out / name, ignore_errors=True)
    if (out / "streets").exists():
        raise UserError(
            f"{out} already holds a demo; add --overwrite, or choose another folder with --out."
        )
    path = write_streets(
        out / "streets",
        num_labeled=demo.num_labeled,
        num_unlabeled=demo.num_unlabeled,
        num_val=demo.num_val,
        size=SIZE,
        style=demo.style,
        unlabeled_style=demo.target_style,
        val_style=demo.target_style,
        zoom=demo.zoom,
        seed=seed,
        # elsewhere tags come from the true masks, and would be labels in disguise
        with_tags=demo.tagged,
        keep_hidden_masks=True,
        workers=workers,
    )
    if demo.tagged:
        tree = yaml.safe_load(path.read_text())
        del tree["tags"]
        unlabeled = tree.pop("unlabeled")["images"]
        tree["labeled"] = {"images": unlabeled, "masks": HIDDEN_MASKS.as_posix()}
        (out / "streets" / "true.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
