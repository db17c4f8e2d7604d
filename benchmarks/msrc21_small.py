"""Trains `msrc21-small` on MSRC-21's photographs known by their tags alone, and prints the table.

    python benchmarks/msrc21_small.py MSRC21 --out runs/msrc21 --weights LITE0.safetensors

MSRC21 holds ``images/*.jpg``, ``masks/*.png`` (index masks, 255 = ignore), ``classes.json``,
``train.txt``, ``val.txt``, ``test.txt`` (stems) and ``image_tags.json`` (stem to class ids). All of
train has tags and no masks; the row ``ceiling`` alone trains on the true masks. The first row makes
a seed's seeds, and the other rows take them from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from cells import Method, Methods, add_arguments, mean_and_spread, run_table

from u2pl.recipes import SETTINGS

MAKES_SEEDS = "seeds_only"
METHODS: Methods = {
    MAKES_SEEDS: Method("weak", SETTINGS["supervised"]),
    "no_contrast": Method("weak", {"method.contrastive_weight": 0.0}),
    "u2pl": Method("weak"),
    "ceiling": Method("supervised", dataset="true.yaml"),
}


def write_split(msrc: Path, folder: Path) -> Path:
    """Write the tags, the dataset.yaml that names them, and a true.yaml with all masks."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = json.loads((msrc / "classes.json").read_text())
    tags = json.loads((msrc / "image_tags.json").read_text())
    rows = ["image,classes"]
    for stem in (msrc / "train.txt").read_text().split():
        rows.append(f"{stem},{';'.join(classes[class_id] for class_id in tags[stem])}")
    (folder / "tags.csv").write_text("\n".join(rows) + "\n")
    tree: dict[str, Any] = {"classes": classes, "root": str(msrc.resolve())}
    lists = {"unlabeled": "train", "val": "val", "test": "test"}
    for section, name in lists.items():
        shutil.copyfile(msrc / f"{name}.txt", folder / f"{name}.txt")
        tree[section] = {"images": "images", "list": str((folder / f"{name}.txt").resolve())}
        if section != "unlabeled":
            tree[section]["masks"] = "masks"
    true = {**tree, "labeled": {**tree["unlabeled"], "masks": "masks"}}
    del true["unlabeled"]
    (folder / "true.yaml").write_text(yaml.safe_dump(true, sort_keys=False))
    path = folder / "dataset.yaml"
    tagged = {**tree, "tags": str((folder / "tags.csv").resolve())}
    path.write_text(yaml.safe_dump(tagged, sort_keys=False))
    return path


def print_seeds(out: Path) -> None:
    """Print what the seeds themselves are worth, over the seeds of chance that are there."""
    files = sorted(out.glob(f"{MAKES_SEEDS}-*/eval/seeds.json"))
    qualities = [json.loads(file.read_text()) for file in files]
    columns = ("miou", "miou_sure", "precision", "labeled_share")
    print("\n| the seeds themselves | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    cells = [mean_and_spread([quality[column] for quality in qualities]) for column in columns]
    print(f"| train, {len(files)} seeds | " + " | ".join(cells) + " |")


def main() -> None:
    """Read the command line, run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("msrc21", type=Path)
    add_arguments(parser, METHODS)
    arguments = parser.parse_args()

    def overrides_of(name: str, seed: int) -> dict[str, Any]:
        if METHODS[name].setting != "weak":
            return {}
        if name != MAKES_SEEDS:
            return {"weak.seeds_from": str(arguments.out / f"{MAKES_SEEDS}-{seed}")}
        return {"weak.true_masks": str(arguments.msrc21 / "masks")}

    run_table(
        arguments,
        METHODS,
        recipe="msrc21-small",
        write_split=lambda folder, seed: write_split(arguments.msrc21, folder),
        overrides_of=overrides_of,
    )
    print_seeds(arguments.out)


if __name__ == "__main__":
    main()
