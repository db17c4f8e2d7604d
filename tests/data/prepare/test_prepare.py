"""Tiny copies of published data sets, prepared: each pixel's class, counts, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import published
from published import Truth
from u2pl.data.check import check_dataset
from u2pl.data.prepare import BENCHMARKS, Prepared, prepare_dataset
from u2pl.data.sources import load_dataset
from u2pl.errors import UserError


@dataclass(frozen=True)
class Case:
    """A data set, its variant, what writes its tree, and whether that needs an extra."""

    name: str
    variant: str | None
    write: Callable[[Path], Truth]
    needs: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}-{self.write.__name__}"


def write_synthia_16(folder: Path) -> Truth:
    return published.write_synthia(folder, variant="16")


def write_synthia_13(folder: Path) -> Truth:
    return published.write_synthia(folder, variant="13")


CASES = [
    Case("voc", "fine", published.write_voc),
    Case("voc", "classic", published.write_voc_with_sbd),
    Case("voc", "blender", published.write_voc_with_sbd),
    Case("voc", "blender", published.write_voc_with_aug),
    Case("cityscapes", None, published.write_cityscapes),
    Case("gta5", None, published.write_gta5),
    Case("gta5", None, published.write_gta5_in_color),
    Case("synthia", "16", write_synthia_16),
    Case("synthia", "13", write_synthia_13),
    Case("ade20k", None, published.write_ade20k),
    Case("coco", "unimatch", published.write_coco_with_masks),
    Case("coco", "instances", published.write_coco_with_instances, needs="pycocotools"),
    Case("camvid", "segnet", published.write_camvid_of_segnet),
    Case("camvid", "full", published.write_camvid_in_color),
    Case("idd", "1", published.write_idd_of_polygons),
    Case("idd", None, published.write_idd_of_masks),
]


def counts_of(case: Case, truth: Truth) -> dict[str, int]:
    """What the tiny tree has in place of the published numbers."""
    counts = {section: len(rows) for section, rows in truth.items()}
    if case.name == "gta5":
        counts["labeled"] += 1  # the one whose mask has another size
    if case.variant == "classic":
        counts |= {"labeled": len(published.VOC_TRAIN), "unlabeled": len(published.SBD_MORE)}
    return counts


def prepare_case(case: Case, root: Path, **options: Any) -> tuple[Prepared, Truth]:
    """Write a case's tree to ``source`` and prepare it in ``out``; the tree stays as it was."""
    if case.needs is not None:
        pytest.importorskip(case.needs, reason=f"{case.needs} is an extra")
    truth = case.write(root / "source")
    before = files_below(root / "source")
    if BENCHMARKS[case.name].needs_target:
        published.write_cityscapes(root / "city")
        city = prepare_dataset(
            "cityscapes", root / "city", out=root / "target", counts={"labeled": 3, "val": 2}
        )
        options["target"] = city.path
    made = prepare_dataset(
        case.name,
        root / "source",
        out=root / "out",
        variant=case.variant,
        counts=counts_of(case, truth),
        **options,
    )
    assert files_below(root / "source") == before
    return made, truth


