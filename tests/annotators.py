"""Annotators who know the truth: they take what ``u2pl label`` handed out and give it back right.

What they return is laid out as the tools export it, written here without u2pl's own writers.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Masks = Mapping[str, npt.NDArray[Any]]
"""True class ids [H, W] by the image's name, without suffix."""


def correct(handed_out: Path, format: str, truth: Masks, *, ignore: int = 255) -> Path:
    """Correct what ``u2pl label --format FORMAT`` wrote, and return what the tool exports.

    Args:
        handed_out: the folder that ``u2pl label`` wrote.
        format: ``png``, ``cvat`` or ``labelstudio``.
        truth: masks of all images; pixels of ``ignore`` are left as they are: not labelled.
        ignore: id of unknown pixels.
    """
    back = handed_out.parent / f"{handed_out.name}-back"
    back.mkdir()
    if format == "png":
        return _png(handed_out / "png", back, truth)
    if format == "cvat":
        return _cvat(handed_out / "cvat.zip", back / "task.zip", truth, ignore)
    return _label_studio(handed_out / "label-studio.json", back / "export.json", truth)


def _png(source: Path, back: Path, truth: Masks) -> Path:
    for path in source.rglob("*.png"):
        name = path.relative_to(source).with_suffix("")
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        shown = truth[name.as_posix()].astype(np.uint8)
        Image.fromarray(shown).save(back / f"{name}.png")
    shutil.copy(source / "classes.json", back)
    return back


def _cvat(source: Path, target: Path, truth: Masks, ignore: int) -> Path:
    """CVAT gives the task back with its masks, black where nobody has labelled."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        lines = old.read("labelmap.txt").decode().splitlines()[1:]
        colors = [line.split(":")[1].split(",") for line in lines]
        table = np.array([[int(v) for v in color] for color in colors], np.uint8)
        for member in old.namelist():
            content = old.read(member)
            if member.startswith("SegmentationClass/"):
                mask = truth[member.removeprefix("SegmentationClass/").removesuffix(".png")]
                labels = np.where(mask == ignore, 0, mask.astype(int) + 1)  # 0 is background
                buffer = io.BytesIO()
                Image.fromarray(table[labels]).save(buffer, format="PNG")
                content = buffer.getvalue()
            new.writestr(member, content)
    return target


def _label_studio(source: Path, target: Path, truth: Masks) -> Path:
    """Label Studio gives tasks back with annotations, whose brushes are RGBA of other runs."""
    tasks = json.loads(source.read_text())
    for number, task in enumerate(tasks):
        results = []
        for region in task["predictions"][0]["result"]:
            results.append(region)
        name = task["data"]["image"].partition("?d=")[2].rpartition(".")[0]
        labels = [region["value"]["brushlabels"][0] for region in results]
        mask, first = truth[name], results[0]
        present = [c for c in np.unique(mask).tolist() if c < len(_classes(source))]
        task["annotations"] = [
            {
                "id": number,
                "was_cancelled": False,
                "result": [
                    first
                    | {"id": f"r{c}", "origin": "manual"}
                    | {
                        "value": {
                            "format": "rle",
                            "rle": pack_rgba(mask == c),
                            "brushlabels": [_classes(source)[c]],
                        }
                    }
                    for c in present
                ],
            }
        ]
        assert set(labels) <= set(_classes(source))
        task["id"] = number
    target.write_text(json.dumps(tasks))
    return target


def _classes(source: Path) -> list[str]:
    """The labels of the interface, in their order."""
    import xml.etree.ElementTree as ElementTree

    tree = ElementTree.fromstring(source.with_suffix(".xml").read_text())
    return [label.attrib["value"] for label in tree.iter("Label")]


def pack_rgba(mask: npt.NDArray[np.bool_]) -> list[int]:
    """thi.ng's rle-pack of RGBA with groups of 256 values at most, half of them not as runs."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}{7:04b}{7:04b}{7:04b}{7:04b}"
    place = 0
    while place < len(values):
        group = values[place : place + 256]
        if (group == group[0]).all():
            bits += f"100{len(group) - 1:08b}{group[0]:08b}"
        else:
            bits += f"001{len(group) - 1:08b}" + "".join(f"{v:08b}" for v in group)
        place += len(group)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def unpack_rgba(rle: list[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """rle-pack read a bit at a time, as its JavaScript does."""
    bits = iter("".join(f"{byte:08b}" for byte in rle))

    def take(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)), 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run = take(1)
        count = take(sizes[take(2)]) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    return np.array(values, np.uint8).reshape(*size, 4)[:, :, 3] > 0
