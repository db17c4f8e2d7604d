"""How fast `u2pl predict` is against the network alone, and how much memory it takes.

    python benchmarks/predict_speed.py speed RUN IMAGES     # ratio to a bare forward loop
    python benchmarks/predict_speed.py many RUN IMAGES      # memory over 500, 1000, 2000 images
    python benchmarks/predict_speed.py make a.tif           # 10 000 x 10 000 pixels; or a.png
    python benchmarks/predict_speed.py large RUN a.tif      # memory and time on it
    python benchmarks/predict_speed.py pictures RUN IMAGES  # milliseconds and bytes of each kind

The bare loop has its images decoded and in memory, runs the network, brings the logits to the
image's size, and does nothing with them. Both run in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import u2pl
from u2pl.data.images import read_image
from u2pl.data.transforms import eval_image
from u2pl.engine.pictures import DEFAULT_KINDS, write_pictures
from u2pl.engine.predict import predict_images
from u2pl.engine.trained import SegmentationModel


def peak() -> float:
    """The most memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speed(model: SegmentationModel, folder: Path, *, turns: int) -> dict[str, object]:
    """Images a second of predict as a share of the bare loop's, in turns.

    ``wall`` is what a clock says. On a machine that is busy with other work look at the CPU:
    ``main`` is the share by the CPU time of the thread that runs the network, which is what
    limits predict where files have a core of their own; ``all`` by that of all threads, which
    limits it where there is one core for everything.
    """
    files = sorted(folder.glob("*.png"))
    prepared = [eval_image(read_image(file), resize=model.card.resize) for file in files]
    sizes = [read_image(file).shape[:2] for file in files]
    clocks = {"wall": time.perf_counter, "main": time.thread_time, "all": time.process_time}
    results: dict[str, object] = {}
    for kinds in (("masks",), DEFAULT_KINDS):
        ratios: dict[str, list[float]] = {name: [] for name in clocks}
        for _ in range(turns):
            marks = [[clock() for clock in clocks.values()]]
            with torch.inference_mode():
                for image, size in zip(prepared, sizes, strict=True):
                    model.logits_of(image, size=size)
            marks.append([clock() for clock in clocks.values()])
            with tempfile.TemporaryDirectory() as out:
                predict_images(model, folder, Path(out), kinds=kinds, manifest=True)
                marks.append([clock() for clock in clocks.values()])
            for name, first, second, third in zip(clocks, *marks, strict=True):
                ratios[name].append((second - first) / (third - second))
        results[",".join(kinds)] = {
            name: {"median": round(statistics.median(row), 3), "all": [round(x, 3) for x in row]}
            for name, row in ratios.items()
        }
    return {"predict_vs_bare_forward": results, "images": len(files)}


def many(model: SegmentationModel, folder: Path) -> dict[str, object]:
    """The most memory held after 500, 1000 and 2000 images."""
    files = itertools.cycle(sorted(folder.glob("*.png")))
    held = {}
    with tempfile.TemporaryDirectory() as work:
        source, count = Path(work) / "in", 0
        source.mkdir()
        for total in (500, 1000, 2000):
            while count < total:
                shutil.copy(next(files), source / f"{count:05d}.png")
                count += 1
            predict_images(model, source, Path(work) / "out", kinds=DEFAULT_KINDS, resume=True)
            held[total] = round(peak())
    return {"peak_mib_after_images": held}


def make_large(path: Path, *, side: int) -> None:
    """Write a smooth random picture as a tiled TIFF or, by another suffix, whole."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (side // 50, side // 50, 3), np.uint8))
    if path.suffix != ".tif":
        small.resize((side, side), Image.Resampling.BILINEAR).save(path, compress_level=1)
        return
    import rasterio

    profile = {"width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    options = {"photometric": "RGB", "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", **options, **profile) as file:
        for top in range(0, side, 1000):
            box = (0, top / 50, side / 50, (top + 1000) / 50)
            band = small.resize((side, 1000), Image.Resampling.BILINEAR, box=box)
            window = ((top, top + 1000), (0, side))
            file.write(np.moveaxis(np.asarray(band), -1, 0), window=window)


def large(model: SegmentationModel, path: Path) -> dict[str, object]:
    """Memory and time on one image."""
    before, start = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        predict_images(model, path, Path(out), kinds=DEFAULT_KINDS)
    return {
        "mib_before": round(before),
        "peak_mib": round(peak()),
        "seconds": round(time.perf_counter() - start),
    }


def pictures(model: SegmentationModel, folder: Path) -> dict[str, object]:
    """What making and writing each kind of picture takes, an image: computing, and bytes."""
    files = [*sorted(folder.glob("*.jpg")), *sorted(folder.glob("*.png"))][:20]
    given = [(read_image(file), model.predict(file)) for file in files]
    found = {}
    with tempfile.TemporaryDirectory() as out:
        for kind in DEFAULT_KINDS:
            started = time.thread_time()
            for index, (image, prediction) in enumerate(given):
                name = Path(f"{index}.png")
                write_pictures(Path(out), name, image, prediction, model.card, (kind,))
            took = time.thread_time() - started
            size = sum(file.stat().st_size for file in (Path(out) / kind).iterdir())
            found[kind] = {
                "milliseconds": round(1000 * took / len(given), 2),
                "kilobytes": round(size / 1000 / len(given), 1),
            }
    return {"an_image": found, "images": len(given), "size": list(given[0][0].shape[:2])}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "many", "make", "large", "pictures"))
    parser.add_argument("run", type=Path)
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--side", type=int, default=10_000)
    options = parser.parse_args()
    if options.what == "make":
        make_large(options.run, side=options.side)
        return
    model = u2pl.load(options.run)
    if options.what == "speed":
        result = speed(model, options.images, turns=options.turns)
    elif options.what == "many":
        result = many(model, options.images)
    elif options.what == "pictures":
        result = pictures(model, options.images)
    else:
        result = large(model, options.images)
    print(json.dumps(result | {"threads": torch.get_num_threads()}, indent=2))


if __name__ == "__main__":
    main()
