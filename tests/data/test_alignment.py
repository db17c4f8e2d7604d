"""The guess at misplaced masks, with its hit rate and its false alarms on painted streets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from u2pl.data.alignment import Sketch, odd_masks, sketch
from u2pl.data.streets import STYLES, paint_scene

Mask = npt.NDArray[np.int64]
NUM = 40


@pytest.fixture(scope="module")
def streets() -> list[tuple[npt.NDArray[np.uint8], Mask]]:
    scenes = []
    for place in range(NUM):
        generator = np.random.default_rng([3, place])
        style = STYLES["day" if place % 2 else "dusk"]
        image, mask = paint_scene(size=(96, 128), style=style, generator=generator)
        scenes.append((image, mask.astype(np.int64)))
    return scenes


@pytest.fixture(scope="module")
def right(streets: Sequence[tuple[npt.NDArray[np.uint8], Mask]]) -> list[Sketch | None]:
    return [sketch(image, mask) for image, mask in streets]


def shifted(mask: Mask, down: int, across: int) -> Mask:
    height, width = mask.shape
    rows = (np.arange(height) - down).clip(0, height - 1)
    columns = (np.arange(width) - across).clip(0, width - 1)
    return mask[np.ix_(rows, columns)]


def test_masks_in_their_place_raise_no_alarm(right: list[Sketch | None]) -> None:
    assert None not in right
    assert odd_masks(right) == []


@pytest.mark.parametrize(
    ("change", "kind", "least"),
    [
        (lambda mask: shifted(mask, 3, -4), "shifted", 0.9),
        (lambda mask: shifted(mask, -8, 6), "shifted", 0.95),
        (lambda mask: mask[:, ::-1], "mirrored", 0.9),
        (lambda mask: mask[::-1], "mirrored", 0.8),
    ],
    ids=["shifted by 5 pixels", "shifted by 10 pixels", "left to right", "upside down"],
)
def test_changed_masks_are_found_among_others_without_false_alarms(
    streets: list[tuple[npt.NDArray[np.uint8], Mask]],
    right: list[Sketch | None],
    change: Callable[[Mask], Mask],
    kind: str,
    least: float,
) -> None:
    hits, false = 0, 0
    for part in range(4):  # a quarter of the masks is changed each time
        changed = range(part, NUM, 4)
        mixed = list(right)
        for place in changed:
            mixed[place] = sketch(streets[place][0], change(streets[place][1]))
        found = {oddity.index: oddity for oddity in odd_masks(mixed)}
        hits += sum(found[place].kind == kind for place in changed if place in found)
        false += sum(place not in changed for place in found)
    assert hits >= least * NUM
    assert false == 0


def test_swapped_masks_name_each_other(
    streets: list[tuple[npt.NDArray[np.uint8], Mask]], right: list[Sketch | None]
) -> None:
    mixed = list(right)
    for one, other in ((1, 2), (7, 20)):
        mixed[one] = sketch(streets[one][0], streets[other][1])
        mixed[other] = sketch(streets[other][0], streets[one][1])
    found = {oddity.index: oddity for oddity in odd_masks(mixed)}
    assert {index: oddity.other for index, oddity in found.items()} == {1: 2, 2: 1, 7: 20, 20: 7}
    assert {oddity.kind for oddity in found.values()} == {"swapped"}


def test_shift_is_told_as_a_part_of_the_image(
    streets: list[tuple[npt.NDArray[np.uint8], Mask]], right: list[Sketch | None]
) -> None:
    mixed = list(right)
    mixed[5] = sketch(streets[5][0], shifted(streets[5][1], 10, -12))
    (oddity,) = odd_masks(mixed)
    assert oddity.shift == pytest.approx((-10 / 96, 12 / 128), abs=0.015)


def test_shift_of_all_masks_alike_is_found(
    streets: list[tuple[npt.NDArray[np.uint8], Mask]],
) -> None:
    found = odd_masks([sketch(image, shifted(mask, 6, 6)) for image, mask in streets])
    assert len(found) > 0.9 * NUM
    assert {oddity.kind for oddity in found} == {"shifted"}


def test_masks_that_follow_no_edge_are_told_nothing(
    streets: list[tuple[npt.NDArray[np.uint8], Mask]],
) -> None:
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 3, (4, 4)).repeat(24, 0).repeat(32, 1) for _ in streets]
    found = [sketch(image, mask) for (image, _), mask in zip(streets, coarse, strict=True)]
    assert None not in found
    assert odd_masks(found) == []


def test_images_without_edges_and_masks_without_borders_have_no_sketch() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    halves = (np.arange(56) < 28).astype(np.int64) * np.ones((40, 1), np.int64)
    assert sketch(noise, halves) is not None
    assert sketch(noise, np.zeros((40, 56), np.int64)) is None
    assert sketch(np.full_like(noise, 7), halves) is None
    assert odd_masks([]) == odd_masks([None]) == []


def test_very_long_images_are_worked_at_a_bounded_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 4000, 3), np.uint8)
    mask = (np.arange(4000) // 100 % 2 * np.ones((8, 1))).astype(np.int64)
    found = sketch(noise, mask)
    assert found is not None
    assert found.size == (96, 384)
