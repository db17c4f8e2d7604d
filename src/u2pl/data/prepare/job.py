"""What every published data set needs: its archives found or unpacked, its masks converted."""

from __future__ import annotations

import glob
import hashlib
import os
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.data.class_counts import num_threads
from u2pl.data.images import Color, refuse_way_out, write_mask
from u2pl.data.init.archive import unpack
from u2pl.data.init.draft import Encoding, some
from u2pl.errors import UserError

Labels = npt.NDArray[np.integer[Any]]
OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_BLOCK = 1 << 20  # bytes read at a time
_LATER_SUFFIXES = (".rar", ".7z")  # that nothing in the standard library opens


@dataclass(frozen=True)
class Part:
    """Archives of a data set, and the tree that they unpack to.

    Attributes:
        name: of the folder that they are unpacked to, if they are.
        archives: file names; all of them are needed.
        page: where they can be had.
        holds: paths or patterns below the tree's root; each must match for the tree to be there.
        places: where the root may lie below the folder that the user names, or in the archives.
        md5: of archives whose sum is published, by name.
        url: by name, of archives that may be fetched without an account.
    """

    name: str
    archives: tuple[str, ...]
    page: str
    holds: tuple[str, ...]
    places: tuple[str, ...] = ("",)
    md5: Mapping[str, str] = field(default_factory=dict)
    url: Mapping[str, str] = field(default_factory=dict)

    def root_in(self, folder: Path) -> Path | None:
        """Return the root of the tree below a folder, or None."""
        for place in self.places:
            root = folder / place
            if all(_matches(root, pattern) for pattern in self.holds):
                return root
        return None


@dataclass(frozen=True)
class Section:
    """One section of the dataset.yaml to be.

    Attributes:
        keys: as they stand in the dataset.yaml.
        num_images: that the published data set has for it, as found.
        num_left_out: of these, images that the section does not list.
        part: where missing ones would be.
    """

    keys: dict[str, Any]
    num_images: int
    part: Part | None = None
    num_left_out: int = 0


@dataclass
class Draft:
    """What a published data set becomes.

    Attributes:
        encoding: classes, colours, and how masks spell them.
        sections: by name.
        root: the folder that paths count from; None is the one of the dataset.yaml.
        files: lists to write, by path.
        masks: by path, masks to make and what makes each.
        notes: sentences about what was done and why.
    """

    encoding: Encoding
    sections: dict[str, Section] = field(default_factory=dict)
    root: Path | None = None
    files: dict[Path, str] = field(default_factory=dict)
    masks: dict[Path, Callable[[], Labels]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """A published data set that can be prepared.

    Attributes:
        name: as the user types it.
        title: as its paper has it.
        variants: names, each with a sentence; the first is taken where none is asked for.
        counts: the published number of images, by variant ("" where there is none) and section.
        parts: all its archives.
        licence: sentences.
        draft: makes it.
        needs_target: whether it has no images of its own to score on.
    """

    name: str
    title: str
    variants: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]
    parts: tuple[Part, ...]
    licence: str
    draft: Callable[[Job], Draft]
    needs_target: bool = False


