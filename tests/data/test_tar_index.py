from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping

import pytest

from factories import tar_bytes
from u2pl.data.tar_index import BLOCK, TarError, TarIndex, index_tar

LONG = "long/" * 60 + "name"
FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


def _index(content: bytes, *, window: int = 8 * BLOCK) -> TarIndex:
    def read(offset: int, size: int) -> bytes:
        assert offset + size <= len(content)
        return content[offset : offset + size]

    return index_tar(read, len(content), suffixes={".jpg", ".png"}, window=window)


def _names(index: TarIndex) -> list[str]:
    return index.names.tobytes().decode().split("\n")[:-1]


def _contents(content: bytes, index: TarIndex) -> dict[str, bytes]:
    places = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
    found = [content[offset : offset + size] for offset, size in places]
    return dict(zip(_names(index), found, strict=True))


def _with(info: tarfile.TarInfo, *, members: Mapping[str, bytes]) -> bytes:
    """A tar of some files, and behind them a member without content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            plain = tarfile.TarInfo(name)
            plain.size = len(content)
            tar.addfile(plain, io.BytesIO(content))
        tar.addfile(info)
    return file.getvalue()


def _member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("window", [BLOCK, 8 * BLOCK, 2**20])
@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
def test_every_image_is_found_at_its_place(tar_format: int, window: int) -> None:
    sizes = (1, 511, 512, 513, 0, 9000, 100_000)
    images = {f"b/{i}.jpg": os.urandom(size) for i, size in enumerate(sizes)}
    images |= {"a.PNG": b"last is first", "b/ü ✓.png": b"utf-8"}
    content = tar_bytes(images | {"b/0.json": b"{}", "b/0.cls": b"7"}, tar_format=tar_format)
    index = _index(content, window=window)
    assert _names(index) == sorted(images)
    assert _contents(content, index) == images
    assert index.notes == ()


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
@pytest.mark.parametrize("name", [LONG + ".jpg", "é" * 200 + ".jpg", "x" * 95 + ".jpg"])
def test_long_names_are_whole(tar_format: str, name: str) -> None:
    content = tar_bytes({name: b"1", "b.jpg": b"2"}, tar_format=FORMATS[tar_format])
    assert _contents(content, _index(content)) == {name: b"1", "b.jpg": b"2"}


def test_long_name_of_ustar_has_its_prefix() -> None:
    name = "p" * 120 + "/" + "n" * 90 + ".jpg"
    content = tar_bytes({name: b"1"}, tar_format=tarfile.USTAR_FORMAT)
    assert _names(_index(content)) == [name]


def test_size_may_stand_in_a_pax_header_or_in_base_256() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size, info.pax_headers = 3, {"comment": "a=b\nc", "size": "3"}
    header = info.tobuf(tarfile.PAX_FORMAT)
    without = bytearray(header)
    without[-BLOCK + 124 : -BLOCK + 136] = b"0" * 11 + b"\0"  # the size in the old place
    without[-BLOCK + 148 : -BLOCK + 156] = b" " * 8
    total = sum(without[-BLOCK:])
    without[-BLOCK + 148 : -BLOCK + 156] = b"%06o\0 " % total
    assert _contents(
        bytes(without) + b"abc" + bytes(509 + 1024),
        _index(bytes(without) + b"abc" + bytes(509 + 1024)),
    ) == {"a.jpg": b"abc"}
    huge = tarfile.TarInfo("b.jpg")
    huge.size = 8**11  # does not fit eleven octal digits
    with pytest.raises(TarError, match=r"'b\.jpg' ends at byte 8589935104, the file at 1024"):
        _index(huge.tobuf(tarfile.GNU_FORMAT) + bytes(512))


def test_names_are_tidy_and_hidden_ones_are_left_out() -> None:
    names = ["./a.jpg", "/b.jpg", "c//d.jpg", ".e.jpg", "._f.jpg", ".git/g.jpg", "h/./i.jpg"]
    assert _names(_index(tar_bytes(dict.fromkeys(names, b"")))) == [
        "a.jpg", "b.jpg", "c/d.jpg", "h/i.jpg"
    ]  # fmt: skip


def test_other_fields_of_a_sample_are_no_images() -> None:
    names = ["a/1.jpg", "a/1.seg.png", "a/1.depth.seg.png", "a.b/1.jpg", "photo.2020.jpg"]
    index = _index(tar_bytes(dict.fromkeys(names, b"")))
    assert _names(index) == ["a.b/1.jpg", "a/1.jpg", "photo.2020.jpg"]
    assert index.notes[0][0] == (
        "2 members are taken for other fields of an image, and left out: a/1.seg.png, "
        "a/1.depth.seg.png"
    )


def test_folders_devices_and_links_are_passed_by_and_images_among_them_are_told() -> None:
    for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        index = _index(_with(_member("x.jpg", kind), members={"a.jpg": b"1"}))
        assert (_names(index), index.notes) == (["a.jpg"], ())
    index = _index(_with(_member("x.jpg", tarfile.SYMTYPE, "a.jpg"), members={"a.jpg": b"1"}))
    assert _names(index) == ["a.jpg"]
    assert "1 members are links or sparse files, and left out: x.jpg" in index.notes[0][0]


@pytest.mark.parametrize("target", ["a.jpg", "./a.jpg", LONG + ".jpg"])
def test_hard_link_is_the_same_bytes_under_another_name(target: str) -> None:
    name = target.removeprefix("./")
    content = _with(_member("x.jpg", tarfile.LNKTYPE, target), members={name: b"one"})
    assert _contents(content, _index(content)) == {name: b"one", "x.jpg": b"one"}
    lost = _with(_member("x.jpg", tarfile.LNKTYPE, "gone.jpg"), members={name: b"one"})
    assert "left out: x.jpg" in _index(lost).notes[0][0]


def test_sparse_file_is_passed_by_with_its_map() -> None:
    info = tarfile.TarInfo("s.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # a block of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content = bytes(header) + bytes(512) + b"x" * 512 + tar_bytes({"a.jpg": b"1"})
    index = _index(content)
    assert _contents(content, index) == {"a.jpg": b"1"}
    assert "left out: s.jpg" in index.notes[0][0]


def test_tar_without_an_image_or_an_end_is_told() -> None:
    assert _index(tar_bytes({"a.txt": b""})).notes[0][0] == "the shard holds no image"
    assert _index(tar_bytes({})).notes[0][0] == "the shard holds no image"
    content = tar_bytes({"a.jpg": b"1"})
    assert _index(content[: 2 * BLOCK]).notes[0][0].startswith("the tar has no end mark")


def test_where_members_are_large_only_headers_are_read() -> None:
    content = tar_bytes({f"{i}.jpg": bytes(200_000) for i in range(20)})
    read = 0

    def count(offset: int, size: int) -> bytes:
        nonlocal read
        read += size
        return content[offset : offset + size]

    index = index_tar(count, len(content), suffixes={".jpg"}, window=50_000)
    assert len(index.offsets) == 20
    assert read < 50_000 + 21 * 8 * BLOCK


SOUND = tar_bytes({"a.jpg": b"1" * 600, "b.jpg": b"2" * 600})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"no tar" * 200, "it is no tar; give tars alone"),
        (b"\x1f\x8b" + bytes(600), "it is compressed, but a member is read at its place"),
        (SOUND[:1000], "it is truncated: 'a.jpg' ends at byte 1112, the file at 1000"),
        (SOUND[:1300], "it is truncated behind 'a.jpg'"),
        (SOUND[:1700], "it is truncated behind 'a.jpg'"),
        (SOUND[:1536] + b"x" + SOUND[1537:], "it is damaged: behind 'a.jpg' there is no header"),
        (tar_bytes({"x/../a.jpg": b""}), r"1 names in it lead upwards by '..': x/../a.jpg"),
        (tar_bytes({"a\x1b.jpg": b""}), "1 names in it have control characters"),
        (tar_bytes({"a\udcff.jpg": b""}), "1 names in it have control characters, or are no UTF-8"),
        (tar_bytes({"a.jpg": b"", "b.txt": b""}), None),
        (tar_bytes({"a.jpg": b"", "a.png": b""}), "belong to more than one image: a.jpg, a.png"),
        (tar_bytes({"a.jpg": b"", "./a.jpg": b""}), "belong to more than one image: a.jpg"),
        (tar_bytes({LONG: b""}, tar_format=tarfile.PAX_FORMAT)[:1100], "truncated"),
    ],
)
def test_damaged_tar_is_a_sentence(content: bytes, sentence: str | None) -> None:
    if sentence is None:
        assert _names(_index(content)) == ["a.jpg"]
        return
    with pytest.raises(TarError, match=sentence):
        _index(content)


def test_damaged_pax_header_is_a_sentence() -> None:
    content = tar_bytes({LONG + ".jpg": b""}, tar_format=tarfile.PAX_FORMAT)
    with pytest.raises(TarError, match="damaged in a pax header"):
        _index(content.replace(b" path=", b" path?"))
