"""CVAT's "Segmentation mask 1.1": a .zip to upload to a task, and the task's labels."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from u2pl.data.images import Color, write_whole
from u2pl.data.init.paint import BACKGROUND
from u2pl.data.init.voc import LISTS, MASKS
from u2pl.data.sources import default_colors
from u2pl.errors import UserError
from u2pl.labeling.formats.entry import BLACK, Entry, Wishes, class_masks, distinct_colors, hex_of

NAME = "cvat"

OBJECTS = "SegmentationObject"
UNKNOWN = "ignore"
"""The label of unreliable pixels where black, CVAT's own word for them, is a class's."""

_WHITE: Color = (255, 255, 255)
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that equal labels make equal archives


def check(classes: Sequence[str]) -> None:
    """Refuse names that ``labelmap.txt`` cannot hold.

    Raises:
        UserError: for one with a colon, or that begins as a comment does.
    """
    for name in classes:
        if ":" in name or name.startswith("#") or name != name.strip():
            raise UserError(
                f"CVAT's labelmap.txt cannot hold the class '{name}': no ':' in it, no '#' or "
                "blank at its ends; rename the class, or choose another --format."
            )


def write(out: Path, entries: Sequence[Entry], wishes: Wishes) -> list[Path]:
    """Write ``cvat.zip`` and ``cvat-labels.json``, which goes into the task's "Raw" labels.

    Unreliable pixels are black, which CVAT shows as not labelled. Where a class is called
    ``background`` black is that class, and they have the label ``ignore``.
    """
    names, colors = label_map(wishes)
    table = np.array(colors, np.uint8)
    unknown = 0 if BACKGROUND not in wishes.classes else len(names) - 1
    ids = [names.index(name) for name in wishes.classes]

    def fill(place: Path) -> None:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            _add(archive, "labelmap.txt", _labelmap(names, colors))
            listed = "".join(f"{entry.name}\n" for entry in entries)
            _add(archive, f"{LISTS}/default.txt", listed.encode())
            for entry in entries:
                labels = entry.labels(wishes)
                places = np.full(labels.shape, unknown, np.int64)
                for class_id, mask in class_masks(labels, len(ids)):
                    places[mask] = ids[class_id]
                _add(archive, f"{MASKS}/{entry.name}.png", _png(table[places]))
                _add(archive, f"{OBJECTS}/{entry.name}.png", _png(_instances(places)))

    write_whole(out / "cvat.zip", fill)
    shown = [
        {"name": name, "color": hex_of(color), "attributes": []}
        for name, color in zip(names, colors, strict=True)
        if name != BACKGROUND
    ]
    text = json.dumps(shown, indent=1, ensure_ascii=False) + "\n"
    labels_file = out / "cvat-labels.json"
    write_whole(labels_file, lambda place: place.write_text(text, encoding="utf-8"))
    return [out / "cvat.zip", labels_file]


def label_map(wishes: Wishes) -> tuple[list[str], list[Color]]:
    """Return CVAT's labels with their colours: black ``background`` first, all different."""
    names = [name for name in wishes.classes if name != BACKGROUND]
    given = dict(zip(wishes.classes, wishes.colors, strict=True))
    colors = distinct_colors([given[name] for name in names], taken=(BLACK, _WHITE))
    labels, shades = [BACKGROUND, *names], [BLACK, *colors]
    if BACKGROUND in wishes.classes:
        labels, shades = [*labels, UNKNOWN], [*shades, _WHITE]
    return labels, shades


def _labelmap(names: Sequence[str], colors: Sequence[Color]) -> bytes:
    lines = ["# label:color_rgb:parts:actions"]
    lines += [f"{n}:{','.join(map(str, c))}::" for n, c in zip(names, colors, strict=True)]
    return "".join(f"{line}\n" for line in lines).encode()


def _instances(places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the picture of instances [H, W, 3]: each label is one, in VOC's colours."""
    colors = np.array(default_colors(max(int(places.max()) + 1, 1)), np.uint8)
    picture: npt.NDArray[np.uint8] = colors[places]
    return picture


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _LONG_AGO)
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, content)