@dataclass(frozen=True)
class Job:
    """What the user asked for.

    Attributes:
        source: the folder with archives or trees; nothing in it is changed.
        out: the folder that everything is written to.
        variant: of the data set; "" where it has none.
        target: a dataset.yaml with images to adapt to.
        download: whether archives may be fetched.
        on_progress: told of long work.
    """

    source: Path
    out: Path
    variant: str = ""
    target: Path | None = None
    download: bool = False
    on_progress: OnProgress | None = None

    def tree(self, part: Part) -> Path:
        """Return the root of a part's tree, unpacked or fetched first where that is needed.

        Raises:
            UserError: where it is not there, or an archive is missing, torn or another file.
        """
        root = self.find(part)
        if root is not None:
            return root
        if self.download and part.url:
            self._fetch(part)
            root = self.find(part)
            assert root is not None, "what was fetched is there"
            return root
        raise UserError(self._missing(part))

    def find(self, part: Part) -> Path | None:
        """Return the root of a part's tree, unpacked if its archives are there; else None.

        Raises:
            UserError: where some of its archives are there and others are missing, or one is torn.
        """
        root = part.root_in(self.source)
        if root is not None:
            return root
        archives = [self._archive(name) for name in part.archives]
        if not any(archives):
            return None
        if not all(archives):
            raise UserError(self._missing(part))
        folder = self.out / "unpacked" / part.name
        for archive in archives:
            assert archive is not None
            self._unpack(part, archive, folder)
        root = part.root_in(folder)
        if root is None:
            raise UserError(
                f"{some(part.archives)}: expected {some(part.holds)} inside, found no such files; "
                f"fetch it again from {part.page}."
            )
        return root

    def spell(self, path: Path) -> str:
        """Return a path as the dataset.yaml has it, from the folder ``out``."""
        return spell(path, self.out)

    def _archive(self, name: str) -> Path | None:
        for folder in (self.source, self.out / "downloads"):
            if (folder / name).is_file():
                return folder / name
        return None

    def _missing(self, part: Part) -> str:
        absent = [name for name in part.archives if self._archive(name) is None]
        places = " or ".join(dict.fromkeys(place or "." for place in part.places[:2]))
        how = f"fetch {'it' if len(absent) == 1 else 'them'} from {part.page}"
        if part.url:
            how += ", or give --download"
        if any(name.endswith(_LATER_SUFFIXES) for name in absent):
            how += " and unpack it there"
        return (
            f"{self.source} holds neither the archive {some(absent)} nor its tree "
            f"({some(part.holds)} in {places}); {how}."
        )

    def _unpack(self, part: Part, archive: Path, folder: Path) -> None:
        """Unpack an archive once; what a call that was cut off has written is kept."""
        state = archive.stat()
        mark = folder / f".unpacked-{archive.name}"
        text = f"{state.st_size} {state.st_mtime_ns}\n"
        if mark.is_file() and mark.read_text(encoding="utf-8") == text:
            return
        if archive.name.endswith(_LATER_SUFFIXES):
            raise UserError(
                f"{archive} is of a kind that u2pl cannot unpack; unpack it where it is, with "
                "unrar or another program, and call this again."
            )
        _require_md5(archive, part)
        self._tell(f"unpacking {archive.name}", 0, 1)
        unpack(
            archive,
            folder,
            wanted=lambda name: True,
            keep=True,
            remedy=f"fetch it again from {part.page}",
        )
        refuse_way_out(self.out, mark)
        mark.write_text(text, encoding="utf-8")
        self._tell(f"unpacking {archive.name}", 1, 1)

    def _fetch(self, part: Part) -> None:
        """Download a part's archives, whole or not at all."""
        from torchvision.datasets.utils import download_url

        folder = self.out / "downloads"
        for name in part.archives:
            if self._archive(name) is not None:
                continue
            self._tell(f"fetching {name}", 0, 1)
            # under another name until it is whole, so that a torn one is never taken
            partial = f".{name}.part"
            try:
                download_url(part.url[name], str(folder), partial, md5=part.md5.get(name))
                os.replace(folder / partial, folder / name)
            except (OSError, RuntimeError, urllib.error.URLError) as error:
                raise UserError(
                    f"{part.url[name]} cannot be fetched ({error}); fetch {name} from {part.page} "
                    f"yourself, and put it into {self.source}."
                ) from None
            self._tell(f"fetching {name}", 1, 1)

    def make_masks(
        self, masks: Mapping[Path, Callable[[], Labels]], *, colors: Sequence[Color]
    ) -> None:
        """Write masks that are not there yet; each appears whole, so a call can be cut off.

        Raises:
            UserError: where one cannot be made or written.
        """
        left = {path: make for path, make in masks.items() if not path.is_file()}
        done = len(masks) - len(left)

        def write(item: tuple[Path, Callable[[], Labels]]) -> None:
            path, make = item
            refuse_way_out(self.out, path)
            write_mask(path, make(), colors=colors)

        with ThreadPoolExecutor(num_threads()) as pool:
            try:
                for _ in pool.map(write, left.items()):
                    done += 1
                    self._tell("masks", done, len(masks))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, total)


def spell(path: Path, root: Path) -> str:
    """Return a path relative to a folder, with forward slashes; links of the file itself stay."""
    place = os.path.join(os.path.realpath(path.parent), path.name)
    return Path(os.path.relpath(place, os.path.realpath(root))).as_posix()


def lines(items: Sequence[str]) -> str:
    """Return a list file's text.

    >>> lines(["a", "b"])
    'a\\nb\\n'
    """
    return "".join(f"{item}\n" for item in items)


def require_pairs(part: Part, names: Sequence[str], masks: frozenset[str], *, where: Path) -> None:
    """Refuse images that have no mask.

    Args:
        part: where masks come from.
        names: of the images.
        masks: names of those that have one.
        where: the folder of the masks, for the message.

    Raises:
        UserError: with the first names.
    """
    missing = [name for name in names if name not in masks]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(names)} images have no mask here: {some(missing)}; "
            f"unpack {some(part.archives)} again, or fetch it from {part.page}."
        )


def _matches(root: Path, pattern: str) -> bool:
    if glob.has_magic(pattern):
        return next(iter(root.glob(pattern)), None) is not None
    return (root / pattern).exists()


def _require_md5(archive: Path, part: Part) -> None:
    wanted = part.md5.get(archive.name)
    if wanted is None:
        return
    md5 = hashlib.md5(usedforsecurity=False)  # to tell a torn file, not a forged one
    with archive.open("rb") as file:
        while block := file.read(_BLOCK):
            md5.update(block)
    if md5.hexdigest() != wanted:
        raise UserError(
            f"{archive} is not the published file: expected the MD5 {wanted}, got "
            f"{md5.hexdigest()}; fetch it again from {part.page}."
        )
