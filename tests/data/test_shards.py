from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml

from factories import tar_bytes, write_shard_dataset
from fuzz.trial import run_u2pl
from tiny import assignments, tiny_overrides
from u2pl.config import DataSettings
from u2pl.data import shards as module
from u2pl.data.batch import Batch
from u2pl.data.check import check_dataset
from u2pl.data.deal import deal_dataset
from u2pl.data.images import FileError, read_image
from u2pl.data.loaders import images_of_step, training_batches
from u2pl.data.shards import FOLDER, ShardList, expand_braces
from u2pl.data.sources import Dataset, load_dataset, split_hash
from u2pl.data.split import split_dataset
from u2pl.data.storage import Member
from u2pl.errors import UserError

SETTINGS: dict[str, Any] = {
    "crop": (24, 32),
    "batch_labeled": 2,
    "batch_unlabeled": 4,
    "num_workers": 0,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_shard_dataset(tmp_path)


@pytest.fixture
def bucket(path: Path) -> Iterator[str]:
    """The shards of ``path`` in fsspec's memory too; each reader sees them there."""
    system = fsspec.filesystem("memory")
    for file in sorted((path.parent / "pool").iterdir()):
        system.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def _say(path: Path, spec: object, **others: object) -> Path:
    """Let a dataset.yaml name other shards."""
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"unlabeled": {"shards": spec}} | others))
    return path


def _batches(dataset: Dataset, start: int = 0, **changes: Any) -> list[Batch]:
    ranks = {key: changes.pop(key) for key in ("rank", "num_ranks") if key in changes}
    settings = DataSettings(**SETTINGS | changes)
    return list(
        training_batches(
            dataset,
            settings,
            seed=3,
            start_step=start,
            stop_step=5,
            with_unlabeled=True,
            **ranks,
        )
    )


def _are_equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.labeled.images, b.labeled.images)
        and a.unlabeled is not None
        and b.unlabeled is not None
        and torch.equal(a.unlabeled.weak, b.unlabeled.weak)
        and torch.equal(a.unlabeled.strong[0], b.unlabeled.strong[0])
        for a, b in zip(first, second, strict=True)
    )


# what is trained on


def test_names_hash_and_batches_are_those_of_the_same_files(path: Path) -> None:
    packed, files = load_dataset(path), load_dataset(path.with_name("files.yaml"))
    assert [s.name for s in packed.unlabeled] == [s.name for s in files.unlabeled]
    assert packed.unlabeled[0].name == "pool-000.tar/a/b_0"
    assert split_hash(packed.unlabeled) == split_hash(files.unlabeled)
    assert _are_equal(_batches(packed), _batches(files))


def test_batches_go_on_exactly_with_workers_and_over_two_ranks(path: Path) -> None:
    dataset = load_dataset(path)
    whole = _batches(dataset)
    assert _are_equal(_batches(dataset, num_workers=2), whole)
    assert _are_equal(_batches(load_dataset(path), start=3), whole[3:])
    halves = [_batches(dataset, rank=rank, num_ranks=2) for rank in (0, 1)]
    for all_of_it, first, second in zip(whole, *halves, strict=True):
        assert all_of_it.unlabeled is not None
        assert first.unlabeled is not None
        assert second.unlabeled is not None
        both = torch.cat([first.unlabeled.weak, second.unlabeled.weak])
        assert torch.equal(all_of_it.unlabeled.weak, both)


def test_every_image_is_drawn_once_an_epoch(path: Path) -> None:
    dataset, settings = load_dataset(path), DataSettings(**SETTINGS | {"batch_unlabeled": 3})
    drawn = []
    for step in range(2):
        _, files = images_of_step(dataset, settings, seed=0, step=step, with_unlabeled=True)
        drawn += [str(file).removeprefix(f"{path.parent}/pool/") for file in files]
    assert sorted(drawn) == [f"pool-00{s}.tar/a/b_{i}.png" for s in (0, 1) for i in (0, 1, 2)]


def test_remote_shards_are_the_same_images(path: Path, bucket: str) -> None:
    local = load_dataset(path)
    remote = load_dataset(_say(path, bucket + "/pool-{000..001}.tar"))
    assert split_hash(remote.unlabeled) == split_hash(local.unlabeled)
    assert _are_equal(_batches(remote, num_workers=2), _batches(local))
    assert str(remote.unlabeled[0].image) == "memory://bucket/pool-000.tar/a/b_0.png"
    assert [s.name for s in load_dataset(_say(path, f"{bucket}/*.tar")).unlabeled] == [
        s.name for s in local.unlabeled
    ]


