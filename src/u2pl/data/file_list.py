"""A million images without a million objects: names are kept as text, samples made when asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:  # sources.py makes these lists
    from u2pl.data.sources import Sample


class FileList(Sequence["Sample"]):
    """Samples without masks and tags, of files in one folder; equal to the tuple of them.

    Args:
        folder: absolute.
        files: paths inside it, with forward slashes and suffix.
    """

    __slots__ = ("_files", "_folder")

    def __init__(self, folder: str, files: list[str]) -> None:
        self._folder = Path(folder)
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> FileList: ...
    def __getitem__(self, index: int | slice) -> Sample | FileList:
        from u2pl.data.sources import Sample

        if isinstance(index, slice):
            return FileList(str(self._folder), self._files[index])
        file = self._files[index]
        return Sample(os.path.splitext(file)[0], self._folder / file)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FileList):
            return self._folder == other._folder and self._files == other._files
        return isinstance(other, tuple) and tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"FileList({str(self._folder)!r}, {len(self)} files)"

    def names(self) -> Iterator[str]:
        """The samples' names."""
        return (os.path.splitext(file)[0] for file in self._files)

    def paths(self) -> Iterator[str]:
        """The samples' files, as text."""
        start = os.path.join(self._folder, "")
        return (start + file for file in self._files)


def names_of(samples: Iterable[Sample]) -> Iterator[str]:
    """Return the names of any samples."""
    return samples.names() if isinstance(samples, FileList) else (s.name for s in samples)


def paths_of(samples: Iterable[Sample]) -> Iterator[str]:
    """Return the image files of any samples, as text."""
    return samples.paths() if isinstance(samples, FileList) else (str(s.image) for s in samples)
