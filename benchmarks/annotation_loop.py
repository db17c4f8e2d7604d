"""Is a frame that `u2pl label` chooses worth more than a random one? One round of it on CamVid.

    python benchmarks/annotation_loop.py CAMVID --out runs/loop --weights MOBILENETV2.safetensors

For each seed: N random frames of train are labelled, all others are not. A first model is trained.
Then each way of choosing K more frames takes their true masks as an annotator's corrections,
merges them, and trains anew on the next version of the data set. The table compares mIoU before
and after, and says how much of the handed-out pseudo-labels was there and right.

CAMVID holds ``images/*.jpg``, ``masks/*.png`` (index masks, 255 = ignore), ``classes.json`` and
``train.txt``, ``val.txt``, ``test.txt`` (stems). Trainings that have a result are not repeated, and
one that was stopped goes on. ``--weights none`` lets timm download the encoder.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import u2pl
from u2pl.config import parse_assignments
from u2pl.data.merge import merge_corrections

FIRST = "first"
Choice = Callable[[Path, list[str], int, int], list[str]]


def at_random(_: Path, names: list[str], count: int, seed: int) -> list[str]:
    """Any frames."""
    return random.Random(1000 + seed).sample(names, count)


def by_ranking(handed_out: Path, _: list[str], count: int, __: int) -> list[str]:
    """The first of `ranking.csv`."""
    return [Path(row["image"]).stem for row in ranking(handed_out)[:count]]


def by_score(handed_out: Path, _: list[str], count: int, __: int) -> list[str]:
    """Those of the highest score, however alike: the ranking without its diversity."""
    rows = sorted(ranking(handed_out), key=lambda row: -float(row["score"]))
    return [Path(row["image"]).stem for row in rows[:count]]


CHOICES: dict[str, Choice] = {"random": at_random, "ranked": by_ranking, "score": by_score}


def ranking(handed_out: Path) -> list[dict[str, str]]:
    """The rows of a ranking, in its order."""
    with (handed_out / "ranking.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lay_out(camvid: Path, folder: Path, *, count: int, seed: int) -> Path:
    """Lay frames out as a user has them, and return the dataset.yaml; masks of train stay away."""
    path = folder / "dataset.yaml"
    if path.exists():
        return path
    stems = {
        name: (camvid / f"{name}.txt").read_text().split() for name in ("train", "val", "test")
    }
    labeled = sorted(random.Random(seed).sample(sorted(stems["train"]), count))
    rest = sorted({*stems["train"]} - {*labeled})
    for place, members, masks in (
        ("labeled", labeled, True),
        ("unlabeled", rest, False),
        ("val", stems["val"], True),
        ("test", stems["test"], True),
    ):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            if kind == "images" or masks:
                (folder / place / kind).mkdir(parents=True, exist_ok=True)
                for stem in members:
                    name = f"{stem}.{suffix}"
                    shutil.copyfile(camvid / kind / name, folder / place / kind / name)
    tree: dict[str, Any] = {"classes": json.loads((camvid / "classes.json").read_text())}
    for place in ("labeled", "unlabeled", "val", "test"):
        tree[place] = {"images": f"{place}/images"}
        if place != "unlabeled":
            tree[place]["masks"] = f"{place}/masks"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def hand_out(camvid: Path, run: Path, photos: Path, out: Path, count: int) -> dict[str, float]:
    """Label and rank the unlabelled frames; how much of the first ones is labelled, and right.

    Both in percent: of all their pixels, and of the pixels that are labelled and whose truth is
    known.
    """
    result = u2pl.label(run, photos / "unlabeled/images", out=out, top=count, resume=True)
    pixels = labeled = known = right = 0
    for image in result["top"]:
        labels = np.asarray(Image.open(out / "masks" / Path(image).with_suffix(".png")))
        truth = np.asarray(Image.open(camvid / "masks" / f"{Path(image).stem}.png"))
        pixels += labels.size
        labeled += int((labels != 255).sum())
        both = (labels != 255) & (truth != 255)
        known += int(both.sum())
        right += int((labels[both] == truth[both]).sum())
    return {"labeled": 100 * labeled / pixels, "right": 100 * right / max(known, 1)}


def merged(camvid: Path, dataset: Path, chosen: list[str], name: str) -> Path:
    """The next version of the data set, with the true masks of the chosen frames."""
    out = dataset.with_name(f"dataset-{name}.yaml")
    if not out.exists():
        corrected = dataset.with_name(f"corrected-{name}")
        corrected.mkdir(exist_ok=True)
        for stem in chosen:
            shutil.copyfile(camvid / "masks" / f"{stem}.png", corrected / f"{stem}.png")
        images = dataset.parent / "unlabeled/images"
        merge_corrections(dataset, corrected, out=out, images=images)
    return out


def train_cell(
    dataset: Path, out: Path, *, recipe: str, setting: str, seed: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train, unless there is a result, and score the last teacher on val and test."""
    path = out / "cell.json"
    if path.exists():
        row: dict[str, Any] = json.loads(path.read_text())
        return row
    started, begun = time.perf_counter(), (out / "config.yaml").exists()
    u2pl.train(
        dataset,
        recipe=recipe,
        out=out,
        setting=setting,
        seed=seed,
        overrides={} if begun else overrides,
        resume=begun,
        on_evaluation=lambda step, scores: print(
            out.name, seed, step, {k: round(s.miou, 2) for k, s in scores.items()}, flush=True
        ),
    )
    row = {"cell": out.name, "seed": seed, "seconds": time.perf_counter() - started}
    row |= {split: u2pl.evaluate(out, split=split)["miou"] for split in ("val", "test")}
    path.write_text(json.dumps(row, indent=2) + "\n")
    return row


