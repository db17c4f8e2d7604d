"""Runs `u2pl`, and keeps what each process's teacher says in each step.

    python tests/soak/recorded.py FOLDER train dataset.yaml --out runs/a …

The first word is where the records go, ``STEP-RANK.pt``; the others are the command's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u2pl.cli import main
from u2pl.config import Config
from u2pl.engine import step as step_module
from u2pl.engine import targets
from u2pl.engine.pairs import ContrastPairs
from u2pl.engine.state import TrainState
from u2pl.engine.targets import MixedPixels, PseudoLabels, TeacherView
from u2pl.mixing import on_grid
from u2pl.models import upsample


class Recorder:
    """Stands in for two functions of the step, which it calls.

    Args:
        folder: gets the records.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.judge, self.contrast_pairs = targets.judge, step_module.contrast_pairs
        self.record: dict[str, Tensor] = {}

    def judging(self, *arguments: Any) -> MixedPixels:
        """Before mixing: the classes, and by how much the likeliest leads the next one."""
        pixels = self.judge(*arguments)
        height, width = pixels.predictions.shape[-2:]
        # interpolated as logits are: what log-probabilities lack is the same for all classes
        logits = pixels.probs.clamp_min(torch.finfo(pixels.probs.dtype).tiny).log()
        probs = upsample(logits, (height, width)).softmax(dim=1)
        first, second = probs.topk(2, dim=1).values.unbind(dim=1)
        self.record = {"own_predictions": pixels.predictions, "lead": first - second}
        return pixels

    def pairing(
        self,
        state: TrainState,
        view: TeacherView,
        labels: Tensor,
        pseudo: PseudoLabels,
        config: Config,
        generator: torch.Generator,
    ) -> ContrastPairs:
        """After mixing: all that the contrast is decided by, and the queues that come of it."""
        pairs = self.contrast_pairs(state, view, labels, pseudo, config, generator)
        pixels = pseudo.pixels
        self.record |= {
            "predictions": pixels.predictions,
            "entropy": pixels.entropy,
            "reliable": pseudo.labels != state.ignore_index,
            "grid_labels": on_grid(pseudo.labels, (view.logits.shape[-2], view.logits.shape[-1])),
            "probs_l": view.logits.softmax(dim=1),
            "probs_u": pixels.probs,
            "features_l": view.features,
            "features_u": pixels.features,
            "threshold": pseudo.threshold.view(1),
            "keys": state.queues.keys.clone(),
        }
        torch.save(self.record, self.folder / f"{state.step}-{self.rank}.pt")
        return pairs


def record(folder: Path) -> None:
    """Let this process's steps be recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder, int(os.environ.get("RANK", "0")))
    targets.judge = recorder.judging
    pairing: Callable[..., ContrastPairs] = recorder.pairing
    step_module.contrast_pairs = pairing


if __name__ == "__main__":
    record(Path(sys.argv.pop(1)))
    main()
