"""Files of published data sets, damaged: each ends in a mask or in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import published
from fuzz.trial import mutations, rounds, trials
from u2pl.data.init.archive import unpack
from u2pl.data.prepare.idd import paint_polygons
from u2pl.data.prepare.synthia import read_labels
from u2pl.data.prepare.voc import read_sbd


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_masks_of_sbd_end_in_a_mask_or_a_sentence(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "2008_000002.mat"
    content = published.mat_file(published.sbd_labels("a"), compressed=compressed)
    with trials("masks of SBD") as group:
        for case, damaged in mutations(content, count=rounds(40, long=2000), seed=0):
            path.write_bytes(damaged)
            labels = group.attempt(case, lambda: read_sbd(path))
            group.expect(case, labels is None or labels.max(initial=0) <= 20, "an odd id")


def test_damaged_pngs_of_16_bits_end_in_a_mask_or_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "0000000.png"
    published.write_png_of_16_bits(path, np.full((*published.SIZE, 3), 7, np.uint16))
    content = path.read_bytes()
    with trials("masks of SYNTHIA") as group:
        for case, damaged in mutations(content, count=rounds(40, long=2000), seed=1):
            path.write_bytes(damaged)
            labels = group.attempt(case, lambda: read_labels(path))
            group.expect(case, labels is None or labels.ndim == 2, "no mask")


def test_damaged_polygons_end_in_a_mask_or_a_sentence(tmp_path: Path) -> None:
    published.write_idd_of_polygons(tmp_path)
    path = sorted(tmp_path.rglob("*_gtFine_polygons.json"))[0]
    image = sorted(tmp_path.rglob("*_leftImg8bit.png"))[0]
    content = path.read_bytes()
    with trials("polygons of IDD") as group:
        for case, damaged in mutations(content, count=rounds(40, long=2000), seed=2):
            path.write_bytes(damaged)
            labels = group.attempt(case, lambda: paint_polygons(path, image))
            group.expect(case, labels is None or labels.shape == published.SIZE, "another size")


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_damaged_tars_end_in_files_or_a_sentence(tmp_path: Path, suffix: str) -> None:
    published.write_index(tmp_path / "tree/a/b.png", published.sbd_labels("a"))
    archive = tmp_path / f"in/x{suffix}"
    archive.parent.mkdir()
    published.tar_of(tmp_path / "tree", archive)
    content, out = archive.read_bytes(), tmp_path / "out"
    with trials("tars") as group:
        for case, damaged in mutations(content, count=rounds(40, long=2000), seed=3):
            archive.write_bytes(damaged)
            group.attempt(case, lambda: unpack(archive, out, wanted=lambda name: True))
            group.expect(case, {p.name for p in tmp_path.iterdir()} <= {"tree", "in", "out"}, "out")
            shutil.rmtree(out, ignore_errors=True)
