"""One array out of a MATLAB file of level 5, as SBD's masks are stored.

scipy reads such files, too, but of a damaged one it may never return (scipy 1.17.1, seven changed
bytes), and it would be needed for nothing else. The format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.integer[Any] | np.floating[Any]]

_HEADER = 128  # bytes
_COMPRESSED, _MATRIX, _INT32, _UINT32 = 15, 14, 5, 6  # kinds of elements
_STRUCT = 2  # class of an array
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 9: "f8"}
_MOST_BYTES = 1 << 28  # of a variable; one of SBD's has some hundred thousand


def read_field(content: bytes, variable: str, field: str) -> Numbers:
    """Return a numeric array [H, W] that is a field of a struct.

    Args:
        content: of the file.
        variable: the struct's name.
        field: the array's name in it.

    Raises:
        ValueError: where it is no such file, or does not hold that.
    """
    if len(content) < _HEADER:
        raise ValueError("it is too short")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it is no MATLAB file of level 5")
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_inflated(data), order), (0, b""))
        if kind == _MATRIX:
            name, array_class, rest = _opened(data, order)
            if name == variable and array_class == _STRUCT:
                return _numbers(_field(rest, field, order), order)
    raise ValueError(f"it has no struct {variable}")


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the data of each element in a row."""
    place = 0
    while place + 8 <= len(content):
        word, size = struct.unpack_from(f"{order}II", content, place)
        if word >> 16:  # four bytes at most stand in the tag itself
            kind, size, start, step = word & 0xFFFF, word >> 16, place + 4, 8
            if size > 4:
                raise ValueError("a small element is too large")
        else:
            kind, start = word, place + 8
            step = 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("an element ends behind the file")
        yield kind, content[start : start + size]
        place += step


def _inflated(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated: {error}") from None
    if not inflate.eof:
        raise ValueError("it is torn, or too large")
    return content


def _opened(data: bytes, order: str) -> tuple[str, int, list[tuple[int, bytes]]]:
    """Return an array's name and class, and its elements from the dimensions on."""
    elements = [*_elements(data, order)]
    if len(elements) < 3 or elements[0][0] != _UINT32 or len(elements[0][1]) != 8:
        raise ValueError("an array has no flags")
    (flags,) = struct.unpack_from(f"{order}I", elements[0][1])
    name = elements[2][1].decode("latin-1")
    return name, flags & 0xFF, [elements[1], *elements[3:]]


def _field(rest: list[tuple[int, bytes]], field: str, order: str) -> bytes:
    """Return the array that is a field of a struct of 1 x 1."""
    if len(rest) < 3 or len(rest[1][1]) != 4:
        raise ValueError("a struct has no fields")
    (length,) = struct.unpack(f"{order}I", rest[1][1])
    text = rest[2][1]
    if not 0 < length <= 64:
        raise ValueError("a struct has no names")
    starts = range(0, len(text), length)
    names = [text[i : i + length].split(b"\0")[0].decode("latin-1") for i in starts]
    arrays = rest[3:]
    if field not in names or len(arrays) != len(names):
        raise ValueError(f"a struct has no single {field}")
    kind, data = arrays[names.index(field)]
    if kind != _MATRIX:
        raise ValueError(f"{field} is no array")
    return data


def _numbers(data: bytes, order: str) -> Numbers:
    """Return a numeric array, whose columns stand one after another."""
    _, _, rest = _opened(data, order)
    if len(rest) != 2 or rest[0][0] != _INT32 or len(rest[0][1]) != 8:
        raise ValueError("it is no array of two dimensions")
    height, width = struct.unpack(f"{order}ii", rest[0][1])
    kind, values = rest[1]
    if kind not in _NUMBERS:
        raise ValueError("it holds no numbers")
    dtype = np.dtype(f"{order}{_NUMBERS[kind]}")
    if height < 0 or width < 0 or len(values) != height * width * dtype.itemsize:
        raise ValueError("it has not as many numbers as it says")
    numbers: Numbers = np.frombuffer(values, dtype).reshape(width, height).T
    return numbers
