"""The cells of a sweep: one training each, with all that decides what it learns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from u2pl.api import make_config
from u2pl.config import Config, ModelSettings
from u2pl.data.sources import Dataset
from u2pl.engine.loop import check_against_data
from u2pl.errors import UserError
from u2pl.models import Segmenter
from u2pl.report.compare import flat
from u2pl.sweep.data import DataMaker, data_folder, data_identity, place
from u2pl.sweep.file import DATA, Row, Scoring, Sweep, order_of, read_sweep
from u2pl.weak.pipeline import tagged_samples

# What does not change what a training learns. Weights and seeds are compared by what they are, not
# by where they lie.
_BOOKKEEPING = frozenset(
    {
        "recipe",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.watchdog_minutes",
        "data.cache",
        "data.num_workers",
        "weak.true_masks",
    }
)


@dataclass(frozen=True)
class Cell:
    """One training of a sweep.

    Attributes:
        row, share, seed: which one; the share is None where no labels are left out.
        folder: its run folder; the lock lies beside it.
        dataset: its dataset.yaml.
        recipe, setting, method, overrides: as ``u2pl train`` takes them.
        config: what they come to.
        settings: what decides what is learnt, by dotted key; see :func:`identity`.
        data: see :func:`~u2pl.sweep.data.data_identity`.
        needs: run folders of other cells that it takes something from.
        scoring: which scores are wanted.
        lines: the sweep's ``results.jsonl``.
    """

    row: str
    share: str | None
    seed: int
    folder: Path
    dataset: Path
    recipe: str
    setting: str | None
    method: str | None
    overrides: dict[str, Any]
    config: Config
    settings: dict[str, Any]
    data: dict[str, str]
    needs: tuple[Path, ...]
    scoring: Scoring
    lines: Path

    @property
    def name(self) -> str:
        """In a sentence."""
        share = "" if self.share is None else f"{self.share}, "
        return f"{self.row}, {share}seed {self.seed}"

    @property
    def lock(self) -> Path:
        """Beside the folder, which may not be there yet."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def result(self) -> Path:
        """Scores, and what they are of."""
        return self.folder / "result.json"

    @property
    def begun(self) -> Path:
        """What the training in the folder is of, and how long it has taken so far."""
        return self.folder / "cell.json"

    @property
    def failure(self) -> Path:
        """Why the last attempt has failed."""
        return self.folder / "failure.json"

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.folder / "log.txt"

    @property
    def steps(self) -> int:
        """Of the whole training."""
        train = self.config.train
        return min(train.steps, train.stop_after or train.steps)

    @property
    def sha256(self) -> dict[str, str]:
        """Hashes of configuration and data."""
        return {"config_sha256": _digest(self.settings), "data_sha256": _digest(self.data)}


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked.

    Attributes:
        sweep: the file.
        path: where it lies.
        out: the folder of its results.
        cells: all of them, in the order in which they begin.
        datasets: by dataset.yaml, loaded.
    """

    sweep: Sweep
    path: Path
    out: Path
    cells: tuple[Cell, ...]
    datasets: dict[Path, Dataset]

    @property
    def lines(self) -> Path:
        """A result a line."""
        return self.out / "results.jsonl"


@contextmanager
def planned(
    path: Path,
    *,
    out: Path,
    data: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    dry: bool = False,
) -> Iterator[Plan]:
    """Read a sweep, write its data sets, and check each cell as its training would.

    Args:
        path: the file.
        out: the folder of its results.
        data: what ``$DATA`` in the file stands for.
        overrides: settings of all rows by dotted key; none may be one that a row sets itself.
        dry: leave nothing behind.

    Raises:
        UserError: for the first fault, with the row that it lies in.
    """
    sweep = read_sweep(path)
    data = None if data is None else data.resolve()
    _refuse_overridden(sweep, overrides or {})
    with data_folder(out, keep=not dry) as folder:
        maker = DataMaker(folder, sweep.data, data, path.resolve().parent, sweep.evaluation.split)
        rows: dict[str, dict[tuple[str | None, int], Cell]] = {}
        datasets: dict[Path, Dataset] = {}
        order = dict.fromkeys(n for name in sweep.rows for n in order_of(path, sweep, name))
        for name in order:
            with _naming(name):
                builder = _Builder(sweep, name, out, maker, dict(overrides or {}), rows)
                rows[name] = builder.cells()
                datasets |= builder.datasets
        cells = [cell for cells in rows.values() for cell in cells.values()]
        _require_networks(cells, datasets)
        yield Plan(sweep, path, out, tuple(_in_turn(sweep, cells)), datasets)


@contextmanager
def _naming(row: str) -> Iterator[None]:
    """Say in an error which row it is of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Row '{row}': {error}", exit_code=error.exit_code) from None


def _refuse_overridden(sweep: Sweep, overrides: Mapping[str, Any]) -> None:
    for name, row in sweep.rows.items():
        both = [key for key in (*row.set, *row.take) if key in overrides]
        if both:
            raise UserError(
                f"Row '{name}' sets {both[0]} itself, so --set {both[0]}=… would make it another "
                "row; change the file instead.",
                exit_code=2,
            )


