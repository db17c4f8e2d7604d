"""What a path given to ``predict`` means: an image, a folder, a pattern, a list, or a video."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from u2pl.data.images import FileError
from u2pl.data.sources import IMAGE_SUFFIXES
from u2pl.errors import UserError, is_clean
from u2pl.plain_files import read_text

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})
LIST_SUFFIX = ".txt"


def find_images(source: Path) -> tuple[Path, list[Path]]:
    """The images that a path means: a file, a folder (with its subfolders), or a glob pattern.

    Or a list: a .txt file of one path a line, relative to the list's folder or absolute; empty
    lines and those that begin with # are passed over.

    Returns:
        The folder that output names are relative to, and the files in order of their names
        (those of a list in its order).

    Raises:
        UserError: where there is none.
    """
    if os.path.isfile(source):
        if source.suffix.lower() == LIST_SUFFIX:
            return read_list(source)
        return source.parent, [source]
    if os.path.isdir(source):
        base, found = source, source.rglob("*")
    else:
        literal = itertools.takewhile(lambda part: not set(part) & set("*?["), source.parts)
        base = Path(*literal)
        if base == source or not os.path.isdir(base):
            raise UserError(f"There is no image and no folder {source}.")
        pattern = source.relative_to(base)
        if ".." in pattern.parts:
            raise UserError(
                f"The pattern {source} has '..' behind a wildcard, which would lead results out "
                "of their folder; only what stands before the first wildcard may lead upwards.",
                exit_code=2,
            )
        found = base.glob(str(pattern))
    files = sorted(
        path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path)
    )
    if not files:
        raise UserError(
            f"Found no image in {source}; expected {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return base, files


def read_list(path: Path) -> tuple[Path, list[Path]]:
    """The files that a list names, and the deepest folder that all of them lie below.

    Raises:
        UserError: where it cannot be read, is empty, or names what is no image.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"The list {path} cannot be read: {error}.") from None
    files: dict[Path, None] = {}  # each once, in order
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        if not is_clean(line) or Path(line).suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{path}, line {number}: expected the path of an image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}), got '{line}'."
            )
        # by the letters of the path alone, so that names of results have no '..'
        files[Path(os.path.abspath(path.parent / line))] = None
    if not files:
        raise UserError(f"The list {path} names no image.")
    base = Path(os.path.commonpath([file.parent for file in files]))
    return base, list(files)


def is_video(source: Path) -> bool:
    """Whether a path is a file that is called like a video."""
    return source.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(source)


def video_frames(path: Path, *, every: int = 1) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Decode a video's frames in order.

    Args:
        path: of the file.
        every: 3 gives the first frame, the fourth, …

    Yields:
        The number of a frame from 0, and RGB [H, W, 3] uint8.

    Raises:
        UserError: where PyAV is not installed, or the file cannot be decoded.
    """
    try:
        import av
    except ImportError:
        raise UserError(
            "Videos are read with PyAV, which is not installed; do pip install 'u2pl[video]'."
        ) from None
    try:
        # the file's own content alone: a playlist in it could name files elsewhere
        with av.open(str(path.resolve()), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video or container.format.name in ("hls", "concat", "dash"):
                raise FileError(path, "there is no video in it", "choose another file")
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number % every == 0:
                    yield number, _upright(frame)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise FileError(path, f"the video cannot be decoded ({reason})", "replace it") from None


def _upright(frame: Any) -> npt.NDArray[np.uint8]:
    """A frame as RGB, turned as the camera was held."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
