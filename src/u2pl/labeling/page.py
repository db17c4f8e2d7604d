"""The first images of a ranking as one HTML page: image, pseudo-labels, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from u2pl.data.images import (
    Color,
    entropy_picture,
    image_size,
    overlay,
    read_image,
    read_mask,
    write_whole,
)
from u2pl.data.thumbnails import data_url, small, small_mask
from u2pl.data.windows import ArrayWindows, plain_tiff_size, tiff_windows
from u2pl.engine.predict import Job
from u2pl.engine.tiles import Tiling
from u2pl.engine.trained import SegmentationModel
from u2pl.errors import printable
from u2pl.labeling.pseudo import FOLDER, small_copy
from u2pl.labeling.ranking import Place


@dataclass(frozen=True)
class _Card:
    """An image of the page: pictures as data URLs, and its numbers."""

    rank: int
    name: str
    pictures: tuple[tuple[str, str], ...]
    place: Place
    nearest: str | None
    classes: tuple[tuple[str, Color], ...]


def write_ranking_page(
    path: Path,
    model: SegmentationModel,
    shown: Sequence[tuple[Place, Job, Path]],
    names: Sequence[str],
) -> None:
    """Write the page, which needs no other file and no network.

    The network is asked once more for the images that are shown, of which entropy is not kept.

    Args:
        path: the file.
        model: what made the labels.
        shown: place, image and output folder of each image, in their order.
        names: of all images, by index.

    Raises:
        UserError: where an image cannot be read, or the file cannot be written.
    """
    cards = [
        _card(number, model, place, job, out, names)
        for number, (place, job, out) in enumerate(shown, start=1)
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("u2pl.labeling"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.finalize = _shown
    text = environment.get_template("ranking.html").render(
        cards=cards,
        total=len(names),
        max_entropy=model.card.reliable_entropy,
        classes=list(zip(model.classes, model.card.colors, strict=True)),
    )
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def _shown(value: object) -> object:
    """Return what a page shows of a value: a name has no character that does not print."""
    return printable(value) if isinstance(value, str) else value


def _card(
    number: int,
    model: SegmentationModel,
    place: Place,
    job: Job,
    out: Path,
    names: Sequence[str],
) -> _Card:
    card = model.card
    pixels = _readable(model, job.file)
    entropy = entropy_picture(model.predict(pixels).entropy, len(card.classes))
    image = small(pixels)
    size = (image.shape[0], image.shape[1])
    labels = read_mask(
        out / FOLDER / job.name, num_classes=len(card.classes), ignore_index=card.ignore_index
    )
    over = overlay(image, small_mask(labels, size), card.colors, alpha=0.6)
    pictures = (("image", image), ("labels", over), ("entropy", small(entropy)))
    return _Card(
        rank=number,
        name=job.source,
        pictures=tuple((what, data_url(np.ascontiguousarray(p))) for what, p in pictures),
        place=place,
        nearest=None if place.nearest is None else names[place.nearest],
        classes=tuple((card.classes[c], card.colors[c]) for c in place.classes),
    )


def _readable(
    model: SegmentationModel, file: Path
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return an image, or of one too large to be seen at once a small copy."""
    tiff = plain_tiff_size(file)
    size = image_size(file) if tiff is None else tiff
    if not Tiling().is_large(size, len(model.classes)):
        return read_image(file)
    if tiff is None:
        return small_copy(ArrayWindows(read_image(file)))
    with tiff_windows(file) as windows:
        return small_copy(windows)
