"""From a configuration and a data set to a trained run folder."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from shlex import quote
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from u2pl.config import Config
from u2pl.contrast import rank_bounds
from u2pl.data.batch import Batch
from u2pl.data.loaders import training_batches
from u2pl.data.sources import Dataset, split_hash
from u2pl.engine.checkpoint import (
    kept_checkpoints,
    load_newest_checkpoint,
    save_checkpoint,
    save_weights,
    write_json,
)
from u2pl.engine.compiled import compile_teacher
from u2pl.engine.evaluate import Evaluation, evaluate
from u2pl.engine.failure import keep_batch
from u2pl.engine.guard import FirstFailure
from u2pl.engine.protocol import protocol_of, scored_classes
from u2pl.engine.recorded import gradients_of
from u2pl.engine.run_folder import MetricsLog, NoLog, RunFolder
from u2pl.engine.shared_norm import share_statistics
from u2pl.engine.state import TrainState, initial_state
from u2pl.engine.step import training_step
from u2pl.engine.watchdog import Watchdog
from u2pl.engine.world import ALONE, World
from u2pl.errors import UserError
from u2pl.signals import noticing_signals


@dataclass(frozen=True)
class Progress:
    """What a watcher of the training sees every ``log_every`` steps.

    Attributes:
        step: updates made.
        total_steps: of the whole run.
        steps_per_second: since the last report, loading included.
        values: the step's losses and counts.
    """

    step: int
    total_steps: int
    steps_per_second: float
    values: dict[str, float]


RESUME_ME = 75
"""Exit status of a run that was asked to stop and has saved: EX_TEMPFAIL, try again later."""


class Interrupted(UserError):
    """Training was asked to stop, and has saved its state; the exit status is :data:`RESUME_ME`.

    Args:
        step: where it stands.
        dataset: that it reads.
        folder: that it writes.
        done: what to say instead of the step, where that is not begun yet.

    Attributes:
        step: where it stands.
    """

    def __init__(
        self, step: int, dataset: Dataset, folder: RunFolder, *, done: str | None = None
    ) -> None:
        super().__init__(
            f"Stopped after {done or f'step {step}'}; the state is saved. Go on with: "
            f"u2pl train {quote(str(dataset.path))} --out {quote(str(folder.path))} --resume",
            exit_code=RESUME_ME,
        )
        self.step = step


def fit(
    config: Config,
    dataset: Dataset,
    folder: RunFolder,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_evaluation: Callable[[int, dict[str, Evaluation]], None] = lambda *_: None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train, and leave a run folder with checkpoints, weights and metrics.

    Args:
        config: the run.
        dataset: checked already.
        folder: created here, unless ``resume``.
        resume: go on from the folder's last checkpoint; a run that was killed before its first
            one begins anew.
        on_progress: called with each row of training metrics.
        on_evaluation: called with the step and the scores of ``ema`` and, if scored, ``student``.
        world: the processes that share the training, joined already; the first one alone writes
            the folder and calls the watchers.

    Returns:
        The last evaluation: ``step``, ``student`` and ``ema`` (as :meth:`Evaluation.to_json`),
        ``best`` (step and mIoU of the best teacher) and ``finished``.

    Raises:
        UserError: for settings that do not fit the data, or a loss that is not finite.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    check_against_data(config, dataset)
    check_against_world(config, world)
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    # not "auto": the equations use float64 here and there, which Apple's GPUs do not have
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    devices: Any = [world.device] if accelerator == "cuda" else 1
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=choose_precision(config))
    saved = resume and bool(kept_checkpoints(folder.checkpoint("last")))
    state = initial_state(
        config,
        dataset.num_classes,
        dataset.ignore_index,
        fabric.device,
        load_pretrained=not saved,
        world=world,
    )
    if not resume and world.is_first:
        folder.create(config, dataset)  # only now: a network that cannot be built leaves no run
    world.wait()
    state.student = share_statistics(state.student, world, fabric.device)
    compile_teacher(state, config)
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    best: dict[str, Any] = {"step": 0, "miou": -1.0}
    if saved:
        best = restore(state, fabric, dataset, folder)
    stop = min(config.train.steps, config.train.stop_after or config.train.steps)
    runner = Runner(fabric, state, config, dataset, folder, best, on_progress, on_evaluation)
    with telling_of_the_disk(folder):
        return runner.run(stop)


def restore(
    state: TrainState, fabric: Fabric, dataset: Dataset, folder: RunFolder
) -> dict[str, Any]:
    """Bring a state back from the run's last checkpoint; return the best score so far.

    Raises:
        UserError: where the images have changed, or the checkpoint does not fit the settings.
    """
    checkpoint = load_newest_checkpoint(folder.checkpoint("last"), fabric.device)
    try:
        refuse_other_data(checkpoint, dataset, folder)
        state.load_state_dict(checkpoint)
        fabric.strategy.precision.load_state_dict(checkpoint["precision"])
        best = {"step": int(checkpoint["best"]["step"]), "miou": float(checkpoint["best"]["miou"])}
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        raise UserError(
            f"The checkpoint of {folder.path} does not fit its config.yaml; has the file been "
            "edited since the run was started?"
        ) from None
    return best


def check_against_data(config: Config, dataset: Dataset) -> None:
    """Raise UserError where settings and data set do not go together."""
    if dataset.num_classes < 2:
        raise UserError(
            f"{dataset.path}: expected at least two classes, got {dataset.num_classes}."
        )
    try:
        rank_bounds(
            dataset.num_classes, low_rank=config.method.low_rank, high_rank=config.method.high_rank
        )
    except ValueError as error:
        raise UserError(f"method.low_rank and method.high_rank: {error}", exit_code=2) from None
    background = config.method.background_class
    if background is not None and background >= dataset.num_classes:
        raise UserError(
            f"method.background_class is {background}, but the classes end at "
            f"{dataset.num_classes - 1}.",
            exit_code=2,
        )
    scored_classes(config.evaluation.classes, dataset.classes)
    if config.train.accumulation > config.data.batch_labeled:
        raise UserError(
            f"train.accumulation is {config.train.accumulation}, but there are only "
            f"{config.data.batch_labeled} labelled images in a batch to split.",
            exit_code=2,
        )


def check_against_world(config: Config, world: World) -> None:
    """Raise UserError where a batch cannot be shared out among the processes."""
    data, size = config.data, world.size
    pairs = config.method.mixing in ("cutmix", "classmix")
    wanted = 2 * size if pairs and size > 1 else size
    for name, number, divisor in (
        ("data.batch_labeled", data.batch_labeled, size),
        ("data.batch_unlabeled", data.batch_unlabeled, wanted),
    ):
        if number % divisor:
            why = "" if divisor == size else ", as images are mixed in pairs"
            raise UserError(
                f"{name} is the batch of all {size} processes together and must be a multiple of "
                f"{divisor}{why}; got {number}.",
                exit_code=2,
            )
    if config.train.accumulation > data.batch_labeled // size:
        raise UserError(
            f"train.accumulation is {config.train.accumulation}, but each of the {size} processes "
            f"has only {data.batch_labeled // size} labelled images to split.",
            exit_code=2,
        )


def refuse_other_data(checkpoint: dict[str, Any], dataset: Dataset, folder: RunFolder) -> None:
    """Raise UserError where a checkpoint was made with other lists of images."""
    if checkpoint["splits"] != training_splits(dataset):
        raise UserError(
            f"The images of {folder.path} have changed since it was started; resuming would mix "
            "two data sets. Restore the lists, or start a new run."
        )


def training_splits(dataset: Dataset) -> dict[str, str]:
    """Hashes of the lists that training reads."""
    return {name: split_hash(dataset.sections[name]) for name in ("labeled", "unlabeled")}


def choose_precision(config: Config) -> Any:
    """Fabric's name for the numbers that a forward pass computes with."""
    if config.train.precision != "auto":
        return config.train.precision
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    return "32-true"


