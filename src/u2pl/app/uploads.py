"""An uploaded file to an image, with a sentence on whatever is unusual about it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from u2pl.data.images import FileError, FileFacts, file_facts, image_size, read_image
from u2pl.data.windows import Image
from u2pl.errors import UserError

MOST_PIXELS = 2**26
"""Of an upload, 67 million: its maps take ten bytes a pixel while it is shown."""


class Upload(NamedTuple):
    """An image that somebody has chosen.

    Attributes:
        name: of its file.
        image: RGB [H, W, 3] uint8, upright.
        notes: what was done to it on the way, each a sentence.
    """

    name: str
    image: Image
    notes: tuple[str, ...]


def read_upload(file: Path) -> Upload:
    """Decode a file as ``u2pl predict`` does.

    Raises:
        UserError: where it is no image that can be read, or has too many pixels.
    """
    try:
        height, width = image_size(file)
        if height * width > MOST_PIXELS:
            raise UserError(
                f"{file.name}: the image has {height * width / 1e6:.0f} million pixels "
                f"({width} × {height}), this page takes up to {MOST_PIXELS / 1e6:.0f} million; "
                "label it with u2pl predict, which cuts images of any size into tiles."
            )
        return Upload(file.name, read_image(file), notes_on(file_facts(file)))
    except FileError as error:
        # where the file lies, and what to do with a data set, means nothing to who uploads it
        raise UserError(f"{file.name}: {error.what}; choose another image.") from None


def notes_on(facts: FileFacts) -> tuple[str, ...]:
    """What becoming RGB of 8 bits does to a file, each a sentence; nothing to an ordinary one.

    >>> notes_on(FileFacts("RGB", frames=1, transparent=False))
    ()
    >>> notes_on(FileFacts("CMYK", frames=1, transparent=False))
    ('CMYK became RGB without its colour profile: colours may differ from a print shop’s.',)
    """
    notes = []
    if facts.frames > 1:
        notes.append(f"The file holds {facts.frames} pictures; this is the first.")
    if facts.mode.startswith("I"):
        notes.append("16 bits were scaled to 8, as in training.")
    if facts.mode == "CMYK":
        notes.append(
            "CMYK became RGB without its colour profile: colours may differ from a print shop’s."
        )
    if facts.transparent:
        notes.append("Transparency was dropped: what lies under it counts.")
    return tuple(notes)
