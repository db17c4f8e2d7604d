"""What the pages say must be there: every setting, every command, every file they link to."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

import u2pl
from u2pl.cli import app
from u2pl.config import all_keys
from u2pl.data.sources import load_dataset
from u2pl.recipes import METHODS, RECIPES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
SOURCES = sorted(set(ROOT.glob("src/u2pl/**/*.py")) - {ROOT / "src/u2pl/cli/__main__.py"})


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


def slug(heading: str) -> str:
    """The anchor that GitHub, and the site, give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"(?m)^#{1,4} (.+)$", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_heading_exists(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert anchor in headings(linked), (target, anchor)


def test_every_page_is_in_the_index_once() -> None:
    """The index is the site's navigation."""
    index = (ROOT / "docs/README.md").read_text()
    listed = re.findall(r"(?m)^- \[([\w/-]+\.md)\]\(\1\): ", index)
    there = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    generated = {page for page in there if page.startswith("reference/api/")}
    assert sorted(listed) == sorted(there - generated - {"README.md"})


def site_settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs/conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_public_modules_are_there_and_in_the_reference() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    for name in site_settings().PUBLIC:
        module = importlib.import_module(name)
        assert f"`{name}`" in page or f"`{name}." in page, name
        for exported in getattr(module, "__all__", ()):
            assert f"`{exported}`" in page or f"`{name}.{exported}`" in page, (name, exported)


def test_functions_in_the_reference_are_there() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    tables = re.findall(r"(?m)^\| `u2pl\.(\w+)` \| \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    assert len(tables) == 7
    for name, rows in tables:
        module = getattr(u2pl, name)
        for row in rows.splitlines():
            for function in re.findall(r"`(\w+)", row.split("|")[1]):
                assert hasattr(module, function), (name, function)


def test_navigation_of_the_site_is_made_of_the_index() -> None:
    conf, source = site_settings(), [(ROOT / "docs/README.md").read_text()]
    conf.write_navigation(None, "README", source)
    pages = re.findall(r"(?m)^((?:[\w-]+/)?[\w-]+)$", "".join(source[0].split("```")[1::2]))
    for page in ("getting-started", "how-to/own-loop", "reference/api", "results"):
        assert page in pages
    assert "[](how-to/own-loop.md)" in source[0]


def test_site_names_files_that_it_does_not_hold() -> None:
    conf = site_settings()
    source = [
        "[a](../reference/cli.md#x) [b](../../benchmarks/x.md) [examples/c.py](../../examples/c.py)"
    ]
    conf.name_files_outside(None, "how-to/page", source)
    assert source == ["[a](../reference/cli.md#x) b (`benchmarks/x.md`) `examples/c.py`"]


def test_what_docstrings_refer_to_is_there() -> None:
    missing = []
    for path in SOURCES:
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        roles = re.findall(r":(?:func|class|meth|data|attr|mod):`~?([\w.]+)`", path.read_text())
        missing += [(path.name, role) for role in roles if not resolves(role, module)]
    assert missing == []


def resolves(name: str, module: ModuleType) -> bool:
    """Whether it is a full path, or a name of the module or of one of its classes."""
    things = [thing for thing in vars(module).values() if isinstance(thing, type)]
    places = [f"{module.__name__}:{name}"] if not name.startswith("u2pl.") else [name]
    places += [f"{module.__name__}:{thing.__name__}.{name}" for thing in things]
    for place in places:
        try:
            pkgutil.resolve_name(place)
        except (AttributeError, ImportError):
            continue
        return True
    return False


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"(?m)^```{language}\n(.*?)^```$", text, flags=re.DOTALL)


def test_code_of_the_page_on_own_loops_is_that_of_the_example() -> None:
    example = (ROOT / "examples/plain_pytorch.py").read_text()
    blocks = blocks_of("docs/how-to/own-loop.md", "python")
    assert len(blocks) >= 12
    for block in blocks:
        assert any(textwrap.indent(block, " " * depth) in example for depth in (0, 4, 8)), block


def test_lists_of_the_page_on_videos_keep_each_video_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for video, masks in (("drive1", (0, 2)), ("drive2", ()), ("drive3", (1,))):
        (tmp_path / "masks" / video).mkdir(parents=True)
        (tmp_path / "frames" / video).mkdir(parents=True)
        for number in range(3):
            (tmp_path / f"frames/{video}/{number:06}.png").touch()
        for number in masks:
            (tmp_path / f"masks/{video}/{number:06}.png").touch()
    monkeypatch.chdir(tmp_path)
    (script,), (dataset,) = (blocks_of("docs/how-to/video.md", kind) for kind in ("python", "yaml"))
    exec(compile(script, "video.md", "exec"), {})
    Path("dataset.yaml").write_text(dataset)
    data = load_dataset("dataset.yaml")
    names = {name: [sample.name for sample in data.sections[name]] for name in data.sections}
    assert names["labeled"] == ["drive1/000000", "drive1/000002"]
    assert names["unlabeled"] == ["drive1/000001", *(f"drive2/00000{n}" for n in range(3))]
    assert names["val"] == ["drive3/000001"]


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