class Runner:
    """The loop around the step: loading, reporting, scoring, saving."""

    def __init__(
        self,
        fabric: Fabric,
        state: TrainState,
        config: Config,
        dataset: Dataset,
        folder: RunFolder,
        best: dict[str, Any],
        on_progress: Callable[[Progress], None],
        on_evaluation: Callable[[int, dict[str, Evaluation]], None],
    ) -> None:
        self.fabric, self.state, self.config = fabric, state, config
        self.dataset, self.folder, self.best = dataset, folder, best
        self.on_progress, self.on_evaluation = on_progress, on_evaluation
        self.scores: dict[str, Evaluation] = {}
        self.scored_at = -1
        self.failure = FirstFailure(fabric.device)
        self.gradients = gradients_of(config, fabric, state)
        self.watch = Watchdog(config.train.watchdog_minutes, folder.path, exit_code=RESUME_ME)

    def run(self, stop: int) -> dict[str, Any]:
        """Train until ``stop`` updates are made; see :func:`fit`."""
        world = self.state.world
        log = MetricsLog(self.folder, step=self.state.step) if world.is_first else NoLog()
        batches = self.batches(self.state.step, stop)
        self.state.student.train()
        with noticing_signals() as asked_to_stop, closing(log), closing(batches), self.watch:
            started, since = time.perf_counter(), self.state.step
            for batch in self.watched(batches):
                values = training_step(
                    self.fabric, self.state, batch, self.config, gradients=self.gradients
                )
                step, last = self.state.step, self.state.step == stop
                self.failure.look(step, values)
                if self.fabric.device.type == "cpu":  # there is nothing to wait for
                    self.require_finite()
                if step % self.config.train.log_every == 0 or last:
                    now = time.perf_counter()
                    self.report(log, values, (step - since) / (now - started))
                    started, since = now, step
                if step % self.config.train.eval_every == 0 or last:
                    self.score(log, in_between=not last)
                    started, since = time.perf_counter(), step
                # once: a signal may come between two questions
                asked = world.any(asked_to_stop())
                if step % self.config.train.checkpoint_every == 0 or last or asked:
                    self.save()
                if asked and not last:
                    raise Interrupted(step, self.dataset, self.folder)
        if self.scored_at != self.state.step:  # resumed at the very end: nothing was left to train
            self.score(NoLog())
        return self.finish()

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the watchdog hears when one is waited for and when it is trained on."""
        while True:
            step = self.state.step + 1
            self.watch.phase(f"loading the images of step {step}")
            batch = next(batches, None)
            if batch is None:
                return
            self.watch.phase(f"step {step}")
            yield batch

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of the steps from ``start`` to ``stop`` - 1, counted from 0."""
        with_unlabeled = uses_unlabeled(self.config, self.dataset)
        return training_batches(
            self.dataset,
            self.config.data,
            seed=self.config.train.seed,
            start_step=start,
            stop_step=stop,
            with_unlabeled=with_unlabeled,
            labeled_strong=with_unlabeled and self.config.method.mixing == "classmix_labeled",
            num_strong=self.config.method.strong_views,
            device=self.fabric.device,
            rank=self.state.world.rank,
            num_ranks=self.state.world.size,
        )

    def report(
        self, log: MetricsLog | NoLog, values: dict[str, Tensor], steps_per_second: float
    ) -> None:
        """Fetch a step's numbers from the device, check them, and write them."""
        self.require_finite()
        names = list(values)
        numbers = torch.stack([values[name].float() for name in names]).tolist()
        row = dict(zip(names, numbers, strict=True))
        row["lr"] = self.state.optimizer.param_groups[0]["lr"]
        row["steps_per_second"] = steps_per_second
        log.write("train", self.state.step, row)
        if self.state.world.is_first:
            self.on_progress(
                Progress(self.state.step, self.config.train.steps, steps_per_second, row)
            )

    def require_finite(self) -> None:
        """Raise UserError where a step was not finite, and keep its batch to look at."""
        found = self.failure.found()
        if found is None:
            return
        step, values = found
        with closing(self.batches(step - 1, step)) as again:  # a function of its number
            file = keep_batch(
                next(again).to("cpu"),
                self.config,
                self.dataset,
                self.folder,
                step=step,
                values=values,
                world=self.state.world,
            )
        name, value = next(iter(values.items()))
        raise UserError(
            f"At step {step} {name} became {value}; training stopped before the update. The batch "
            f"and the names of its images are in {file}; look at them with `u2pl doctor --replay "
            f"{file}`. Lower optimizer.lr, or set optimizer.max_grad_norm."
        )

    def score(self, log: MetricsLog | NoLog, *, in_between: bool = False) -> None:
        """Evaluate the teacher and, at the end or where that is asked for, the student on val.

        Args:
            log: gets the scores.
            in_between: score in the training's precision, which a GPU does in half the time; else
                in float32, as ``u2pl evaluate`` will.
        """
        self.require_finite()
        step = self.state.step
        self.watch.phase(f"evaluation after step {step}")
        networks: dict[str, nn.Module] = {"ema": self.state.teacher}
        if not in_between or self.config.train.eval_student:
            networks["student"] = self.state.network
        with self.fabric.autocast() if in_between else nullcontext():
            self.scores = evaluate(
                networks,
                self.dataset.val,
                self.dataset,
                self.config,
                device=self.fabric.device,
                on_batch=self.watch.beat,
                world=self.state.world,
            )
        self.scored_at = step
        row = {f"miou_{name}": score.miou for name, score in self.scores.items()}
        log.write("val", step, row)
        if self.state.world.is_first:
            self.on_evaluation(step, self.scores)
        if row["miou_ema"] > self.best["miou"]:
            self.best = {"step": step, "miou": row["miou_ema"]}
            self.save("best")

    def save(self, name: str = "last") -> None:
        """Write a checkpoint, unless the last step spoiled what would be saved."""
        self.watch.phase(f"writing the checkpoint of step {self.state.step}")
        self.require_finite()
        weights = self.state.student.parameters()
        if not torch.stack([tensor.detach().isfinite().all() for tensor in weights]).all():
            raise UserError(
                f"At step {self.state.step} the update made weights that are not finite; training "
                "stopped before saving them. Lower optimizer.lr, or set optimizer.max_grad_norm."
            )
        if not self.state.world.is_first:
            return
        extra = {
            "best": self.best,
            "splits": training_splits(self.dataset),
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        save_checkpoint(
            self.folder.checkpoint(name),
            self.state.state_dict() | extra,
            keep=self.config.train.keep_checkpoints if name == "last" else 1,
        )

    def finish(self) -> dict[str, Any]:
        """Write weights, the model's description and the result."""
        result = {
            "step": self.state.step,
            "finished": self.state.step >= self.config.train.steps,
            "best": self.best,
            **{
                name: score.to_json(weights=name, step=self.state.step)
                for name, score in self.scores.items()
            },
        }
        if self.state.world.is_first:
            save_weights(self.folder.weights("student"), self.state.student.state_dict())
            save_weights(self.folder.weights("ema"), self.state.teacher.state_dict())
            write_json(self.folder.model, self.describe())
            self.folder.result.parent.mkdir(exist_ok=True)
            write_json(self.folder.result, result)
        self.state.world.wait()
        return result

    def describe(self) -> dict[str, Any]:
        """What the weights mean: network, classes, preparation of images, and γ.

        The entropy up to which a prediction counts as reliable is that of the surest 1 - α_0 of
        the val pixels, because α_t itself has come down to 0 at the end of a run.
        """
        share = 1 - self.config.method.initial_unreliable_fraction
        protocol = protocol_of(self.config)
        return {
            "model": self.config.model.model_dump(mode="json"),
            "classes": list(self.dataset.classes),
            "colors": [list(color) for color in self.dataset.colors],
            "ignore_index": self.dataset.ignore_index,
            "resize": self.config.data.resize,
            # the middle is a part to score on; what is predicted is the whole image
            "protocol": "whole" if protocol.kind == "center-crop" else protocol.kind,
            "crop": list(protocol.crop),
            "stride_fraction": protocol.stride_fraction,
            "scales": list(protocol.scales),
            "flip": protocol.flip,
            "reliable_entropy": self.scores["ema"].entropy_quantile(share),
            "step": self.state.step,
            "recipe": self.config.recipe,
        }


def uses_unlabeled(config: Config, dataset: Dataset) -> bool:
    """Whether training reads unlabelled images: there are some, and a loss looks at them."""
    method = config.method
    weighs = method.unsupervised_weight > 0 or method.contrastive_weight > 0
    return weighs and bool(dataset.unlabeled)


@contextmanager
def telling_of_the_disk(folder: RunFolder) -> Iterator[None]:
    """Turn a disk that is full, or fails, into a sentence, whatever file it was that did not fit.

    Raises:
        UserError: in place of such an OSError; others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise UserError(
            f"Cannot write to {folder.path} ({error.strerror}); what was saved before is kept. "
            "Free space or mend the disk, then go on with --resume."
        ) from None
