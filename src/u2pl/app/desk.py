"""Runs to choose from, and the networks and answers that were asked for last."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from u2pl.app.answers import Labeled, PixelAnswer, ask_pixel, label
from u2pl.app.uploads import Upload, read_upload
from u2pl.contrast import rank_bounds
from u2pl.engine.checkpoint import kept_checkpoints
from u2pl.engine.manifest import state_of
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.tiles import Tiling
from u2pl.engine.trained import SegmentationModel, load_model
from u2pl.errors import UserError

_DEPTH = 4  # folders below the one that is named in which runs are looked for
_MODELS = 3  # networks that are kept
_MOST_BYTES = 2**30  # of answers that are kept; the newest one is kept whatever it takes


class Choice(NamedTuple):
    """Which network is to answer.

    Attributes:
        run: a name out of the desk's ``runs``.
        weights: ``ema`` (the teacher) or ``student``.
        checkpoint: ``last`` or ``best``.
    """

    run: str
    weights: str = "ema"
    checkpoint: str = "last"


class Chosen(NamedTuple):
    """A network that was loaded.

    Attributes:
        model: on its device.
        ranks: r_l and r_h of its run.
        state: of the files that it was read from; another training changes it.
    """

    model: SegmentationModel
    ranks: tuple[int, int]
    state: tuple[object, ...]


class Look(NamedTuple):
    """An upload with what a network says of it."""

    choice: Choice
    upload: Upload
    chosen: Chosen
    labeled: Labeled


def find_runs(place: Path) -> dict[str, Path]:
    """The runs that have ended and the exported models in a folder, or the folder itself.

    Args:
        place: a run, or a folder with runs at most four folders deep; links are not followed.

    Returns:
        Folder by name, the newest first.

    Raises:
        UserError: where there is none.
    """
    if os.path.isfile(RunFolder(place).model):
        return {place.resolve().name: place}
    if os.path.isfile(RunFolder(place).config):
        raise UserError(f"{place} has no model.json yet; it is written when training ends.")
    found = sorted(_runs_below(place), key=lambda run: -RunFolder(run).model.stat().st_mtime)
    if not found:
        raise UserError(
            f"Found no run that has ended in {place}: no folder in it holds a model.json. "
            "Name the folder that u2pl train wrote with --out, or one that holds such folders."
        )
    return {run.relative_to(place).as_posix(): run for run in found}


def _runs_below(place: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(place):
        here = Path(parent)
        if RunFolder(here).model.name in files and here != place:
            folders.clear()  # an export inside a run is no run of its own
            yield here
        elif len(here.relative_to(place).parts) >= _DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


class Desk:
    """Answers for one page; not to be asked by two threads at a time.

    Args:
        runs: folder by name, from :func:`find_runs`.
        device: of the networks.
        tiling: how large images are cut.
    """

    def __init__(
        self,
        runs: Mapping[str, Path],
        *,
        device: torch.device | str = "cpu",
        tiling: Tiling | None = None,
    ) -> None:
        self.runs = dict(runs)
        self.device = device
        self.tiling = tiling or Tiling()
        self._models: OrderedDict[Choice, Chosen] = OrderedDict()
        self._looks: OrderedDict[tuple[Path, Choice], Look] = OrderedDict()

    def offers(self, run: str) -> tuple[list[str], list[str]]:
        """Weights and checkpoints that a run has; an exported model has one of each."""
        folder = self.folder(run)
        if not os.path.isfile(folder.config):
            return ["ema"], ["last"]
        weights = [name for name in ("ema", "student") if os.path.isfile(folder.weights(name))]
        has_best = bool(kept_checkpoints(folder.checkpoint("best")))
        return weights or ["ema"], ["last", "best"] if has_best else ["last"]

    def folder(self, run: str) -> RunFolder:
        """The folder of a run.

        Raises:
            UserError: for a name that is none of ``runs``, as a stranger's request may have.
        """
        if run not in self.runs:
            raise UserError(f"There is no run '{run}' here; choose one from the list.")
        return RunFolder(self.runs[run])

    def choose(self, choice: Choice) -> Chosen:
        """Load a network, or take one that was loaded and whose files are the same.

        Raises:
            UserError: where the run has no such weights, or its files are damaged.
        """
        folder = self.folder(choice.run)
        state = _state(folder, choice)
        kept = self._models.pop(choice, None)
        if kept is None or kept.state != state:
            model = load_model(
                folder.path,
                weights=choice.weights,
                checkpoint=choice.checkpoint,
                device=self.device,
            )
            kept = Chosen(model, ranks_of(folder, len(model.classes)), state)
        self._models[choice] = kept
        while len(self._models) > _MODELS:
            self._models.popitem(last=False)
        return kept

    def look(
        self,
        file: Path,
        choice: Choice,
        *,
        on_rows: Callable[[int, int], None] = lambda *_: None,
    ) -> Look:
        """Label an upload, or take the answer that was given before.

        Raises:
            UserError: where the file cannot be read, or the network cannot be loaded.
        """
        chosen = self.choose(choice)
        key = (file, choice)
        kept = self._looks.pop(key, None)
        if kept is None or kept.chosen is not chosen:
            upload = self._upload(file)
            labeled = label(chosen.model, upload.image, tiling=self.tiling, on_rows=on_rows)
            kept = Look(choice, upload, chosen, labeled)
        self._looks[key] = kept
        while len(self._looks) > 1 and self._bytes() > _MOST_BYTES:
            self._looks.popitem(last=False)
        return kept

    def ask(self, file: Path, choice: Choice, row: int, column: int) -> tuple[Look, PixelAnswer]:
        """What the chosen network says of a pixel; one outside the image is moved to its edge.

        Raises:
            UserError: as :meth:`look` does.
        """
        look = self.look(file, choice)
        height, width = look.labeled.prediction.mask.shape
        answer = ask_pixel(
            look.chosen.model,
            look.labeled,
            min(max(row, 0), height - 1),
            min(max(column, 0), width - 1),
            ranks=look.chosen.ranks,
            tiling=self.tiling,
        )
        return look, answer

    def _upload(self, file: Path) -> Upload:
        """Of a file that another network has looked at, the image that was decoded then."""
        for (other, _), look in self._looks.items():
            if other == file:
                return look.upload
        return read_upload(file)

    def _bytes(self) -> int:
        return sum(look.labeled.num_bytes for look in self._looks.values())


def _state(folder: RunFolder, choice: Choice) -> tuple[object, ...]:
    """Size and time of the files that a choice is read from."""
    weights, checkpoint = folder.weights(choice.weights), folder.checkpoint(choice.checkpoint)
    files = (folder.model, folder.config, folder.exported, weights, checkpoint)
    return tuple(tuple(state_of(file)) for file in files)


def ranks_of(folder: RunFolder, num_classes: int) -> tuple[int, int]:
    """r_l and r_h of a run; of an exported model, those that such a number of classes has.

    Raises:
        UserError: where the run's settings do not fit its number of classes.
    """
    if not os.path.isfile(folder.config):
        return rank_bounds(num_classes)
    method = folder.read_config().method
    try:
        return rank_bounds(num_classes, low_rank=method.low_rank, high_rank=method.high_rank)
    except ValueError as error:
        raise UserError(f"{folder.config} does not fit {folder.model}: {error}") from None
