"""Unlabelled images in tars: which tars a dataset.yaml names, and which images lie in them.

Each tar is indexed once by its headers, and the index is kept in a hidden folder. Images are then
drawn in any order, as files are, and each is read at its place.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from u2pl.data.file_list import PartedList
from u2pl.data.images import refuse_way_out, whole_file
from u2pl.data.storage import (
    FileState,
    Member,
    ReadError,
    file_state,
    file_system,
    is_remote,
    public_address,
    read_range,
    words_of,
)
from u2pl.data.tar_index import BLOCK, TarError, TarIndex, index_tar
from u2pl.errors import UserError, is_clean, shown
from u2pl.plain_files import read_text

if TYPE_CHECKING:  # sources.py reads what this module finds
    from u2pl.data.sources import Sample

logger = logging.getLogger(__name__)

FOLDER = ".u2pl-shards"
"""Where indices are kept: in the root of the data set, or beside the dataset.yaml."""

_VERSION = 1  # of the kept files and of what counts as an image
_MOST_SHARDS = 1_000_000  # that braces may name
_REQUESTS = 16  # remote shards that are indexed at once
_REMOTE_WINDOW = 2**22  # bytes read at once there: about what comes in the time of an answer
_LOCAL_WINDOW = 8 * BLOCK
_TORN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, MemoryError)


@dataclass(frozen=True)
class Shard:
    """A tar and the images in it.

    Attributes:
        address: an absolute path, or an address with a protocol.
        label: what names of its images begin with: as many last parts of the address as tell the
            shards of a data set apart, such as ``pool-000.tar``.
        state: of the file when it was indexed.
        index: of its images.
    """

    address: str
    label: str
    state: FileState
    index: TarIndex = field(repr=False, compare=False)

    def __str__(self) -> str:
        return public_address(self.address)


class ShardList(PartedList):
    """The images of some shards as samples without masks and tags, made when asked.

    Args:
        shards: in the order of their images.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = tuple(shards)
        # Where each name begins in its shard's text, and where it ends.
        self._ends = [np.flatnonzero(shard.index.names == ord("\n")) for shard in self._shards]
        super().__init__(map(len, self._ends))

    def _sample(self, part: int, place: int) -> Sample:
        from u2pl.data.sources import Sample

        return Sample(*self._item(part, place))

    def items(self) -> Iterator[tuple[str, Member]]:
        """The samples' names and images."""
        for number, ends in enumerate(self._ends):
            for place in range(len(ends)):
                yield self._item(number, place)

    def _item(self, number: int, place: int) -> tuple[str, Member]:
        """Return the name of a shard's image, and the image."""
        shard, ends = self._shards[number], self._ends[number]
        start = int(ends[place - 1]) + 1 if place else 0
        name = shard.index.names[start : int(ends[place])].tobytes().decode()
        offset, size = int(shard.index.offsets[place]), int(shard.index.sizes[place])
        return _sample_name(shard, name), Member(shard.address, shard.state, name, offset, size)

    def names(self) -> Iterator[str]:
        """The samples' names."""
        return (_sample_name(shard, name) for shard, name in self._members())

    def paths(self) -> Iterator[str]:
        """The samples' images, as text."""
        return (f"{shard}/{name}" for shard, name in self._members())

    def _members(self) -> Iterator[tuple[Shard, str]]:
        for shard in self._shards:
            for name in shard.index.names.tobytes().decode().split("\n")[:-1]:
                yield shard, name


def _sample_name(shard: Shard, member: str) -> str:
    return f"{shard.label}/{os.path.splitext(member)[0]}"


def find_shards(
    spec: Any, *, root: Path, yaml_path: Path, suffixes: Collection[str]
) -> tuple[Shard, ...]:
    """Return the shards that ``unlabeled: {shards: ...}`` of a dataset.yaml names, indexed.

    Args:
        spec: a tar, a folder, a glob, or an address of any protocol that fsspec knows, each with
            braces as in ``pool-{000..127}.tar``; a list of them; or a .txt file that holds one a
            line.
        root: that local paths count from.
        yaml_path: the dataset.yaml.
        suffixes: of images.

    Raises:
        UserError: where a shard does not exist, cannot be read or is damaged, none is named, one
            is named twice, or no image is in any of them.
    """
    where = f"{yaml_path}: 'unlabeled: shards'"
    addresses = [
        address
        for item in _items(spec, root, where)
        for part in expand_braces(item, where)
        for address in _found(part, root, where)
    ]
    labels = _labels(addresses, where)
    folders = [root / FOLDER, yaml_path.absolute().parent / FOLDER]
    # one at a time where all are local, as then nothing but Python itself takes time
    with ThreadPoolExecutor(_REQUESTS if any(map(is_remote, addresses)) else 1) as pool:
        looked_up = partial(_looked_up, suffixes=suffixes, folders=folders)
        found = list(pool.map(looked_up, addresses, labels))
        _tell([one for one in found if isinstance(one, _Unread)])
        results = list(pool.map(partial(_indexed, suffixes=suffixes, folders=folders), found))
    faults = [one for one in results if isinstance(one, UserError)]
    if faults:
        more = f" ({len(faults) - 1} more of {len(results)} shards.)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}", exit_code=faults[0].exit_code)
    shards = tuple(one for one in results if isinstance(one, Shard))
    if not any(len(shard.index.offsets) for shard in shards):
        raise UserError(
            f"{where}: expected images ({', '.join(sorted(suffixes))}) in {len(shards)} shards, "
            f"the first {shards[0]}, found none; give shards that hold some."
        )
    return shards