def test_images_of_shards_come_behind_those_of_files(path: Path) -> None:
    shutil.copytree(path.parent / "unlabeled", path.parent / "more")
    _say(path, "x", unlabeled={"images": "more/pool-000.tar", "shards": "pool/*.tar"})
    dataset = load_dataset(path)
    names = [sample.name for sample in dataset.unlabeled]
    assert names[:4] == ["a/b_0", "a/b_1", "a/b_2", "pool-000.tar/a/b_0"]
    assert dataset.unlabeled[-1] == dataset.unlabeled[8]
    assert len(dataset.unlabeled) == 9
    assert [str(s.image) for s in dataset.unlabeled] == list(dataset.unlabeled.paths())  # type: ignore[attr-defined]
    _say(path, "x", unlabeled={"images": "more", "shards": "pool/*.tar"})
    with pytest.raises(UserError, match="6 names of 'unlabeled' belong to more than one file"):
        load_dataset(path)


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_decoded_members_are_kept_like_files(path: Path, cache: str) -> None:
    plain = _batches(load_dataset(path))
    dataset = load_dataset(path)
    for _ in range(2):
        assert _are_equal(_batches(dataset, cache=cache), plain)
    kept = list((path.parent / ".u2pl-decoded").glob("*.npy"))
    assert len(kept) == (0 if cache == "none" else 4 + 4 + 6)


def test_two_steps_of_a_training_by_the_command_line(path: Path, tmp_path: Path) -> None:
    begin = ["--recipe", "demo", *assignments(tiny_overrides(train__steps=2)), "train.stop_after=1"]
    for arguments in (begin, ["--resume"]):
        answer = run_u2pl("train", path, "--out", tmp_path / "run", *arguments)
        assert answer.status == 0, answer
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if "loss" in row] == [1, 2]
    lines = (tmp_path / "run" / "splits" / "unlabeled.txt").read_text().splitlines()
    assert lines == [f"pool-00{s}.tar/a/b_{i}" for s in (0, 1) for i in (0, 1, 2)]
    assert not (tmp_path / "run" / FOLDER).exists()


# the list


def test_list_is_the_tuple_of_its_samples(path: Path) -> None:
    dataset = load_dataset(path)
    members, samples = dataset.unlabeled, tuple(dataset.unlabeled)
    assert isinstance(members, ShardList)
    assert members == samples
    assert hash(members) == hash(samples)
    assert members[1:-1] == samples[1:-1]
    assert members[-1] == samples[5]
    assert list(members.names()) == [sample.name for sample in samples]
    assert list(members.paths()) == [str(sample.image) for sample in samples]
    assert list(members.items()) == [(sample.name, sample.image) for sample in samples]
    assert copy.copy(members) == pickle.loads(pickle.dumps(members)) == members
    assert members != samples[:-1]
    for index in (6, -7):
        with pytest.raises(IndexError):
            members[index]


def test_shards_without_an_image_have_no_place_in_the_list(path: Path) -> None:
    expected = [sample.name for sample in load_dataset(path).unlabeled]
    for name in ("pool-000a.tar", "pool-002.tar", "a.tar"):
        (path.parent / "pool" / name).write_bytes(tar_bytes({"a.txt": b""}))
    dataset = load_dataset(path)
    assert len(dataset.shards) == 5
    assert [sample.name for sample in dataset.unlabeled] == expected


def test_list_file_selects_and_orders_members(path: Path) -> None:
    (path.parent / "some.txt").write_text("pool-001.tar/a/b_1\npool-000.tar/a/b_2.png\n")
    _say(path, "x", unlabeled={"shards": "pool", "list": "some.txt"})
    dataset = load_dataset(path)
    assert [s.name for s in dataset.unlabeled] == ["pool-001.tar/a/b_1", "pool-000.tar/a/b_2"]
    assert isinstance(dataset.unlabeled[0].image, Member)


def test_tags_may_name_members(path: Path) -> None:
    (path.parent / "tags.csv").write_text("image,classes\npool-001.tar/a/b_1.png,wall;tree\n")
    dataset = load_dataset(_say(path, "pool", tags="tags.csv"))
    assert [sample.tags for sample in dataset.unlabeled] == [None] * 4 + [(1, 2), None]


# how shards are named


