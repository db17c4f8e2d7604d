"""One cell: train it or go on with it, score it, and write down what came of it."""

from __future__ import annotations

import logging
import os
import platform
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

import u2pl
from u2pl import api
from u2pl.bench.suite import commit
from u2pl.engine.checkpoint import write_json
from u2pl.engine.evaluate import Evaluation
from u2pl.engine.loop import Interrupted, Progress
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError
from u2pl.sweep.cells import Cell, deciding, differences
from u2pl.sweep.lock import Lock
from u2pl.sweep.results import append_line, changes_of, kept_result, read_object

logger = logging.getLogger("u2pl")


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a cell has ended.

    Attributes:
        state: ``done``; ``failed``; ``changed``: its folder holds another training; ``stopped`` at
            a signal, to go on later; ``elsewhere``: another process has it.
        detail: the sentence of a failure.
    """

    state: Literal["done", "failed", "changed", "stopped", "elsewhere"]
    detail: str = ""


@dataclass(frozen=True)
class Listener:
    """Who hears of a cell's way.

    Attributes:
        on_progress: called with each row of training metrics.
        on_seeds: see :func:`u2pl.weak.make_seeds`.
        asked_to_stop: whether the sweep is to end; asked between the parts of a cell.
    """

    on_progress: Callable[[Progress], None] = lambda _: None
    on_seeds: Callable[[str, int, int], None] = lambda *_: None
    asked_to_stop: Callable[[], bool] = lambda: False


class StoppedError(Exception):
    """The sweep is to end, and the cell is between two of its parts."""


def run_cell(cell: Cell, listener: Listener) -> Outcome:
    """Train and score a cell, unless another process does.

    Whatever goes wrong ends in an outcome: a user's mistake with its sentence, a fault of ours
    with its kind, and where it was in the cell's log.
    """
    lock = Lock(cell.lock)
    if not lock.acquire():
        return Outcome("elsewhere")
    try:
        if kept_result(cell) is not None:  # by another process, a moment ago
            return Outcome("done")
        if changes := changes_of(cell):
            return Outcome("changed", "; ".join(changes))
        cell.folder.mkdir(parents=True, exist_ok=True)
        with logged(cell.log) as log:
            return _attempt(cell, listener, log)
    except OSError as error:
        return Outcome("failed", f"Cannot write to {cell.folder}: {error.strerror}.")
    finally:
        lock.release()


def _attempt(cell: Cell, listener: Listener, log: TextIO) -> Outcome:
    """Train and score; the log is open, the lock is held."""
    cell.failure.unlink(missing_ok=True)
    torch.use_deterministic_algorithms(False)  # as in a process that begins with this cell
    try:
        _train_and_score(cell, listener, log)
    except (Interrupted, StoppedError):
        print("Stopped; the next call of the sweep goes on.", file=log)
        return Outcome("stopped")
    except Exception as error:
        sentence = _sentence(cell, error, log)
        print(f"Failed: {sentence}", file=log)
        write_json(cell.failure, {"error": sentence, "attempt": uuid.uuid4().hex})
        return Outcome("failed", sentence)
    return Outcome("done")


def _sentence(cell: Cell, error: Exception, log: TextIO) -> str:
    """What to tell of an error; where it came from stands in the log."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=log)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "There is not enough memory; lower data.crop or raise train.accumulation."
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} ({cell.log} says where)"


def _train_and_score(cell: Cell, listener: Listener, log: TextIO) -> None:
    started = time.perf_counter()
    taken = (read_object(cell.begun) or {}).get("seconds")
    before = float(taken) if isinstance(taken, int | float) else 0.0
    begun = {
        "row": cell.row,
        "share": cell.share,
        "seed": cell.seed,
        "settings": cell.settings,
        "data": cell.data,
    }
    write_json(cell.begun, begun | {"seconds": before})
    print(f"{_now()} {cell.name}: u2pl {u2pl.__version__}, process {os.getpid()}", file=log)
    try:
        if not _is_trained(cell):
            _train(cell, listener, log)
        _require_own_settings(cell)
        scores = _scores(cell, listener, log)
    finally:  # what an interrupted attempt has taken counts
        seconds = before + time.perf_counter() - started
        write_json(cell.begun, begun | {"seconds": seconds})
    result = _result(cell, scores, seconds)
    write_json(cell.result, result)
    append_line(cell.lines, result)


