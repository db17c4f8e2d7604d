"""A cell is trained by one process alone, also where two machines share a disk."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from u2pl.engine.loop import RESUME_ME
from u2pl.plain_files import read_text

BEAT_SECONDS = 30.0
"""Between two signs of life of who holds a lock."""

PATIENCE_SECONDS = 600.0
"""A lock without a sign of life for so long is nobody's."""


class Lock:
    """A file that one process makes, keeps young, and takes away.

    Files are made exclusively, which network disks do as well; ``flock`` they often do not. The
    holder touches its file every half minute. A file that nobody has touched for ten minutes, by
    the disk's own clock, or whose process on this machine is gone, is taken over.

    Args:
        path: the file.
        end: called where another process has taken the lock over, as after a long sleep of this
            machine: two must not train one cell. For tests.
    """

    def __init__(self, path: Path, *, end: Callable[[int], object] = os._exit) -> None:
        self._path, self._end = path, end
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._claim: Path | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create(self._path) and not self._take_over():
            return False
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if _read(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)
        if self._claim is not None:
            self._claim.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            json.dump(
                {
                    "token": self._token,
                    "host": platform.node(),
                    "machine": machine(),
                    "process": os.getpid(),
                },
                file,
            )
        return True

    def _take_over(self) -> bool:
        """Replace a lock that is nobody's.

        Of several that find the same dead lock, the one that makes the file with its token wins,
        and keeps that file, so that none takes away what another has just made.
        """
        token = _read(self._path).get("token", "torn")
        if not is_dead(self._path):
            return False
        claim = self._path.with_name(f"{self._path.name}.{token}")
        if not self._create(claim):
            if is_dead(claim):  # whoever made it has died in between; the next look finds it gone
                claim.unlink(missing_ok=True)
            return False
        new = self._path.with_name(f"{self._path.name}.{self._token}.new")
        self._create(new)
        os.replace(new, self._path)
        self._claim = claim
        return True

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            if _read(self._path).get("token") != self._token:
                print(
                    f"Error: {self._path} belongs to another process now, as nothing was heard of "
                    "this one for long; it ends, so that none trains in the same folder.",
                    file=sys.stderr,
                    flush=True,
                )
                self._end(RESUME_ME)
                return
            with suppress(OSError):  # a disk that is away for a moment
                os.utime(self._path)


def holder(path: Path) -> str | None:
    """Who holds a lock, in words; None where nobody does."""
    if not path.is_file() or is_dead(path):
        return None
    found = _read(path)
    return f"process {found.get('process', '?')} on {found.get('host', '?')}"


def is_dead(path: Path) -> bool:
    """Whether a lock's process is gone, as far as can be known from here."""
    found = _read(path)
    process = found.get("process")
    if found.get("machine") == machine() and isinstance(process, int) and not _lives(process):
        return True
    try:
        return _now(path.parent) - path.stat().st_mtime > PATIENCE_SECONDS
    except OSError:  # released in between
        return False


def machine() -> str:
    """What processes that know each other by number have in common."""
    try:  # containers of one machine may share its name, and not its processes
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        space = ""
    return f"{platform.node()} {space}"


def _lives(process: int) -> bool:
    """Whether a process of this machine is there; yes where that cannot be asked."""
    if sys.platform == "win32":  # there os.kill ends it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _now(folder: Path) -> float:
    """The time by the clock of the disk, which may be another machine's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"now")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _read(path: Path) -> dict[str, Any]:
    """What a lock says; nothing where it is gone, or not written to its end yet."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
