from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factories import write_dataset
from u2pl.config import DataSettings
from u2pl.data import decoded
from u2pl.data.batch import Batch
from u2pl.data.decoded import FOLDER, Decoder, decoder
from u2pl.data.loaders import evaluation_batches, training_batches
from u2pl.data.sources import Dataset, MaskEncoding, load_dataset
from u2pl.errors import UserError


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_dataset(tmp_path))


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the machine's memory."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(decoded, "_memory_folder", lambda: folder)
    return folder


def _settings(cache: str, **changes: Any) -> DataSettings:
    values: dict[str, Any] = {
        "crop": (24, 32),
        "batch_labeled": 2,
        "batch_unlabeled": 3,
        "num_workers": 0,
        "resize": 30,
    }
    return DataSettings(**values | changes, cache=cache)


def _batches(dataset: Dataset, settings: DataSettings) -> list[Batch]:
    return list(
        training_batches(dataset, settings, seed=0, start_step=0, stop_step=5, with_unlabeled=True)
    )


def _are_equal(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a.labeled.images, b.labeled.images)
        and torch.equal(a.labeled.labels, b.labeled.labels)
        and a.unlabeled is not None
        and b.unlabeled is not None
        and torch.equal(a.unlabeled.weak, b.unlabeled.weak)
        and torch.equal(a.unlabeled.strong[0], b.unlabeled.strong[0])
        for a, b in zip(first, second, strict=True)
    )


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("a file was decoded")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_batches_are_the_same_bit_for_bit(dataset: Dataset, cache: str, workers: int) -> None:
    plain = _batches(dataset, _settings("none"))
    cached = _settings(cache, num_workers=workers)
    assert _are_equal(_batches(dataset, cached), plain)
    assert _are_equal(_batches(dataset, cached), plain)  # now from the cache


def test_evaluation_is_the_same(dataset: Dataset) -> None:
    rows = []
    for cache in ("none", "disk", "disk"):
        (batch,) = evaluation_batches(dataset.val, dataset, _settings(cache), batch_size=8)
        assert batch.masks is not None
        assert all(mask.dtype == torch.int64 for mask in batch.masks)
        rows.append([batch.images, *batch.masks])
    for row in rows[1:]:
        assert all(map(torch.equal, row, rows[0]))


def test_what_is_cached_is_not_decoded_again(
    dataset: Dataset, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings("memory")
    first = _batches(dataset, settings)
    assert len(list(memory.iterdir())) == 4 + 4 + 6
    monkeypatch.setattr(decoded, "read_image", _must_not_be_called)
    monkeypatch.setattr(Dataset, "read_mask", _must_not_be_called)
    assert _are_equal(_batches(dataset, settings), first)


def test_changed_file_is_decoded_again(dataset: Dataset) -> None:
    sample, reader = dataset.labeled[0], decoder(dataset, _settings("disk"))
    assert sample.mask is not None
    before, time = reader.image(sample).copy(), sample.image.stat().st_mtime_ns
    Image.fromarray(255 - before).save(sample.image)
    os.utime(sample.image, ns=(time, time + 1))
    assert np.array_equal(reader.image(sample), 255 - before)
    reader.mask(sample)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(sample.mask)
    assert reader.mask(sample).shape == (9, 9)


def test_mask_is_read_anew_in_another_way_of_reading(dataset: Dataset) -> None:
    sample = dataset.labeled[0]
    mapped = replace(sample, mask_encoding=MaskEncoding("index", ((0, 2),)))
    reader = decoder(dataset, _settings("disk"))
    plain = reader.mask(sample)
    assert np.array_equal(reader.mask(mapped), dataset.read_mask(mapped))
    assert not np.array_equal(reader.mask(mapped), plain)
    other = replace(dataset, ignore_index=65535)
    assert decoder(other, _settings("disk")).mask(mapped).max() == 65535


@pytest.mark.parametrize("content", [b"", b"torn", np.ones(3).tobytes()])
def test_torn_cache_is_decoded_again(dataset: Dataset, content: bytes) -> None:
    sample, reader = dataset.unlabeled[0], decoder(dataset, _settings("disk"))
    expected = reader.image(sample).copy()
    (file,) = (dataset.path.parent / FOLDER).iterdir()
    file.write_bytes(content)
    assert np.array_equal(reader.image(sample), expected)
    np.save(file, expected[..., 0].astype(np.float64))  # whole, but no image
    assert np.array_equal(reader.image(sample), expected)


def test_missing_file_is_the_same_sentence(dataset: Dataset) -> None:
    dataset.unlabeled[0].image.unlink()
    with pytest.raises(UserError, match="does not exist"):
        decoder(dataset, _settings("disk")).image(dataset.unlabeled[0])


def test_cache_stays_within_its_budget(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, size = tmp_path / "cache", 40 * 56 * 3 + 128  # of an array and its file's head
    reader = Decoder(dataset, folder, 7 * size)
    with caplog.at_level(logging.WARNING):
        for sample in dataset.unlabeled:
            reader.image(sample)
    files = list(folder.iterdir())
    assert 2 <= len(files) < 6  # a share of the room is taken at a time
    assert [record.getMessage()[:49] for record in caplog.records] == [
        "the cache of decoded images has its 4.79e-05 GB; "[:49]
    ]
    again = Decoder(dataset, folder, 0)
    for sample in dataset.unlabeled:
        assert np.array_equal(again.image(sample), reader.image(sample))
    assert sorted(folder.iterdir()) == sorted(files)


def test_full_disk_is_told_and_training_goes_on(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Any:
        raise UserError(f"Cannot write {path}: No space left on device.")

    plain = _batches(dataset, _settings("none"))
    monkeypatch.setattr(decoded, "whole_file", full)
    with caplog.at_level(logging.WARNING):
        assert _are_equal(_batches(dataset, _settings("disk")), plain)
    assert "No space left on device; training goes on" in caplog.records[0].getMessage()
    assert len(caplog.records) == 2  # one a stream


def test_place_that_is_no_folder_is_told(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    settings = _settings("disk", cache_folder=tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        reader = decoder(dataset, settings)
        assert reader.image(dataset.labeled[0]).shape == (40, 56, 3)
    assert "Cannot keep decoded images in" in caplog.records[0].getMessage()


def test_folder_in_memory_goes_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoded._is_alive(str(os.getpid()))
    assert decoded._is_alive("text")
    assert not decoded._is_alive(str(2**22 + 1))  # above the largest number of a process
    folder = tmp_path / "mine"
    folder.mkdir()
    decoded._remove(folder, os.getpid() + 1)
    assert folder.is_dir()
    decoded._remove(folder, os.getpid())
    assert not folder.exists()
