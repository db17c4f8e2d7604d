"""How right are pseudo-labels, by what the teacher sees? On crops as a training makes them.

    python benchmarks/pseudo_labels.py runs/a --split test --context 0,16,32 --refine 0,5
    python benchmarks/pseudo_labels.py demo-runs/semi-0/u2pl --split unlabeled \\
        --masks demo-runs/semi-0/streets/unlabeled/hidden_masks

The last teacher of a run labels random crops, in the scales that the run trains in, of images whose
masks are known: by the crop alone, by the crop with more of the image around it (`data.context`),
and with the pixels' likeness (`method.refine_iterations`). Nothing is denoised. The table gives the
mIoU and the pixel accuracy of the crops, in percent, by scale: each third of the range apart.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import u2pl
from u2pl.api import known_samples
from u2pl.data.batch import cut_windows
from u2pl.data.decoded import decoder
from u2pl.data.sources import Sample, load_dataset
from u2pl.data.transforms import draw_view, view_image, view_labels, wider_view
from u2pl.engine.evaluate import class_iou
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.targets import Edges, judge_pixels
from u2pl.models.segmenter import STRIDE

THIRDS = ("small", "middle", "large")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def measure(
    run: Path,
    samples: list[Sample],
    *,
    contexts: list[int],
    refine: list[int],
    crops: int,
    seed: int,
) -> dict[tuple[str, int, int], Tensor]:
    """Confusion [C, C], rows the truth, by third of the scale, context and rounds."""
    folder = RunFolder(run)
    config, data, model = (
        folder.read_config(),
        load_dataset(folder.dataset, require=()),
        u2pl.load(run),
    )
    generator = torch.Generator().manual_seed(seed)
    read, num_classes = decoder(data, config.data), len(model.classes)
    low, high = config.data.scale
    grid = (-(-config.data.crop[0] // STRIDE), -(-config.data.crop[1] // STRIDE))
    found: dict[tuple[str, int, int], Tensor] = defaultdict(
        lambda: torch.zeros(num_classes, num_classes, dtype=torch.int64)
    )
    for sample in samples:
        image, mask = read.image(sample), read.mask(sample)
        for crop in range(crops):
            third = crop % 3
            scale = tuple(low + (high - low) * (third + end) / 3 for end in (0, 1))
            view = draw_view(
                (image.shape[0], image.shape[1]),
                crop=config.data.crop,
                scale=(scale[0], scale[1]),
                flip=config.data.flip,
                resize=config.data.resize,
                generator=generator,
            )
            labels = view_labels(mask, view, ignore_index=data.ignore_index)
            pixels, valid = view_image(image, view)
            weak = pixels.unsqueeze(0) / 255
            for context in contexts:
                wide, offsets = wider_view(view, context)
                seen = view_image(image, wide)[0].unsqueeze(0) / 255
                with torch.inference_mode():
                    logits = model.network(seen, with_features=False).logits.float()
                logits = cut_windows(logits, torch.tensor([offsets]) // STRIDE, grid)
                for rounds in refine:
                    rule = rounds, config.method.refine_dilations
                    edges = Edges(weak, valid.unsqueeze(0), *rule)
                    predictions, _, _ = judge_pixels(logits, view.crop, edges)
                    known = valid & (labels != data.ignore_index)
                    pairs = labels[known] * num_classes + predictions[0][known]
                    counts = torch.bincount(pairs, minlength=num_classes**2)
                    found[THIRDS[third], context, rounds] += counts.view(num_classes, num_classes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="test", choices=["val", "test", "unlabeled"])
    parser.add_argument("--masks", type=Path, help="masks of unlabelled images")
    parser.add_argument("--context", type=numbers, default=[0, 16, 32])
    parser.add_argument("--refine", type=numbers, default=[0, 5])
    parser.add_argument("--images", type=int, default=60, help="evenly out of the split")
    parser.add_argument("--crops", type=int, default=6, help="of each image, a multiple of 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the confusion of each case")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load_dataset(RunFolder(given.run).dataset, require=())
    if given.split == "unlabeled":
        if given.masks is None:
            parser.error("--split unlabeled needs --masks")
        samples = list(known_samples(data, given.masks))
    else:
        samples = list(getattr(data, given.split))
    places = np.linspace(0, len(samples) - 1, min(given.images, len(samples))).round().astype(int)
    found = measure(
        given.run,
        [samples[place] for place in places],
        contexts=given.context,
        refine=given.refine,
        crops=given.crops,
        seed=given.seed,
    )
    print("| scale | context | rounds | mIoU | accuracy | " + " | ".join(data.classes) + " |")
    print("|" + "---|" * (5 + len(data.classes)))
    for third in (*THIRDS, "all"):
        for context in given.context:
            for rounds in given.refine:
                parts = THIRDS if third == "all" else (third,)
                confusion = sum((found[part, context, rounds] for part in parts), torch.tensor(0))
                ious = class_iou(confusion)
                accuracy = 100 * confusion.diag().sum() / confusion.sum()
                row = [f"{float(ious.nanmean()):.1f}", f"{float(accuracy):.1f}"]
                row += [f"{iou:.0f}" for iou in ious.tolist()]
                print(f"| {third} | {context} | {rounds} | " + " | ".join(row) + " |")
    if given.json:
        rows = [{"case": key, "confusion": value.tolist()} for key, value in found.items()]
        given.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
