"""Image tags: which classes an image may hold, from a CSV file or from PASCAL VOC's XML files.

Tags are sets of class ids under an image's name.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from u2pl.errors import UserError, nearest_name, shown
from u2pl.plain_files import read_bytes, read_text


def read_csv_tags(
    path: Path, classes: Sequence[str], *, suffixes: Collection[str], may_be_empty: bool
) -> dict[str, frozenset[int]]:
    """Return the class ids of each row of a file ``image,classes``; classes are parted by ``;``.

    Args:
        path: the file.
        classes: names in the order of their ids.
        suffixes: what is taken off an image's name, such as ``.jpg``.
        may_be_empty: allow rows that name no class.

    Raises:
        UserError: where the file is missing or no such CSV file, an image has two rows, a row
            names no class although it should, or one that does not exist.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    except FileNotFoundError:
        raise UserError(f"The tags {path} do not exist.") from None
    except (OSError, ValueError, csv.Error):
        raise UserError(f"The tags {path} are not a CSV file.") from None
    if not rows or [cell.strip() for cell in rows[0]] != ["image", "classes"]:
        raise UserError(f"{path}: expected the header 'image,classes'.")
    tags: dict[str, frozenset[int]] = {}
    for row in rows[1:]:
        image, suffix = os.path.splitext(row[0].strip())
        image = image if suffix.lower() in suffixes else row[0].strip()
        names = [name.strip() for name in (row[1] if len(row) == 2 else "").split(";")]
        names = [name for name in names if name]
        if len(row) > 2 or not (names or may_be_empty):
            raise UserError(
                f"{path}: expected 'image,class;class' for '{image}', got {shown(row)}; "
                "leave out images whose classes are not known."
            )
        if image in tags:
            raise UserError(f"{path}: '{image}' stands there twice; give each image one row.")
        tags[image] = class_ids(names, classes, path=path, context=f" for '{image}'")
    return tags


def read_voc_tags(
    path: Path, classes: Sequence[str], *, skip: Collection[str], may_be_empty: bool
) -> frozenset[int]:
    """Return the class ids of the objects that a PASCAL VOC annotation names.

    Args:
        path: an XML file; of ``annotation/object/name`` the texts are read.
        classes: names in the order of their ids.
        skip: names that are no class and are left out.
        may_be_empty: allow a file whose objects name no class.

    Raises:
        UserError: where the file is missing or no annotation, has a DOCTYPE (which could make it
            expand without bound), names no class although it should, or one that does not exist.
    """
    parser = ElementTree.XMLParser(target=_WithoutDoctype())
    try:
        root = ElementTree.fromstring(read_bytes(path), parser)
    except OSError as error:
        raise UserError(f"Cannot read the tags {path}: {error.strerror}.") from None
    except _DoctypeError:
        raise UserError(
            f"{path}: the file has a DOCTYPE, which no annotation needs; take it out."
        ) from None
    except (ElementTree.ParseError, LookupError, ValueError):  # of encodings that do not exist
        raise UserError(f"{path} is not an XML file.") from None
    names = [(item.findtext("name") or "").strip() for item in root.findall("object")]
    if root.tag != "annotation" or "" in names:
        raise UserError(f"{path}: expected <annotation> with a <name> in each <object>.")
    names = [name for name in names if name not in skip]
    if not (names or may_be_empty):
        raise UserError(
            f"{path}: no object names a class; take the file out, or give tags 'always'."
        )
    return class_ids(names, classes, path=path, context="; mend it, or name it under 'skip'")


def class_ids(
    names: Iterable[str], classes: Sequence[str], *, path: Path, context: str
) -> frozenset[int]:
    """Return the ids of classes by name.

    Raises:
        UserError: for a name that no class has; it stands in the file ``path``, and ``context``
            says where there, or what may be done.
    """
    ids = {name: class_id for class_id, name in enumerate(classes)}
    found = set()
    for name in names:
        if name not in ids:
            raise UserError(
                f"{path}: unknown class '{name}'{context}.{nearest_name(name, classes)}"
            )
        found.add(ids[name])
    return frozenset(found)


class _DoctypeError(Exception):
    """An XML file declares a document type."""


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Stops at a DOCTYPE, before any entity in it is read."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> NoReturn:
        raise _DoctypeError
