"""How often `u2pl data check` notices misplaced masks, and how often it errs.

    python benchmarks/misplaced_masks.py                       # 100 painted streets
    python benchmarks/misplaced_masks.py camvid/dataset.yaml   # the labelled images of a data set

A tenth of the masks is changed at a time, in five rounds; the others are as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from u2pl.data.alignment import Sketch, odd_masks, sketch
from u2pl.data.images import read_image
from u2pl.data.sources import load_dataset
from u2pl.data.streets import STYLES, paint_scene

Mask = npt.NDArray[np.int64]
Pair = tuple[npt.NDArray[np.uint8], Mask]


def painted(count: int) -> list[Pair]:
    """Scenes by day of 96 x 96 pixels."""
    pairs = []
    for place in range(count):
        generator = np.random.default_rng([7, place])
        image, mask = paint_scene(size=(96, 96), style=STYLES["day"], generator=generator)
        pairs.append((image, mask.astype(np.int64)))
    return pairs


def labelled(path: Path, count: int) -> list[Pair]:
    """Up to ``count`` labelled images of a data set, spread over its list."""
    data = load_dataset(path, require=("labeled",))
    samples = data.labeled[:: max(1, len(data.labeled) // count)][:count]
    return [(read_image(sample.image), data.read_mask(sample)) for sample in samples]


def shifted(mask: Mask, share: float, generator: np.random.Generator) -> Mask:
    """A mask moved in a random direction by a share of its short side."""
    angle = generator.uniform(0, 2 * np.pi)
    length = share * min(mask.shape)
    down, right = round(length * np.sin(angle)), round(length * np.cos(angle))
    rows = (np.arange(mask.shape[0]) - down).clip(0, mask.shape[0] - 1)
    columns = (np.arange(mask.shape[1]) - right).clip(0, mask.shape[1] - 1)
    return mask[np.ix_(rows, columns)]


def swapped(pairs: Sequence[Pair], places: Sequence[int]) -> dict[int, Mask]:
    """Each of some images with the mask of the next of them that has its size."""
    found = {}
    for turn, place in enumerate(places):
        others = [*places[turn + 1 :], *places[:turn]]
        same = [o for o in others if pairs[o][1].shape == pairs[place][1].shape]
        if same:
            found[place] = pairs[same[0]][1]
    return found


def each(
    pairs: Sequence[Pair], change: Callable[[Mask], Mask], places: Sequence[int]
) -> dict[int, Mask]:
    """Some masks, each changed."""
    return {place: change(pairs[place][1]) for place in places}


def rounds(
    pairs: Sequence[Pair],
    right: Sequence[Sketch | None],
    change: Callable[[Sequence[int]], dict[int, Mask]],
) -> str:
    """Change masks in five rounds; say how many were noticed and how many others were named."""
    hits = total = false = 0
    for part in range(5):
        masks = change(list(range(part, len(pairs), 5))[: max(2, len(pairs) // 10)])
        mixed = list(right)
        for place, mask in masks.items():
            mixed[place] = sketch(pairs[place][0], mask)
        found = {oddity.index for oddity in odd_masks(mixed)}
        total += len(masks)
        hits += len(found & set(masks))
        false += len(found - set(masks))
    return f"{hits} of {total} noticed, {false} others named"


def main() -> None:
    """Print a line a change."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    pairs = (
        painted(options.count)
        if options.dataset is None
        else labelled(options.dataset, options.count)
    )
    right = [sketch(*pair) for pair in pairs]
    print(f"as they are: {len(odd_masks(right))} of {len(pairs)} named")
    generator = np.random.default_rng(1)
    changes: dict[str, Callable[[Mask], Mask]] = {
        f"shifted by {share:.0%}": lambda mask, share=share: shifted(mask, share, generator)
        for share in (0.03, 0.05, 0.1)
    }
    changes |= {"left to right": lambda mask: mask[:, ::-1], "upside down": lambda mask: mask[::-1]}
    for name, change in changes.items():
        changed = partial(each, pairs, change)
        print(f"{name}: {rounds(pairs, right, changed)}")
    print(f"swapped: {rounds(pairs, right, partial(swapped, pairs))}")


if __name__ == "__main__":
    main()
