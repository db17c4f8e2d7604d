"""SYNTHIA-RAND-CITYSCAPES, the source of an adaptation to Cityscapes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from u2pl.data.class_tables import CITYSCAPES, SYNTHIA, SYNTHIA_ONLY_16
from u2pl.data.images import FileError, read_first_channel
from u2pl.data.init.draft import Encoding, list_images, name_of
from u2pl.data.prepare.job import Benchmark, Draft, Job, Labels, Part, Section, require_pairs, spell
from u2pl.data.prepare.target import add_target, target_root

_SYNTHIA = Part(
    name="synthia",
    archives=("SYNTHIA_RAND_CITYSCAPES.rar",),
    page="http://synthia-dataset.net/downloads/",
    holds=("RGB/*.png", "GT/LABELS/*.png"),
    places=("RAND_CITYSCAPES", "", "SYNTHIA_RAND_CITYSCAPES", "synthia"),
)
_LAST = 22  # lane marking
_IGNORE = 255


def _draft(job: Job) -> Draft:
    tree = job.tree(_SYNTHIA)
    images, labels = tree / "RGB", tree / "GT" / "LABELS"
    names = [name_of(file) for file in list_images(images, (".png",))]
    there = frozenset(path.stem for path in labels.glob("*.png"))
    require_pairs(_SYNTHIA, names, there, where=labels)
    root, made = target_root(job), job.out / "masks"
    classes = [
        name for name in SYNTHIA.values() if job.variant == "16" or name not in SYNTHIA_ONLY_16
    ]
    colors = {name: color for _, name, color in CITYSCAPES}
    draft = Draft(Encoding(tuple(classes), tuple(colors[name] for name in classes)))
    ids = {label: classes.index(name) for label, name in SYNTHIA.items() if name in classes}
    draft.masks = {
        made / f"{name}.png": partial(read_classes, labels / f"{name}.png", ids) for name in names
    }
    keys = {"images": spell(images, root), "masks": spell(made, root)}
    draft.sections["labeled"] = Section(keys, len(names), _SYNTHIA)
    draft.notes.append(
        "Masks: the ids in the first channel of GT/LABELS, of 16 bits a channel, as class ids of 8 "
        "bits; what is no class is ignored."
    )
    add_target(job, draft)
    return draft


def read_classes(path: Path, ids: dict[int, int]) -> Labels:
    """Return a mask [H, W] as class ids; 255 where SYNTHIA's id is not among ``ids``."""
    table = np.full(_LAST + 1, _IGNORE, np.uint8)
    table[[*ids]] = [*ids.values()]
    classes: Labels = table[read_labels(path)]
    return classes


def read_labels(path: Path) -> Labels:
    """Return SYNTHIA's ids [H, W], 0 to 22, of a file of GT/LABELS.

    The file is a PNG of three channels of 16 bits: the class, the instance, and nothing.

    Raises:
        UserError: where it cannot be read, or has other ids.
    """
    labels = read_first_channel(path)
    if labels.max(initial=0) > _LAST:
        raise FileError(
            path,
            f"expected ids 0 to {_LAST} in the first channel, got {int(labels.max())}",
            "unpack SYNTHIA_RAND_CITYSCAPES.rar again",
        )
    return labels


BENCHMARK = Benchmark(
    name="synthia",
    title="SYNTHIA-RAND-CITYSCAPES",
    variants={
        "16": "the 16 classes that it shares with Cityscapes",
        "13": "these without wall, fence and pole",
    },
    counts={"16": {"labeled": 9400}, "13": {"labeled": 9400}},
    parts=(_SYNTHIA,),
    licence=(
        "SYNTHIA: CC BY-NC-SA 3.0, for non-commercial use (http://synthia-dataset.net/). Cite Ros "
        "et al., CVPR 2016."
    ),
    draft=_draft,
    needs_target=True,
)
