"""Where the images of a tar lie in it, found by its headers alone.

Read are plain tars of the kinds v7, ustar, GNU and pax (POSIX.1-2017, ``pax``, "ustar Interchange
Format"; the GNU tar manual, "Basic Tar Format"). Nothing is unpacked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from u2pl.errors import is_clean

BLOCK = 512
"""Bytes; headers and members begin at multiples of it."""

_LONGEST_HEADER = 2**20  # bytes of a name or of a pax header
_GZIP, _BZIP, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03"
_WITHOUT_DATA = frozenset(b"123456")  # links, devices, folders, pipes: their size means nothing
_ZEROS = bytes(BLOCK)
_SOME = 3  # names in a sentence


class TarError(Exception):
    """A tar that cannot be read: what is wrong, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}.")
        self.what, self.remedy = what, remedy


class TarIndex(NamedTuple):
    """The images of a tar, in the order of their names; a million take some 40 MB.

    Attributes:
        names: UTF-8 [bytes] uint8, a name and a line feed each.
        offsets, sizes: [n] int64, of their bytes in the tar.
        notes: what is worth a look, as pairs of what it is and what to do.
    """

    names: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    notes: tuple[tuple[str, str], ...] = ()


class _Entry(NamedTuple):
    """A member as its headers tell it; ``target`` is the name that a link leads to."""

    name: str
    kind: str  # "file", "hard link", "link", "sparse file", or "" for what holds no image
    offset: int
    size: int
    target: str = ""


def index_tar(
    read: Callable[[int, int], bytes],
    size: int,
    *,
    suffixes: Collection[str],
    window: int = 8 * BLOCK,
) -> TarIndex:
    """Find the images of a tar.

    An image is a member of an image's suffix, in no hidden folder and itself not hidden. A member
    such as ``a.seg.png`` beside an image ``a.jpg`` is none: by the rule of WebDataset, by which a
    name's first dot begins its suffix, it is another field of the same sample, such as a mask.

    Args:
        read: returns so many bytes from an offset on; fewer never.
        size: of the tar, in bytes.
        suffixes: of images, in lower case.
        window: how many bytes to read at once where members are smaller than that.

    Raises:
        TarError: where it is no tar, is compressed, truncated or damaged, a name stands there
            twice, or a name cannot be that of a file.
    """
    images: dict[str, tuple[int, int]] = {}
    links, odd, twice = [], [], []
    endings, marks = tuple(suffixes), _Marks()
    for entry in _entries(_Window(read, size, window), size, marks):
        name = _tidy(entry.name)
        if not entry.kind or not name.lower().endswith(endings) or _is_hidden(name):
            continue
        if entry.kind == "hard link":
            links.append((name, _tidy(entry.target)))
        elif entry.kind != "file":
            odd.append(name)
        elif name in images:
            twice.append(name)
        else:
            images[name] = (entry.offset, entry.size)
    for name, target in links:  # to a file before it: the same bytes under another name
        if target in images and name not in images:
            images[name] = images[target]
        else:
            odd.append(name)
    _refuse_names(images, twice)
    fields = _other_fields(images, endings)
    for name in fields:
        del images[name]
    return _packed(images, _notes(images, fields, odd, marks))


def _packed(images: dict[str, tuple[int, int]], notes: tuple[tuple[str, str], ...]) -> TarIndex:
    names = sorted(images)
    text = "".join(f"{name}\n" for name in names).encode()
    places = np.array([images[name] for name in names], np.int64).reshape(-1, 2)
    return TarIndex(
        np.frombuffer(text, np.uint8),
        np.ascontiguousarray(places[:, 0]),
        np.ascontiguousarray(places[:, 1]),
        notes,
    )


