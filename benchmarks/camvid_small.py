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
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml

import u2pl

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {}),
    "no_contrast": ("semi", {"method.contrastive_weight": 0.0}),
    "u2pl": ("semi", {}),
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


def run(dataset: Path, out: Path, method: str, seed: int, overrides: dict[str, Any]) -> None:
    """Train one cell of the table and score its last checkpoint, student and teacher, on test."""
    if (out / "result.json").exists():
        return
    setting, changes = METHODS[method]
    started = time.perf_counter()
    result = u2pl.train(
        dataset,
        recipe="camvid-small",
        out=out,
        setting=setting,
        seed=seed,
        overrides={**changes, **overrides},
        resume=(out / "checkpoints" / "last.pt").exists(),
        on_progress=lambda p: (
            print(method, seed, p.step, p.values, flush=True) if p.step % 100 == 0 else None
        ),
        on_evaluation=lambda step, scores: print(
            method, seed, step, {name: round(score.miou, 2) for name, score in scores.items()}
        ),
    )
    seconds = time.perf_counter() - started
    row = {"method": method, "seed": seed, "seconds": seconds}
    for name in ("student", "ema"):
        row[f"val_{name}"] = result[name]["miou"]
        row[f"test_{name}"] = u2pl.evaluate(out, split="test", weights=name)["miou"]
    (out / "result.json").write_text(json.dumps(row, indent=2) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, a Markdown line a method."""
    columns = ("val_student", "val_ema", "test_student", "test_ema")
    lines = ["| method | seeds | " + " | ".join(columns) + " | seconds a run |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for method in METHODS:
        runs = [row for row in rows if row["method"] == method]
        if not runs:
            continue
        cells = [method, ", ".join(str(row["seed"]) for row in runs)]
        for column in columns:
            values = [row[column] for row in runs]
            spread_text = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread_text}")
        cells.append(f"{statistics.mean(row['seconds'] for row in runs):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="a local file, or none for timm's hub")
    parser.add_argument("--share", type=int, default=8, help="1 in SHARE of train is labelled")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = u2pl.config.parse_assignments(arguments.set)
    if arguments.weights != "none":
        overrides["model.weights"] = arguments.weights
    for seed in arguments.seeds:
        dataset = write_split(
            arguments.camvid, arguments.out / f"split-{seed}", share=arguments.share, seed=seed
        )
        for method in arguments.methods:
            run(dataset, arguments.out / f"{method}-{seed}", method, seed, overrides)
    results = sorted(arguments.out.glob("*/result.json"))
    print(table([json.loads(path.read_text()) for path in results]))


if __name__ == "__main__":
    main()
