from __future__ import annotations

import os
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories import write_dataset
from u2pl.data.class_counts import class_pixels, count_pixels, num_threads
from u2pl.data.sources import Dataset, Sample, load_dataset
from u2pl.errors import UserError

READ_MASK = Dataset.read_mask


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_dataset(tmp_path))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each sample's mask is read."""
    count: Counter[str] = Counter()

    def read(dataset: Dataset, sample: Sample) -> object:
        count[sample.name] += 1
        return READ_MASK(dataset, sample)

    monkeypatch.setattr(Dataset, "read_mask", read)
    return count


def _cache(dataset: Dataset) -> Path:
    (file,) = dataset.path.parent.glob(".u2pl-class-pixels-*")
    return file


def test_pixels_of_each_class_are_counted(dataset: Dataset) -> None:
    pixels = class_pixels(dataset, dataset.labeled)
    assert pixels.shape == (4, 3)
    assert pixels.dtype == np.int64
    for row, sample in zip(pixels, dataset.labeled, strict=True):
        labels = dataset.read_mask(sample)
        assert row.tolist() == [int((labels == c).sum()) for c in range(3)]


def test_ignored_pixels_are_counted_apart() -> None:
    assert count_pixels(np.array([[255, 1], [1, 3]]), 3).tolist() == [0, 2, 0, 2]


def test_no_sample_has_an_empty_table(dataset: Dataset) -> None:
    assert class_pixels(dataset, ()).shape == (0, 3)


def test_each_mask_is_opened_once_and_then_never(dataset: Dataset, opened: Counter[str]) -> None:
    first = class_pixels(dataset, dataset.labeled)
    assert set(opened.values()) == {1}
    assert np.array_equal(class_pixels(dataset, dataset.labeled), first)
    assert set(opened.values()) == {1}
    assert _cache(dataset).parent == dataset.path.parent


def test_changed_mask_is_counted_again(dataset: Dataset) -> None:
    class_pixels(dataset, dataset.labeled)
    mask = dataset.labeled[2].mask
    assert mask is not None
    Image.fromarray(np.full((40, 56), 2, np.uint8)).save(mask)
    assert class_pixels(dataset, dataset.labeled)[2].tolist() == [0, 0, 40 * 56]
    os.utime(mask, ns=(1, 1))
    assert class_pixels(dataset, dataset.labeled)[2].tolist() == [0, 0, 40 * 56]
    assert _cache(dataset)  # the old counts are gone


def test_another_list_has_counts_of_its_own(dataset: Dataset, opened: Counter[str]) -> None:
    whole = class_pixels(dataset, dataset.labeled)
    part = class_pixels(dataset, dataset.labeled[:2][::-1])
    assert np.array_equal(part, whole[:2][::-1])
    class_pixels(dataset, dataset.labeled)
    assert sum(opened.values()) == 6


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04"])
def test_torn_cache_is_counted_again(
    dataset: Dataset, content: bytes, opened: Counter[str]
) -> None:
    first = class_pixels(dataset, dataset.labeled)
    _cache(dataset).write_bytes(content)
    assert np.array_equal(class_pixels(dataset, dataset.labeled), first)
    class_pixels(dataset, dataset.labeled)
    assert sum(opened.values()) == 8  # mended by the second call


def test_cache_of_another_shape_is_counted_again(dataset: Dataset) -> None:
    first = class_pixels(dataset, dataset.labeled)
    with np.load(_cache(dataset)) as file:
        key = file["key"]
    np.savez(_cache(dataset), key=key, pixels=first[:, :2])
    assert np.array_equal(class_pixels(dataset, dataset.labeled), first)


def test_folder_that_cannot_be_written_costs_time_alone(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    assert class_pixels(dataset, dataset.labeled).sum() == 4 * 40 * 56
    assert list(dataset.path.parent.glob(".u2pl*")) == []
    assert list(dataset.path.parent.glob("..u2pl*")) == []  # nor a part of one


def test_writers_at_the_same_time_do_no_harm(dataset: Dataset) -> None:
    expected = class_pixels(dataset, dataset.labeled)
    cache = _cache(dataset)
    cache.unlink()
    found: list[bool] = []

    def work() -> None:
        for _ in range(5):
            found.append(np.array_equal(class_pixels(dataset, dataset.labeled), expected))
            cache.unlink(missing_ok=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20


def test_missing_mask_is_named(dataset: Dataset) -> None:
    mask = dataset.labeled[1].mask
    assert mask is not None
    mask.unlink()
    with pytest.raises(UserError, match=r"labeled_1\.png: the file does not exist"):
        class_pixels(dataset, dataset.labeled)


def test_threads_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_threads(3) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_threads() == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert num_threads() == 8


def test_memory_with_flipped_bits_is_counted_anew(dataset: Dataset) -> None:
    truth = class_pixels(dataset, dataset.labeled)
    content = _cache(dataset).read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 16
        _cache(dataset).write_bytes(bytes(damaged))
        assert np.array_equal(class_pixels(dataset, dataset.labeled), truth), place


def test_memory_that_holds_no_array_is_counted_anew(dataset: Dataset) -> None:
    before = class_pixels(dataset, dataset.labeled)
    (cache,) = dataset.path.parent.glob(".u2pl-class-pixels-*")
    with np.load(cache) as saved:
        np.savez(cache.with_suffix(".new.npz"), key=saved["key"])
    with zipfile.ZipFile(cache.with_suffix(".new.npz"), "a") as archive:
        archive.writestr("pixels", b"no array")
    cache.with_suffix(".new.npz").replace(cache)
    assert np.array_equal(class_pixels(dataset, dataset.labeled), before)
