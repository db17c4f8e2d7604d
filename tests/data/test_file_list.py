from __future__ import annotations

import copy
from pathlib import Path

import pytest

from u2pl.data.file_list import FileList, names_of, paths_of
from u2pl.data.sources import Sample, split_hash

FILES = ["a.png", "b/c.d.jpg", "b/e.PNG"]
SAMPLES = (
    Sample("a", Path("/data/a.png")),
    Sample("b/c.d", Path("/data/b/c.d.jpg")),
    Sample("b/e", Path("/data/b/e.PNG")),
)


def test_list_is_the_tuple_of_its_samples() -> None:
    files = FileList("/data", FILES)
    assert files == SAMPLES
    assert hash(files) == hash(SAMPLES)
    assert tuple(files) == SAMPLES
    assert (len(files), files[1], files[-1]) == (3, SAMPLES[1], SAMPLES[2])
    assert files[1:] == SAMPLES[1:]
    assert SAMPLES[2] in files
    assert files != FileList("/other", FILES)
    assert files != SAMPLES[:2]
    assert copy.copy(files) == files
    assert len(repr(files)) < 100


def test_no_file_is_no_sample() -> None:
    assert FileList("/data", []) == ()
    assert not FileList("/data", [])
    with pytest.raises(IndexError):
        FileList("/data", [])[0]


@pytest.mark.parametrize("folder", ["/data", "/"])
def test_names_and_paths_are_those_of_the_samples(folder: str) -> None:
    files = FileList(folder, FILES)
    assert list(names_of(files)) == [sample.name for sample in files]
    assert list(paths_of(files)) == [str(sample.image) for sample in files]
    assert list(names_of(tuple(files))) == list(names_of(files))
    assert list(paths_of(tuple(files))) == list(paths_of(files))
    assert split_hash(files) == split_hash(tuple(files))