def run_seed(arguments: argparse.Namespace, seed: int, overrides: dict[str, Any]) -> None:
    """One seed: the first model, and a model for each way of choosing."""
    folder = arguments.out / f"seed-{seed}"
    photos = folder / "photos"
    dataset = lay_out(arguments.camvid, photos, count=arguments.start, seed=seed)
    train = {"recipe": arguments.recipe, "setting": arguments.setting, "seed": seed}
    train_cell(dataset, folder / FIRST, **train, overrides=overrides)
    handed_out = folder / "to-label"
    shares = hand_out(arguments.camvid, folder / FIRST, photos, handed_out, arguments.top)
    (folder / "handed-out.json").write_text(json.dumps(shares) + "\n")
    names = sorted(path.stem for path in (photos / "unlabeled/images").iterdir())
    for name in arguments.choices:
        chosen = CHOICES[name](handed_out, names, arguments.top, seed)
        version = merged(arguments.camvid, dataset, chosen, name)
        train_cell(version, folder / name, **train, overrides=overrides)


def print_table(out: Path) -> None:
    """Print mIoU before and after, and what each way gains over the first model and over random."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(out.glob("seed-*/*/cell.json")):
        row = json.loads(path.read_text())
        cells.setdefault(row["cell"], {})[row["seed"]] = row
    print("| frames | seeds | val mIoU | test mIoU | test, over first | test, over random |")
    print("|---|---|---|---|---|---|")
    for name in (FIRST, *CHOICES):
        rows = cells.get(name, {})
        if not rows:
            continue
        texts = [name, ", ".join(map(str, sorted(rows)))]
        texts += [spread([row[split] for row in rows.values()]) for split in ("val", "test")]
        for base in (FIRST, "random"):
            common = sorted({*rows} & {*cells.get(base, {})})
            gains = [rows[seed]["test"] - cells[base][seed]["test"] for seed in common]
            texts.append(spread(gains) if gains and name not in (FIRST, base) else "–")
        print("| " + " | ".join(texts) + " |")
    shares = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*/handed-out.json"))]
    for what, text in (("labeled", "of the pixels labelled"), ("right", "of those right")):
        if shares:
            print(f"Handed out: {spread([row[what] for row in shares])} % {text}")


def spread(values: list[float]) -> str:
    """Mean ± standard deviation (n - 1)."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    """Read the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="a local file, or none for timm's hub")
    parser.add_argument("--recipe", default="camvid-small")
    parser.add_argument("--setting", default="semi", help="semi or supervised")
    parser.add_argument("--start", type=int, default=23, help="frames labelled at first")
    parser.add_argument("--top", type=int, default=23, help="frames labelled in the round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = list(CHOICES)
    parser.add_argument("--choices", nargs="+", default=names, choices=names)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = parse_assignments(arguments.set)
    if arguments.weights != "none":
        overrides["model.weights"] = arguments.weights
    for seed in arguments.seeds:
        run_seed(arguments, seed, overrides)
    print_table(arguments.out)


if __name__ == "__main__":
    main()
