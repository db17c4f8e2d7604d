"""PNG files written a few rows at a time, so that a picture need not fit into memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from u2pl.data.images import Color, palette_of

RowKind = Literal["palette", "grey", "grey16", "rgb"]
"""What a row holds: class ids or other bytes, shown in colours; 8 or 16 bits of grey; or red, green
and blue."""

_BITS_AND_COLOR_TYPE = {"palette": (8, 3), "grey": (8, 0), "grey16": (16, 0), "rgb": (8, 2)}
_UP = 2  # PNG's filter that stores the difference to the row above
_LEVEL = 4  # of zlib, 1 to 9: rows of this many pixels are many, and 6 takes twice the time


class PngRows:
    """A PNG of a known size whose rows come from top to bottom.

    Args:
        file: open for writing; it is not closed.
        size: (height, width) in pixels.
        kind: see :data:`RowKind`.
        colors: one a class, or a value, for ``palette``.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: tuple[int, int],
        *,
        kind: RowKind,
        colors: Sequence[Color] | npt.NDArray[np.uint8] = (),
    ) -> None:
        self._file = file
        self._size = size
        self._kind = kind
        self._rows = 0
        self._deflate = zlib.compressobj(_LEVEL)
        self._above: npt.NDArray[np.uint8] | None = None
        bits, color_type = _BITS_AND_COLOR_TYPE[kind]
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, color_type, 0, 0, 0))
        if kind == "palette":
            self._chunk(b"PLTE", palette_of(colors).tobytes())

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Write the next rows, [h, W] or, of ``rgb``, [h, W, 3], of values that fit the kind."""
        height, width = rows.shape[:2]
        assert width == self._size[1]
        assert self._rows + height <= self._size[0]
        self._rows += height
        wanted = ">u2" if self._kind == "grey16" else np.uint8
        plain = np.ascontiguousarray(rows, dtype=wanted).view(np.uint8).reshape(height, -1)
        # The first byte of a row names its filter. Neighbouring rows of photographs are alike;
        # class ids compress best as they are.
        lines = np.zeros((height, plain.shape[1] + 1), np.uint8)
        lines[:, 1:] = plain
        if self._kind == "rgb":
            lines[:, 0] = _UP
            lines[1:, 1:] -= plain[:-1]
            if self._above is not None:
                lines[0, 1:] -= self._above
            self._above = plain[-1].copy()
        self._pixels(self._deflate.compress(lines.data))

    def finish(self) -> None:
        """Write what is left; all rows must have come."""
        assert self._rows == self._size[0], f"{self._rows} rows of {self._size[0]}"
        self._pixels(self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _pixels(self, content: bytes) -> None:
        for start in range(0, len(content), 1 << 30):  # a chunk's length has 31 bits
            self._chunk(b"IDAT", content[start : start + (1 << 30)])

    def _chunk(self, kind: bytes, content: bytes) -> None:
        checksum = zlib.crc32(content, zlib.crc32(kind))
        self._file.write(struct.pack(">I", len(content)) + kind + content)
        self._file.write(struct.pack(">I", checksum))
