from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from u2pl.engine.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    write_atomically,
    write_json,
)
from u2pl.errors import UserError


def test_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.pt"
    state = {"student": {"w": torch.rand(2, 3)}, "step": 7, "best": {"miou": 1.5}}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["student"]["w"], state["student"]["w"])
    assert (loaded["step"], loaded["best"]) == (7, {"miou": 1.5})
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")

    def crash(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, crash)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_checkpoint_is_told(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"There is no checkpoint {path}; has the run been started?"


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_damaged_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt cannot be read \(\w+\); it is damaged"):
        load_checkpoint(path)


def test_torn_checkpoint_is_told(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"student": {"w": torch.rand(100)}})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [{"model": 1}, [1, 2]])
def test_file_of_another_program_is_told(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "last.pt"
    torch.save(value, path)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"{path} is not a checkpoint of u2pl."


def test_checkpoint_of_another_network_is_told(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pt"
    save_checkpoint(path, {"classifier": {}})
    assert load_checkpoint(path, network="classifier") == {"classifier": {}}
    with pytest.raises(UserError, match="is not a checkpoint of u2pl"):
        load_checkpoint(path)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(mark),)

    torch.save({"student": Attack()}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "last.pt")
    assert not mark.exists()


def test_weights_come_back_equal_whatever_their_memory_format(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    path = tmp_path / "weights" / "ema.safetensors"
    save_weights(path, net.state_dict())
    loaded = load_weights(path)
    assert loaded.keys() == net.state_dict().keys()
    assert torch.equal(loaded["weight"], net.weight)


def test_missing_and_damaged_weights_are_told(tmp_path: Path) -> None:
    path = tmp_path / "ema.safetensors"
    with pytest.raises(UserError, match="There are no weights at"):
        load_weights(path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"The weights .* cannot be read"):
        load_weights(path)


def test_json_is_plain_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None], "b": 0.5})
    assert json.loads(path.read_text()) == {"a": [1, None], "b": 0.5}
    assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text())["b"] == 0.5


def test_flipped_bit_in_a_checkpoint_is_told(tmp_path: Path) -> None:
    """torch.load would take it for another number."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"student": {"w": torch.full((1000,), 1.5)}, "step": 3})
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00\x00\xc0\x3f" * 100) + 202] ^= 1
    path.write_bytes(bytes(content))
    changed = torch.load(path, weights_only=True)
    assert not torch.equal(changed["student"]["w"], torch.full((1000,), 1.5))
    with pytest.raises(UserError, match=r"cannot be read \(BadZipFile\); it is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("student", [None, 3, "x", [1], torch.zeros(2)])
def test_checkpoint_whose_network_is_none_is_told(tmp_path: Path, student: Any) -> None:
    torch.save({"student": student}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="is not a checkpoint of u2pl"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_told(tmp_path: Path, value: float) -> None:
    path = tmp_path / "ema.safetensors"
    save_weights(path, {"a": torch.zeros(3), "b": torch.tensor([0.0, value])})
    with pytest.raises(UserError, match="are damaged: 'b' holds numbers that are not finite"):
        load_weights(path)
