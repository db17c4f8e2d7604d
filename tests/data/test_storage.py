from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec
import pytest

from u2pl.data import storage
from u2pl.data.storage import (
    FileState,
    Member,
    ReadError,
    file_state,
    public_address,
    read_range,
)
from u2pl.errors import UserError


@pytest.fixture
def remote() -> Iterator[str]:
    """A file of ten bytes in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.pipe_file("/shards/a.bin", b"0123456789")
    yield "memory://shards/a.bin"
    system.rm("/shards", recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> str:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    return str(tmp_path / "a.bin")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(storage, "_sleep", waited.append)
    return waited


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_part_is_what_lies_there(place: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(place)
    state = file_state(address)
    assert state.size == 10
    assert state == file_state(address)
    assert read_range(address, state, 3, 4) == b"3456"
    assert read_range(address, state, 0, 10) == b"0123456789"
    assert read_range(address, state, 5, 0) == b""


def test_local_file_that_has_changed_is_not_read(local: str) -> None:
    state = file_state(local)
    read_range(local, state, 0, 1)
    Path(local).write_bytes(b"9876543210")
    os.utime(local, ns=(1, 1))
    with pytest.raises(ReadError, match="has changed since it was indexed; start again"):
        read_range(local, state, 0, 1)
    assert read_range(local, file_state(local), 0, 1) == b"9"


def test_many_files_are_closed_again(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for number in range(3 * storage._OPEN_FILES):
        file = tmp_path / str(number)
        file.write_bytes(b"x")
        assert read_range(str(file), file_state(str(file)), 0, 1) == b"x"
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + storage._OPEN_FILES


def _read_much(address: str, state: FileState, place: int, sender: Connection) -> None:
    sender.send({read_range(address, state, place, 3) for _ in range(2000)})


def test_forks_share_an_open_file(local: str) -> None:
    state = file_state(local)
    read_range(local, state, 0, 1)  # opened before the fork
    context = multiprocessing.get_context("fork")
    processes = []
    for place in (0, 4, 7):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_read_much, args=(local, state, place, sender))
        process.start()
        processes.append((process, receiver))
    for (process, receiver), expected in zip(processes, (b"012", b"456", b"789"), strict=True):
        assert receiver.recv() == {expected}
        process.join()


def test_request_that_fails_for_a_while_is_made_again(
    remote: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    state, failures = (
        file_state(remote),
        [OSError("reset by peer"), TimeoutError(), ValueError("x")],
    )
    cat = type(fsspec.filesystem("memory")).cat_file

    def flaky(*arguments: object, **keywords: object) -> bytes:
        if failures:
            raise failures.pop()
        content: bytes = cat(*arguments, **keywords)
        return content

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", flaky)
    assert read_range(remote, state, 1, 2) == b"12"
    assert waits == [0.5, 1.0, 2.0]


def test_request_that_fails_for_good_is_a_sentence(
    remote: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    state, system = file_state(remote), type(fsspec.filesystem("memory"))

    def broken(*_: object, **__: object) -> bytes:
        raise OSError("reset by peer")

    monkeypatch.setattr(system, "cat_file", broken)
    with pytest.raises(ReadError, match="4 requests failed, the last with: reset by peer"):
        read_range(remote, state, 1, 2)
    assert len(waits) == 3
    monkeypatch.setattr(system, "cat_file", lambda *_, **__: b"0123456789")
    with pytest.raises(ReadError, match=r"10 bytes came for 2 .* answers range requests"):
        read_range(remote, state, 1, 2)
    monkeypatch.setattr(system, "cat_file", lambda *_, **__: b"")
    with pytest.raises(ReadError, match="0 of 2 bytes came"):
        read_range(remote, state, 1, 2)


class _Server(SimpleHTTPRequestHandler):
    """Answers range requests, but of a file that is called whole."""

    protocol_version = "HTTP/1.1"  # whose connections stay open
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        if "forbidden" in self.path:
            self.send_error(403)
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        if "forbidden" in self.path:
            self.send_error(403)
            return None
        if "whole" in self.path or "Range" not in self.headers:
            return super().do_GET()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        content = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    (tmp_path / "whole.bin").write_bytes(b"0123456789")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.block_on_close = False
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_parts_come_by_http_in_this_process_and_in_its_forks(served: str) -> None:
    address = f"{served}/a.bin"
    state = file_state(address)
    assert state.size == 10
    assert read_range(address, state, 3, 4) == b"3456"
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_some, args=(address, state, sender))
    process.start()
    assert receiver.poll(60)
    assert receiver.recv() == b"789"
    process.join()
    started = time.monotonic()  # the child must not have closed what this process listens to
    assert read_range(address, state, 1, 2) == b"12"
    assert time.monotonic() - started < 30
    with pytest.raises(ReadError, match="there is no such file"):
        file_state(f"{served}/none.bin")
    with pytest.raises(ReadError, match="take a server that answers range requests"):
        read_range(f"{served}/whole.bin", state, 3, 4)


def test_silent_server_and_refused_access_are_told(served: str, waits: list[float]) -> None:
    with pytest.raises(ReadError, match="4 requests failed, the last with: 403") as caught:
        file_state(f"{served}/forbidden.bin?signature=secret")
    assert "secret" not in str(caught.value)
    assert len(waits) == 3
    port = served.rpartition(":")[2]
    with socket.socket() as other:  # bound, and nobody listens
        other.bind(("127.0.0.1", 0))
        silent = served.replace(port, str(other.getsockname()[1]))
        with pytest.raises(ReadError, match=r"4 requests failed, the last with: .*[Cc]onnect"):
            file_state(f"{silent}/a.bin")


def _read_some(address: str, state: FileState, sender: Connection) -> None:
    content = read_range(address, state, 7, 3)
    gc.collect()
    sender.send(content)


def test_what_is_not_there_is_told_at_once(
    remote: str, local: str, tmp_path: Path, waits: list[float]
) -> None:
    for address, sentence in (
        (remote + "x", "there is no such file"),
        (local + "x", "the file does not exist"),
        (str(tmp_path), "it is no plain file"),
    ):
        with pytest.raises(ReadError, match=sentence):
            file_state(address)
    with pytest.raises(ReadError, match="there is no such file"):
        read_range(remote + "x", FileState(9, ""), 0, 1)
    assert waits == []


def test_protocol_that_cannot_be_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"fsspec knows no protocol 's4'\. Did you mean 's3'\?"):
        file_state("s4://bucket/a.tar")
    monkeypatch.setitem(
        storage.known_implementations, "u2pl", {"class": "u2pl_none.FS", "err": "Install u2pl_none"}
    )
    with pytest.raises(UserError, match="needs a package that is not installed: Install u2pl_none"):
        file_state("u2pl://bucket/a.tar")


def test_secrets_of_an_address_are_not_shown() -> None:
    member = Member("https://me:pw@host/a.tar?sig=1", FileState(9, ""), "b.jpg", 0, 1)
    assert str(member) == "https://host/a.tar/b.jpg"
    assert public_address("/data/a?b@c.tar") == "/data/a?b@c.tar"


def test_new_signature_makes_no_other_image_where_there_is_an_etag() -> None:
    first = Member("https://host/a.tar?sig=1", FileState(9, "ETag=x"), "b.jpg", 0, 1)
    second = first._replace(address="https://host/a.tar?sig=2")
    assert first.identity == second.identity
    assert first.identity != second._replace(state=FileState(9, "ETag=y")).identity
    unstamped = FileState(9, "")
    assert first._replace(state=unstamped).identity != second._replace(state=unstamped).identity


def test_member_of_a_claimed_gigabyte_is_not_read(local: str) -> None:
    with pytest.raises(ReadError, match="it claims 1,073,741,825 bytes"):
        Member(local, file_state(local), "b.jpg", 0, 2**30 + 1).read()
