"""Parts of files, wherever they lie: on a disk, or at any address that fsspec knows.

A shard is a tar that is only ever read at offsets. What is read of it is a :class:`Member`.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep as _sleep
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import reset_lock
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from u2pl.errors import UserError, nearest_name

LARGEST_MEMBER = 2**30
"""Bytes of an image in a shard; it is read whole."""

_WAITS = (0.5, 1.0, 2.0)  # seconds before each further try of a request that failed
_OPEN_FILES = 64  # that a process keeps; 1024 are the usual bound of all its files
# Under which a file system tells that a file has changed: S3, GCS, Azure, HTTP, SFTP, memory, ...
_STAMPS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "Digest",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError)

# File systems that were asked. A fork must never collect those of its parent: their connections,
# closed there, are taken out of what the parent's event loop listens to, which then waits for ever.
_KEPT: dict[int, Any] = {}
if hasattr(os, "register_at_fork"):  # newer releases of fsspec do so themselves
    os.register_at_fork(after_in_child=reset_lock)

T = TypeVar("T")


class ReadError(Exception):
    """A part of a file that cannot be read: what is wrong, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}.")
        self.what, self.remedy = what, remedy


class FileState(NamedTuple):
    """A file's size in bytes, and a text that changes with its content: its time, or its ETag."""

    size: int
    stamp: str


class Member(NamedTuple):
    """An image in a shard, in place of the path of a file.

    Attributes:
        address: of the shard: an absolute path, or an address with a protocol.
        state: of the shard when it was indexed.
        name: inside the shard, with suffix.
        offset, size: of its bytes in the shard.
    """

    address: str
    state: FileState
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{public_address(self.address)}/{self.name}"

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells it from every other image, and from what it was before a change.

        Where the shard has a time or an ETag, the signature in its address is none of it.
        """
        place = public_address(self.address) if self.state.stamp else self.address
        return place, *self[1:]

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            ReadError: where they cannot be read, or the shard is not the one that was indexed.
        """
        if self.size > LARGEST_MEMBER:
            raise ReadError(f"it claims {self.size:,} bytes", "take it out of the shard")
        return read_range(self.address, self.state, self.offset, self.size)


ImageFile = Path | Member
"""What an image is decoded from."""


def is_remote(address: str) -> bool:
    """Return whether an address has a protocol.

    >>> is_remote("s3://bucket/a.tar"), is_remote("/data/a.tar")
    (True, False)
    """
    return "://" in address


