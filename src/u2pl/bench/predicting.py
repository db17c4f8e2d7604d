"""Images a second of ``u2pl predict``, against a network that does nothing but run forward."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from u2pl import api
from u2pl.bench.clock import finish
from u2pl.data.synthetic import write_streets
from u2pl.engine.predict import predict_images

SIDE = {"cuda": 512, "cpu": 192}
COUNT = {"cuda": 200, "cpu": 8}


@contextmanager
def predicting(device: torch.device) -> Iterator[dict[str, Callable[[], float]]]:
    """Two works over the same images: ``predict`` from file to files, and ``forward`` alone.

    The network is a ResNet-50 with random weights in a run folder of one step.
    """
    side, count = SIDE[device.type], COUNT[device.type]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        streets = write_streets(
            folder / "streets", num_labeled=2, num_unlabeled=0, num_val=1, size=(48, 48)
        )
        overrides = {
            "model.encoder": "resnet50",
            "model.decoder_channels": 256,
            "model.head_channels": 256,
            "data.crop": (32, 32),
            "data.batch_labeled": 2,
            "train.steps": 1,
            "train.supervised_steps": 0,
        }
        api.train(
            streets, recipe="demo", setting="supervised", out=folder / "run", overrides=overrides
        )
        rng = np.random.default_rng(0)
        (folder / "images").mkdir()
        for index in range(count):
            pixels = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            picture.save(folder / "images" / f"{index:04}.jpg")
        model = api.load(folder / "run", device=device.type)
        image = torch.rand(1, 3, side, side, device=device)

        def predict() -> float:
            started = time.perf_counter()
            predict_images(model, folder / "images", folder / "out")
            seconds = time.perf_counter() - started
            shutil.rmtree(folder / "out")
            return seconds

        def forward() -> float:
            started = time.perf_counter()
            with torch.no_grad():
                for _ in range(count):
                    model(image)
            finish(device)
            return time.perf_counter() - started

        yield {"predict": predict, "forward": forward}