def _is_trained(cell: Cell) -> bool:
    """Whether the training itself has ended before, and scores alone are missing."""
    ended = read_object(RunFolder(cell.folder).result)
    return ended is not None and ended.get("step") == cell.steps


def _train(cell: Cell, listener: Listener, log: TextIO) -> None:
    resume = os.path.isfile(RunFolder(cell.folder).config)
    stop = cell.config.train.stop_after
    kept = {} if stop is None else {"train.stop_after": stop}

    def on_progress(progress: Progress) -> None:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
        print(f"step {progress.step}/{progress.total_steps}: {numbers}", file=log, flush=True)
        listener.on_progress(progress)

    def on_evaluation(step: int, scores: dict[str, Evaluation]) -> None:
        shown = ", ".join(f"{name} {score.miou:.2f}" for name, score in scores.items())
        print(f"step {step}: val mIoU {shown}", file=log, flush=True)

    fresh: dict[str, Any] = {
        "recipe": cell.recipe,
        "setting": cell.setting,
        "method": cell.method,
        "seed": cell.seed,
        "overrides": cell.overrides,
    }
    api.train(
        cell.dataset,
        out=cell.folder,
        resume=resume,
        **({"overrides": kept} if resume else fresh),
        on_progress=on_progress,
        on_evaluation=on_evaluation,
        on_seeds=listener.on_seeds,
    )


def _require_own_settings(cell: Cell) -> None:
    """Refuse scores of a training by other settings than the table will say.

    Raises:
        UserError: that names the first that differs.
    """
    trained = RunFolder(cell.folder).read_config()
    wrong = differences(deciding(trained), deciding(cell.config))
    if wrong:
        raise UserError(
            f"{cell.folder} was trained by other settings than the row's: {wrong[0]}; train it "
            "anew with --redo, or remove the folder."
        )


def _scores(cell: Cell, listener: Listener, log: TextIO) -> dict[str, dict[str, Any]]:
    """Score student or teacher on each split that the table wants."""
    wanted, found = cell.scoring, dict[str, dict[str, Any]]()
    for split, weights in wanted.columns:
        if listener.asked_to_stop():
            raise StoppedError
        score = api.evaluate(
            cell.folder,
            split=split,
            weights=weights,
            protocol=wanted.protocol,
            checkpoint=wanted.checkpoint,
        )
        del score["confusion"]  # it stands in eval/, and is most of the text
        print(f"{split} mIoU of {weights}: {score['miou']}", file=log, flush=True)
        found.setdefault(split, {})[weights] = score
    return found


def _result(cell: Cell, scores: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
    """A line of the results."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "row": cell.row,
        "share": cell.share,
        "seed": cell.seed,
        "scores": scores,
        "checkpoint": cell.scoring.checkpoint,
        "protocol": cell.scoring.protocol,
        # seeds that another cell has made are that cell's
        "seeds": None if cell.needs else read_object(cell.folder / "eval" / "seeds.json"),
        "step": cell.steps,
        "seconds": seconds,
        **cell.sha256,
        "u2pl": u2pl.__version__,
        "commit": commit(),
        "machine": platform.node(),
        "device": device,
        "threads": torch.get_num_threads(),
        "ended": _now(),
        "settings": cell.settings,
        "data": cell.data,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@contextmanager
def logged(path: Path) -> Iterator[TextIO]:
    """A log to add to; warnings of u2pl go there too."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        handler = logging.StreamHandler(file)
        handler.setLevel(logging.WARNING)
        logger.addHandler(handler)
        try:
            yield file
        finally:
            logger.removeHandler(handler)


def read_failure(cell: Cell) -> tuple[str, str] | None:
    """Which attempt at a cell has failed last, and why; None where none has."""
    found = read_object(cell.failure)
    return None if found is None else (str(found.get("attempt")), str(found.get("error")))
