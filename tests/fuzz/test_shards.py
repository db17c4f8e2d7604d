"""Tars of images, sound and damaged: each byte of a header may be another."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from factories import tar_bytes, write_shard_dataset
from fuzz.trial import Trials, mutations, rounds, trials
from u2pl.data.images import read_image
from u2pl.data.sources import load_dataset
from u2pl.data.tar_index import BLOCK, TarError, index_tar
from u2pl.errors import is_clean

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

LONG = "long/" * 40 + "name.png"


def attempt_shard(group: Trials, case: str, path: Path) -> None:
    """Open a data set and read all of its members; names are kept within their shard."""
    data = group.attempt(case, lambda: load_dataset(path, require=()))
    for sample in () if data is None else data.unlabeled:
        parts = sample.name.split("/")
        group.expect(case, ".." not in parts and "" not in parts, f"the name {sample.name!r}")
        group.expect(case, is_clean(sample.name), f"the name {sample.name!r}")
        group.attempt(f"image of {case}", lambda sample=sample: read_image(sample.image))


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_damaged_shard_is_read_or_refused(tmp_path: Path, tar_format: int) -> None:
    path = write_shard_dataset(tmp_path, num_shards=1, num_unlabeled=2, size=(8, 9))
    file = tmp_path / "pool" / "pool-000.tar"
    (image,) = (tmp_path / "unlabeled").glob("*/a/b_0.png")
    content = tar_bytes(
        {LONG: image.read_bytes(), "b.png": image.read_bytes()}, tar_format=tar_format
    )
    with trials("shards") as group:
        for header in (BLOCK, 4 * BLOCK):
            count = rounds(25, long=1500)
            for name, damaged in mutations(content, count=count, seed=header, header=header):
                file.write_bytes(damaged)
                attempt_shard(group, f"{name}, format {tar_format}", path)


def test_headers_with_right_checksums_say_anything(tmp_path: Path) -> None:
    """Damage that no checksum betrays: whoever makes the tar makes the checksum."""
    rng, content = np.random.default_rng(0), bytearray(tar_bytes({LONG: b"x" * 700, "b.png": b"y"}))
    refused = 0
    for _ in range(rounds(400, long=50_000)):
        tar = bytearray(content)
        start = int(rng.integers(0, 4)) * BLOCK
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.choice([*range(8), *range(124, 136), 156, 157, *range(257, 265), 345]))
            tar[start + place] = int(
                rng.choice([0, 32, 46, 47, 48, 55, 76, 83, 103, 120, 128, 255])
            )
        tar[start + 148 : start + 156] = b" " * 8
        tar[start + 148 : start + 156] = b"%06o\0 " % sum(tar[start : start + BLOCK])

        def read(offset: int, size: int, tar: bytearray = tar) -> bytes:
            assert offset >= 0
            assert size >= 0
            assert offset + size <= len(tar)
            return bytes(tar[offset : offset + size])

        try:
            index = index_tar(read, len(tar), suffixes={".png"})
        except TarError:
            refused += 1
            continue
        assert (index.offsets >= 0).all()
        assert (index.offsets + index.sizes <= len(tar)).all()
    assert refused
