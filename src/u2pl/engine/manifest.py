"""What has been labelled: a line for each image whose results are whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from u2pl.data.images import refuse_way_out, write_whole
from u2pl.engine.servers import place_of
from u2pl.engine.world import World
from u2pl.errors import UserError

_NAME = re.compile(r"manifest(-\d+-of-\d+)?\.jsonl")


def manifest_path(out: Path, world: World) -> Path:
    """Each process has a file of its own, so that none waits for another.

    >>> manifest_path(Path("out"), World(rank=1, size=4)).name
    'manifest-1-of-4.jsonl'
    """
    own = "" if world.size == 1 else f"-{world.rank}-of-{world.size}"
    return out / f"manifest{own}.jsonl"


class Manifest:
    """A growing ``manifest.jsonl``: a line about the model, then one an image.

    Args:
        out: the folder of the results.
        world: which process this is.
        model: what the first line says; ``model_sha256`` tells two models apart.
        resume: keep the lines that are there.

    Attributes:
        done: by source, the lines that any process has written in the folder before.

    Raises:
        UserError: where the folder holds results of another model, or cannot be written.
    """

    def __init__(self, out: Path, *, world: World, model: dict[str, Any], resume: bool) -> None:
        self._path = manifest_path(out, world)
        self.done: dict[str, dict[str, Any]] = {}
        mine: list[dict[str, Any]] = []
        for path in sorted(out.glob("manifest*.jsonl")) if resume else []:
            if _NAME.fullmatch(path.name):
                rows = read_manifest(path)
                self._require_same_model(path, rows, model)
                lines = [row for row in rows if "source" in row]
                self.done |= {row["source"]: row for row in lines}
                mine = lines if path == self._path else mine
        if not resume and world.is_first:
            self._remove_those_of_others(out, world)
        refuse_way_out(out, self._path)
        text = "".join(json.dumps(row) + "\n" for row in [model, *mine])
        write_whole(self._path, lambda temporary: temporary.write_text(text))
        self._file: TextIO = self._path.open("a", encoding="ascii")

    def _require_same_model(
        self, path: Path, rows: Iterable[dict[str, Any]], model: dict[str, Any]
    ) -> None:
        for row in rows:
            if row.get("model_sha256", model["model_sha256"]) != model["model_sha256"]:
                raise UserError(
                    f"{path} tells of results of another model; choose another folder with "
                    "--out, or leave --resume out to label all images again."
                )

    def _remove_those_of_others(self, out: Path, world: World) -> None:
        """What a call of another number of processes has written is replaced by this one."""
        for path in out.glob("manifest*.jsonl"):
            ours = world.size > 1 and path.name.endswith(f"-of-{world.size}.jsonl")
            if _NAME.fullmatch(path.name) and not ours:
                path.unlink()

    def add(self, row: dict[str, Any]) -> None:
        """Add a line; it is in the file when this returns."""
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"Cannot write {self._path}: {error.strerror}.") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that was torn by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("source", ""), str):
            rows.append(row)
    return rows


def outputs_of(out: Path, name: Path, kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a line says of an image's results: their places below the folder, and bytes."""
    paths = {kind: place_of(kind, name) for kind in kinds}
    return {
        kind: {"file": path.as_posix(), "bytes": (out / path).stat().st_size}
        for kind, path in paths.items()
    }


def state_of(file: Path) -> list[int]:
    """Bytes and time of change of a source, in nanoseconds; another state is another image."""
    try:
        found = os.stat(file)
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def is_whole(
    row: dict[str, Any] | None, out: Path, name: Path, kinds: Iterable[str], state: list[int]
) -> bool:
    """Whether a line says, and the disk confirms, that an image's results are there.

    Args:
        row: the image's line, or None.
        out: the folder of the results.
        name: of the results below it.
        kinds: that are wanted.
        state: of the source now; see :func:`state_of`.
    """
    if row is None or row.get("source_state") != state or not isinstance(row.get("outputs"), dict):
        return False
    for kind in kinds:
        entry = row["outputs"].get(kind)
        # the place is ours, not the line's, which anybody may have written
        path = out / place_of(kind, name)
        if not isinstance(entry, dict) or not path.is_file():
            return False
        if path.stat().st_size != entry.get("bytes"):
            return False
    return True
