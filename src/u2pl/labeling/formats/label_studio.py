"""Label Studio: tasks whose predictions are brushes, and the labeling configuration for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from u2pl.data.images import write_whole
from u2pl.data.init.brush import encode_brush
from u2pl.labeling.formats.entry import Entry, Wishes, class_masks, distinct_colors, hex_of
from u2pl.labeling.formats.place import JsonList, text_file

NAME = "labelstudio"

_FROM, _TO = "label", "image"


def check(classes: Sequence[str]) -> None:
    """Every name can stand in JSON and XML."""


def write(out: Path, entries: Sequence[Entry], wishes: Wishes) -> list[Path]:
    """Write ``label-studio.json``, to import, and ``label-studio.xml``, to paste as interface."""
    files = [out / "label-studio.json", out / "label-studio.xml"]
    with text_file(files[0]) as file:
        tasks = JsonList(file)
        for number, entry in enumerate(entries, start=1):
            tasks.add(_task(number, entry, wishes))
        tasks.end()
        file.write("\n")
    text = interface(wishes)
    write_whole(files[1], lambda place: place.write_text(text, encoding="utf-8"))
    return files


def _task(number: int, entry: Entry, wishes: Wishes) -> dict[str, Any]:
    """An image with one prediction: a brush a class, nothing where pixels are unreliable."""
    height, width = entry.size
    result = [
        {
            "id": f"u2pl-{number}-{class_id}",
            "type": "brushlabels",
            "from_name": _FROM,
            "to_name": _TO,
            "origin": "prediction",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(mask),
                "brushlabels": [wishes.classes[class_id]],
            },
        }
        for class_id, mask in class_masks(entry.labels(wishes), len(wishes.classes))
    ]
    return {
        "data": {"image": wishes.url + quote(entry.image)},
        "predictions": [
            {"model_version": wishes.model, "score": round(entry.reliable, 6), "result": result}
        ],
    }


def interface(wishes: Wishes) -> str:
    """Return the labeling configuration: an image, and a brush of each class in its colour."""
    colors = distinct_colors(wishes.colors, taken=())
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(hex_of(color))}/>\n"
        for name, color in zip(wishes.classes, colors, strict=True)
    )
    return (
        "<View>\n"
        f'  <Image name="{_TO}" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <BrushLabels name="{_FROM}" toName="{_TO}">\n{labels}  </BrushLabels>\n'
        "</View>\n"
    )
