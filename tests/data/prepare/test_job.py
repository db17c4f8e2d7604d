"""Archives and trees of published data sets: found, checked, unpacked, fetched."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import published
from u2pl.data.prepare import prepare_dataset, voc
from u2pl.data.prepare.job import Job, Part
from u2pl.data.sources import load_dataset
from u2pl.errors import UserError

PART = Part(
    name="x",
    archives=("x.zip",),
    page="https://example.org/",
    holds=("a", "b/*.png"),
    places=("", "d"),
)
COUNTS = {"labeled": 3, "val": 2}


def test_tree_is_found_where_all_that_it_holds_is(tmp_path: Path) -> None:
    assert PART.root_in(tmp_path) is None
    published.write_image(tmp_path / "d/b/1.png")
    assert PART.root_in(tmp_path) is None
    (tmp_path / "d/a").mkdir()
    assert PART.root_in(tmp_path) == tmp_path / "d"


def test_archive_without_the_tree_is_told(tmp_path: Path) -> None:
    published.write_image(tmp_path / "tree/other.png")
    (tmp_path / "source").mkdir()
    published.zip_of(tmp_path / "tree", tmp_path / "source/x.zip")
    job = Job(tmp_path / "source", tmp_path / "out")
    with pytest.raises(UserError, match=r"x.zip: expected a, b/\*.png inside, found no such files"):
        job.tree(PART)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VOC's tiny tree as its archive, which lies elsewhere, and whose MD5 is the published one."""
    (name,) = voc.BENCHMARK.parts[0].archives
    path = tmp_path / "elsewhere" / name
    path.parent.mkdir()
    published.write_voc(tmp_path / "tree")
    published.tar_of(tmp_path / "tree", path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(voc, "_VOC", replace(voc._VOC, md5={name: md5}))
    (tmp_path / "source").mkdir()
    return path


def test_archive_with_the_published_sum_is_unpacked(tmp_path: Path, archive: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copy(archive, source)
    made = prepare_dataset("voc", source, out=out, variant="fine", counts=COUNTS)
    images = {sample.image.parent for sample in load_dataset(made.path).labeled}
    assert images == {out.resolve() / "unpacked/voc/VOCdevkit/VOC2012/JPEGImages"}


def test_archive_of_another_sum_is_not_unpacked(tmp_path: Path, archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[5000] ^= 1
    (tmp_path / "source" / archive.name).write_bytes(content)
    with pytest.raises(UserError, match=r"is not the published file: expected the MD5 .* http"):
        prepare_dataset("voc", tmp_path / "source", out=tmp_path / "out", variant="fine")
    assert not (tmp_path / "out").exists()


def test_archive_is_fetched_where_that_is_asked_for(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str, root: str, filename: str, md5: str | None = None) -> None:
        asked.append(url)
        Path(root).mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, Path(root) / filename)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    call = {"out": tmp_path / "out", "variant": "fine", "counts": COUNTS, "download": True}
    made = prepare_dataset("voc", tmp_path / "source", **call)
    assert made.sections == COUNTS
    assert asked == [voc._VOC.url[archive.name]]
    assert asked[0].endswith(archive.name)
    assert [*(tmp_path / "source").iterdir()] == []
    assert prepare_dataset("voc", tmp_path / "source", **call).was_there
    assert len(asked) == 1


def test_failed_download_is_a_sentence_and_leaves_no_archive(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, root: str, filename: str, md5: str | None = None) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes(archive.read_bytes()[:100])
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    with pytest.raises(
        UserError, match=r"cannot be fetched \(File not found or corrupted.\); fetch"
    ):
        prepare_dataset("voc", tmp_path / "source", out=tmp_path / "out", download=True)
    assert not (tmp_path / "out/downloads" / archive.name).exists()
