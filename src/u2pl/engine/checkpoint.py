"""A run's state on disk: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from u2pl.data.images import write_whole
from u2pl.errors import UserError

logger = logging.getLogger(__name__)

_CHECKSUM = "u2pl_sha256"  # its key among the metadata of a safetensors file


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Like :func:`~u2pl.data.images.write_whole`, and on disk when it returns."""

    def flushed(temporary: Path) -> None:
        write(temporary)
        _flush(temporary)

    write_whole(path, flushed)


def _flush(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Save tensors and plain values so that a crash leaves the old file or the new one.

    The file holds a checksum of every tensor, which :func:`load_checkpoint` verifies.

    Args:
        path: the file.
        state: what to save.
        keep: files to keep, this one included: the one before becomes ``last-1.pt`` beside
            ``last.pt``, that one ``last-2.pt``.

    Raises:
        UserError: where it cannot be written, as on a full disk; the files before stay.
    """

    def write(temporary: Path) -> None:
        try:
            torch.save(state, temporary)
            _flush(temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            reason = _why_not_written(temporary, error)
            raise UserError(
                f"Cannot write the checkpoint {path} ({reason}); what was saved before is kept. "
                "Free space or mend the disk, then go on with --resume."
            ) from None
        for age in range(keep - 1, 0, -1):  # the new file is whole: now the others may move
            younger = older_checkpoint(path, age - 1)
            if younger.is_file():
                os.replace(younger, older_checkpoint(path, age))

    write_whole(path, write)


def _why_not_written(path: Path, error: Exception) -> str:
    """The system's word for what torch's writer has failed at.

    torch tells of a place in its own code; another write to the same file fails for the reason
    itself, such as "No space left on device".
    """
    try:
        with path.open("ab") as file:
            file.write(bytes(2**20))
            os.fsync(file.fileno())
    except OSError as reason:
        return str(reason.strerror)
    return getattr(error, "strerror", None) or str(error).split("\n")[0]


def older_checkpoint(path: Path, age: int) -> Path:
    """Where :func:`save_checkpoint` keeps the file that was ``path`` so many files ago.

    >>> older_checkpoint(Path("last.pt"), 0).name, older_checkpoint(Path("last.pt"), 2).name
    ('last.pt', 'last-2.pt')
    """
    return path if age == 0 else path.with_stem(f"{path.stem}-{age}")


def kept_checkpoints(path: Path) -> list[Path]:
    """The file and what :func:`save_checkpoint` has kept of those before it, the newest first."""
    older = [file for file in path.parent.glob(f"{path.stem}-*{path.suffix}") if _age(file, path)]
    return [path] * path.is_file() + sorted(older, key=lambda file: _age(file, path))


def _age(file: Path, path: Path) -> int:
    """The number in ``last-1.pt``; 0 where there is none."""
    number = file.stem.removeprefix(f"{path.stem}-")
    return int(number) if number.isdigit() else 0


def load_newest_checkpoint(
    path: Path, device: torch.device | str = "cpu", *, network: str = "student"
) -> dict[str, Any]:
    """Read a checkpoint, or, where it is damaged, the newest whole one before it; and say so.

    Args:
        path: as for :func:`save_checkpoint`.
        device, network: as for :func:`load_checkpoint`.

    Raises:
        UserError: where there is none, or none is whole.
    """
    files = kept_checkpoints(path)
    for place, file in enumerate(files):
        try:
            state = load_checkpoint(file, device, network=network)
        except UserError as error:
            if place == len(files) - 1:
                raise
            logger.warning("%s The one before is taken.", error)
        else:
            return state
    return load_checkpoint(path, device, network=network)  # says that there is none


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", *, network: str = "student"
) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in the file is executed.

    Every byte is compared with its checksum first: torch itself would load flipped bits.

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
    """Save a network's tensors as safetensors, atomically, with their checksum in the file.

    Raises:
        UserError: where it cannot be written, as on a full disk; the file before stays.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    metadata = {_CHECKSUM: weights_checksum(plain)}

    def write(temporary: Path) -> None:
        try:
            temporary.write_bytes(save_tensors(plain, metadata))
        except OSError as error:
            raise UserError(
                f"Cannot write the weights {path} ({error.strerror}); what was saved before is "
                "kept. Free space or mend the disk, then go on with --resume."
            ) from None

    write_atomically(path, write)


def weights_checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a network's tensors, in hexadecimal.

    Of each tensor, in the order of the names: ``name dtype shape`` and a line feed, as in
    ``head.bias torch.float32 [19]``, then its bytes.

    Args:
        state: contiguous tensors on the CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, and compare its tensors with the checksum that it holds.

    A file without one, which another program has written, is read as it is.

    Raises:
        UserError: where it is missing or damaged, or holds numbers that are not finite.
    """
    if not os.path.isfile(path):
        raise UserError(f"There are no weights at {path}; has the run saved any?")
    try:
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
        weights = dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"The weights {path} cannot be read: {error}.") from None
    if checksum is not None and checksum != weights_checksum(weights):
        raise UserError(
            f"The weights {path} are damaged: their checksum is another. Copy them anew, or have "
            "the run write them again with `u2pl train … --resume`."
        )
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"The weights {path} are damaged: '{name}' holds numbers that are not finite."
            )
    return weights
