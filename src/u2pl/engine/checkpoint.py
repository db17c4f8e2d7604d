"""A run's state on disk: whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from u2pl.data.images import write_whole
from u2pl.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Like :func:`~u2pl.data.images.write_whole`, and on disk when it returns."""

    def flushed(temporary: Path) -> None:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())

    write_whole(path, flushed)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain values so that a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", *, network: str = "student"
) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in the file is executed.

    Args:
        path: the file.
        device: where its tensors go.
        network: the key under which it must hold a network.

    Raises:
        UserError: where the file is missing or is no checkpoint.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint {path}; has the run been started?")
    try:
        _require_whole(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}); it is damaged or "
            "not a checkpoint of u2pl."
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get(network), dict):
        raise UserError(f"{path} is not a checkpoint of u2pl.")
    return state


def _require_whole(path: Path) -> None:
    """Raise BadZipFile where a byte has changed since the file was written.

    ``torch.save`` writes a zip archive with the CRC-32 of each tensor, which ``torch.load`` does
    not compare.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Save a network's tensors as safetensors, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    write_atomically(path, lambda temporary: save_file(plain, temporary))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: where it is missing or damaged, or holds numbers that are not finite.
    """
    if not os.path.isfile(path):
        raise UserError(f"There are no weights at {path}; has the run saved any?")
    try:
        weights = dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"The weights {path} cannot be read: {error}.") from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"The weights {path} are damaged: '{name}' holds numbers that are not finite."
            )
    return weights
