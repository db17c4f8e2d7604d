"""What a sweep's YAML file says: the rows of a table, their data, and how they are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from u2pl.engine.protocol import protocol_settings
from u2pl.errors import UserError, is_clean, nearest_name, shown
from u2pl.plain_files import read_yaml

DATA = "$DATA"
"""At the beginning of a path: the folder that the command line names as ``--data``."""

Seed = Annotated[int, Field(ge=0, le=2**31)]
Share = Annotated[str, StringConstraints(min_length=1)]
Overrides = dict[str, Any]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def _as_texts(value: Any) -> Any:
    """A share may be a number of images, or a fraction that YAML takes for a number."""
    values = _as_list(value)
    if not isinstance(values, list):
        return values
    return [
        str(item) if isinstance(item, int | float) and not isinstance(item, bool) else item
        for item in values
    ]


class Part(BaseModel):
    """A part of the file in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataPart(Part):
    """The data set of all rows: a file, or the text of a dataset.yaml itself."""

    file: str | None = None
    """A dataset.yaml, or its folder; from the folder of the sweep's file, or below ``$DATA``."""
    dataset: dict[str, Any] | None = None
    """The keys of a dataset.yaml; without a ``root`` its paths are below ``--data``."""
    draw: Literal["stratified", "spread"] = "stratified"
    """How the labelled images of a share are chosen; see :mod:`u2pl.data.split`."""
    deal: dict[str, dict[str, Annotated[int, Field(ge=1)]]] = {}
    """See :func:`u2pl.data.deal.deal_dataset`."""

    @model_validator(mode="after")
    def _check(self) -> DataPart:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give one of 'file' and 'dataset'")
        return self


class Row(Part):
    """One row of the table: what all its trainings share."""

    recipe: str | None = None
    """A recipe's name, or a YAML file; None takes that of the sweep."""
    setting: str | None = None
    """See :func:`u2pl.api.make_config`."""
    method: str | None = None
    """A named method; ``set`` and ``common`` win over it."""
    set: Overrides = {}
    """Settings by dotted key."""
    take: dict[str, str] = {}
    """Settings that name another row's run folder of the same share and seed:
    ``{weak.seeds_from: ROW}``."""
    dataset: dict[str, Any] = {}
    """Keys of the dataset.yaml that are others in this row; null takes one out."""
    shares: tuple[Share, ...] | None = None
    """None takes those of the sweep."""
    seeds: tuple[Seed, ...] | None = None
    about: str = ""
    """What the row is, in the table."""

    _seeds = field_validator("seeds", mode="before")(_as_list)
    _shares = field_validator("shares", mode="before")(_as_texts)