def _refuse_names(images: Collection[str], twice: Sequence[str]) -> None:
    """Raise where names of images are no names that a list, a line or a result can have."""
    if not is_clean("".join(images)):
        strange = [name for name in images if not is_clean(name)]
        raise TarError(
            f"{len(strange)} names in it have control characters, or are no UTF-8: "
            f"{_some(strange)}",
            "pack the images under other names",
        )
    upwards = [name for name in images if ".." in name and ".." in name.split("/")]
    if upwards:
        raise TarError(
            f"{len(upwards)} names in it lead upwards by '..': {_some(upwards)}",
            "pack the images under other names",
        )
    if not twice and len({_stem(name) for name in images}) < len(images):
        counts = Counter(map(_stem, images))
        twice = [name for name in images if counts[_stem(name)] > 1]
    if twice:
        raise TarError(
            f"{len(twice)} names in it belong to more than one image: {_some(twice)}",
            "pack the images under names that differ before the suffix",
        )


def _other_fields(images: Collection[str], endings: tuple[str, ...]) -> list[str]:
    """Return the names such as a.seg.png of which a.jpg, or the like, is there too."""
    dotted = [name for name in images if "." in _stem(name)[name.rfind("/") + 1 :]]
    found = []
    for name in dotted:
        start = name.rfind("/") + 1
        key = name[: name.index(".", start)]
        if any(f"{key}{ending}" in images for ending in endings):
            found.append(name)
    return found


def _notes(
    images: Collection[str], fields: Sequence[str], odd: Sequence[str], marks: _Marks
) -> tuple[tuple[str, str], ...]:
    notes = []
    if not images:
        notes.append(("the shard holds no image", "nothing, if that is meant; else take it out"))
    if fields:
        notes.append(
            (
                f"{len(fields)} members are taken for other fields of an image, and left out: "
                f"{_some(fields)}",
                "nothing, if they are masks or the like; else give them names without a dot",
            )
        )
    if odd:
        notes.append(
            (
                f"{len(odd)} members are links or sparse files, and left out: {_some(odd)}",
                "pack the images as plain files",
            )
        )
    if not marks.ended:
        notes.append(
            (
                "the tar has no end mark; whoever wrote it may have been stopped",
                "compare the number of its images with what it should be",
            )
        )
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SOME]) + (", ..." if len(names) > _SOME else "")


def _stem(name: str) -> str:
    return name[: name.rindex(".")]


def _tidy(name: str) -> str:
    """Return a member's name as a path: tar's ``./a`` and ``/a`` are ``a``."""
    if name.startswith((".", "/")) or "//" in name or "/./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def _is_hidden(name: str) -> bool:
    if not name.startswith(".") and "/." not in name:
        return False
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


class _Marks:
    """What is seen on the way through a tar."""

    ended = False


class _Window:
    """Gives headers, and reads many at once where the members between them are small."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, length: int) -> None:
        self._read, self._size, self._length = read, size, length
        self._start, self._content = 0, b""

    def get(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes, fewer where the tar ends before."""
        inside = offset - self._start
        if inside < 0 or inside + size > len(self._content):
            # far from what was read before: members are larger than a window, so read headers alone
            is_far = self._content and inside > len(self._content) + self._length
            length = max(size, 8 * BLOCK if is_far else self._length)
            self._start, inside = offset, 0
            self._content = self._read(offset, max(0, min(length, self._size - offset)))
        return self._content[inside : inside + size]


def _entries(window: _Window, size: int, marks: _Marks) -> Iterator[_Entry]:
    """Yield the members of a tar in their order."""
    if size == 0:
        raise TarError("the file is empty", "copy it again")
    at, last = 0, ""
    said: dict[str, str] = {}  # by headers that go before a member's own
    while at < size:
        head = window.get(at, BLOCK)
        if head == _ZEROS:
            marks.ended = True
            return
        if len(head) < BLOCK or not _is_header(head):
            raise _no_header(head, at, last)
        kind, length = head[156], _number(head[124:136])
        if length < 0:
            raise TarError(f"the header at byte {at} has a negative size", "copy it again")
        at += BLOCK
        if kind in b"xgLK":
            _refuse_long_header(length, at, size)
            said |= _told(chr(kind), window.get(at, length))
            at += _padded(length)
            continue
        at += BLOCK * _extensions(window, head, at)
        length = _size_said(said, length, at)
        name = said.get("GNU.sparse.name") or said.get("path") or _name(head)
        stored = 0 if kind in _WITHOUT_DATA else length
        if at + stored > size:
            raise TarError(
                f"it is truncated: '{name}' ends at byte {at + stored}, the file at {size}",
                "copy it again",
            )
        last = name
        yield _Entry(name, _kind(kind, said), at, length, said.get("linkpath") or _link(head))
        said = {}
        at += _padded(stored)
    if at > size or said:
        raise TarError(f"it is truncated behind '{last}'", "copy it again")


