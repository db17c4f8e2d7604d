"""Trains `camvid-small` on a share of CamVid's labels, several seeds, and prints the table.

    python benchmarks/camvid_small.py CAMVID --out runs/camvid --weights MOBILENETV2.safetensors

CAMVID holds ``images/*.jpg``, ``masks/*.png`` (index masks, 255 = ignore), ``classes.json`` and
``train.txt``, ``val.txt``, ``test.txt`` (stems). Runs that have a result are not repeated, so an
interrupted table goes on where it stopped. ``--weights none`` lets timm download the encoder.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import yaml
from cells import Method, Methods, add_arguments, run_table

METHODS: Methods = {
    "supervised": Method("supervised"),
    "no_contrast": Method("semi", {"method.contrastive_weight": 0.0}),
    "u2pl": Method("semi"),
}


def spread(stems: list[str], num_chosen: int, seed: int) -> list[str]:
    """One random frame out of each of ``num_chosen`` equal stretches of the video."""
    draw = random.Random(seed)
    stretch = len(stems) / num_chosen
    return [stems[int((i + draw.random()) * stretch)] for i in range(num_chosen)]


def write_split(camvid: Path, folder: Path, *, share: int, seed: int) -> Path:
    """Write lists of labelled and unlabelled images and the dataset.yaml that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    stems = sorted((camvid / "train.txt").read_text().split())
    labeled = spread(stems, round(len(stems) / share), seed)
    lists = {"labeled": labeled, "unlabeled": sorted(set(stems) - set(labeled))}
    for name in ("val", "test"):
        lists[name] = (camvid / f"{name}.txt").read_text().split()
    for name, members in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(members) + "\n")
    tree: dict[str, Any] = {
        "classes": json.loads((camvid / "classes.json").read_text()),
        "root": str(camvid.resolve()),
    }
    for name in lists:
        tree[name] = {"images": "images", "list": str((folder / f"{name}.txt").resolve())}
        if name != "unlabeled":
            tree[name]["masks"] = "masks"
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def main() -> None:
    """Read the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--share", type=int, default=8, help="1 in SHARE of train is labelled")
    add_arguments(parser, METHODS)
    arguments = parser.parse_args()
    run_table(
        arguments,
        METHODS,
        recipe="camvid-small",
        write_split=lambda folder, seed: write_split(
            arguments.camvid, folder, share=arguments.share, seed=seed
        ),
    )


if __name__ == "__main__":
    main()