def public_address(address: str) -> str:
    """Return an address as it may be shown: without passwords and signatures.

    >>> public_address("https://me:secret@host/a.tar?signature=secret")
    'https://host/a.tar'
    """
    if not is_remote(address):
        return address
    return re.sub(r"://[^/@]*@", "://", address.partition("?")[0])


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of a remote address, and what it calls the file.

    Asked anew for each use: fsspec has one instance for each process, and a fork must not use its
    parent's.

    Raises:
        UserError: where the protocol is unknown, its package is missing, or it refuses.
    """
    protocol = address.partition("://")[0]
    shown = public_address(address)
    try:
        found: tuple[Any, str] = url_to_fs(address)
    except ImportError as error:
        raise UserError(
            f"{shown}: '{protocol}://' needs a package that is not installed: "
            f"{str(error).rstrip('.')}."
        ) from None
    except ValueError:
        raise UserError(
            f"{shown}: fsspec knows no protocol '{protocol}'."
            f"{nearest_name(protocol, known_implementations)}"
        ) from None
    except Exception as error:  # whatever a package raises for want of a host or of credentials
        raise UserError(f"{shown} cannot be opened: {words_of(error)}.") from None
    _KEPT[id(found[0])] = found[0]
    return found


def file_state(address: str) -> FileState:
    """Return the state of a file.

    Raises:
        ReadError: where it does not exist, is no plain file or cannot be asked for.
        UserError: see :func:`file_system`.
    """
    if not is_remote(address):
        try:
            return _local_state(os.stat(address))
        except FileNotFoundError:
            raise ReadError("the file does not exist", "mend its path") from None
        except (OSError, ValueError) as error:
            raise ReadError(f"it cannot be read ({words_of(error)})", "mend its path") from None
    system, path = file_system(address)
    info = _patiently(lambda: system.info(path))
    size = info.get("size")
    if not isinstance(size, int):
        raise ReadError("the server does not tell its size", "serve it by another address")
    stamps = [f"{key}={info[key]}" for key in _STAMPS if info.get(key) is not None]
    return FileState(size, " ".join(stamps))


def read_range(address: str, state: FileState, offset: int, size: int) -> bytes:
    """Return ``size`` bytes of a file from ``offset`` on.

    Local files stay open, and are looked at each time; of remote ones a request is repeated some
    times before it counts as failed.

    Args:
        address: of the file.
        state: that it must still have, if it is local.
        offset, size: in bytes.

    Raises:
        ReadError: where the bytes do not come, or are those of another file by now.
        UserError: see :func:`file_system`.
    """
    if size == 0:
        return b""
    if not is_remote(address):
        try:
            file = _opened(address, state)
            if _local_state(os.fstat(file.number)) != state:
                raise _changed()
            content = file.read(offset, size)
        except OSError as error:
            raise ReadError(f"it cannot be read ({words_of(error)})", "mend the disk") from None
        if len(content) != size:
            raise ReadError(f"{len(content)} of {size} bytes came", "copy the shard again")
        return content
    system, path = file_system(address)

    def fetch() -> bytes:
        content: bytes = system.cat_file(path, start=offset, end=offset + size)
        if len(content) < size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    content = _patiently(fetch)
    if len(content) > size:
        raise ReadError(
            f"{len(content)} bytes came for {size} that were asked for",
            "take a server that answers range requests",
        )
    return content


def _patiently(request: Callable[[], T]) -> T:
    """Return what a request brings, tried again where it fails for a reason that may pass."""
    for wait in (*_WAITS, None):
        try:
            return request()
        except FileNotFoundError as error:
            if _is_absent(error):
                raise ReadError("there is no such file", "mend its address") from None
            reason = words_of(error.__cause__ or error)
        except _FINAL as error:
            raise ReadError(f"it cannot be read ({words_of(error)})", "mend its access") from None
        except Exception as error:  # each package has its own
            reason = words_of(error)
        if wait is None:
            raise ReadError(
                f"{len(_WAITS) + 1} requests failed, the last with: {reason}",
                "look at the network and at the server, then go on",
            )
        _sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_absent(error: FileNotFoundError) -> bool:
    """Return whether a file is not there; fsspec's HTTP says so of a silent server, too."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None:
        return status in (404, 410)
    return not isinstance(cause, OSError) and type(cause).__module__.split(".")[0] != "aiohttp"


def words_of(error: BaseException) -> str:
    """Return what an error says, without passwords and signatures of the addresses in it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r"://[^/@\s]*@", "://", text or type(error).__name__)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\")]*", r"\1", text).rstrip(".")


def _local_state(found: os.stat_result) -> FileState:
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no plain file")
    return FileState(found.st_size, str(found.st_mtime_ns))


def _changed() -> ReadError:
    return ReadError("the shard has changed since it was indexed", "start again")


class _OpenFile:
    """A local file that is read at offsets; closed when nobody holds it any more.

    The offset of a descriptor is never used where there is ``pread``, so that forks of a process
    may share it.
    """

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes, or those up to the end."""
        parts = []
        while size and (part := self._some(offset, size)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _some(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.number, size, offset)
        with self._lock:  # Windows
            os.lseek(self.number, offset, os.SEEK_SET)
            return os.read(self.number, size)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, state: FileState) -> _OpenFile:
    """Return a file that stays open while it is among the last that were asked for."""
    return _OpenFile(path)
