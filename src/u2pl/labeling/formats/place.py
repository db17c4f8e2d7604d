"""Folders and files of annotations: ours alone are replaced, and each file is whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from u2pl.data.images import refuse_way_out, whole_file
from u2pl.errors import UserError

_MARK = ".made-by-u2pl"  # only a folder with this file in it is ever replaced


def fresh_folder(out: Path, name: str) -> Path:
    """Make an empty folder; one that an earlier call has made is emptied.

    Raises:
        UserError: where something else is there, or it cannot be written.
    """
    folder = out / name
    refuse_way_out(out, folder / _MARK)
    if folder.exists():
        if not (folder / _MARK).is_file():
            raise UserError(f"{folder} is there and not of u2pl; move it away, or change --out.")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise UserError(f"Cannot write into {folder}: {error.strerror}.") from None
    return folder


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file to write, which becomes whole at the end."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


class JsonList:
    """Writes a JSON list an item at a time, so that it need not be held in memory.

    Args:
        file: open for writing; the list begins here.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._is_empty = True
        file.write("[")

    def add(self, item: Any) -> None:
        """Write an item."""
        self._file.write("\n" if self._is_empty else ",\n")
        self._file.write(json.dumps(item, ensure_ascii=False))
        self._is_empty = False

    def end(self) -> None:
        """Write the bracket."""
        self._file.write("\n]")
