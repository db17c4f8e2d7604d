"""Adapts CamVid (source, with masks) to LabelMeFacade (target), six classes, and prints the table.

    python benchmarks/street6_small.py CAMVID LABELMEFACADE MAPS.json --out runs/street6 \
        --weights MOBILENETV2.safetensors

Both folders are as in ``camvid_small.py``; LabelMeFacade has no ``val.txt``. MAPS.json holds under
``street6`` the six ``classes`` and, under ``camvid`` and ``labelmefacade``, each folder's ids to
their places in them. Target images without masks are LabelMeFacade's train images and, drawn by
the seed, 400 of its test images; of the others 145 are val and the rest test.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import yaml
from cells import Method, Methods, add_arguments, run_table

from u2pl.recipes import adapt

METHODS: Methods = {
    "source_only": Method("supervised"),
    "dacs": Method("adapt", adapt.DACS),
    "no_contrast": Method("adapt", {"method.contrastive_weight": 0.0}),
    "u2pl": Method("adapt"),
}
NUM_UNLABELED, NUM_VAL = 400, 145


def write_split(source: Path, target: Path, maps: Path, folder: Path, *, seed: int) -> Path:
    """Write the lists and the dataset.yaml of the pair."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = json.loads(maps.read_text())["street6"]
    test = sorted((target / "test.txt").read_text().split())
    random.Random(seed).shuffle(test)
    lists = {
        "labeled": (source / "train.txt").read_text().split(),
        "unlabeled": (target / "train.txt").read_text().split() + test[:NUM_UNLABELED],
        "val": test[NUM_UNLABELED : NUM_UNLABELED + NUM_VAL],
        "test": test[NUM_UNLABELED + NUM_VAL :],
    }
    tree: dict[str, Any] = {"classes": pair["classes"]}
    for name, members in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(members) + "\n")
        root = (source if name == "labeled" else target).resolve()
        tree[name] = {"images": str(root / "images"), "list": f"{name}.txt"}
        if name != "unlabeled":
            ids = pair["camvid" if name == "labeled" else "labelmefacade"]
            tree[name]["masks"] = str(root / "masks")
            tree[name]["id_map"] = {int(old): new for old, new in ids.items()}
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def main() -> None:
    """Read the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("maps", type=Path)
    add_arguments(parser, METHODS)
    arguments = parser.parse_args()
    run_table(
        arguments,
        METHODS,
        recipe="street6-small",
        write_split=lambda folder, seed: write_split(
            arguments.source, arguments.target, arguments.maps, folder, seed=seed
        ),
    )


if __name__ == "__main__":
    main()
