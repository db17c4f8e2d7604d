"""The data sets of a sweep: what its file says, written out for each share of labels and seed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from u2pl.data.check import quick_check
from u2pl.data.deal import deal_dataset
from u2pl.data.images import write_whole
from u2pl.data.sources import Dataset, Sample, load_dataset, split_hash
from u2pl.data.split import split_dataset
from u2pl.engine.run_folder import absolute_dataset
from u2pl.errors import UserError
from u2pl.plain_files import parse_yaml
from u2pl.sweep.file import DATA, DataPart

Place = tuple[str | None, int]
"""A share of the labels and a seed."""


@dataclass
class DataMaker:
    """Writes the data sets of a sweep below a folder, each once.

    A folder's name is the hash of what is said of the data, so data that have moved, or a file
    that has been edited, never meet lists made before.

    Args:
        folder: gets ``HASH/dataset.yaml`` and what is drawn from it.
        part: what the file says; None takes the dataset.yaml that ``root`` names.
        root: ``--data``; None where the command line has none.
        beside: the folder of the sweep's file.
        held_out: the sections that are scored.
    """

    folder: Path
    part: DataPart | None
    root: Path | None
    beside: Path
    held_out: tuple[str, ...]
    _made: dict[tuple[Path, str | None, int], Path] = field(default_factory=dict)
    _loaded: dict[Path, Dataset] = field(default_factory=dict)
    _checked: set[Path] = field(default_factory=set)

    def make(self, changes: dict[str, Any], places: Iterable[Place]) -> dict[Place, Dataset]:
        """Write and load a row's data sets.

        Args:
            changes: keys of the dataset.yaml that are others in this row; None takes one out.
            places: the shares and seeds that are wanted.

        Raises:
            UserError: where the data set, a share or the draw is faulty.
        """
        base = self._base(changes)
        found: dict[Place, Dataset] = {}
        for share, seed in places:
            key = base, share, seed
            if key not in self._made:
                self._made[key] = self._draw(base, share, seed)
            found[share, seed] = self._load(self._made[key])
        return found

    def _draw(self, base: Path, share: str | None, seed: int) -> Path:
        """Write one data set: what the seed deals and draws."""
        deal = {} if self.part is None else self.part.deal
        path = deal_dataset(base, deal, seed=seed) if deal else base
        self._check(path)
        if share is None:
            return path
        draw = "stratified" if self.part is None else self.part.draw
        return split_dataset(path, labeled=[share], seeds=[seed], draw=draw)[0].path

    def _base(self, changes: dict[str, Any]) -> Path:
        """Write the dataset.yaml of a row, with every path made absolute."""
        tree = {**self._tree(), **changes}
        tree = {key: value for key, value in tree.items() if value is not None}
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        deal = {} if self.part is None else self.part.deal
        digest = hashlib.sha256(f"{text}{json.dumps(deal)}".encode()).hexdigest()
        path = self.folder / digest[:12] / "dataset.yaml"
        if not path.is_file():
            write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
        return path

    def _tree(self) -> dict[str, Any]:
        if self.part is None or self.part.file is not None:
            path = self._file()
            load_dataset(path, require=())  # its faults are told by its own name
            given: dict[str, Any] = parse_yaml(absolute_dataset(path))
            return given
        assert self.part.dataset is not None
        tree = dict(self.part.dataset)
        if "root" not in tree:
            tree["root"] = DATA
        tree["root"] = str(place(str(tree["root"]), self.root, self.beside).resolve())
        return tree

    def _file(self) -> Path:
        if self.part is not None and self.part.file is not None:
            path = place(self.part.file, self.root, self.beside)
        elif self.root is not None:
            path = self.root
        else:
            raise UserError(
                "The sweep names no data; add --data with a dataset.yaml, or 'data' to its file.",
                exit_code=2,
            )
        return path / "dataset.yaml" if path.is_dir() else path

    def _load(self, path: Path) -> Dataset:
        if path not in self._loaded:
            self._loaded[path] = load_dataset(path, require=("val", *self.held_out))
        return self._loaded[path]

    def _check(self, path: Path) -> None:
        """Look at every mask that any training or score of the sweep will read, once."""
        if path not in self._checked:
            dataset = self._load(path)
            scored = dataset.test if "test" in self.held_out else ()
            quick_check(replace(dataset, val=(*dataset.val, *scored)))
            self._checked.add(path)


def place(text: str, root: Path | None, beside: Path) -> Path:
    """A path of a sweep's file: below ``--data``, or from the folder of the file.

    Raises:
        UserError: where it begins with ``$DATA`` and the command line has no ``--data``.

    >>> place("$DATA/masks", Path("/data"), Path("/sweeps")).as_posix()
    '/data/masks'
    >>> place("a.yaml", None, Path("/sweeps")).as_posix()
    '/sweeps/a.yaml'
    """
    head, _, rest = text.partition("/")
    if head != DATA:
        return beside / text
    if root is None:
        raise UserError("The sweep's paths are below $DATA; add --data with a folder.", exit_code=2)
    return root / rest if rest else root


@contextmanager
def data_folder(out: Path, *, keep: bool) -> Iterator[Path]:
    """Where data sets are written: in the sweep's folder, or, to look only, in a temporary one."""
    if keep:
        yield out / "data"
        return
    with tempfile.TemporaryDirectory(prefix="u2pl-sweep-") as folder:
        yield Path(folder)


def data_identity(dataset: Dataset) -> dict[str, str]:
    """What tells two data sets apart: classes, and of each section names, encodings and tags.

    Contents of files are not looked at.
    """
    found = {"classes": _digest([list(dataset.classes), dataset.ignore_index])}
    for name, samples in dataset.sections.items():
        if samples:
            found[name] = split_hash(samples)
            found[f"{name} masks and tags"] = _digest(_spelling(samples))
    return found


def _spelling(samples: Iterable[Sample]) -> list[Any]:
    """How masks are read, and what tags say; runs of equal ones once."""
    found: list[Any] = []
    for sample in samples:
        encoding = sample.mask_encoding
        one = [encoding.format, encoding.id_map, sample.tags]
        if not found or found[-1] != one:
            found.append(one)
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
