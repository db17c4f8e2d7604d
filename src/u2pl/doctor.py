"""What `u2pl doctor` looks at: versions, devices, and whether a small training works here."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import u2pl._torchvision
from u2pl.api import load, train
from u2pl.data.synthetic import write_streets

PACKAGES = (
    "u2pl",
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "lightning-fabric",
    "numpy",
    "pillow",
    "safetensors",
)
_STEPS = 6
_SMALL: dict[str, Any] = {
    "data.crop": (32, 32),
    "data.batch_labeled": 2,
    "data.batch_unlabeled": 2,
    "data.num_workers": 0,
    "train.steps": _STEPS,
    "train.supervised_steps": 1,
    "train.precision": "32-true",
    "train.deterministic": True,
}


def versions() -> dict[str, str]:
    """Python, the platform and the packages that matter, each with its version."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> dict[str, Any]:
    """Cores, threads and GPUs: ``cpu_count``, ``threads``, ``gpus`` (name, GiB, bfloat16)."""
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "bfloat16": properties.major >= 8,
            }
        )
    return {"cpu_count": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def advice() -> list[str]:
    """Sentences on what is unusual here and what can be done about it."""
    found = []
    if u2pl._torchvision.declared:
        found.append(
            "torchvision's compiled operators do not load beside this torch: the two are of "
            "different builds. u2pl needs none of them and works; other packages may not. To mend "
            "it, install torch and torchvision by one command from one index."
        )
    if torch.version.cuda is not None and not torch.cuda.is_available():
        found.append(
            f"torch is built for CUDA {torch.version.cuda}, but no GPU can be used; look at "
            "`nvidia-smi` and the driver's version. Training takes the CPU."
        )
    return found


def self_test() -> dict[str, Any]:
    """Paint a few streets, train on them, stop and go on, and predict.

    Returns:
        ``resumed_exactly``: whether a run that was stopped ends with the same weights, bit for
        bit, as one that was not; ``predicted``: the size of a mask; ``seconds``.

    Raises:
        UserError: where a part fails.
    """
    started = time.perf_counter()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            streets = write_streets(
                folder / "streets", num_labeled=2, num_unlabeled=4, num_val=2, size=(48, 48)
            )
            train(streets, recipe="demo", out=folder / "whole", overrides=_SMALL)
            stopped = _SMALL | {"train.stop_after": _STEPS // 2}
            train(streets, recipe="demo", out=folder / "parts", overrides=stopped)
            train(streets, out=folder / "parts", resume=True)
            weights = [
                (folder / run / "weights" / "ema.safetensors").read_bytes()
                for run in ("whole", "parts")
            ]
            image = folder / "streets" / "val" / "images" / "val-0000.png"
            mask, _, _ = load(folder / "whole").predict(image)
    finally:
        torch.use_deterministic_algorithms(before)
    return {
        "resumed_exactly": weights[0] == weights[1],
        "predicted": list(mask.shape),
        "seconds": time.perf_counter() - started,
    }