def files_below(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pixel_has_its_class_and_the_check_passes(case: Case, tmp_path: Path) -> None:
    made, truth = prepare_case(case, tmp_path)
    dataset = load_dataset(made.path)
    for section, masks in truth.items():
        samples = dataset.sections[section]
        if case.variant == "classic" and section == "labeled":
            masks = {name: masks[name] for name in published.VOC_TRAIN}
        found = {
            next(name for name in masks if f"/{sample.name}".endswith(f"/{name}")): sample
            for sample in samples
        }
        assert {*found} == {*masks}
        assert len(samples) == len(masks)
        for name, sample in found.items():
            assert np.array_equal(dataset.read_mask(sample), masks[name]), (section, name)
    assert check_dataset(dataset).to_json()["errors"] == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_call_does_nothing(case: Case, tmp_path: Path) -> None:
    made, _ = prepare_case(case, tmp_path)
    assert not made.was_there
    out = files_below(tmp_path / "out")
    again = prepare_dataset(
        case.name,
        tmp_path / "source",
        out=tmp_path / "out",
        variant=case.variant,
        target=tmp_path / "target/dataset.yaml" if BENCHMARKS[case.name].needs_target else None,
        counts=json.loads((tmp_path / "out/prepared.json").read_text())["counts"],
    )
    assert again.was_there
    assert again.sections == made.sections
    assert files_below(tmp_path / "out") == out


def test_masks_that_can_be_used_as_they_are_are_not_copied(tmp_path: Path) -> None:
    for write, name in (
        (published.write_voc, "voc"),
        (published.write_cityscapes, "cityscapes"),
        (published.write_ade20k, "ade20k"),
        (published.write_coco_with_masks, "coco"),
        (published.write_camvid_of_segnet, "camvid"),
        (published.write_idd_of_masks, "idd"),
    ):
        case = Case(name, "fine" if name == "voc" else None, write)
        prepare_case(case, tmp_path / name)
        assert [*(tmp_path / name / "out").rglob("*.png")] == []


def test_names_and_ids_follow_the_published_order() -> None:
    counts = {name: benchmark.counts for name, benchmark in BENCHMARKS.items()}
    assert counts["voc"]["classic"] == {"labeled": 1464, "unlabeled": 9118, "val": 1449}
    assert counts["voc"]["blender"]["labeled"] == 1464 + 9118
    assert counts["cityscapes"][""] == {"labeled": 2975, "val": 500}
    for benchmark in BENCHMARKS.values():
        assert {*benchmark.counts} == {*benchmark.variants} or {*benchmark.counts} == {""}


@pytest.mark.parametrize("case", CASES[:1] + CASES[4:6] + CASES[9:13:2] + CASES[14:15], ids=str)
def test_published_counts_are_required(case: Case, tmp_path: Path) -> None:
    prepare_case(case, tmp_path)  # the tiny tree is right in itself
    target = tmp_path / "target/dataset.yaml" if case.name == "gta5" else None
    with pytest.raises(
        UserError, match=r"expected \d+ images in 'labeled' of .*, found \d; unpack"
    ):
        prepare_dataset(
            case.name,
            tmp_path / "source",
            out=tmp_path / "new",
            variant=case.variant,
            target=target,
        )
    assert not (tmp_path / "new").exists()


# what is missing


def test_missing_archive_is_named_with_its_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    published.write_cityscapes(tmp_path / "city")
    (tmp_path / "city/leftImg8bit").rename(source / "leftImg8bit")
    with pytest.raises(UserError) as error:
        prepare_dataset("cityscapes", source, out=tmp_path / "out")
    assert str(error.value) == (
        f"{source} holds neither the archive gtFine_trainvaltest.zip nor its tree (gtFine/train, "
        "gtFine/val in . or cityscapes); fetch it from "
        "https://www.cityscapes-dataset.com/downloads/."
    )
    assert not (tmp_path / "out").exists()


def test_archive_that_needs_no_account_may_be_fetched(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=r"VOCtrainval_11-May-2012.tar .*, or give --download"):
        prepare_dataset("voc", tmp_path / "source", out=tmp_path / "out")


def test_some_of_many_archives_are_not_enough(tmp_path: Path) -> None:
    published.write_gta5(tmp_path / "tree")
    source = tmp_path / "source"
    source.mkdir()
    published.zip_of(tmp_path / "tree", source / "01_images.zip")
    published.write_cityscapes(tmp_path / "city")
    counts = {"labeled": 3, "val": 2}
    city = prepare_dataset("cityscapes", tmp_path / "city", out=tmp_path / "t", counts=counts)
    with pytest.raises(UserError, match=r"archive 02_images.zip, 03_images.zip.* fetch them from"):
        prepare_dataset("gta5", source, out=tmp_path / "out", target=city.path)


def test_archive_that_needs_another_program_says_so(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    published.write_cityscapes(tmp_path / "city")
    counts = {"labeled": 3, "val": 2}
    city = prepare_dataset("cityscapes", tmp_path / "city", out=tmp_path / "t", counts=counts)
    with pytest.raises(UserError, match=r"SYNTHIA_RAND_CITYSCAPES.rar .* and unpack it there"):
        prepare_dataset("synthia", source, out=tmp_path / "out", target=city.path)
    (source / "SYNTHIA_RAND_CITYSCAPES.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match="u2pl cannot unpack; unpack it where it is, with unrar"):
        prepare_dataset("synthia", source, out=tmp_path / "out", target=city.path)


@pytest.mark.parametrize(
    ("write", "name", "gone", "sentence"),
    [
        (published.write_voc, "voc", "SegmentationClass/2007_000039.png", "1 of 5 images have no"),
        (published.write_cityscapes, "cityscapes", "*_gtFine_labelIds.png", "images have no mask"),
        (published.write_ade20k, "ade20k", "ADE_train_00000002.png", "1 of 3 images have no mask"),
        (published.write_coco_with_masks, "coco", "000000000285.png", "1 of 2 images have no mask"),
        (published.write_camvid_of_segnet, "camvid", "valannot/0016E5_07959.png", "1 of 2 images"),
        (published.write_idd_of_polygons, "idd", "gtFine/val/3/*.json", "1 of 2 images have no"),
    ],
)
def test_image_without_its_mask_is_named(
    write: Callable[[Path], Truth], name: str, gone: str, sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / "source")
    for path in (tmp_path / "source").rglob(gone):
        path.unlink()
    variant = "fine" if name == "voc" else None
    with pytest.raises(UserError, match=sentence):
        prepare_dataset(name, tmp_path / "source", out=tmp_path / "out", variant=variant)


def test_damaged_record_and_foreign_folders_are_not_written_to(tmp_path: Path) -> None:
    truth = published.write_camvid_of_segnet(tmp_path / "source")
    counts = {section: len(rows) for section, rows in truth.items()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else; give another --out"):
        prepare_dataset("camvid", tmp_path / "source", out=tmp_path / "mine", counts=counts)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="in which nothing is to be changed"):
        prepare_dataset("camvid", tmp_path / "source", out=tmp_path / "source/x", counts=counts)
    prepare_dataset("camvid", tmp_path / "source", out=tmp_path / "out", counts=counts)
    with pytest.raises(UserError, match="made with variant segnet and not full"):
        prepare_dataset(
            "camvid", tmp_path / "source", out=tmp_path / "out", variant="full", counts=counts
        )
    (tmp_path / "out/prepared.json").write_text("{")
    with pytest.raises(UserError, match="is damaged; move"):
        prepare_dataset("camvid", tmp_path / "source", out=tmp_path / "out", counts=counts)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "vox"}, "There is no published data set 'vox'. Did you mean 'voc'"),
        ({"name": "voc", "variant": "blend"}, "to be one of classic, blender, fine, got 'blend'"),
        ({"name": "ade20k", "variant": "x"}, "variant of ade20k to be none, got 'x'"),
        ({"name": "gta5"}, "gta5 has no images to score on: name the data set to adapt to"),
        ({"name": "voc", "target": "x.yaml"}, "has images of its own to score on; leave --target"),
        ({"name": "cityscapes", "download": True}, "cannot be fetched by a program; fetch it from"),
    ],
)
def test_malformed_request_is_a_sentence_and_status_2(
    options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        prepare_dataset(**options, source=tmp_path, out=tmp_path / "out")
    assert error.value.exit_code == 2


def test_count_of_a_section_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    published.write_voc(tmp_path / "source")
    with pytest.raises(UserError, match="has no section 'test' to count; expected labeled, val"):
        prepare_dataset(
            "voc", tmp_path / "source", out=tmp_path / "out", variant="fine", counts={"test": 1}
        )


def test_target_without_a_class_of_the_source_is_refused(tmp_path: Path) -> None:
    truth = published.write_camvid_of_segnet(tmp_path / "camvid")
    counts = {section: len(rows) for section, rows in truth.items()}
    other = prepare_dataset("camvid", tmp_path / "camvid", out=tmp_path / "t", counts=counts)
    published.write_gta5(tmp_path / "source")
    with pytest.raises(UserError, match="has no class 'sidewalk', which 19 classes of the source"):
        prepare_dataset("gta5", tmp_path / "source", out=tmp_path / "out", target=other.path)


# two domains


def test_source_is_labelled_and_the_target_is_not(tmp_path: Path) -> None:
    case = Case("synthia", "13", write_synthia_13)
    made, _ = prepare_case(case, tmp_path)
    dataset = load_dataset(made.path)
    city = load_dataset(tmp_path / "target")
    assert [s.image for s in dataset.unlabeled] == [s.image for s in city.labeled]
    assert [s.image for s in dataset.val] == [s.image for s in city.val]
    for sample, theirs in zip(dataset.val, city.val, strict=True):
        names = np.array([*dataset.classes, *["ignored"] * (256 - dataset.num_classes)])
        others = np.array([*city.classes, *["ignored"] * (256 - city.num_classes)])
        wanted = others[city.read_mask(theirs)]
        wanted[~np.isin(wanted, dataset.classes)] = "ignored"
        assert np.array_equal(names[dataset.read_mask(sample)], wanted)


def test_gta5_images_whose_mask_has_another_size_are_left_out_and_named(tmp_path: Path) -> None:
    made, _ = prepare_case(Case("gta5", None, published.write_gta5), tmp_path)
    assert (tmp_path / "out/left-out.txt").read_text() == "00003\n"
    assert any("Left out: 1 images whose masks have another size, 00003" in n for n in made.notes)
    assert "00003" not in {sample.name for sample in load_dataset(made.path).labeled}


# archives, and calls that were cut off


def test_archives_are_unpacked_once_and_a_torn_one_is_told(tmp_path: Path) -> None:
    truth = published.write_ade20k(tmp_path / "tree")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    archive = source / "ADEChallengeData2016.zip"
    published.zip_of(tmp_path / "tree", archive)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-2000])
    counts = {section: len(rows) for section, rows in truth.items()}
    with pytest.raises(UserError, match=r"cannot be unpacked .*; fetch it again from http://scene"):
        prepare_dataset("ade20k", source, out=out, counts=counts)
    archive.write_bytes(whole)
    made = prepare_dataset("ade20k", source, out=out, counts=counts)
    dataset = load_dataset(made.path)
    for sample in dataset.labeled:
        assert sample.image.is_relative_to(out)
        assert np.array_equal(dataset.read_mask(sample), truth["labeled"][sample.name])
    assert [*source.iterdir()] == [archive]


