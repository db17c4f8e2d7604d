"""Where a run keeps what, and what it writes there beside checkpoints."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from u2pl.config import Config, load_config, save_config
from u2pl.data.sources import Dataset, split_hash, write_lists
from u2pl.engine.checkpoint import write_json
from u2pl.errors import UserError
from u2pl.plain_files import read_rows, read_yaml


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved."""
        return self.path / "config.yaml"

    @property
    def dataset(self) -> Path:
        """The dataset.yaml, with its root made absolute."""
        return self.path / "dataset.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The last evaluation of student and teacher."""
        return self.path / "eval" / "val.json"

    @property
    def model(self) -> Path:
        """What it takes to rebuild the network around its weights."""
        return self.path / "model.json"

    @property
    def exported(self) -> Path:
        """The weights, in a folder that is no run but what was exported of one."""
        return self.path / "model.safetensors"

    def checkpoint(self, name: str) -> Path:
        """``last`` or ``best``."""
        return self.path / "checkpoints" / f"{name}.pt"

    def weights(self, name: str) -> Path:
        """``ema`` or ``student``, of the last checkpoint."""
        return self.path / "weights" / f"{name}.safetensors"

    def create(self, config: Config, dataset: Dataset) -> None:
        """Write what is known before the first step.

        Raises:
            UserError: where the folder holds a run already, or cannot be written.
        """
        if os.path.lexists(self.config):
            raise UserError(
                f"{self.path} already holds a run; go on with it by --resume, or choose another "
                "folder with --out."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.refuse_links()
            save_config(config, self.config)
            self.dataset.write_text(absolute_dataset(dataset.path), encoding="utf-8")
            (self.path / "splits").mkdir(exist_ok=True)
            write_lists(dataset, self.path / "splits")
        except OSError as error:
            raise UserError(f"Cannot write the run folder {self.path}: {error.strerror}.") from None
        write_json(self.path / "environment.json", environment(dataset))

    def read_config(self) -> Config:
        """The run's settings.

        Raises:
            UserError: where the folder holds no run.
        """
        if not os.path.isfile(self.config):
            raise UserError(f"{self.path} holds no run: there is no {self.config.name} in it.")
        return load_config(self.config)

    def refuse_links(self) -> None:
        """Refuse to write into a folder with a link that leads out of it.

        The folder itself may be a link: whoever names it has named where it leads. A link inside
        came with the folder, perhaps from a stranger, and would let a run write over any file of
        its user.

        Raises:
            UserError: that names the link.
        """
        inside = os.path.realpath(self.path)
        for parent, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                place = os.path.join(parent, name)
                target = Path(os.path.realpath(place))
                if os.path.islink(place) and not target.is_relative_to(inside):
                    raise UserError(
                        f"{place} is a link to {target}, out of the run folder, which would be "
                        "written to; take it out. To keep a run on another disk, let its whole "
                        "folder be the link."
                    )


def absolute_dataset(path: Path) -> str:
    """The text of a dataset.yaml that reads the same files from anywhere."""
    tree = read_yaml(path)
    tree["root"] = str((path.parent / str(tree.get("root") or ".")).resolve())
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def environment(dataset: Dataset) -> dict[str, Any]:
    """Versions, machine, command and the hash of each list of images."""
    packages = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")
    return {
        "u2pl": metadata.version("u2pl"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
        "dataset": str(dataset.path.resolve()),
        "split_sha256": {
            name: split_hash(samples) for name, samples in dataset.sections.items() if samples
        },
    }


class MetricsLog:
    """Rows of numbers in ``metrics.jsonl`` and in TensorBoard.

    Args:
        folder: the run's.
        step: where the run stands; rows of later steps, left by a run that was killed after its
            last checkpoint, are dropped so that none stands twice.
    """

    def __init__(self, folder: RunFolder, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._path = folder.metrics
        kept = [row for row in read_metrics(folder.metrics) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self._path.write_text(text)
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add a row; ``kind`` is ``train`` or ``val``. A number that is not finite is null."""
        numbers = {name: x if math.isfinite(x) else None for name, x in values.items()}
        row = {"kind": kind, "step": step, **numbers}
        with self._path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush what TensorBoard has not written yet."""
        self._writer.close()


class NoLog:
    """Where nothing is written: what every process but the first has for a :class:`MetricsLog`."""

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file; a line that was torn by a crash is left out."""
    if not path.is_file():
        return []
    return [row for row in read_rows(path) if isinstance(row.get("step"), int)]
