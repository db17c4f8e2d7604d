"""Trains with 1, 2 and 4 processes on this machine and compares step by step.

    python tests/soak/ranks.py

The processes talk by gloo and share each batch. Prints the largest relative difference of each
loss last; exit status 1 where one is above 1e-5, the queues differ, or a decision about a pixel is
another one without a tie.

A tie is a pixel for which rounding decides: its entropy is γ_t, its two likeliest classes are as
likely as each other, or its probability is the anchors' threshold, each to the last digit or two.
No order of comparing can avoid it, since the sums of several processes are rounded in another order
than those of one. Such a pixel, one of 8 192, changes L_u of its step by a ten-thousandth; on the
feature grid it changes which keys are drawn, and with them L_c from then on. So each tie is printed
with the two numbers that decide, and what it changes is left out of the comparison. In this young
network they are frequent: all entropies lie within a few ten-thousandths of log C.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u2pl.contrast import class_rank
from u2pl.engine.run_folder import RunFolder, read_metrics

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_dataset
from processes import SETTINGS, finish, start
from tiny import assignments

TIE = 1e-6  # nats or probability: eight times the distance of neighbours in float32 at 1
CLOSE = 1e-5
ANCHORS_FROM = 0.3  # method.anchor_threshold, at its default
NAMES = ("loss", "loss_s", "loss_u", "loss_c", "entropy_threshold", "negatives_offered")
Record = dict[str, Tensor]
Row = dict[str, Any]
Run = tuple[list[Row], dict[int, Record]]
DATA: dict[str, Any] = {"num_labeled": 6, "num_unlabeled": 9, "size": (40, 40)}
RECORDED = str(Path(__file__).with_name("recorded.py"))


@dataclass
class Outcome:
    """What the comparison of a number of processes with one has found.

    Attributes:
        worst: loss or count to its largest relative difference.
        compared: loss or count to the number of steps that were compared.
        ties, faults: a line each.
        queues_to: the last step up to which no tie has changed the queues.
    """

    worst: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    compared: Counter[str] = field(default_factory=Counter)
    ties: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    queues_to: int = 0


def settings(seed: int) -> list[str]:
    """The words of the command line that all of the trainings share."""
    changes = SETTINGS | {"data.batch_labeled": 4, "data.batch_unlabeled": 8, "train.seed": seed}
    return ["--recipe", "demo", *assignments(changes)]


def train(dataset: Path, run: RunFolder, size: int, words: list[str]) -> None:
    """Train with so many processes, which leave records beside the run.

    Raises:
        RuntimeError: with the message of a process that has failed.
    """
    program = [RECORDED, str(records_of(run))]
    ended = finish(start(dataset, run.path, size, settings=words, program=program), seconds=900)
    for status, _, error in ended:
        if status:
            raise RuntimeError(error)


def records_of(run: RunFolder) -> Path:
    """Where the processes of a run leave their records."""
    return run.path.with_name(f"{run.path.name}-records")


def read_run(run: RunFolder, size: int) -> Run:
    """The rows of a run of so many processes, and its records by step from 1."""
    kept, found = records_of(run), {}
    for step in sorted({int(file.stem.split("-")[0]) for file in kept.iterdir()}):
        parts = [torch.load(kept / f"{step}-{rank}.pt") for rank in range(size)]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        found[step + 1] = whole | {name: parts[0][name] for name in ("threshold", "keys")}
    return [row for row in read_metrics(run.metrics) if row["kind"] == "train"], found


def decisions(record: Record) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is decided about pixels in a step: a name, the decisions, and by how much each was."""
    yield "class", record["own_predictions"], record["lead"]
    yield "reliable", record["reliable"], record["entropy"] - record["threshold"]
    for half in ("probs_l", "probs_u"):
        probs = record[half]
        gaps = probs.sort(dim=1).values.diff(dim=1).amin(dim=1, keepdim=True)
        yield f"order of {half}", class_rank(probs), gaps.expand_as(probs)
        yield f"anchors of {half}", probs > ANCHORS_FROM, probs - ANCHORS_FROM


