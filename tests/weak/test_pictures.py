from __future__ import annotations

from pathlib import Path

import numpy as np

from u2pl.data.sources import Dataset
from u2pl.weak.pictures import SeedExample, contact_sheet

DATASET = Dataset(Path(), ("sky", "car"), ((0, 0, 255), (255, 0, 0)))


def example(height: int, width: int, *names: str) -> SeedExample:
    return SeedExample(
        image=np.full((height, width, 3), 100, np.uint8),
        maps={name: np.ones((height, width), np.float32) for name in names},
        labels=np.full((height, width), 1, np.int64),
    )


def test_sheet_has_a_row_for_each_image_and_is_as_wide_as_the_longest() -> None:
    short, long = example(20, 40), example(60, 40, "sky", "car")
    alone = contact_sheet([long], DATASET)
    both = contact_sheet([short, long], DATASET)
    assert both.dtype == np.uint8
    assert both.shape == (2 * alone.shape[0], contact_sheet([short], DATASET).shape[1], 3)
    assert (both[-1, -1] == 255).all()


def test_seeds_show_in_their_class_colour() -> None:
    sheet = contact_sheet([example(40, 40)], DATASET)
    seeds = sheet[100, sheet.shape[1] * 3 // 4]
    assert seeds[0] > 200 > 60 > seeds[1]


def test_very_wide_image_has_a_tile_of_bounded_width() -> None:
    sheet = contact_sheet([example(2, 30_000, "sky")], DATASET)
    assert sheet.shape[1] < 2000
    assert (sheet[30:] == 255).all()
