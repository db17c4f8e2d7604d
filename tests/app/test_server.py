from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from commands import call
from processes import free_port
from u2pl.app import server
from u2pl.app.desk import Desk
from u2pl.app.server import ended_by_signals, listening, serve, workplace
from u2pl.errors import UserError


def test_missing_gradio_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").touch()
    for name in ("uvicorn", "gradio"):
        monkeypatch.setitem(sys.modules, name, None)
    assert call(monkeypatch, "app", tmp_path, "--no-browser") == 1
    said = capsys.readouterr()
    assert said.err == (
        "Error: The page needs Gradio, which is not installed; do pip install 'u2pl[app]'.\n"
    )
    assert said.out == ""


def test_folder_without_runs_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "app") == 1
    assert capsys.readouterr().err.startswith("Error: Found no run that has ended in runs:")


def test_port_out_of_range_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "app", "runs", "--port", "70000") == 2


def test_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"Port {port} is taken by another program"),
            listening("127.0.0.1", port),
        ):
            pass


def test_first_free_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_port()
    monkeypatch.setattr(server, "FIRST_PORT", first)
    monkeypatch.setattr(server, "LAST_PORT", first + 1)
    with listening("127.0.0.1", None) as one:
        assert one.getsockname() == ("127.0.0.1", first)
        with listening("127.0.0.1", None) as two:
            assert two.getsockname() == ("127.0.0.1", first + 1)
            with (
                pytest.raises(UserError, match=f"ports {first} to {first + 1} are taken"),
                listening("127.0.0.1", None),
            ):
                pass


@pytest.mark.parametrize("host", ["203.0.113.1", "::1", "no such name", "a" * 80])
def test_address_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(UserError, match=f"Cannot listen at {host}"), listening(host, free_port()):
        pass


def test_workplace_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with workplace() as folder:
        (folder / "a").touch()
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ
    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")
    with pytest.raises(ZeroDivisionError), workplace():
        raise ZeroDivisionError
    assert os.environ["GRADIO_TEMP_DIR"] == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_page_alone(number: signal.Signals) -> None:
    # a shell that starts the tests in the background has SIGINT ignored
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), number)
            time.sleep(10)
            pytest.fail("the signal ended nothing")
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_folder_is_made_where_nothing_can_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "workplace", lambda: pytest.fail("a folder was made"))
    monkeypatch.setattr(importlib, "import_module", lambda _: None)
    with pytest.raises(UserError, match="Cannot listen"):
        serve(Desk({}), host="203.0.113.1", port=free_port())
