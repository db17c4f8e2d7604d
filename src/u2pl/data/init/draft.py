"""What a user asks of `u2pl data init`, and what a format makes of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from u2pl.data.images import Color, MaskFormat
from u2pl.data.sources import IMAGE_SUFFIXES
from u2pl.errors import UserError
from u2pl.plain_files import read_text

Uncovered = Literal["background", "ignore"]


@dataclass(frozen=True)
class Request:
    """What the user said.

    Attributes:
        source: a folder, a .json file of annotations, or CVAT's .zip.
        out: the dataset.yaml to write.
        images: the folder that annotations' file names count from; None finds it.
        classes: names in the order of ids; None finds them.
        uncovered: what pixels are that no annotation covers; None says background, and says so.
    """

    source: Path
    out: Path
    images: Path | None = None
    classes: tuple[str, ...] | None = None
    uncovered: Uncovered | None = None

    @property
    def root(self) -> Path:
        """The folder that all paths of the dataset.yaml count from."""
        return self.source if os.path.isdir(self.source) else self.source.parent

    @property
    def made(self) -> Path:
        """The folder for whatever has to be written beside the dataset.yaml."""
        return self.out.with_name(f"{self.out.stem}-files")

    def spell(self, path: Path) -> str:
        """Return a path as the dataset.yaml has it."""
        place = os.path.join(os.path.realpath(path.parent), path.name)
        return Path(os.path.relpath(place, os.path.realpath(self.root))).as_posix()


@dataclass(frozen=True)
class Encoding:
    """How masks spell classes.

    Attributes:
        classes: names in the order of class ids.
        colors: one a class, or none at all.
        mask_format: see :func:`u2pl.data.images.read_mask`.
        ignore_index: the id of unknown pixels.
        ignore_color: their colour in RGB masks, where there is one.
        id_map: from ids in the files to class names; None where files hold class ids.
    """

    classes: tuple[str, ...]
    colors: tuple[Color, ...] = ()
    mask_format: MaskFormat = "index"
    ignore_index: int = 255
    ignore_color: Color | None = None
    id_map: dict[int, str] | None = None

    def head(self) -> dict[str, Any]:
        """Return the keys of a dataset.yaml that stand before its sections."""
        tree: dict[str, Any] = {"classes": list(self.classes)}
        if self.colors:
            tree["classes"] = [
                {"name": name, "color": list(color)}
                for name, color in zip(self.classes, self.colors, strict=True)
            ]
        tree["ignore_index"] = self.ignore_index
        tree["mask_format"] = self.mask_format
        if self.ignore_color is not None:
            tree["ignore_color"] = list(self.ignore_color)
        return tree


@dataclass
class Draft:
    """What a format found.

    Attributes:
        format: its name.
        encoding: of the masks.
        sections: section to its keys in the dataset.yaml, ``id_map`` left out.
        tags: path of a tags file, as the dataset.yaml has it.
        conclusions: sentences: what was concluded, and why.
    """

    format: str
    encoding: Encoding
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: str | None = None
    conclusions: list[str] = field(default_factory=list)


def list_images(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[str]:
    """Return the files below a folder that have one of the suffixes, as sorted relative paths.

    Hidden files and folders are left out; links to folders are not followed.
    """
    found = []
    wanted = frozenset(suffixes)
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(parent).relative_to(folder)
        found += [
            (inside / name).as_posix()
            for name in files
            if os.path.splitext(name)[1].lower() in wanted and not name.startswith(".")
        ]
    return sorted(found)


def name_of(file: str) -> str:
    """Return a relative path without its suffix, as samples are named.

    >>> name_of("a/b.c.png")
    'a/b.c'
    """
    return os.path.splitext(file)[0]


def subfolders(folder: Path) -> Iterator[Path]:
    """Yield the visible folders in a folder, sorted."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot list the folder {folder}: {error.strerror}.") from None
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            yield entry


def child(folder: Path, path: str) -> Path | None:
    """Return the folder of a relative path, whatever its capitals; None where there is none."""
    for part in path.split("/"):
        matches = [entry for entry in subfolders(folder) if entry.name.lower() == part.lower()]
        exact = [entry for entry in matches if entry.name == part]
        if not matches:
            return None
        folder = (exact or matches)[0]
    return folder


def some(items: Iterable[object], *, most: int = 4) -> str:
    """Return the first few of some items as text.

    >>> some([1, 2, 3], most=2)
    '1, 2, ...'
    """
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def read_json(path: Path) -> Any:
    """Read a file of annotations.

    Raises:
        UserError: where it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not a JSON file.") from None
