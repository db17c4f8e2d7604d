"""Run folders written by hand: what a report reads, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from u2pl import make_config
from u2pl.config import save_config

NAMES = ("sky", "road", "car")


def scores_of(names: tuple[str, ...], *, miou: float = 60.0, step: int = 40) -> dict[str, Any]:
    """An evaluation in which each class is confused a little with the next."""
    own, next_one = (np.eye(len(names), k=k, dtype=int) for k in (0, 1))
    confusion = (90 * own + 10 * next_one).tolist()
    return {
        "miou": miou,
        "iou": dict.fromkeys(names[:-1], miou) | {names[-1]: None},
        "pixel_accuracy": 90.0,
        "protocol": "whole",
        "weights": "ema",
        "step": step,
        "images": 5,
        "split_sha256": "0" * 64,
        "confusion": confusion,
    }


def inspection_of(names: tuple[str, ...], images: list[str]) -> dict[str, Any]:
    """An inspection of val with these images drawn."""
    split = {
        "reliable": 80,
        "reliable_precision": 95.0,
        "unreliable": 20,
        "unreliable_precision": 40.0,
        "negatives": 50,
        "negatives_error_rate": 2.0,
    }
    section = split | {
        "images": 5,
        "of": 9,
        "miou": 60.0,
        "entropy_threshold": 0.3,
        "reliable_share": 0.8,
        "coverage": [[0.5, 99.0], [1.0, 84.0]],
        "classes": {name: split | {"support": 100} for name in names},
    }
    whys = ("worst", "best", "between")
    return {
        "step": 40,
        "unreliable_fraction": 0.2,
        "low_rank": 1,
        "high_rank": 3,
        "contrast": True,
        "denoised": True,
        "queues": {name: {"keys": 5, "capacity": 10} for name in names},
        "sections": {"val": section},
        "pictures": [
            {"section": "val", "name": name, "why": whys[i % 3], "miou": 50.0}
            for i, name in enumerate(images)
        ],
    }


def metrics_of(*, steps: int = 40, warm_up: int = 10) -> list[dict[str, Any]]:
    """Rows as the log has them: without contrast at first, two evaluations."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"kind": "train", "step": step, "loss_s": 1 / step}
        row |= {"loss": 1 / step, "loss_u": 0.0, "loss_c": 0.0}
        if step > warm_up:
            row |= {"loss_u": 0.5, "loss_c": 2.0, "reliable_share": 0.8, "queue_fill": 0.5}
            row |= {"unreliable_fraction": 0.2, "entropy_threshold": None, "active_classes": 3}
        rows.append(row)
        if step % (steps // 2) == 0:
            rows.append({"kind": "val", "step": step, "miou_student": 50.0, "miou_ema": 55.0})
    return rows


def write_run(
    folder: Path,
    *,
    names: tuple[str, ...] = NAMES,
    images: tuple[str, ...] = ("val_0", "val_1", "val_2"),
    miou: float = 60.0,
    seed: int = 0,
    ended: bool = True,
    inspected: bool = True,
    command: tuple[str, ...] = ("/usr/bin/u2pl", "train", "data.yaml"),
    **overrides: Any,
) -> Path:
    """Write a run folder and return it; ``train__steps=9`` sets train.steps."""
    settings: dict[str, Any] = {"train.steps": 40, "train.supervised_steps": 10}
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    (folder / "eval").mkdir(parents=True)
    save_config(make_config("demo", seed=seed, overrides=settings), folder / "config.yaml")
    lines = [json.dumps(row) for row in metrics_of()]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "tr']))
    environment = {"u2pl": "0.1.0", "command": list(command), "split_sha256": {"labeled": "1"}}
    write(folder / "environment.json", environment)
    if not ended:
        return folder
    card = {"classes": list(names), "colors": [[i, 100, 200] for i in range(len(names))]}
    write(folder / "model.json", card)
    ema, student = scores_of(names, miou=miou), scores_of(names, miou=miou - 1)
    best = {"step": 20, "miou": miou}
    result = {"step": 40, "finished": True, "best": best, "student": student, "ema": ema}
    write(folder / "eval/val.json", result)
    if inspected:
        write(folder / "eval/inspection.json", inspection_of(names, list(images)))
        for number in range(len(images)):
            write_pictures(folder / "pictures" / "inspection" / f"{number:03d}", len(names))
    return folder


def write_pictures(folder: Path, num_classes: int) -> None:
    """The six pictures of an image, 12 x 8 pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    image.save(folder / "image.jpg")
    for name in ("truth", "prediction", "entropy", "reliable"):
        image.save(folder / f"{name}.png")
    keys = np.repeat(np.arange(num_classes, dtype=np.uint8) % 3, 8)[:, None].repeat(12, 1)
    sprite = Image.fromarray(keys)
    sprite.putpalette([0, 0, 0, 0, 170, 255, 255, 60, 40])
    sprite.save(folder / "negatives.png", transparency=0)


def write(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value))
