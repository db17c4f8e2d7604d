"""Archives of strangers: unpacked below one folder, or not at all."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from u2pl.data.images import refuse_way_out, write_whole
from u2pl.errors import UserError, is_clean, shown

_TORN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,  # of places before the file's beginning
    ValueError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # its word for a password
)
_MOST_MEMBERS = 1_000_000
_MOST_GROWTH = 200  # times the archive's size; masks of few classes shrink to a hundredth
_ALLOWANCE = 100_000_000  # bytes that any archive may unpack to


def unpack(archive: Path, folder: Path, *, wanted: Callable[[str], bool]) -> list[str]:
    """Unpack the plain files of a .zip that are wanted, and return their names.

    Args:
        archive: the file.
        folder: everything is written below it.
        wanted: of a member's name, with forward slashes, whether to unpack it.

    Raises:
        UserError: where the archive is torn or encrypted, a member's name leads out of the folder
            or is no clean text, or it unpacks to more than 200 times its size.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            # zipfile's own is_dir fails on an empty name
            members = [
                m for m in file.infolist() if not m.filename.endswith("/") and wanted(m.filename)
            ]
            _refuse_bombs(archive, members)
            places = [_place(archive, folder, member.filename) for member in members]
            for member, place in zip(members, places, strict=True):
                with file.open(member) as source:
                    write_whole(place, partial(_copy, source))
    except FileNotFoundError:
        raise UserError(f"{archive} does not exist; check the path.") from None
    except _TORN as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); export it again.") from None
    return [member.filename for member in members]


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _place(archive: Path, folder: Path, name: str) -> Path:
    """Return where a member goes; its name must stay below the folder on any system."""
    parts = PurePosixPath(name).parts
    is_plain = is_clean(name) and parts and "\\" not in name and ":" not in name
    if not is_plain or name.startswith("/") or ".." in parts:
        raise UserError(
            f"{archive}: the member {shown(name)} would be written outside of {folder}; do not "
            "trust this archive."
        )
    place = folder.joinpath(*parts)
    refuse_way_out(folder, place)
    return place


def _refuse_bombs(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)  # zipfile reads no more than it says
    most = max(_ALLOWANCE, _MOST_GROWTH * os.path.getsize(archive))
    if len(members) > _MOST_MEMBERS or total > most:
        raise UserError(
            f"{archive}: {len(members)} files of {total:,} bytes together are more than an export "
            "of its size holds; unpack it yourself if you trust it."
        )