@pytest.mark.parametrize(
    "spec",
    [
        "pool",
        "pool/*.tar",
        "pool/pool-{000..001}.tar",
        "pool/pool-00{0,1}.tar",
        ["pool/pool-000.tar", "pool/pool-001.tar"],
        "list.txt",
        "file://{root}/pool/pool-*.tar",
        "{root}/pool/pool-00[01].tar",
    ],
)
def test_each_way_to_name_shards_finds_the_same(path: Path, spec: object) -> None:
    expected = tuple(load_dataset(path).unlabeled)
    (path.parent / "list.txt").write_text("# two\npool/pool-000.tar\n\npool/pool-001.tar\n")
    spec = spec.replace("{root}", str(path.parent)) if isinstance(spec, str) else spec
    assert tuple(load_dataset(_say(path, spec)).unlabeled) == expected


def test_braces_are_those_of_webdataset() -> None:
    assert expand_braces("p-{9..11}", "") == ["p-9", "p-10", "p-11"]
    assert expand_braces("p-{001..3}", "") == ["p-001", "p-002", "p-003"]
    assert expand_braces("p-{2..0}", "") == ["p-2", "p-1", "p-0"]
    assert expand_braces("{x}{..}{}", "") == ["{x}{..}{}"]
    assert expand_braces("a{,b}", "") == ["a", "ab"]
    with pytest.raises(UserError, match="stands for more than a million shards"):
        expand_braces("{0..999}{0..999}{0,1}", "")


def test_shards_of_one_name_are_told_apart_by_their_folders(path: Path) -> None:
    shutil.copytree(path.parent / "pool", path.parent / "other")
    dataset = load_dataset(_say(path, ["pool", "other/pool-000.tar"]))
    assert [s.label for s in dataset.shards] == [
        "pool/pool-000.tar", "pool/pool-001.tar", "other/pool-000.tar"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("none.tar", "none.tar: the file does not exist"),
        ("none-*.tar", "no tar is at"),
        ("labels", "labels: the file does not exist"),
        ("images", "no tar is at"),
        ("memory://none/a.tar", "memory://none/a.tar: there is no such file"),
        ("memory://none/*.tar", "no tar is at memory://none/"),
        ("s4://x/a.tar", "fsspec knows no protocol 's4'"),
        ("zip://a.tar::memory://b.zip", "is a chain or a command"),
        ("pipe:cat a.tar", "is a chain or a command"),
        ("none.txt", "the list .* does not exist"),
        ("empty.txt", "names no shard"),
        ("torn.txt", "is not a text file"),
        ([], "expected a tar, a folder, a glob"),
        (7, "expected a tar, a folder, a glob"),
        (["a.tar", 7], "expected a tar, a folder, a glob"),
        ("a\x1b.tar", "has control characters"),
        (["pool", "pool/pool-000.tar"], "pool-000.tar is named twice"),
        ("masks/labeled_0.png", "labeled_0.png: it is no tar"),
    ],
)
def test_shards_that_cannot_be_are_one_sentence(path: Path, spec: object, sentence: str) -> None:
    (path.parent / "empty.txt").write_text("# nothing\n")
    (path.parent / "torn.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=sentence):
        load_dataset(_say(path, spec))


@pytest.mark.parametrize("section", ["labeled", "val", "test"])
def test_shards_are_for_unlabeled_images_alone(path: Path, section: str) -> None:
    tree = yaml.safe_load(path.read_text())
    tree[section] = {"shards": "pool/*.tar", "masks": "masks"}
    path.write_text(yaml.safe_dump(tree))
    answer = run_u2pl("data", "check", path)
    assert answer.status == 2
    assert f"not for '{section}'" in answer.err
    assert answer.err.count("\n") == 1


def test_section_without_images_and_shards_is_told(path: Path) -> None:
    _say(path, None)
    with pytest.raises(UserError, match="expected 'unlabeled' to have 'images' or 'shards'"):
        load_dataset(path)


# what is wrong with them


def test_truncated_shards_are_counted_in_one_sentence(path: Path) -> None:
    for file in (path.parent / "pool").iterdir():
        file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"pool-000.tar: it is truncated.*\(1 more of 2 shards.\)"):
        load_dataset(path)
    answer = run_u2pl("data", "check", path)
    assert (answer.status, answer.err.count("\n")) == (1, 1)


def test_shards_without_any_image_are_a_sentence(path: Path) -> None:
    for file in (path.parent / "pool").iterdir():
        file.write_bytes(tar_bytes({"a.txt": b"1"}))
    with pytest.raises(UserError, match=r"expected images .* in 2 shards, .*, found none"):
        load_dataset(path)


