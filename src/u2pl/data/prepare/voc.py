"""PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from u2pl.data.class_tables import VOC
from u2pl.data.images import FileError
from u2pl.data.init.draft import Encoding, list_images, name_of, some
from u2pl.data.prepare.job import Benchmark, Draft, Job, Labels, Part, Section, lines, require_pairs
from u2pl.data.prepare.mat import read_field
from u2pl.errors import UserError
from u2pl.plain_files import read_bytes, read_text

_VOC = Part(
    name="voc",
    archives=("VOCtrainval_11-May-2012.tar",),
    page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    holds=("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
    places=("VOCdevkit/VOC2012", "", "VOC2012"),
    md5={"VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd"},
    url={
        "VOCtrainval_11-May-2012.tar": (
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
        )
    },
)
_SBD = Part(
    name="sbd",
    archives=("benchmark.tgz",),
    page="http://home.bharathh.info/pubs/codes/SBD/download.html",
    holds=("cls", "train.txt", "val.txt"),
    places=("benchmark_RELEASE/dataset", "", "dataset", "sbd", "SBD"),
    md5={"benchmark.tgz": "82b4d87ceb2ed10f6038a1cba92111cb"},
    url={
        "benchmark.tgz": (
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
            "semantic_contours/benchmark.tgz"
        )
    },
)
_AUG = Part(
    name="aug",
    archives=("SegmentationClassAug.zip",),
    page="https://github.com/DrSleep/tensorflow-deeplab-resnet",
    holds=("SegmentationClassAug/*.png",),
    places=("", "VOCdevkit/VOC2012", "VOC2012"),
)


def _draft(job: Job) -> Draft:
    root = job.tree(_VOC)
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    train, val = (
        _names(root / f"ImageSets/Segmentation/{split}.txt") for split in ("train", "val")
    )
    draft = Draft(Encoding(VOC))
    folder = {"images": job.spell(images), "masks": job.spell(masks)}
    draft.sections["labeled"] = Section({**folder, "list": "labeled.txt"}, len(train), _VOC)
    draft.sections["val"] = Section({**folder, "list": "val.txt"}, len(val), _VOC)
    draft.files = {job.out / "labeled.txt": lines(train), job.out / "val.txt": lines(val)}
    there = frozenset(name_of(file) for file in list_images(masks, (".png",)))
    require_pairs(_VOC, [*train, *val], there, where=masks)
    if job.variant == "fine":
        return draft
    aug = job.find(_AUG)
    more = _more_names(job, aug, train, val)
    if job.variant == "classic":
        keys = {"images": job.spell(images), "list": "unlabeled.txt"}
        draft.sections["unlabeled"] = Section(keys, len(more), _SBD)
        draft.files[job.out / "unlabeled.txt"] = lines(more)
        return draft
    every = sorted([*train, *more])
    draft.files[job.out / "labeled.txt"] = lines(every)
    keys = {"images": job.spell(images), "list": "labeled.txt"}
    if aug is not None:
        keys["masks"] = job.spell(aug / "SegmentationClassAug")
        draft.notes.append(f"Masks: those of {aug / 'SegmentationClassAug'}, as they are.")
    else:
        keys["masks"] = "labeled-masks.txt"
        _convert(job, draft, masks, train, more)
    draft.sections["labeled"] = Section(keys, len(every), _SBD)
    return draft


def _more_names(job: Job, aug: Path | None, train: list[str], val: list[str]) -> list[str]:
    """Return the images of "trainaug" that are not in VOC's own train, sorted.

    They are all of SBD's train and val that VOC does not score on.
    """
    if aug is not None:
        found = {name_of(file) for file in list_images(aug / "SegmentationClassAug", (".png",))}
    else:
        sbd = job.tree(_SBD)
        found = {*_names(sbd / "train.txt"), *_names(sbd / "val.txt")}
    return sorted(found - {*train} - {*val})


def _convert(job: Job, draft: Draft, masks: Path, train: list[str], more: list[str]) -> None:
    """Have SBD's masks made, and list them beside VOC's own."""
    sbd = job.tree(_SBD)
    there = frozenset(path.stem for path in (sbd / "cls").glob("*.mat"))
    require_pairs(_SBD, more, there, where=sbd / "cls")
    made = {name: job.out / "masks" / f"{name}.png" for name in more}
    draft.masks = {made[name]: partial(read_sbd, sbd / "cls" / f"{name}.mat") for name in more}
    files = [*(masks / f"{name}.png" for name in train), *made.values()]
    draft.files[job.out / "labeled-masks.txt"] = lines([job.spell(file) for file in files])
    draft.notes.append(
        f"Masks: VOC's own for its {len(train)} training images, SBD's for the other {len(more)}, "
        "converted to PNG. SBD's have no ignored border."
    )


def read_sbd(path: Path) -> Labels:
    """Return the class ids [H, W] of one of SBD's .mat files.

    Raises:
        UserError: where the file is another one.
    """
    try:
        labels = read_field(read_bytes(path), "GTcls", "Segmentation")
    except (OSError, ValueError) as error:
        what = f"it is not one of SBD's masks ({error})"
        raise FileError(path, what, "unpack benchmark.tgz again") from None
    is_known = (labels >= 0) & (labels < len(VOC)) & (labels == np.floor(labels))
    if not is_known.all():
        raise FileError(path, f"expected ids 0 to {len(VOC) - 1}", "unpack benchmark.tgz again")
    return labels.astype(np.uint8)


def _names(path: Path) -> list[str]:
    """Return the names that a list holds, one a line."""
    try:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError):
        raise UserError(f"The list {path} cannot be read; unpack its archive again.") from None
    odd = [name for name in names if not name.replace("_", "").isalnum()]
    if odd or len({*names}) < len(names):
        raise UserError(
            f"{path}: expected a name such as 2007_000032 a line, each once, got "
            f"{some(odd or names)}; unpack its archive again."
        )
    return names


BENCHMARK = Benchmark(
    name="voc",
    title="PASCAL VOC 2012 with SBD",
    variants={
        "classic": "1464 fine masks; the other 9118 images of SBD are unlabelled",
        "blender": "10582 masks: VOC's 1464 and SBD's 9118",
        "fine": "1464 fine masks and no other image; SBD is not needed",
    },
    counts={
        "classic": {"labeled": 1464, "unlabeled": 9118, "val": 1449},
        "blender": {"labeled": 10582, "val": 1449},
        "fine": {"labeled": 1464, "val": 1449},
    },
    parts=(_VOC, _SBD, _AUG),
    licence=(
        "VOC and SBD: the images are from Flickr, and Flickr's terms of use hold for them "
        "(https://www.flickr.com/help/terms). Neither page names a licence of the annotations; "
        "both ask to be cited: Everingham et al., IJCV 2010; Hariharan et al., ICCV 2011."
    ),
    draft=_draft,
)
