"""The data set to adapt to: its images without masks, and its val and test to score on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from u2pl.data.prepare.job import Draft, Job, Section, lines, spell
from u2pl.data.sources import Dataset, load_dataset
from u2pl.errors import UserError
from u2pl.plain_files import read_yaml


def add_target(job: Job, draft: Draft) -> None:
    """Give a draft of source images the sections 'unlabeled', 'val' and 'test' of another data set.

    Its training images, labelled or not, become unlabelled ones. Paths then count from its root.

    Args:
        job: names its dataset.yaml.
        draft: of the source; its sections' paths must be spelled from the target's root.

    Raises:
        UserError: where the target does not know a class of the source, or has masks whose ids an
            id_map cannot read.
    """
    assert job.target is not None
    dataset = load_dataset(job.target, require=("labeled", "val"))
    root = target_root(job)
    classes = draft.encoding.classes
    missing = [name for name in classes if name not in dataset.classes]
    if missing:
        raise UserError(
            f"{dataset.path} has no class '{missing[0]}', which {len(classes)} classes of the "
            "source name; give a target such as Cityscapes with the classes that the source has."
        )
    images = list(dict.fromkeys(s.file for s in (*dataset.labeled, *dataset.unlabeled)))
    draft.root = root
    draft.files[job.out / "unlabeled.txt"] = lines([spell(image, root) for image in images])
    keys = {"images": spell(job.out / "unlabeled.txt", root)}
    draft.sections["unlabeled"] = Section(keys, len(images))
    tree = read_yaml(dataset.path)
    for name in ("val", "test"):
        samples = dataset.sections[name]
        if samples:
            id_map = _id_map(dataset, name, classes)
            draft.sections[name] = Section({**tree[name], "id_map": id_map}, len(samples))
    draft.notes.append(
        f"Target: {len(images)} images of {dataset.path} without their masks, and "
        f"{len(dataset.val)} of its val to score on."
    )


def target_root(job: Job) -> Path:
    """Return the folder that the paths of the target's dataset.yaml count from."""
    assert job.target is not None
    path = load_dataset(job.target, require=()).path
    return Path(os.path.realpath(path.parent / (read_yaml(path).get("root") or ".")))


def _id_map(dataset: Dataset, section: str, classes: Sequence[str]) -> dict[int, str]:
    """Return which of the source's classes an id in the target's masks stands for."""
    encoding = dataset.sections[section][0].mask_encoding
    if encoding.format != "index":
        raise UserError(
            f"{dataset.path}: expected index masks in '{section}', got mask_format "
            f"{encoding.format}; convert them first."
        )
    pairs: Any = encoding.id_map or [(i, i) for i in range(dataset.num_classes)]
    names = {label: dataset.classes[place] for label, place in pairs}
    return {label: name for label, name in names.items() if name in classes}
