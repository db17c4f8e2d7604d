"""What is left of a step that was not finite, and a second look at it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.data.loaders import images_of_step
from u2pl.data.sources import Dataset
from u2pl.engine.checkpoint import (
    kept_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.state import TrainState, initial_state
from u2pl.engine.step import training_step
from u2pl.engine.world import ALONE, World

_KIND = "failure"  # the key by which a file says that it is one of these


def keep_batch(
    batch: Batch,
    config: Config,
    dataset: Dataset,
    folder: RunFolder,
    *,
    step: int,
    values: Mapping[str, float],
    world: World = ALONE,
) -> Path:
    """Write a batch, the names of its images and what was not finite to ``failure/step-N.pt``.

    Args:
        batch: of the step.
        config: the run.
        dataset: that the batch was drawn from.
        folder: the run's.
        step: N, the number of the step, from 1.
        values: what was not finite.
        world: where several processes share a batch, each writes its part, ``step-N-R.pt``.

    Returns:
        The file.
    """
    files_l, files_u = images_of_step(
        dataset,
        config.data,
        seed=config.train.seed,
        step=step - 1,
        with_unlabeled=batch.unlabeled is not None,
        rank=world.rank,
        num_ranks=world.size,
    )
    unlabeled = None
    if batch.unlabeled is not None:
        unlabeled = {**vars(batch.unlabeled), "strong": list(batch.unlabeled.strong)}
    part = f"-{world.rank}" if world.size > 1 else ""
    path = folder.path / _KIND / f"step-{step}{part}.pt"
    content = {
        "step": step,
        "values": dict(values),
        "files_l": [str(file) for file in files_l],
        "files_u": [str(file) for file in files_u],
        "labeled": vars(batch.labeled),
        "unlabeled": unlabeled,
        "num_classes": dataset.num_classes,
        "ignore_index": dataset.ignore_index,
    }
    save_checkpoint(path, {_KIND: content})
    return path


def replay(file: Path) -> dict[str, Any]:
    """Make a failed step again from the run's newest checkpoint, and look closely.

    Args:
        file: what :func:`keep_batch` wrote, in its run folder.

    Returns:
        ``step``; ``values``, what was not finite then; ``checkpoint_step``, where the weights of
        the second look come from (0: the first weights); ``now``, the step's losses and gradient
        norm with them; ``layer``, the first whose output is not finite now, or None; ``images``, a
        list of ``file``, ``low``, ``high`` (of its pixels), ``finite`` and, for labelled ones,
        ``labels``, the class ids in its crop.

    Raises:
        UserError: where the file is no such file, or the run folder is not there.
    """
    failure: dict[str, Any] = load_checkpoint(file, network=_KIND)[_KIND]
    folder = RunFolder(file.resolve().parent.parent)
    config = folder.read_config()
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    newest = kept_checkpoints(folder.checkpoint("last"))
    state = initial_state(
        config,
        failure["num_classes"],
        failure["ignore_index"],
        fabric.device,
        load_pretrained=not newest,
    )
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    if newest:
        state.load_state_dict(load_newest_checkpoint(folder.checkpoint("last")))
    checkpoint_step = state.step
    state.step = failure["step"] - 1  # the same random draws
    unlabeled = failure["unlabeled"]
    if unlabeled is not None:
        unlabeled = UnlabeledBatch(**{**unlabeled, "strong": tuple(unlabeled["strong"])})
    batch = Batch(LabeledBatch(**failure["labeled"]), unlabeled)
    layer, values = _look(fabric, state, batch, config)
    return {
        "step": failure["step"],
        "values": failure["values"],
        "checkpoint_step": checkpoint_step,
        "now": {name: float(values[name]) for name in ("loss_s", "loss_u", "loss_c", "grad_norm")},
        "layer": layer,
        "images": _describe(failure, batch),
    }


def _look(
    fabric: Fabric, state: TrainState, batch: Batch, config: Config
) -> tuple[str | None, dict[str, Tensor]]:
    """Make the step; return the first layer of the student whose output was not finite."""
    first: list[str] = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not first and isinstance(output, Tensor) and not output.isfinite().all():
                first.append(name)

        module.register_forward_hook(hook)

    for name, module in state.student.named_modules():
        if not list(module.children()):
            watch(name.removeprefix("_forward_module."), module)
    state.student.train()
    values = training_step(fabric, state, batch, config)
    return (first[0] if first else None), values


def _describe(failure: dict[str, Any], batch: Batch) -> list[dict[str, Any]]:
    """What is in each image of a batch."""
    rows = []
    for place, file in enumerate(failure["files_l"]):
        labels = torch.unique(batch.labeled.labels[place]).tolist()
        rows.append(_pixels(file, batch.labeled.images[place]) | {"labels": labels})
    if batch.unlabeled is not None:
        views = zip(failure["files_u"], batch.unlabeled.strong[0], strict=True)
        rows += [_pixels(file, image) for file, image in views]
    return rows


def _pixels(file: str, image: Tensor) -> dict[str, Any]:
    return {
        "file": file,
        "low": float(image.min()),
        "high": float(image.max()),
        "finite": bool(image.isfinite().all()),
    }
