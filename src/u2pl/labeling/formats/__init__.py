"""Pseudo-labels as annotation tools read them, a file a format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from u2pl.errors import UserError, nearest_name
from u2pl.labeling.formats import coco, cvat, label_studio, png, yolo
from u2pl.labeling.formats.entry import Entry, Wishes

__all__ = ["FORMATS", "Entry", "Wishes", "format_named", "write_format"]

FORMATS: dict[str, ModuleType] = {
    module.NAME: module for module in (png, coco, cvat, label_studio, yolo)
}
"""By name: each can ``write`` entries and ``check`` that class names can stand in its files."""


def format_named(name: str) -> str:
    """Return the format that a name means; ``label-studio`` may be written with its hyphen.

    Raises:
        UserError: where there is none.
    """
    plain = name.replace("-", "").lower()
    if plain not in FORMATS:
        raise UserError(
            f"Expected a format of {', '.join(FORMATS)}, got '{name}'."
            f"{nearest_name(name, FORMATS)}",
            exit_code=2,
        )
    return plain


def write_format(name: str, out: Path, entries: Sequence[Entry], wishes: Wishes) -> list[Path]:
    """Write images' pseudo-labels in a format, and return what was written.

    Args:
        name: in :data:`FORMATS`.
        out: the folder.
        entries: the images, in the order in which they are to be looked at.
        wishes: classes, and how it is to be written.

    Raises:
        UserError: where a mask cannot be read, or a file cannot be written.
    """
    files: list[Path] = FORMATS[name].write(out, entries, wishes)
    return files
