from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from u2pl import _torchvision


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As if torchvision had not been imported and nothing had been declared."""
    declared: list[object] = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(_torchvision, "declared", declared)
    return declared


def pretend_torchvision_is_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("torchvision", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_torchvision_can_be_imported_after_u2pl() -> None:
    from torchvision.transforms import v2

    image = torch.zeros(3, 8, 8)
    assert v2.functional.resize(image, [4, 4]).shape == (3, 4, 4)


def test_operators_have_names_after_the_import() -> None:
    for name in ("nms", "qnms"):
        assert hasattr(torch.ops.torchvision, name) or not _torchvision.declared


def test_nothing_is_declared_once_torchvision_is_imported(
    monkeypatch: pytest.MonkeyPatch, fresh: list[object]
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", torch)
    _torchvision.declare_missing_operators()
    assert fresh == []


def test_nothing_is_declared_twice(fresh: list[object]) -> None:
    fresh.append("an earlier declaration")
    _torchvision.declare_missing_operators()
    assert fresh == ["an earlier declaration"]


@pytest.mark.usefixtures("fresh")
def test_absent_torchvision_is_left_to_say_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _torchvision.declare_missing_operators()
    assert _torchvision.declared == []


def test_nothing_is_declared_where_the_extension_loads(
    monkeypatch: pytest.MonkeyPatch, fresh: list[object], tmp_path: Path
) -> None:
    (tmp_path / "_C.so").touch()
    loaded: list[str] = []
    pretend_torchvision_is_in(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    _torchvision.declare_missing_operators()
    assert loaded == [str(tmp_path / "_C.so")]
    assert fresh == []


@pytest.mark.parametrize("extension_exists", [True, False])
def test_operators_are_declared_where_no_extension_loads(
    monkeypatch: pytest.MonkeyPatch, fresh: list[object], tmp_path: Path, extension_exists: bool
) -> None:
    if extension_exists:
        (tmp_path / "_C.so").write_bytes(b"no library")
    defined: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            assert (namespace, kind) == ("torchvision", "DEF")

        def define(self, schema: str) -> None:
            defined.append(schema.partition("(")[0])

    pretend_torchvision_is_in(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(torch.ops, "torchvision", object())
    _torchvision.declare_missing_operators()
    assert len(fresh) == 1
    assert defined == ["nms", "qnms"]


def test_operators_that_exist_are_not_declared_again(
    monkeypatch: pytest.MonkeyPatch, fresh: list[object], tmp_path: Path
) -> None:
    class Namespace:
        nms = "there already"

    class Library:
        defined: list[str] = []  # noqa: RUF012 -- a fake that only records

        def __init__(self, namespace: str, kind: str) -> None:
            pass

        def define(self, schema: str) -> None:
            self.defined.append(schema.partition("(")[0])

    pretend_torchvision_is_in(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(torch.ops, "torchvision", Namespace())
    _torchvision.declare_missing_operators()
    assert len(fresh) == 1
    assert Library.defined == ["qnms"]