class Scoring(Part):
    """Which scores the table shows; differences and classes are of the first column."""

    split: tuple[Literal["val", "test"], ...] = Field(("val",), min_length=1)
    weights: tuple[Literal["ema", "student"], ...] = Field(("ema",), min_length=1)
    checkpoint: Literal["last", "best"] = "last"
    protocol: str | None = None
    """A name as ``evaluate`` takes it; None takes the run's own."""

    _lists = field_validator("split", "weights", mode="before")(_as_list)

    @field_validator("protocol")
    @classmethod
    def _is_protocol(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                protocol_settings(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        return name

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Split and weights of each score, the most important one first."""
        return [(split, weights) for split in self.split for weights in self.weights]


class Sweep(Part):
    """A whole file."""

    name: str
    recipe: str = "default"
    setting: str | None = None
    data: DataPart | None = None
    """None takes the dataset.yaml that ``--data`` names."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    shares: tuple[Share, ...] = ()
    """Of the labelled images that keep their labels: ``1/16``, ``0.05``, ``23``; none: all do."""
    common: Overrides = {}
    """Settings of all rows; a row's own win."""
    rows: dict[str, Row] = Field(min_length=1)
    base: str | None = None
    """The row that the others are compared with; None takes the first."""
    evaluation: Scoring = Scoring()

    _seeds = field_validator("seeds", mode="before")(_as_list)
    _shares = field_validator("shares", mode="before")(_as_texts)

    @field_validator("data", mode="before")
    @classmethod
    def _is_file(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @field_validator("rows", mode="before")
    @classmethod
    def _may_be_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {} if row is None else row for name, row in value.items()}

    @property
    def base_row(self) -> str:
        """The row that the others are compared with."""
        return self.base or next(iter(self.rows))

    def shares_of(self, name: str) -> tuple[str | None, ...]:
        """The columns of a row; None where no labels are left out."""
        given = self.rows[name].shares
        return (self.shares if given is None else given) or (None,)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds of a row."""
        given = self.rows[name].seeds
        return self.seeds if given is None else given


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        UserError: (exit status 2, but for a file that cannot be read) that names the first fault.
    """
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise UserError(f"Cannot read the sweep {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not a YAML file: {error}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys such as 'rows', got {type(tree).__name__}.")
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise _fault(path, error) from None
    _check_rows(path, sweep)
    return sweep


def _fault(path: Path, error: ValidationError) -> UserError:
    """The first fault in a sentence, with the row or part that it lies in."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    where = f" in '{'.'.join(place[:-1])}'" if len(place) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        return UserError(
            f"{path}: unknown key '{place[-1]}'{where}.{nearest_name(place[-1], known)}",
            exit_code=2,
        )
    if first["type"] == "missing":
        return UserError(f"{path}: the key '{place[-1]}'{where} is missing; add it.", exit_code=2)
    message = first["msg"].removeprefix("Value error, ")
    return UserError(
        f"{path}: '{'.'.join(place)}': {message}. Got {shown(first['input'])}.", exit_code=2
    )


def _keys_at(place: list[str]) -> list[str]:
    """The keys that a part of the file may have."""
    parts: dict[str, type[Part]] = {"data": DataPart, "rows": Row, "evaluation": Scoring}
    return list(parts.get(place[0] if place else "", Sweep).model_fields)


def _check_rows(path: Path, sweep: Sweep) -> None:
    """Refuse names that no folder can have, and rows that other keys name in vain."""
    folded: dict[str, str] = {}
    for name in sweep.rows:
        is_name = name == name.strip() and is_clean(name) and name.strip(".") and len(name) <= 100
        if not is_name or any(letter in name for letter in '/\\:*?"<>|'):
            raise UserError(
                f"{path}: the row {shown(name)} gives its name to a folder; use letters, digits, "
                "'-', '_' and '.'.",
                exit_code=2,
            )
        if name.casefold() in folded:
            raise UserError(
                f"{path}: the rows '{folded[name.casefold()]}' and '{name}' differ in case alone; "
                "rename one.",
                exit_code=2,
            )
        folded[name.casefold()] = name
    _require_row(path, sweep, "base", sweep.base_row)
    for name in sweep.rows:
        for key, other in sweep.rows[name].take.items():
            _require_row(path, sweep, f"rows.{name}.take.{key}", other)
        order_of(path, sweep, name)
        _require_once(path, f"shares of the row '{name}'", sweep.shares_of(name))
        _require_once(path, f"seeds of the row '{name}'", sweep.seeds_of(name))


def _require_row(path: Path, sweep: Sweep, key: str, name: str) -> None:
    if name not in sweep.rows:
        raise UserError(
            f"{path}: '{key}' names the row '{name}', which is not there."
            f"{nearest_name(name, sweep.rows)}",
            exit_code=2,
        )


def _require_once(path: Path, what: str, values: tuple[Any, ...]) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise UserError(f"{path}: the {what} hold {twice[0]} twice; name it once.", exit_code=2)


def order_of(path: Path, sweep: Sweep, name: str, above: tuple[str, ...] = ()) -> list[str]:
    """A row and all that it takes something from, those first.

    Raises:
        UserError: (exit status 2) where a row needs itself, by whatever way.
    """
    if name in above:
        way = " → ".join([*above[above.index(name) :], name])
        raise UserError(f"{path}: rows that need each other cannot begin: {way}.", exit_code=2)
    found: list[str] = []
    for other in sweep.rows[name].take.values():
        found += order_of(path, sweep, other, (*above, name))
    return list(dict.fromkeys([*found, name]))
