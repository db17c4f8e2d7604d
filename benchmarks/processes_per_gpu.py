"""Training steps a second of processes that share one GPU, as `u2pl sweep --jobs N` has them.

    python benchmarks/processes_per_gpu.py 1 14
    nvidia-cuda-mps-control -d && python benchmarks/processes_per_gpu.py 1 14  # side by side

Each process makes whole steps of a recipe on a batch of noise, without loading images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from u2pl.api import make_config
from u2pl.bench.steps import Steps

_TIMEOUT = 300.0


def work(
    rank: int, counts: list[int], recipe: str, seconds: float, barrier: Barrier, answers: Any
) -> None:
    """Step along where a count asks for this process, and tell the steps a second."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = make_config(
        recipe,
        setting="semi",
        overrides={
            "model.pretrained": False,
            "train.precision": "32-true",
            "train.supervised_steps": 0,
        },
    )
    steps = Steps(config, device, num_classes=11)
    for _ in range(3):
        steps.run()
    for count in counts:
        barrier.wait(_TIMEOUT)
        if rank < count:
            made, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                steps.run()
                made += 1
            answers.put((count, made / (time.perf_counter() - started)))
        barrier.wait(_TIMEOUT)


def main() -> None:
    """Measure one count of processes after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=int, nargs="+", help="processes at a time")
    parser.add_argument("--recipe", default="camvid-small")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each count is measured")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(max(given.counts)), context.Queue()
    processes = [
        context.Process(
            target=work, args=(rank, given.counts, given.recipe, given.seconds, barrier, answers)
        )
        for rank in range(max(given.counts))
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=_TIMEOUT) for _ in range(sum(given.counts))]
    for process in processes:
        process.join()
    for count in given.counts:
        rate = sum(value for of, value in found if of == count)
        print(f"{count} processes: {rate:.1f} steps a second")


if __name__ == "__main__":
    main()