def test_damaged_member_is_named(path: Path) -> None:
    members = {"a/b_0.png": b"torn", "a/b_1.png": b""}
    (path.parent / "pool" / "pool-001.tar").write_bytes(tar_bytes(members))
    dataset = load_dataset(path)
    with pytest.raises(UserError, match=r"pool-001.tar/a/b_[01].png: the file is not an image"):
        _batches(dataset, num_workers=1)
    report = check_dataset(dataset, workers=2)
    assert [Path(error.file).name for error in report.errors] == ["b_0.png", "b_1.png"]
    assert report.sections["unlabeled"] == 5


def test_check_counts_members_and_tells_what_is_odd(path: Path) -> None:
    image = next((path.parent / "images").iterdir()).read_bytes()
    (path.parent / "pool" / "pool-002.tar").write_bytes(tar_bytes({"a.txt": b""}))
    (path.parent / "pool" / "pool-003.tar").write_bytes(
        tar_bytes({"x.png": image, "x.seg.png": image})
    )
    answer = run_u2pl("data", "check", path, "--html", path.parent / "check.html")
    assert answer.status == 0, answer
    report = check_dataset(load_dataset(path))
    assert (report.errors, report.sections["unlabeled"]) == ((), 7)
    said = {Path(warning.file).name: warning.what for warning in report.warnings}
    assert said["pool-002.tar"] == "the shard holds no image"
    assert said["pool-003.tar"].endswith("left out: x.seg.png")
    assert said["x.png"].startswith("the file has the same content as")


def test_check_fetches_each_member_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, fetched = load_dataset(path), []
    read = Member.read

    def count(member: Member) -> bytes:
        fetched.append(member)
        return read(member)

    monkeypatch.setattr(Member, "read", count)
    assert check_dataset(dataset, workers=2).errors == ()
    assert sorted(fetched) == sorted(sample.image for sample in dataset.unlabeled)  # type: ignore[type-var]


def test_shard_that_changes_while_it_is_read_is_told(path: Path) -> None:
    dataset = load_dataset(path)
    file = path.parent / "pool" / "pool-000.tar"
    file.write_bytes(tar_bytes({"z.png": b"another"}))
    with pytest.raises(FileError, match="the shard has changed since it was indexed; start again"):
        read_image(dataset.unlabeled[0].image)
    assert load_dataset(path).unlabeled[0].name == "pool-000.tar/z"


def test_error_passes_between_processes(path: Path) -> None:
    error = FileError(load_dataset(path).unlabeled[0].image, "what", "remedy")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# the index that is kept


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("a tar was indexed")


