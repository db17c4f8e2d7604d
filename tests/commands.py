"""The command line, called in this process."""

from __future__ import annotations

import sys

import pytest

from u2pl import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run ``u2pl`` with arguments; its exit status."""
    monkeypatch.setattr(sys, "argv", ["u2pl", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    status = caught.value.code
    assert status is None or isinstance(status, int)
    return status or 0