def test_unpacking_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    truth = published.write_ade20k(tmp_path / "tree")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    published.zip_of(tmp_path / "tree", source / "ADEChallengeData2016.zip")
    counts = {section: len(rows) for section, rows in truth.items()}

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("unpacking") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("ade20k", source, out=out, counts=counts, on_progress=stop)
    (mark,) = out.rglob(".unpacked-*")
    mark.unlink()  # as if it had been killed before the end
    images = sorted((out / "unpacked").rglob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in images[2:]}
    prepare_dataset("ade20k", source, out=out, counts=counts)
    assert images[0].is_file()
    assert images[1].stat().st_size > 0
    assert {path: path.stat().st_mtime_ns for path in images[2:]} == before


def test_masks_that_are_there_are_not_made_again_after_a_kill(tmp_path: Path) -> None:
    truth = published.write_camvid_in_color(tmp_path / "source")
    out = tmp_path / "out"
    counts = {section: len(rows) for section, rows in truth.items()}
    call = {"variant": "full", "counts": counts, "out": out}
    made_before_the_stop = 4

    def stop(stage: str, done: int, total: int) -> None:
        if done == made_before_the_stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("camvid", tmp_path / "source", **call, on_progress=stop)
    there = {path: path.stat().st_mtime_ns for path in (out / "masks").glob("*.png")}
    (out / "masks/.0123456789ab.1.1.tmp").write_bytes(b"half")  # what a kill in a write leaves
    assert made_before_the_stop <= len(there) <= 10
    assert not (out / "dataset.yaml").exists()
    seen = []
    made = prepare_dataset(
        "camvid", tmp_path / "source", **call, on_progress=lambda *step: seen.append(step)
    )
    assert not made.was_there
    assert len(seen) == 10 - len(there)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    dataset = load_dataset(made.path)
    for section, masks in truth.items():
        for sample in dataset.sections[section]:
            assert np.array_equal(dataset.read_mask(sample), masks[sample.name])


