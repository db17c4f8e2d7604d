from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from u2pl.data.inputs import find_images, is_video, read_list, video_frames
from u2pl.errors import UserError


def write_video(path: Path, *, count: int = 7, size: tuple[int, int] = (48, 64)) -> Path:
    """Frame n is all grey 20 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            pixels = np.full((*size, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_list_names_files_from_its_own_folder_on(tmp_path: Path) -> None:
    names = tmp_path / "lists/mine.txt"
    names.parent.mkdir()
    names.write_text(f"# mine\n../a/1.png\n\n../b/c/2.jpg\n{tmp_path}/a/0.png\n../a/1.png\n")
    base, files = find_images(names)
    assert base == tmp_path
    assert [file.relative_to(base).as_posix() for file in files] == [
        "a/1.png", "b/c/2.jpg", "a/0.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no image"),
        (b"# nothing\n", "names no image"),
        (b"a.png\nnotes.txt\n", r"line 2: expected the path of an image .*, got 'notes\.txt'"),
        (b"a\x1b[31m.png\n", "line 1: expected"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
def test_list_that_names_no_images_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "list.txt")


@pytest.mark.parametrize(("every", "numbers"), [(1, range(7)), (3, (0, 3, 6)), (10, (0,))])
def test_frames_come_in_order_with_their_numbers(tmp_path: Path, every: int, numbers: Any) -> None:
    path = write_video(tmp_path / "a.mp4")
    assert is_video(path)
    frames = list(video_frames(path, every=every))
    assert [number for number, _ in frames] == list(numbers)
    for number, image in frames:
        assert image.shape == (48, 64, 3)
        assert abs(int(image.mean()) - 20 * number) < 6


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    for content in (b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.mp4: "):
            list(video_frames(path))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert not is_video(tmp_path / "b.png")
    assert not is_video(tmp_path / "none.mp4")


def test_missing_reader_of_videos_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", count=1)
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "av")

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'u2pl\[video\]'"):
        list(video_frames(path))
