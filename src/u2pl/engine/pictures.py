"""What a prediction is written as: index masks, colours, overlays, entropy, where it is sure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.data.images import (
    FAST,
    SMALL,
    Color,
    colorize,
    entropy_levels,
    magma,
    overlay,
    refuse_way_out,
    whole_file,
    write_image,
    write_mask,
)
from u2pl.data.png_rows import PngRows, RowKind
from u2pl.data.windows import Image, Windows
from u2pl.engine.servers import place_of, server_of
from u2pl.engine.trained import ModelCard, Prediction
from u2pl.errors import UserError, nearest_name

KINDS = ("masks", "colors", "overlays", "entropy", "reliable")
"""Pictures that can be written of a prediction."""

DEFAULT_KINDS = ("masks", "overlays", "entropy", "reliable")
"""Those that are, where nothing is said; colours of the classes are in the masks' palette too."""


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds, each once.

    Raises:
        UserError: for an unknown one, or none at all.
    """
    wanted = tuple(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in KINDS:
            raise UserError(
                f"Expected kinds of {', '.join(KINDS)}, got '{kind}'.{nearest_name(kind, KINDS)}",
                exit_code=2,
            )
    if not wanted:
        raise UserError(f"Expected at least one kind of {', '.join(KINDS)}.", exit_code=2)
    return wanted


def picture(kind: str, image: Image, prediction: Prediction, card: ModelCard) -> npt.NDArray[Any]:
    """A kind of picture of some rows of an image.

    Args:
        kind: one of :data:`KINDS`, or a server's.
        image: RGB [H, W, 3] uint8.
        prediction: of the same pixels.
        card: colours and classes.

    Returns:
        [H, W, 3] uint8; [H, W] class ids of ``masks``, or the server's; [H, W] uint8 of
        ``entropy``, 255 for log C, and of ``reliable``, 255 where sure.
    """
    server = server_of(kind)
    if server is not None:
        ids: npt.NDArray[Any] = server.table(card.classes)[prediction.mask]
        return ids
    if kind == "masks":
        return prediction.mask
    if kind == "colors":
        return colorize(prediction.mask, card.colors)
    if kind == "overlays":
        return overlay(image, prediction.mask, card.colors)
    if kind == "entropy":
        return entropy_levels(prediction.entropy, len(card.classes))
    return np.where(prediction.reliable, 255, 0).astype(np.uint8)


def picture_path(out: Path, kind: str, name: Path) -> Path:
    """Where a picture goes.

    Raises:
        UserError: where a link leads out of the folder.
    """
    path = out / place_of(kind, name)
    refuse_way_out(out, path)
    return path


def write_pictures(
    out: Path,
    name: Path,
    image: Image,
    prediction: Prediction,
    card: ModelCard,
    kinds: tuple[str, ...],
) -> None:
    """Write an image's pictures as PNG, each whole or not at all.

    Args:
        out: gets a folder a kind.
        name: of the results below it, with suffix .png.
        image: RGB [H, W, 3] uint8.
        prediction: of it.
        card: colours and classes.
        kinds: which pictures.

    Raises:
        UserError: where one cannot be written.
    """
    for kind in kinds:
        path = picture_path(out, kind, name)
        pixels = picture(kind, image, prediction, card)
        if row_kind(kind, len(card.classes)) in ("palette", "grey16"):
            level = FAST if kind == "entropy" else SMALL
            write_mask(path, pixels, colors=colors_of(kind, card), level=level)
        else:
            write_image(path, pixels)


@contextlib.contextmanager
def rows_of_pictures(
    out: Path, name: Path, image: Windows, card: ModelCard, kinds: tuple[str, ...]
) -> Iterator[Callable[[int, Prediction], None]]:
    """Write a large image's pictures band by band; all become whole together at the end.

    Args:
        out: gets a folder a kind.
        name: of the results below it, with suffix .png.
        image: read again for overlays.
        card: colours and classes.
        kinds: which pictures.

    Yields:
        A function that takes the first row of a band, from top to bottom, and what is said of it.

    Raises:
        UserError: where one cannot be written.
    """
    with contextlib.ExitStack() as stack:
        writers: dict[str, PngRows] = {}
        nothing = np.zeros((0, 0, 3), np.uint8)
        for kind in kinds:
            temporary = stack.enter_context(whole_file(picture_path(out, kind, name)))
            file = stack.enter_context(temporary.open("wb"))
            how = row_kind(kind, len(card.classes))
            colors = colors_of(kind, card)
            writers[kind] = PngRows(file, image.size, kind=how, colors=colors)

        def add(top: int, prediction: Prediction) -> None:
            is_shown = "overlays" in kinds
            step = max(1, 2**20 // image.size[1])  # pictures take more room than what they show
            for start in range(0, prediction.mask.shape[0], step):
                rows = slice(start, start + step)
                part = Prediction(
                    prediction.mask[rows], prediction.entropy[rows], prediction.reliable[rows]
                )
                first, last = top + start, top + start + part.mask.shape[0]
                band = image.read(first, last, 0, image.size[1]) if is_shown else nothing
                for kind, writer in writers.items():
                    writer.add(picture(kind, band, part, card))

        yield add
        for writer in writers.values():
            writer.finish()


def row_kind(kind: str, num_classes: int) -> RowKind:
    """How the pixels of a kind of picture stand in a PNG; 256 classes fit a palette."""
    server = server_of(kind)
    if server is not None:
        return "grey" if server.colors is None else "palette"
    if kind == "masks":
        return "palette" if num_classes <= 256 else "grey16"
    if kind == "entropy":
        return "palette"
    return "grey" if kind == "reliable" else "rgb"


def colors_of(kind: str, card: ModelCard) -> tuple[Color, ...] | npt.NDArray[np.uint8]:
    """What a palette shows the values of a kind of picture in."""
    if kind == "entropy":
        return magma()
    server = server_of(kind)
    return card.colors if server is None or server.colors is None else server.colors
