"""What the pages say must be there: every setting, every command, every file they link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from u2pl.cli import app
from u2pl.config import all_keys
from u2pl.recipes import METHODS, RECIPES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def command_names() -> list[str]:
    group = typer.main.get_command(app)
    names = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        names += [f"{name} {sub}" for sub in inner] if inner else [name]
    return names


def test_every_setting_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert [key for key in all_keys() if f"`{key}`" not in page] == []


def test_reference_names_no_setting_that_is_gone() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    groups = "model|data|method|optimizer|train|evaluation|weak"
    named = set(re.findall(rf"^\| `((?:{groups})\.\w+)`", page, re.MULTILINE))
    assert named
    assert named <= set(all_keys())


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    names = command_names()
    assert "data check" in names
    assert [name for name in names if f"u2pl {name}" not in page] == []


def test_every_recipe_is_documented() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in RECIPES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [target for target in targets if not target.startswith(("http:", "https:", "mailto:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_commands_that_prove_a_promise_name_tests_that_are_there() -> None:
    """Each word behind -k is in the name of a test of one of the files."""
    page = (ROOT / "docs/explanation/reliability.md").read_text()
    proofs = re.findall(r'make test ARGS="([^"]+)"', page)
    assert len(proofs) > 20
    for proof in proofs:
        places, _, chosen = proof.partition(" -k ")
        files = [file for place in places.split() for file in python_files(ROOT / place)]
        assert files, proof
        names = re.findall(r"def (test_\w+)", "".join(file.read_text() for file in files))
        for word in re.findall(r"\w+", chosen.replace(" or ", " ")):
            assert any(word in name for name in names), (proof, word)
    for script in re.findall(r"python (tests/\S+\.py)", page):
        assert (ROOT / script).is_file(), script


def python_files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def test_methods_of_the_settings_page_are_those_there_are() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    section = page.split("## Methods")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)\|$", section, re.MULTILINE))
    assert set(rows) == set(METHODS)
    for name, row in rows.items():
        for key, shown in re.findall(r"`(\w+)=([\w.]+)`", row):
            value = METHODS[name][f"method.{key}"]
            assert yaml.safe_load(shown) == value
