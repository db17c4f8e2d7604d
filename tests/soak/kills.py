"""Kills a training with SIGKILL at random moments, and resumes it, until it has ended.

    python tests/soak/kills.py --kills 20

Each life of the run ends at a random moment of its work, saving included: checkpoints are written
every step. After each kill the newest checkpoint must load, and at the end the weights must be
those of a run that was never killed. Prints its figures last; exit status 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from u2pl.engine.checkpoint import kept_checkpoints, load_newest_checkpoint
from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_dataset
from tiny import assignments, tiny_overrides


def command(dataset: Path, run: Path, goal: int | None) -> list[str]:
    """Start a run, or go on with it; without a goal it has no end."""
    words = [sys.executable, "-m", "u2pl.cli", "train", str(dataset), "--out", str(run)]
    stop = [] if goal is None else [f"train.stop_after={goal}"]
    if (run / "config.yaml").exists():
        return [*words, "--resume", *stop]
    endless = 1_000_000
    changes = tiny_overrides(
        train__steps=endless, train__eval_every=endless, train__checkpoint_every=1
    )
    return [*words, "--recipe", "demo", *assignments(changes), *stop]


def live(
    dataset: Path, run: Path, *, seconds: float | None = None, goal: int | None = None
) -> int | None:
    """Let the run work for a while, then kill it; return its exit status if it ended before."""
    process = subprocess.Popen(
        command(dataset, run, goal),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    try:
        _, shown = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    if process.returncode:
        print(shown)
    return process.returncode


def main() -> int:
    """Kill and resume; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dataset = write_dataset(folder / "data")
        started = time.perf_counter()
        # how long a life takes to its first step, on this machine and now
        assert live(dataset, folder / "first", goal=1) == 0
        until_ready = time.perf_counter() - started
        run = RunFolder(folder / "killed")
        kills = torn = reached = 0
        while kills < arguments.kills:
            ended = live(dataset, run.path, seconds=until_ready * chance.uniform(0.5, 1.6))
            if ended is not None:
                print(f"ended with {ended} after {kills} kills")
                break
            kills += 1
            if kept_checkpoints(run.checkpoint("last")):
                try:
                    step = load_newest_checkpoint(run.checkpoint("last"))["step"]
                except UserError as error:
                    print(error)
                    torn += 1
                    continue
                assert step >= reached, "the run has gone back"
                reached = step
        goal = reached + 5
        survived = live(dataset, run.path, goal=goal) == 0
        whole = live(dataset, folder / "whole", goal=goal) == 0
        weights = [RunFolder(folder / name).weights("ema") for name in ("killed", "whole")]
        equal = survived and whole and weights[0].read_bytes() == weights[1].read_bytes()
        rows = [row["step"] for row in read_metrics(run.metrics) if row["kind"] == "train"]
        gapless = rows == list(range(1, goal + 1))
    print(f"kills: {kills} of {arguments.kills}, at step {reached} with the last of them")
    print(f"checkpoints torn: {torn}")
    print(f"went on to step {goal}: {survived}; metrics without gap or repetition: {gapless}")
    print(f"weights equal, bit for bit, to those of a run never killed: {equal}")
    return 0 if kills == arguments.kills and not torn and equal and gapless else 1


if __name__ == "__main__":
    sys.exit(main())
