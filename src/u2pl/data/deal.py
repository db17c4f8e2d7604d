"""Images of one section of a data set dealt to others, by chance: some of test become val."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from u2pl.data.images import write_whole
from u2pl.data.sources import SECTIONS, Dataset, Sample, list_unlabeled, load_dataset
from u2pl.errors import UserError
from u2pl.plain_files import read_yaml

Deal = Mapping[str, Mapping[str, int]]
"""Section to sections to numbers of images: ``{"test": {"unlabeled": 400, "val": 145}}``."""


def deal_dataset(path: Path, deal: Deal, *, seed: int) -> Path:
    """Write a data set in which images have moved from one section to others.

    The images of a section are shuffled in the order of their names; the first go to the first
    section that is named, and so on, and the rest stays. Images that go to 'unlabeled' leave their
    masks behind. The new file and its lists lie beside the one that it is made of, as
    ``dataset-dealt-seed0.yaml`` and the folder ``dataset-dealt-seed0``.

    Args:
        path: a dataset.yaml.
        deal: see :data:`Deal`.
        seed: not negative.

    Returns:
        The new file.

    Raises:
        UserError: where a section has too few images, cannot give or take any, or the data set is
            faulty.
    """
    dataset = load_dataset(path, require=tuple(deal))
    tree = read_yaml(path)
    members = dict(dataset.sections)
    specs = {name: tree.get(name) for name in SECTIONS}
    for source, parts in deal.items():
        left = sorted(dataset.sections[source], key=lambda sample: sample.name)
        random.Random(seed).shuffle(left)
        for target, count in parts.items():
            _refuse(path, members, source, target, len(left), count)
            members[target] = (*members[target], *left[:count])
            specs[target] = specs[target] or specs[source]
            left = left[count:]
        members[source] = tuple(left)
    moved = {*deal, *(target for parts in deal.values() for target in parts)}
    folder = path.parent / f"{path.stem}-dealt-seed{seed}"
    for name in moved:
        tree[name] = _listed(dataset, name, specs[name], members[name], folder)
    tree["root"] = os.path.realpath(path.parent / (tree.get("root") or "."))
    made = path.with_name(f"{folder.name}.yaml")
    _write(made, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    load_dataset(made, require=())  # names that no list can hold are told now
    return made


def _refuse(
    path: Path,
    members: Mapping[str, Sequence[Sample]],
    source: str,
    target: str,
    left: int,
    count: int,
) -> None:
    """Raise UserError for a deal that cannot be."""
    if source == "unlabeled" and target != "unlabeled":
        raise UserError(f"{path}: images of 'unlabeled' have no masks for '{target}'.", exit_code=2)
    if source == target or (target != "unlabeled" and members[target]):
        raise UserError(
            f"{path}: '{target}' has images of its own; deal to 'unlabeled', or to a section that "
            "has none.",
            exit_code=2,
        )
    if count > left:
        raise UserError(
            f"{path}: {count} images of '{source}' are to become '{target}', but {left} are left.",
            exit_code=2,
        )


def _listed(
    dataset: Dataset, name: str, spec: dict[str, Any], members: Sequence[Sample], folder: Path
) -> dict[str, Any] | None:
    """Write the list of a section's members; return what a dataset.yaml says of the section."""
    if not members:
        return None
    file = folder.resolve() / f"{name}.txt"
    if name == "unlabeled":  # from folders of any section: a list of paths
        files_first = sorted(members, key=lambda sample: not isinstance(sample.image, Path))
        images, with_shards = list_unlabeled(dataset, files_first)
        section = {"shards": spec["shards"]} if with_shards else {}
        if images:
            _write(file, "".join(f"{image}\n" for image in images))
            section["images"] = str(file)
        return section
    _write(file, "".join(f"{sample.name}\n" for sample in members))
    return {**spec, "list": str(file)}


def _write(path: Path, text: str) -> None:
    write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
