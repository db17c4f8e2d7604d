"""Archives of strangers: unpacked below one folder, or not at all."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from u2pl.data.images import refuse_way_out, write_whole
from u2pl.errors import UserError, is_clean, shown

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_TORN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
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


def unpack(
    archive: Path,
    folder: Path,
    *,
    wanted: Callable[[str], bool],
    keep: bool = False,
    remedy: str = "export it again",
) -> list[str]:
    """Unpack the plain files of a .zip or a tar that are wanted, and return their names.

    Args:
        archive: the file; a tar by its suffix, else a .zip.
        folder: everything is written below it.
        wanted: of a member's name, with forward slashes, whether to unpack it.
        keep: leave a file alone that is there with its member's size. Files appear whole or not at
            all, so it is what an earlier call has written.
        remedy: what to do about a torn archive, for the message.

    Raises:
        UserError: where the archive is torn or encrypted, a member's name leads out of the folder
            or is no clean text, a member of a tar is a link or a device, or it unpacks to more than
            200 times its size.
    """
    unpacked = _unpack_tar if archive.name.lower().endswith(TAR_SUFFIXES) else _unpack_zip
    try:
        return unpacked(archive, folder, wanted, keep)
    except FileNotFoundError:
        raise UserError(f"{archive} does not exist; check the path.") from None
    except _TORN as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); {remedy}.") from None


def _unpack_zip(
    archive: Path, folder: Path, wanted: Callable[[str], bool], keep: bool
) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        # zipfile's own is_dir fails on an empty name
        members = [
            m for m in file.infolist() if not m.filename.endswith("/") and wanted(m.filename)
        ]
        _refuse_bombs(archive, (member.file_size for member in members))
        places = [_place(archive, folder, member.filename) for member in members]
        for member, place in zip(members, places, strict=True):
            if not (keep and _has_size(place, member.file_size)):
                with file.open(member) as source:
                    write_whole(place, partial(_copy, source))
    return [member.filename for member in members]


def _unpack_tar(
    archive: Path, folder: Path, wanted: Callable[[str], bool], keep: bool
) -> list[str]:
    """Unpack in two passes: the first looks at names, kinds and sizes alone."""
    with tarfile.open(archive) as file:
        members = [m for m in file if not m.isdir() and wanted(m.name)]
        odd = next((member for member in members if not member.isfile()), None)
        if odd is not None:
            raise UserError(
                f"{archive}: the member {shown(odd.name)} is a link or a device; do not trust this "
                "archive."
            )
        _refuse_bombs(archive, (member.size for member in members))
        places = [_place(archive, folder, member.name) for member in members]
        for member, place in zip(members, places, strict=True):
            if not (keep and _has_size(place, member.size)):
                source = file.extractfile(member)
                assert source is not None, "plain files have content"
                with source:
                    write_whole(place, partial(_copy, source))
    return [member.name for member in members]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


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


def _refuse_bombs(archive: Path, sizes: Iterable[int]) -> None:
    sizes = list(sizes)
    total = sum(sizes)  # no more is read of a member than it says
    most = max(_ALLOWANCE, _MOST_GROWTH * os.path.getsize(archive))
    if len(sizes) > _MOST_MEMBERS or total > most:
        raise UserError(
            f"{archive}: {len(sizes)} files of {total:,} bytes together are more than an export "
            "of its size holds; unpack it yourself if you trust it."
        )