def test_index_is_kept_until_a_shard_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset(path)
    assert len(list((path.parent / FOLDER).iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(module, "index_tar", _must_not_be_called)
        assert load_dataset(path).unlabeled == first.unlabeled
        copied = path.parent / "run" / "dataset.yaml"
        copied.parent.mkdir()
        tree = yaml.safe_load(path.read_text()) | {"root": str(path.parent)}
        copied.write_text(yaml.safe_dump(tree))
        assert load_dataset(copied).unlabeled == first.unlabeled
    (path.parent / "pool" / "pool-001.tar").write_bytes(tar_bytes({"z.png": b"1"}))
    assert [s.name for s in load_dataset(path).unlabeled][3:] == ["pool-001.tar/z"]


def test_remote_index_is_kept_until_a_shard_changes(
    path: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _say(path, f"{bucket}/*.tar")
    with caplog.at_level(logging.WARNING):
        load_dataset(path)
    (record,) = caplog.records
    assert record.getMessage().startswith("Indexing 2 shards of 6.14e-05 GB, the first memory://")
    with monkeypatch.context() as patch:
        patch.setattr(module, "index_tar", _must_not_be_called)
        load_dataset(path)
    assert len(caplog.records) == 1
    content = (path.parent / "pool" / "pool-000.tar").read_bytes().replace(b"a/b_0", b"a/b_9")
    blocks = bytearray(content)
    blocks[148:156] = b" " * 8
    blocks[148:156] = b"%06o\0 " % sum(blocks[:512])
    text = bytes(blocks)
    start = text.index(b"a/b_9.json")
    blocks[start + 148 : start + 156] = b" " * 8
    blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    fsspec.filesystem("memory").pipe_file("/bucket/pool-000.tar", bytes(blocks))
    assert "pool-000.tar/a/b_9" in [sample.name for sample in load_dataset(path).unlabeled]


@pytest.mark.parametrize("damage", ["torn", "shifted", "upwards", "pickle"])
def test_damaged_index_is_made_again(path: Path, damage: str) -> None:
    expected = tuple(load_dataset(path).unlabeled)
    for file in (path.parent / FOLDER).iterdir():
        if damage == "torn":
            file.write_bytes(file.read_bytes()[:-30])
            continue
        with np.load(file) as kept:
            arrays = dict(kept)
        if damage == "shifted":
            arrays["offsets"] = arrays["offsets"] + 10**9
        elif damage == "upwards":
            arrays["names"] = np.frombuffer(b"../x.png\na\nb\n", np.uint8)
        else:
            arrays["names"] = np.array([print, print], object)
        with file.open("wb") as raw:
            np.savez(raw, **arrays)
    assert tuple(load_dataset(path).unlabeled) == expected


def test_index_is_not_written_through_a_link_out_of_the_root(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere")
    elsewhere.mkdir()
    (path.parent / FOLDER).symlink_to(elsewhere, target_is_directory=True)
    assert len(load_dataset(path).unlabeled) == 6
    assert list(elsewhere.iterdir()) == []


def test_folder_that_may_not_be_written_to_costs_time_alone(path: Path) -> None:
    (path.parent / FOLDER).write_text("in the way")
    assert len(load_dataset(path).unlabeled) == 6
    other = path.parent / "run" / "dataset.yaml"
    other.parent.mkdir()
    tree = yaml.safe_load(path.read_text()) | {"root": str(path.parent)}
    other.write_text(yaml.safe_dump(tree))
    assert len(load_dataset(other).unlabeled) == 6
    assert len(list((other.parent / FOLDER).iterdir())) == 2


# what is made of such a data set


def test_split_and_deal_name_the_shards_again(path: Path) -> None:
    (split,) = split_dataset(path, labeled=["2"], seeds=[0])
    dataset = load_dataset(split.path)
    assert (len(dataset.labeled), len(dataset.unlabeled)) == (2, 2 + 6)
    assert dataset.unlabeled[2:] == tuple(load_dataset(path).unlabeled)
    dealt = load_dataset(deal_dataset(path, {"val": {"unlabeled": 1}}, seed=0))
    assert [s.name for s in dealt.unlabeled][1:] == [s.name for s in load_dataset(path).unlabeled]


def test_split_of_some_members_is_refused(path: Path) -> None:
    (path.parent / "some.txt").write_text("pool-001.tar/a/b_1\n")
    _say(path, "x", unlabeled={"shards": "pool", "list": "some.txt"})
    with pytest.raises(UserError, match="1 of 6 images in shards would be in 'unlabeled'"):
        split_dataset(path, labeled=["2"], seeds=[0])
    assert not list(path.parent.glob("dataset-*"))


@pytest.mark.parametrize("name", ["pool-000.tar/a/b_0", "b_0"])
def test_mask_of_a_member_is_refused_in_a_sentence(path: Path, name: str) -> None:
    (path.parent / "pool" / "pool-001.tar").unlink()
    mask = path.parent / "corrected" / f"{name}.png"
    mask.parent.mkdir(parents=True)
    shutil.copyfile(path.parent / "masks" / "labeled_0.png", mask)
    answer = run_u2pl("data", "merge", path, path.parent / "corrected")
    assert answer.status == 1
    assert "pool-000.tar/a/b_0.png lies in a shard, but this needs an image that is a file" in (
        answer.err
    )
    assert not (path.parent / "dataset-2.yaml").exists()


def test_masks_of_other_images_are_merged_beside_shards(path: Path) -> None:
    shutil.copytree(path.parent / "unlabeled" / "pool-000.tar" / "a", path.parent / "more")
    _say(path, "x", unlabeled={"images": "more", "shards": "pool"})
    (path.parent / "corrected").mkdir()
    mask = path.parent / "corrected" / "b_1.png"
    shutil.copyfile(path.parent / "masks" / "labeled_0.png", mask)
    arguments = ["--images", path.parent / "more"]
    answer = run_u2pl("data", "merge", path, path.parent / "corrected", *arguments)
    assert answer.status == 0, answer
    dataset = load_dataset(path.parent / "dataset-2.yaml")
    assert (len(dataset.labeled), len(dataset.unlabeled)) == (5, 8)
    assert sum(isinstance(sample.image, Member) for sample in dataset.unlabeled) == 6


def test_plan_looks_at_members(path: Path) -> None:
    answer = run_u2pl("plan", path, "--no-measure", "--out", path.parent / "plan.yaml")
    assert answer.status == 0, answer


def test_bytes_of_a_shard_are_never_unpacked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("/etc/../passwd.png")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(info)
    (path.parent / "pool" / "pool-000.tar").write_bytes(file.getvalue())
    with pytest.raises(UserError, match="1 names in it lead upwards"):
        load_dataset(path)