def _items(spec: Any, root: Path, where: str) -> list[str]:
    """Return the texts of a spec; a list file's lines."""
    items = spec if isinstance(spec, list) else [spec]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise UserError(
            f"{where}: expected a tar, a folder, a glob, an address, a list of them or a .txt "
            f"file, got {shown(spec)}."
        )
    if isinstance(spec, str) and spec.lower().endswith(".txt") and not is_remote(spec):
        try:
            lines = [line.strip() for line in read_text(root / spec).splitlines()]
        except FileNotFoundError:
            raise UserError(f"{where}: the list {root / spec} does not exist.") from None
        except (OSError, ValueError):
            raise UserError(f"{where}: the list {root / spec} is not a text file.") from None
        items = [line for line in lines if line and not line.startswith("#")]
        if not items:
            raise UserError(f"{where}: the list {root / spec} names no shard.")
    for item in items:
        _refuse_odd(item, where)
    return items


def _refuse_odd(item: str, where: str) -> None:
    if not is_clean(item):
        raise UserError(f"{where}: {shown(item)} has control characters, or is no UTF-8.")
    if "::" in item or item.startswith("pipe:"):  # what unpacks, caches or runs is left to the user
        raise UserError(
            f"{where}: {shown(item)} is a chain or a command; give plain addresses, each of a tar."
        )


