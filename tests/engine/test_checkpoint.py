from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from u2pl.engine.checkpoint import (
    kept_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    weights_checksum,
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


# several of them


def states_in(folder: Path) -> dict[str, int]:
    return {file.name: load_checkpoint(file)["step"] for file in folder.iterdir()}


def save_steps(path: Path, steps: range, *, keep: int) -> None:
    for step in steps:
        save_checkpoint(path, {"student": {"w": torch.rand(50)}, "step": step}, keep=keep)


def flip_a_bit(path: Path) -> None:
    """In the middle of a tensor, where neither zip nor pickle has structure."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_last_checkpoints_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path / "last.pt", range(5), keep=3)
    assert states_in(tmp_path) == {"last.pt": 4, "last-1.pt": 3, "last-2.pt": 2}


def test_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"student": {"w": torch.rand(10_000)}, "step": 1})
    flip_a_bit(path)
    torch.load(path, weights_only=True)  # torch does not notice
    with pytest.raises(UserError, match=r"cannot be read \(BadZipFile\); it is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", ["flip", "tear", "empty", "missing"])
def test_damaged_newest_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2, 3):
        save_checkpoint(path, {"student": {"w": torch.rand(10_000)}, "step": step}, keep=2)
    if damage == "flip":
        flip_a_bit(path)
    elif damage == "missing":  # killed between the two renamings
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-300] if damage == "tear" else b"")
    assert load_newest_checkpoint(path)["step"] == 2
    told = [record.getMessage() for record in caplog.records]
    if damage == "missing":
        assert told == []
    else:
        assert len(told) == 1
        assert "last.pt cannot be read" in told[0]
        assert told[0].endswith("The one before is taken.")


def test_nothing_whole_is_told(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_steps(path, range(2), keep=2)
    for file in tmp_path.iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"last-1\.pt cannot be read"):
        load_newest_checkpoint(path)


def test_numbers_order_the_kept_ones_and_other_files_are_none(tmp_path: Path) -> None:
    for name in ("last-10.pt", "last-2.pt", "last.pt", "last-old.pt", "best.pt", "last-1.txt"):
        (tmp_path / name).touch()
    names = [file.name for file in kept_checkpoints(tmp_path / "last.pt")]
    assert names == ["last.pt", "last-2.pt", "last-10.pt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("No space left on device\nfrom a C++ function"),
    ],
)
def test_full_disk_is_one_sentence_and_the_old_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.pt"
    save_steps(path, range(2), keep=2)

    def fail(state: Any, file: Path) -> None:
        file.write_bytes(b"half of")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError) as caught:
        save_steps(path, range(2, 3), keep=2)
    assert str(caught.value) == (
        f"Cannot write the checkpoint {path} (No space left on device); what was saved before is "
        "kept. Free space or mend the disk, then go on with --resume."
    )
    assert states_in(tmp_path) == {"last.pt": 1, "last-1.pt": 0}


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


# the checksum of weights


def some_weights() -> dict[str, torch.Tensor]:
    return {
        "b": torch.rand(3, 50),
        "a": torch.arange(4),
        "scalar": torch.tensor(2.0),
        "half": torch.rand(5).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 2),
    }


def test_flipped_bit_in_weights_is_noticed(tmp_path: Path) -> None:
    """A finite number that is another one: neither safetensors nor a shape would tell."""
    path = tmp_path / "ema.safetensors"
    save_weights(path, some_weights())
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")  # behind the header
    for place in range(start, len(whole), 13):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"ema\.safetensors are damaged|not finite"):
            load_weights(path)
    path.write_bytes(whole)
    assert load_weights(path).keys() == some_weights().keys()


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_torn_weights_are_told(tmp_path: Path, length: int) -> None:
    path = tmp_path / "ema.safetensors"
    save_weights(path, some_weights())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"The weights .* cannot be read: "):
        load_weights(path)


def test_checksum_depends_on_names_kinds_shapes_and_numbers() -> None:
    state = {"a": torch.zeros(2, 2), "b": torch.ones(3)}
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.ones(3), "b": torch.zeros(2, 2)},
        {"a": torch.zeros(4), "b": torch.ones(3)},
        {"a": torch.zeros(2, 2, dtype=torch.int32), "b": torch.ones(3)},
        {"a": torch.zeros(2, 2), "b": torch.tensor([1.0, 1.0, 2.0])},
        {"a": torch.zeros(2, 2), "c": torch.ones(3)},
        {"a": torch.zeros(2, 2)},
    ]
    checksums = {weights_checksum(each) for each in [state, *others]}
    assert len(checksums) == 7
    assert weights_checksum(dict(reversed(state.items()))) == weights_checksum(state)


def test_checksum_can_be_made_by_hand(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"x": torch.tensor([1, 2], dtype=torch.uint8)})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        found = file.metadata()["u2pl_sha256"]
    assert found == hashlib.sha256(b"x torch.uint8 [2]\n\x01\x02").hexdigest()


def test_weights_of_another_program_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(load_weights(tmp_path / "a.safetensors")["a"], torch.ones(2))
