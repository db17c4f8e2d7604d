from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from u2pl.data.init import archive as archives
from u2pl.data.init.archive import unpack
from u2pl.errors import UserError


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def everything(name: str) -> bool:
    return True


def test_wanted_members_are_unpacked_and_others_not(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"x/y.txt": b"1", "z.txt": b"2", "x/": b""})
    names = unpack(archive, tmp_path / "out", wanted=lambda name: name.startswith("x/"))
    assert names == ["x/y.txt"]
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert files == [tmp_path / "out/x/y.txt"]
    assert files[0].read_bytes() == b"1"


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/x", "C:/x", "..\\x", "a\\..\\..\\x", "a\x1b/x", "a/\u2028"]
)
def test_member_with_a_way_out_or_an_odd_name_is_refused(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "a.zip", {"good.txt": b"1", name: b"2"})
    with pytest.raises(UserError, match=r"would be written outside of .*; do not trust"):
        unpack(archive, tmp_path / "out", wanted=everything)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]


def test_member_without_a_name_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"good.txt": b"1", "odd.txt": b"2"})
    # a name ends at its first zero byte
    archive.write_bytes(archive.read_bytes().replace(b"odd.txt", b"\0dd.txt"))
    with pytest.raises(UserError, match="do not trust this archive"):
        unpack(archive, tmp_path / "out", wanted=everything)


def test_link_in_the_folder_is_not_followed_out_of_it(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"sub/x.txt": b"1"})
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="where results go"):
        unpack(archive, tmp_path / "out", wanted=everything)
    assert list((tmp_path / "secret").iterdir()) == []


def test_link_as_a_member_becomes_a_plain_file(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(member, "/etc/passwd")
    unpack(tmp_path / "a.zip", tmp_path / "out", wanted=everything)
    assert not (tmp_path / "out/link").is_symlink()
    assert (tmp_path / "out/link").read_text() == "/etc/passwd"


def test_archive_that_grows_without_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_ALLOWANCE", 1000)
    archive = zipped(tmp_path / "a.zip", {"x": bytes(1_000_000)})
    with pytest.raises(UserError, match=r"1,000,000 bytes together are more than an export"):
        unpack(archive, tmp_path / "out", wanted=everything)


def test_torn_or_missing_archive_is_a_sentence(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"x": b"123" * 99})
    with pytest.raises(UserError, match="does not exist"):
        unpack(tmp_path / "b.zip", tmp_path / "out", wanted=everything)
    content = bytearray(archive.read_bytes())
    content[35] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out", wanted=everything)
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out", wanted=everything)


def tarred(path: Path, files: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for name, place in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, place
            file.addfile(member)
    return path


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.gz"])
def test_wanted_members_of_a_tar_are_unpacked(tmp_path: Path, suffix: str) -> None:
    archive = tarred(tmp_path / f"a{suffix}", {"x/y.txt": b"1", "z.txt": b"2"})
    names = unpack(archive, tmp_path / "out", wanted=lambda name: name.startswith("x/"))
    assert names == ["x/y.txt"]
    assert [p.read_bytes() for p in (tmp_path / "out").rglob("*.txt")] == [b"1"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "..\\x", "a\x1b/x"])
def test_member_of_a_tar_with_a_way_out_is_refused(tmp_path: Path, name: str) -> None:
    archive = tarred(tmp_path / "a.tar", {"good.txt": b"1", name: b"2"})
    with pytest.raises(UserError, match=r"would be written outside of .*; do not trust"):
        unpack(archive, tmp_path / "out", wanted=everything)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]


def test_tar_with_a_link_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", {"good.txt": b"1"}, links={"out": "/etc"})
    with pytest.raises(UserError, match="'out' is a link or a device; do not trust this archive"):
        unpack(archive, tmp_path / "out", wanted=everything)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_torn_tar_is_a_sentence_with_its_remedy(tmp_path: Path, suffix: str) -> None:
    content = bytes(range(256)) * 400
    archive = tarred(tmp_path / f"a{suffix}", {"x": content, "y": content})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(UserError, match=r"cannot be unpacked \(.*\); fetch it again\."):
        unpack(archive, tmp_path / "out", wanted=everything, remedy="fetch it again")


def test_tar_that_grows_without_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_ALLOWANCE", 1000)
    archive = tarred(tmp_path / "a.tgz", {"x": bytes(500_000)})
    with pytest.raises(UserError, match="are more than an export of its size holds"):
        unpack(archive, tmp_path / "out", wanted=everything)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_files_that_are_there_whole_are_kept_and_others_written(
    tmp_path: Path, suffix: str
) -> None:
    pack = zipped if suffix == ".zip" else tarred
    archive = pack(tmp_path / f"a{suffix}", {"x": b"12", "y": b"34", "z": b"56"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_bytes(b"ab")
    (out / "y").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"ab")
    (out / "z").symlink_to(tmp_path / "secret")
    unpack(archive, out, wanted=everything, keep=True)
    assert [(out / name).read_bytes() for name in "xyz"] == [b"ab", b"34", b"56"]
    assert (tmp_path / "secret").read_bytes() == b"ab"
    unpack(archive, out, wanted=everything)
    assert (out / "x").read_bytes() == b"12"
