"""What a run folder says of a run, checked: the folder may be a stranger's."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from u2pl.config import Config, load_config
from u2pl.errors import UserError
from u2pl.plain_files import read_rows, read_text

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, le=2**62)]
Percent = Annotated[float, Field(ge=0, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Channel = Annotated[int, Field(ge=0, le=255)]


class Figures(BaseModel):
    """Numbers of a JSON file; what it holds besides is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Scores(Figures):
    """An evaluation; see "Scores" in docs/reference/run-folder.md."""

    miou: Percent | None
    iou: dict[str, Percent | None]
    pixel_accuracy: Percent
    protocol: str
    protocol_settings: dict[str, Any] = {}
    miou_classes: list[str] | None = None
    step: Count
    images: Count
    split_sha256: str
    confusion: list[list[Count]]

    @model_validator(mode="after")
    def _check(self) -> Scores:
        sides = {len(self.confusion), *map(len, self.confusion)}
        if sides != {len(self.iou)}:
            raise ValueError("the confusion matrix does not fit the classes")
        return self


class Best(Figures):
    """The best teacher; a step of 0 where there is none."""

    step: Count
    miou: float


class Result(Figures):
    """``eval/val.json``."""

    step: Count
    finished: bool
    best: Best
    student: Scores
    ema: Scores


class Split(Figures):
    """Pixels of known truth: reliable and unreliable pseudo-labels, and negative keys."""

    reliable: Count
    reliable_precision: Percent | None
    unreliable: Count
    unreliable_precision: Percent | None
    negatives: Count
    negatives_error_rate: Percent | None


class ClassSplit(Split):
    """The same of one class, and its true pixels."""

    support: Count


class Section(Split):
    """What was measured on the images of a section."""

    images: Count
    of: Count
    miou: Percent | None
    entropy_threshold: float
    reliable_share: Fraction
    coverage: list[tuple[Fraction, Percent]]
    classes: dict[str, ClassSplit]


class Queue(Figures):
    """Keys held by a class's queue, and how many it can hold."""

    keys: Count
    capacity: Annotated[int, Field(ge=1, le=2**62)]


class Picture(Figures):
    """An image that was drawn."""

    section: str
    name: str
    why: str
    miou: Percent | None


class Inspection(Figures):
    """``eval/inspection.json``."""

    step: Count
    unreliable_fraction: Fraction
    low_rank: Count
    high_rank: Count
    contrast: bool
    denoised: bool
    queues: dict[str, Queue] | None
    sections: dict[str, Section]
    pictures: Annotated[list[Picture], Field(max_length=999)]


class Card(Figures):
    """What a page needs of ``model.json``."""

    classes: list[str]
    colors: list[tuple[Channel, Channel, Channel]]


@dataclass(frozen=True)
class Record:
    """A run folder, read.

    Attributes:
        path: the folder.
        config: the run's settings.
        rows: of ``metrics.jsonl``; each has a ``kind`` and a ``step``, the rest are finite numbers.
        result: the last evaluation; None before training ends.
        inspection: None where the run was not inspected.
        environment: ``environment.json`` as it is; empty where it is missing.
        colors: RGB by class name, where they are known.
    """

    path: Path
    config: Config
    rows: tuple[dict[str, Any], ...]
    result: Result | None
    inspection: Inspection | None
    environment: dict[str, Any]
    colors: dict[str, tuple[int, int, int]]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name or str(self.path)


def read_record(path: Path) -> Record:
    """Read a run folder, of a run that has ended or is going on.

    Raises:
        UserError: where it holds no run, or a file in it is damaged.
    """
    if not os.path.isfile(path / "config.yaml"):
        raise UserError(f"{path} holds no run: there is no config.yaml in it.")
    card = _read(path / "model.json", Card)
    environment = _read(path / "environment.json", dict[str, Any])
    return Record(
        path=path,
        config=load_config(path / "config.yaml"),
        rows=tuple(_metrics(path / "metrics.jsonl")),
        result=_read(path / "eval" / "val.json", Result),
        inspection=_read(path / "eval" / "inspection.json", Inspection),
        environment=environment or {},
        colors={} if card is None else dict(zip(card.classes, card.colors, strict=False)),
    )


def read_scores(run: Path, name: str) -> Scores:
    """Read a result that ``u2pl evaluate`` left in a run's ``eval/``.

    Args:
        run: the run folder.
        name: of the file there, without suffix, such as ``test-slide-769-ema-last``.

    Raises:
        UserError: where there is none, or it is damaged.
    """
    path = run / "eval" / f"{name}.json"
    found = _read(path, Scores) if path.name == f"{name}.json" else None
    if found is None:
        raise UserError(
            f"{run} has no eval/{name}.json; name a file of eval/ without its suffix, or make it "
            "first with `u2pl evaluate`."
        )
    return found


def _read(path: Path, kind: type[T]) -> T | None:
    """What a JSON file holds; None where there is no file."""
    if not os.path.exists(path):
        return None
    try:
        return TypeAdapter(kind).validate_python(json.loads(read_text(path)))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        what = f"'{where}' is not what u2pl writes" if where else "it is not what u2pl writes"
    except OSError as error:
        what = f"it cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError):
        what = "it is no JSON"
    raise UserError(f"{path} is damaged: {what}; restore the file, or take it out.")


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file in order of their steps, with their finite numbers alone."""
    if not os.path.isfile(path):
        return []
    rows = []
    for row in read_rows(path):
        kind, step = row.get("kind"), row.get("step")
        if kind not in ("train", "val") or not isinstance(step, int) or not 0 <= step < 2**53:
            continue
        numbers = {
            str(name): value
            for name, value in row.items()
            if isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
        }
        rows.append(numbers | {"kind": kind, "step": step})
    return sorted(rows, key=lambda row: row["step"])