def _no_header(head: bytes, at: int, last: str) -> TarError:
    if at == 0 and head.startswith((_GZIP, _BZIP, _XZ, _ZSTD, _ZIP)):
        return TarError(
            "it is compressed, but a member is read at its place",
            "write a plain tar (gunzip, or tar without -z)",
        )
    if at == 0:
        return TarError("it is no tar", "give tars alone")
    if len(head) < BLOCK:
        return TarError(f"it is truncated behind '{last}'", "copy it again")
    return TarError(f"it is damaged: behind '{last}' there is no header", "copy it again")


def _refuse_long_header(length: int, at: int, size: int) -> None:
    if at + length > size:
        raise TarError("it is truncated within a header", "copy it again")
    if length > _LONGEST_HEADER:
        raise TarError(f"the header at byte {at} claims {length:,} bytes", "copy it again")


def _is_header(head: bytes) -> bool:
    """Return whether the checksum is right; some old tars summed signed bytes."""
    try:
        said = _number(head[148:156])
    except TarError:
        return False
    total = sum(head) - sum(head[148:156]) + 8 * 32
    if said == total:
        return True
    return said == total - 256 * sum(byte > 127 for byte in head[:148] + head[156:])


def _number(field: bytes) -> int:
    """Return an octal number, or one of GNU's of base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big", signed=True) + (
            0 if field[0] == 0xFF else 1 << (8 * len(field) - 1)
        )
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    try:
        return int(digits, 8)
    except ValueError:
        raise TarError(f"a header holds {digits!r} in place of a number", "copy it again") from None


def _name(head: bytes) -> str:
    name = head[:100].partition(b"\0")[0]
    if head[257:263] == b"ustar\0":  # GNU keeps times where POSIX has the beginning of a name
        prefix = head[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "surrogateescape")


def _link(head: bytes) -> str:
    return head[157:257].partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _kind(kind: int, said: dict[str, str]) -> str:
    if kind == ord("S") or any(key.startswith("GNU.sparse.") for key in said):
        return "sparse file"
    if kind in b"0\x007":
        return "file"
    return {"1": "hard link", "2": "link"}.get(chr(kind), "")


def _extensions(window: _Window, head: bytes, at: int) -> int:
    """Return how many blocks a sparse file's map takes behind its header."""
    if head[156] != ord("S") or not head[482]:
        return 0
    count = 1
    while (block := window.get(at + (count - 1) * BLOCK, BLOCK)) and len(block) == BLOCK:
        if not block[504]:
            break
        count += 1
    return count


def _told(kind: str, content: bytes) -> dict[str, str]:
    """Return what a header says of the member behind it."""
    if kind in "LK":
        text = content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        return {"path" if kind == "L" else "linkpath": text}
    if kind == "g":  # of all members: owners and comments, never a name
        return {}
    found = {}
    while match := re.match(rb"([0-9]{1,7}) ", content):
        record = content[match.end() : int(match[1])]
        key, mark, value = record.partition(b"=")
        if not mark or not value.endswith(b"\n"):
            raise TarError("it is damaged in a pax header", "copy it again")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        content = content[int(match[1]) :]
    if content.strip(b"\0"):
        raise TarError("it is damaged in a pax header", "copy it again")
    return found


def _size_said(said: dict[str, str], length: int, at: int) -> int:
    text = said.get("size", "")
    if not text:
        return length
    if not re.fullmatch("[0-9]{1,18}", text):
        raise TarError(f"the header before byte {at} has no number for a size", "copy it again")
    return int(text)


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
