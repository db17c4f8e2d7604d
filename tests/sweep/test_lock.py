from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from u2pl.sweep import lock as locks
from u2pl.sweep.lock import Lock, holder, is_dead


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "row" / "seed-0.lock"


def leave(path: Path, *, process: int = 1, machine: str = "elsewhere", age: float = 0.0) -> None:
    """Write the lock of another process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {"token": "t", "host": "far", "machine": machine, "process": process}
    path.write_text(json.dumps(words))
    stamp = time.time() - age
    os.utime(path, (stamp, stamp))


def test_lock_is_held_once_until_it_is_released(path: Path) -> None:
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    assert not second.acquire()
    assert holder(path) == f"process {os.getpid()} on {locks.platform.node()}"
    second.release()  # what one does not hold one does not give back
    assert path.exists()
    first.release()
    assert list(path.parent.iterdir()) == []
    assert holder(path) is None
    assert second.acquire()
    second.release()


def test_of_many_threads_one_gets_the_lock(path: Path) -> None:
    leave(path, age=locks.PATIENCE_SECONDS + 60)  # dead: a fight for the takeover
    tried = [Lock(path) for _ in range(8)]
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda one: results.append(one.acquire()), args=(one,))
        for one in tried
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(results) == 1
    for one in tried:
        one.release()
    assert list(path.parent.iterdir()) == []


def test_process_that_is_gone_holds_nothing(path: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    leave(path, process=gone, machine=locks.machine())
    assert is_dead(path)
    mine = Lock(path)
    assert mine.acquire()
    mine.release()


def test_other_machine_is_believed_for_as_long_as_it_is_heard_of(path: Path) -> None:
    leave(path, process=2**22 + 1)  # no process here, but that says nothing
    assert holder(path) == f"process {2**22 + 1} on far"
    assert not Lock(path).acquire()
    leave(path, age=locks.PATIENCE_SECONDS + 60)
    assert holder(path) is None
    mine = Lock(path)
    assert mine.acquire()
    assert holder(path) == f"process {os.getpid()} on {locks.platform.node()}"
    mine.release()


def test_torn_lock_is_somebodys_while_it_is_young(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"tok')
    assert holder(path) == "process ? on ?"
    assert not Lock(path).acquire()


def test_lock_is_kept_young_and_who_has_lost_it_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    ended: list[int] = []
    mine = Lock(path, end=ended.append)
    assert mine.acquire()
    os.utime(path, (1.0, 1.0))
    for _ in range(500):
        if path.stat().st_mtime > 1.0:
            break
        time.sleep(0.02)
    assert path.stat().st_mtime > 1.0
    assert ended == []
    leave(path)
    for _ in range(500):
        if ended:
            break
        time.sleep(0.02)
    mine.release()
    assert ended == [75]
    assert path.exists()  # it is another's