def test_masks_are_made_by_several_threads_and_an_error_ends_all(tmp_path: Path) -> None:
    published.write_camvid_in_color(tmp_path / "source")
    (bad,) = (tmp_path / "source").rglob("0006R0_f00930_L.png")
    bad.write_bytes(b"")
    counts = {section: len(names) for section, names in published.CAMVID_FRAMES.items()}
    with pytest.raises(UserError, match=r"0006R0_f00930_L.png: the file"):
        prepare_dataset(
            "camvid", tmp_path / "source", out=tmp_path / "out", variant="full", counts=counts
        )
    assert threading.active_count() == 1


def test_licence_is_in_the_folder_and_in_the_result(tmp_path: Path) -> None:
    made, _ = prepare_case(Case("ade20k", None, published.write_ade20k), tmp_path)
    text = (tmp_path / "out/LICENCE-OF-THE-DATA.txt").read_text()
    assert made.benchmark.licence in text
    assert "http://sceneparsing.csail.mit.edu/" in text
    assert made.to_json()["licence"] == made.benchmark.licence


# published lists


@pytest.mark.parametrize(
    "line",
    [
        "2008_000008",  # U2PL's lists of VOC
        "JPEGImages/2008_000008.jpg SegmentationClassAug/2008_000008.png",  # ST++, UniMatch
        "JPEGImages/2008_000008.jpg\tSegmentationClassAug/2008_000008.png",  # CPS
        "/JPEGImages/2008_000008.jpg /SegmentationClassAug/2008_000008.png",
    ],
)
def test_published_list_of_voc_is_taken_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text(f"{line}\n")
    case = Case("voc", "blender", published.write_voc_with_aug)
    made, _ = prepare_case(case, tmp_path, split=tmp_path / "labeled.txt")
    assert made.split is not None
    dataset = load_dataset(made.split.path)
    assert [sample.name for sample in dataset.labeled] == ["2008_000008"]
    assert len(dataset.unlabeled) == 5
    assert len(dataset.val) == 2


@pytest.mark.parametrize(
    "line",
    [
        "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png",  # U2PL
        "ulm/ulm_000001_000019_leftImg8bit.png ulm/ulm_000001_000019_gtFine_labelTrainIds.png",
        "ulm_000001_000019",
    ],
)
def test_published_list_of_cityscapes_is_taken_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text(f"{line}\n")
    case = Case("cityscapes", None, published.write_cityscapes)
    made, _ = prepare_case(case, tmp_path, split=tmp_path / "labeled.txt")
    assert made.split is not None
    names = [sample.name for sample in load_dataset(made.split.path).labeled]
    assert names == ["ulm/ulm_000001_000019_leftImg8bit"]
