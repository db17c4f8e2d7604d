"""Label Studio's brushes: masks as the bytes of thi.ng's rle-pack, to and fro.

A head of 32 bits with the number of values, 5 with a value's bits less 1, and four of 4 bits with
sizes less 1. Then come groups: a bit that says whether one value is repeated, two bits that choose
a size, the count less 1 in so many bits, and the value, or as many values. Values are RGBA, row by
row; the brush is where alpha is not 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.errors import UserError, shown

_SIZES = (3, 4, 8, 16)  # bits that counts may have, as Label Studio's own encoder has them
_HEAD = 53  # bits


def encode_brush(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return a mask [H, W] as the bytes of a brush.

    >>> encode_brush(np.array([[True, False]]))
    [0, 0, 0, 8, 57, 27, 252, 127, 241, 128, 0]
    """
    flat = np.asarray(mask, np.bool_).ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges]).astype(np.int64)
    lengths = 4 * np.diff(np.append(starts, flat.size))
    parts = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for length, is_inside in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        parts.append(_runs(length, "11111111" if is_inside else "00000000"))
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _runs(length: int, value: str) -> str:
    """Return the bits of one value repeated, in as many groups as its counts need."""
    parts = []
    while length:
        place = next((n for n, bits in enumerate(_SIZES) if length <= 1 << bits), len(_SIZES) - 1)
        count = min(length, 1 << _SIZES[place])
        parts.append(f"1{place:02b}{count - 1:0{_SIZES[place]}b}{value}")
        length -= count
    return "".join(parts)


def decode_brush(rle: Any, size: tuple[int, int], path: Path) -> npt.NDArray[np.bool_]:
    """Return a brush as a mask [H, W]: where its alpha is not 0.

    Args:
        rle: bytes as a list of numbers.
        size: height and width.
        path: the file, for messages.

    Raises:
        UserError: where it is no such list, or not of this size.
    """
    if not isinstance(rle, list):  # of a number, bytes() would make as many zeros
        raise _faulty(path, rle)
    try:
        text = "".join(f"{byte:08b}" for byte in bytes(rle))
        values = _unpack(text, 4 * size[0] * size[1])
    except (TypeError, ValueError):  # int("") too, where the bits end early
        raise _faulty(path, rle) from None
    return values.reshape(*size, 4)[:, :, 3] > 0


def _unpack(text: str, expected: int) -> npt.NDArray[np.uint8]:
    """Return the values of a text of bits.

    Raises:
        ValueError: where the bits end early, or hold another number of values.
    """
    if int(text[:32], 2) != expected or int(text[32:37], 2) != 7:
        raise ValueError("another number of values, or values that are no bytes")
    sizes = [int(text[place : place + 4], 2) + 1 for place in range(37, _HEAD, 4)]
    values = np.zeros(expected, np.uint8)
    place, done = _HEAD, 0
    while done < expected:
        is_run = text[place : place + 1] == "1"
        bits = sizes[int(text[place + 1 : place + 3], 2)]
        end = done + 1 + int(text[place + 3 : place + 3 + bits], 2)
        place += 3 + bits
        if end > expected:
            raise ValueError("more values than there are pixels")
        if is_run:
            values[done:end] = int(text[place : place + 8], 2)
            place += 8
        else:
            stop = place + 8 * (end - done)
            values[done:end] = [int(text[p : p + 8], 2) for p in range(place, stop, 8)]
            place = stop
        done = end
    if place > len(text):
        raise ValueError("the last value is cut")
    return values


def _faulty(path: Path, rle: Any) -> UserError:
    return UserError(
        f"{path}: expected a brush's RLE that fits its image, got {shown(rle)}; export the project "
        "again."
    )
