"""A million images without a million objects: names are kept as text, samples made when asked."""

from __future__ import annotations

import itertools
import os
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:  # sources.py makes these lists
    from u2pl.data.sources import Sample


class SampleList(Sequence["Sample"]):
    """Samples that are made when asked; equal to the tuple of them.

    Their names and images are told without making them.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleList | tuple) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    @abstractmethod
    def names(self) -> Iterator[str]:
        """The samples' names."""

    @abstractmethod
    def paths(self) -> Iterator[str]:
        """The samples' images, as text."""


class PartedList(SampleList):
    """Samples of some parts, one part after the other.

    Args:
        lengths: samples of each part.
    """

    __slots__ = ("_firsts",)

    def __init__(self, lengths: Iterable[int]) -> None:
        self._firsts = [0, *itertools.accumulate(lengths)]

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect_right(self._firsts, index) - 1
        return self._sample(part, index - self._firsts[part])

    @abstractmethod
    def _sample(self, part: int, place: int) -> Sample:
        """Make the sample at a place of a part."""


class JoinedList(PartedList):
    """Some lists of samples one after the other.

    Args:
        parts: the lists.
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: SampleList) -> None:
        super().__init__(map(len, parts))
        self._parts = parts

    def _sample(self, part: int, place: int) -> Sample:
        return self._parts[part][place]

    def names(self) -> Iterator[str]:
        """The samples' names."""
        return itertools.chain.from_iterable(part.names() for part in self._parts)

    def paths(self) -> Iterator[str]:
        """The samples' images, as text."""
        return itertools.chain.from_iterable(part.paths() for part in self._parts)


class FileList(SampleList):
    """Samples without masks and tags, of files in one folder.

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
        return super().__eq__(other)

    __hash__ = SampleList.__hash__  # which a class that defines equality does not inherit

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
    return samples.names() if isinstance(samples, SampleList) else (s.name for s in samples)


def paths_of(samples: Iterable[Sample]) -> Iterator[str]:
    """Return the image files of any samples, as text."""
    return samples.paths() if isinstance(samples, SampleList) else (str(s.image) for s in samples)
