from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from u2pl.bench import suite


@pytest.mark.parametrize("packed", [False, True])
def test_commit_is_that_of_git(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        line = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    if packed:
        git("pack-refs", "--all")
    monkeypatch.setattr(suite, "__file__", str(tmp_path / "src/u2pl/bench/suite.py"))
    assert suite.commit() == git("rev-parse", "--short=12", "HEAD")
    git("checkout", "-q", "--detach")
    assert suite.commit() == git("rev-parse", "--short=12", "HEAD")


def test_commit_of_an_installed_package_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "__file__", str(tmp_path / "lib/site-packages/u2pl/suite.py"))
    assert suite.commit() is None