def look_at_pixels(step: int, ours: Record, theirs: Record, outcome: Outcome) -> tuple[bool, bool]:
    """Note ties and faults of a step; return whether ties change its L_u, and its contrast."""
    before = len(outcome.ties)
    for (what, mine, margin), (_, other, other_margin) in zip(
        decisions(ours), decisions(theirs), strict=True
    ):
        for place in (mine != other).nonzero().tolist():
            gaps = float(margin[tuple(place)]), float(other_margin[tuple(place)])
            line = f"step {step}, {what} at {place}: decided by {gaps[0]:.1e} and {gaps[1]:.1e}"
            is_tie = max(map(abs, gaps)) <= TIE
            (outcome.ties if is_tie else outcome.faults).append(line)
    tied = outcome.ties[before:]
    for name in ("entropy", "threshold", "probs_l", "probs_u", "features_l", "features_u"):
        if not torch.allclose(ours[name], theirs[name], rtol=0, atol=CLOSE):
            outcome.faults.append(f"step {step}: {name} is another")
    if not tied and not torch.equal(ours["predictions"], theirs["predictions"]):
        outcome.faults.append(f"step {step}: other pixels are mixed")
    on_grid = not torch.equal(ours["grid_labels"], theirs["grid_labels"])
    return bool(tied), on_grid or any("probs" in line for line in tied)


def compare(alone: Run, together: Run) -> Outcome:
    """Compare the metrics and records of a run with those of one process alone."""
    (rows, kept), (other_rows, other_kept) = alone, together
    outcome, tied_before = Outcome(), False
    for ours, theirs in zip(rows, other_rows, strict=True):
        step, tied, tied_on_grid = ours["step"], False, False
        if step in kept:
            mine, other = kept[step], other_kept[step]
            tied, tied_on_grid = look_at_pixels(step, mine, other, outcome)
            tied_before |= tied_on_grid
            if not tied_before:
                outcome.queues_to = step
                if not torch.allclose(mine["keys"], other["keys"], rtol=0, atol=CLOSE):
                    outcome.faults.append(f"step {step}: the queues are others")
        left_out = {"loss_u", "loss"} if tied else set()
        left_out |= {"loss_c", "loss"} if tied_before else set()
        left_out |= {"negatives_offered"} if tied_on_grid else set()
        for name in NAMES:
            if name in ours and name not in left_out:
                difference = abs(theirs[name] - ours[name]) / max(abs(ours[name]), 1e-12)
                outcome.worst[name] = max(outcome.worst[name], difference)
                outcome.compared[name] += 1
                if difference > CLOSE:
                    outcome.faults.append(f"step {step}: {name} differs by {difference:.1e}")
    return outcome


def show(outcomes: dict[str, Outcome]) -> int:
    """Print what comparisons have found, the figures of all last; return the exit status."""
    for who, outcome in outcomes.items():
        for kind, lines in {"tie": outcome.ties, "FAULT": outcome.faults}.items():
            for line in lines:
                print(f"{who} against 1 process, {kind}: {line}")
        for name, worst in outcome.worst.items():
            print(
                f"{who} against 1 process, {name}: {worst:.1e} over {outcome.compared[name]} steps"
            )
        print(f"{who} against 1 process, queues: compared up to step {outcome.queues_to}")
    ties, faults = (sum(len(getattr(o, k)) for o in outcomes.values()) for k in ("ties", "faults"))
    worst = max(max(outcome.worst.values()) for outcome in outcomes.values())
    print(f"compared with 1 process: {', '.join(outcomes)}; decided by rounding: {ties} pixels")
    print(f"largest relative difference: {worst:.1e}; faults: {faults}")
    return 1 if faults else 0


def main() -> int:
    """Train and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dataset = write_dataset(folder / "data", **DATA)
        runs = {}
        for size in (1, 2, 4):
            train(dataset, RunFolder(folder / str(size)), size, settings(seed))
            runs[size] = read_run(RunFolder(folder / str(size)), size)
    return show({f"{size} processes": compare(runs[1], runs[size]) for size in (2, 4)})


if __name__ == "__main__":
    sys.exit(main())