def expand_braces(text: str, where: str) -> list[str]:
    """Return what braces stand for, as WebDataset and shells write them.

    Args:
        text: with any number of ``{000..127}`` and ``{a,b}``; other braces are left as they are.
        where: named in errors.

    Raises:
        UserError: where they stand for more than a million.

    >>> expand_braces("{a,b}-{08..10}.tar", "")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    pieces = re.split(r"(\{[0-9]{1,9}\.\.[0-9]{1,9}\}|\{[^{}]*,[^{}]*\})", text)
    choices: list[Sequence[str]] = []
    total = 1
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            choices.append([piece])
            continue
        total *= _count(piece)
        if total > _MOST_SHARDS:
            raise UserError(f"{where}: {shown(text)} stands for more than a million shards.")
        choices.append(_choices(piece))
    return ["".join(parts) for parts in itertools.product(*choices)]


def _count(piece: str) -> int:
    if "," in piece:
        return piece.count(",") + 1
    first, last = map(int, piece[1:-1].split(".."))
    return abs(last - first) + 1


def _choices(piece: str) -> list[str]:
    if "," in piece:
        return piece[1:-1].split(",")
    first, last = piece[1:-1].split("..")
    step = 1 if int(first) <= int(last) else -1
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]


def _found(item: str, root: Path, where: str) -> list[str]:
    """Return the addresses that a text without braces names, those of a wildcard sorted."""
    if is_remote(item) and not item.startswith(("file://", "local://")):
        return _found_remote(item, where) if "*" in item else [item]
    item = item.partition("://")[2] if is_remote(item) else item
    place = os.path.realpath(root / item)
    if os.path.isdir(place):
        paths = sorted(
            os.path.join(parent, name)
            for parent, _, names in os.walk(place)  # no links, which may lead back
            for name in names
            if name.lower().endswith(".tar") and not name.startswith(".")
        )
    elif re.search(r"[*?\[]", item) and not os.path.lexists(place):
        paths = sorted(os.path.join(root, name) for name in glob.glob(item, root_dir=root))
    else:
        return [place]
    if not paths:
        raise UserError(f"{where}: no tar is at {place}; mend the path.")
    return [os.path.realpath(path) for path in paths]


def _found_remote(item: str, where: str) -> list[str]:
    system, pattern = file_system(item)
    try:
        found = [str(system.unstrip_protocol(path)) for path in sorted(system.glob(pattern))]
    except Exception as error:  # each package has its own
        raise UserError(
            f"{where}: {public_address(item)} cannot be listed ({words_of(error)}); name its "
            "shards by braces such as {000..127}."
        ) from None
    if not found:
        raise UserError(f"{where}: no tar is at {public_address(item)}; mend the address.")
    for address in found:
        _refuse_odd(address, where)
    return found


def _labels(addresses: Sequence[str], where: str) -> list[str]:
    """Return the fewest last parts of the addresses that tell them apart."""
    twice = [address for address, count in Counter(addresses).items() if count > 1]
    if twice:
        raise UserError(f"{where}: {public_address(twice[0])} is named twice; name it once.")
    parts = [
        [part for part in re.split(r"[/\\]+", public_address(address)) if _may_name(part)]
        for address in addresses
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(names[-depth:]) for names in parts]
        if len(set(labels)) == len(labels) and all(labels):
            return labels
    raise UserError(f"{where}: two shards would have one name; give them other names.")


def _may_name(part: str) -> bool:
    return part not in ("", ".", "..") and not part.endswith(":")


class _Unread(NamedTuple):
    """A shard of which no index is kept; ``name`` is that of the file that will."""

    address: str
    label: str
    state: FileState
    name: str


def _looked_up(
    address: str, label: str, *, suffixes: Collection[str], folders: Sequence[Path]
) -> Shard | _Unread | UserError:
    """Return a shard by the index that is kept of it, what to index, or what is wrong with it."""
    try:
        state = file_state(address)
    except ReadError as error:
        return UserError(f"{public_address(address)}: {error.what}; {error.remedy}.")
    except UserError as error:
        return error
    # a signature is new each day; without a time or an ETag it may be all that tells two files
    place = public_address(address) if state.stamp else address
    key = (_VERSION, place, state, sorted(suffixes))
    name = f"{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}.npz"
    for folder in folders:
        index = _read_index(folder / name, state)
        if index is not None:
            return Shard(address, label, state, index)
    return _Unread(address, label, state, name)


def _tell(unread: Sequence[_Unread]) -> None:
    """Say what is about to take a while."""
    remote = [shard for shard in unread if is_remote(shard.address)]
    if remote:
        logger.warning(
            "Indexing %d shards of %.3g GB, the first %s. This reads their headers, and most of "
            "what lies between small images, once; the index is kept.",
            len(remote),
            sum(shard.state.size for shard in remote) / 1e9,
            public_address(remote[0].address),
        )


def _indexed(
    shard: Shard | _Unread | UserError, *, suffixes: Collection[str], folders: Sequence[Path]
) -> Shard | UserError:
    """Return a shard with its index, made now if need be, or what is wrong with it."""
    if not isinstance(shard, _Unread):
        return shard
    try:
        index = index_tar(
            partial(read_range, shard.address, shard.state),
            shard.state.size,
            suffixes=suffixes,
            window=_REMOTE_WINDOW if is_remote(shard.address) else _LOCAL_WINDOW,
        )
    except (ReadError, TarError) as error:
        return UserError(f"{public_address(shard.address)}: {error.what}; {error.remedy}.")
    for folder in folders:
        with suppress(UserError, OSError):  # a folder that may not be written to costs time alone
            refuse_way_out(folder.parent, folder / shard.name)
            _write_index(folder / shard.name, index)
            break
    return Shard(shard.address, shard.label, shard.state, index)


def _write_index(path: Path, index: TarIndex) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            names=index.names,
            offsets=index.offsets,
            sizes=index.sizes,
            notes=np.array(json.dumps(index.notes)),
        )


def _read_index(path: Path, state: FileState) -> TarIndex | None:
    """Return a kept index; None where it is not there, torn, or cannot be one of this tar."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            names, offsets, sizes = file["names"], file["offsets"], file["sizes"]
            notes = tuple(
                (str(what), str(remedy)) for what, remedy in json.loads(str(file["notes"]))
            )
    except _TORN:
        return None
    text = names.tobytes().decode("utf-8", "replace")
    fits = (
        names.dtype == np.uint8
        and offsets.dtype == sizes.dtype == np.int64
        and offsets.shape == sizes.shape == (text.count("\n"),)
        and (offsets >= 0).all()
        and (sizes >= 0).all()
        and (offsets + sizes <= state.size).all()
        and is_clean(text.replace("\n", ""))
        and not _leads_out(text)
    )
    return TarIndex(names, offsets, sizes, notes) if fits else None


def _leads_out(text: str) -> bool:
    """Return whether one of the names, a line each, is no path below a folder."""
    if text.startswith("/") or "\n/" in text:
        return True
    return ".." in text and re.search(r"(^|/)\.\.(/|$)", text, re.MULTILINE) is not None
