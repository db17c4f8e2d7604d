"""Mixing, pixel by pixel."""

from __future__ import annotations

from typing import Any

from reference.types import BoolMaps


def centre(cell: int, length: int, num_cells: int) -> int:
    """The pixel in the middle of a cell of ``ceil(length / num_cells)`` pixels."""
    stride = (length + num_cells - 1) // num_cells
    return min(cell * stride + stride // 2, length - 1)


def mix(
    maps: list[list[list[Any]]],
    mask: BoolMaps,
    partner: list[int] | None,
    fill: object,
    donors: list[list[list[Any]]] | None = None,
) -> list[list[list[Any]]]:
    """Take masked pixels of [B][h][w] from the partner, or ``fill``; the mask may be finer."""
    height, width = len(mask[0]), len(mask[0][0])
    mixed = []
    for b, image in enumerate(maps):
        rows = []
        for y, row in enumerate(image):
            pixels = []
            for x, own in enumerate(row):
                fine_y, fine_x = centre(y, height, len(image)), centre(x, width, len(row))
                if not mask[b][fine_y][fine_x]:
                    pixels.append(own)
                elif partner is None:
                    pixels.append(fill)
                else:
                    pixels.append((donors or maps)[partner[b]][y][x])
            rows.append(pixels)
        mixed.append(rows)
    return mixed
