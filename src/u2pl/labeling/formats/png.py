"""Index masks as they are, and a list of the classes: what every raster editor opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from u2pl.data.images import refuse_way_out, write_whole
from u2pl.labeling.formats.entry import Entry, Wishes
from u2pl.labeling.formats.place import fresh_folder

NAME = "png"


def check(classes: Sequence[str]) -> None:
    """Every name can stand in JSON."""


def write(out: Path, entries: Sequence[Entry], wishes: Wishes) -> list[Path]:
    """Write ``png/NAME.png`` and ``png/classes.json``; unreliable pixels hold ``ignore_index``."""
    folder = fresh_folder(out, "png")
    for entry in entries:
        path = folder / f"{entry.name}.png"
        refuse_way_out(folder, path)
        write_whole(path, partial(shutil.copyfile, entry.mask))
    rows = [
        {"id": place, "name": name, "color": list(color)}
        for place, (name, color) in enumerate(zip(wishes.classes, wishes.colors, strict=True))
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / "classes.json", lambda place: place.write_text(text, encoding="utf-8"))
    return [folder]