def _in_turn(sweep: Sweep, cells: Sequence[Cell]) -> list[Cell]:
    """All rows of the first seed first: a table soon, and a pair to compare in it."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    seeds = list(dict.fromkeys([*sweep.seeds, *(cell.seed for cell in cells)]))
    shares = list(dict.fromkeys([*sweep.shares, *(cell.share for cell in cells)]))
    return sorted(
        cells,
        key=lambda cell: (
            seeds.index(cell.seed),
            shares.index(cell.share),
            rows.index(cell.row),
        ),
    )


@dataclass
class _Builder:
    """Makes the cells of one row."""

    sweep: Sweep
    name: str
    out: Path
    maker: DataMaker
    overrides: dict[str, Any]
    rows: dict[str, dict[tuple[str | None, int], Cell]]

    def __post_init__(self) -> None:
        self.datasets: dict[Path, Dataset] = {}

    def cells(self) -> dict[tuple[str | None, int], Cell]:
        """Every share and seed of the row.

        Raises:
            UserError: for a faulty setting or data set.
        """
        places = [
            (share, seed)
            for seed in self.sweep.seeds_of(self.name)
            for share in self.sweep.shares_of(self.name)
        ]
        self.config({}, places[0][1])  # a mistyped setting is told before any mask is read
        made = self.maker.make(self.row.dataset, places)
        identities = {dataset.path: data_identity(dataset) for dataset in made.values()}
        found = {}
        for (share, seed), dataset in made.items():
            self.datasets[dataset.path] = dataset
            found[share, seed] = self.cell(share, seed, dataset, identities[dataset.path])
        return found

    @property
    def row(self) -> Row:
        """What the file says of it."""
        return self.sweep.rows[self.name]

    @property
    def recipe(self) -> str:
        """A name, or the whole path of a file."""
        recipe = self.row.recipe or self.sweep.recipe
        is_file = recipe.endswith((".yaml", ".yml"))
        return str(place(recipe, self.maker.root, self.maker.beside)) if is_file else recipe

    def all_overrides(self, taken: Mapping[str, str]) -> dict[str, Any]:
        """What ``u2pl train`` would be given; later ones win."""
        given = {**self.sweep.common, **self.row.set, **taken, **self.overrides}
        for key, value in given.items():
            if isinstance(value, str) and value.partition("/")[0] == DATA:
                given[key] = str(place(value, self.maker.root, self.maker.beside))
        return given

    def config(self, taken: Mapping[str, str], seed: int) -> Config:
        """The settings of a cell."""
        given = self.all_overrides(taken)
        if "train.seed" in given:
            raise UserError("'train.seed' is set by 'seeds'; take it out.", exit_code=2)
        setting = self.row.setting or self.sweep.setting
        return make_config(
            self.recipe, setting=setting, method=self.row.method, seed=seed, overrides=given
        )

    def cell(self, share: str | None, seed: int, dataset: Dataset, data: dict[str, str]) -> Cell:
        """One of the row.

        Raises:
            UserError: where its settings are faulty or do not fit its data.
        """
        givers: dict[str, Cell] = {}
        for key, other in self.row.take.items():
            if (share, seed) not in self.rows[other]:
                at = "" if share is None else f"share {share} and "
                raise UserError(
                    f"It takes {key} of the row '{other}', which has no cell of {at}seed {seed}.",
                    exit_code=2,
                )
            givers[key] = self.rows[other][share, seed]
        taken = {key: str(giver.folder) for key, giver in givers.items()}
        config = self.config(taken, seed)
        check_against_data(config, dataset)
        if config.setting == "weak":
            tagged_samples(dataset)
        elif not dataset.labeled:
            raise UserError(f"{dataset.path}: 'labeled' has no image to train on.")
        folder = self.out / "cells" / self.name
        if share is not None:
            folder /= share.replace("/", "of")
        return Cell(
            row=self.name,
            share=share,
            seed=seed,
            folder=folder / f"seed-{seed}",
            dataset=dataset.path,
            recipe=self.recipe,
            setting=self.row.setting or self.sweep.setting,
            method=self.row.method,
            overrides=self.all_overrides(taken),
            config=config,
            settings=identity(config, givers),
            data=data,
            needs=tuple(giver.folder for giver in givers.values()),
            scoring=self.sweep.evaluation,
            lines=self.out / "results.jsonl",
        )


def deciding(config: Config) -> dict[str, Any]:
    """The settings that decide what a training learns, by dotted key, as they stand there."""
    return {
        key: value
        for key, value in flat(config.model_dump(mode="json")).items()
        if key not in _BOOKKEEPING
    }


def identity(config: Config, givers: Mapping[str, Cell]) -> dict[str, Any]:
    """The settings that decide what a training learns, as plain values by dotted key.

    Weights stand there by their hash, and another cell by its row and what decides that.

    Raises:
        UserError: where the file of the weights cannot be read.
    """
    settings = deciding(config)
    if config.model.weights is not None:
        settings["model.weights"] = _file_sha256(config.model.weights)
    for key, giver in givers.items():
        settings[key] = f"{giver.row} {_digest([giver.settings, giver.data])[:12]}"
    return settings


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two sets of settings differ, each in a few words.

    A setting that an earlier version of u2pl did not know counts as having had its default.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
    ['b was 2, is 3']
    """
    neutral = flat(Config().model_dump(mode="json"))
    found = []
    for key in dict.fromkeys([*now, *before]):
        old, new = before.get(key, neutral.get(key)), now.get(key, neutral.get(key))
        if old != new:
            found.append(f"{key} was {old}, is {new}")
    return found


@lru_cache
def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
        return f"sha256:{digest.hexdigest()}"
    except OSError as error:
        raise UserError(
            f"model.weights: cannot read {path}: {error.strerror}.", exit_code=2
        ) from None


def _require_networks(cells: Sequence[Cell], datasets: Mapping[Path, Dataset]) -> None:
    """Build each network once, hours before its turn, and read the file of its weights."""
    built: list[tuple[ModelSettings, int]] = []
    for cell in cells:
        wanted = (cell.config.model, datasets[cell.dataset].num_classes)
        if wanted not in built:
            with _naming(cell.row):
                Segmenter(*wanted, load_pretrained=wanted[0].weights is not None)
            built.append(wanted)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
