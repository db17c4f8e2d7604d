"""The yardstick does the same work as what is measured against it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from u2pl.bench.clock import Clock
from u2pl.bench.loops import Loops
from u2pl.bench.method import Method
from u2pl.bench.workload import CITYSCAPES, VOC, Workload, make_inputs

CPU = torch.device("cpu")
SMALL = Workload(
    "small",
    2,
    2,
    (61, 50),
    7,
    feature_size=16,
    queue_size=200,
    background_queue_size=300,
    num_anchors=64,
    num_negatives=40,
    keys_per_step=60,
)


def both(workload: Workload, *, steps: int) -> tuple[Method, Loops, list[float], list[float]]:
    """Make some steps by both; the objects and each one's losses."""
    inputs = make_inputs(workload, CPU)
    ours, theirs = Method(workload, inputs), Loops(workload, inputs)
    rows: list[list[float]] = [[], []]
    for _ in range(steps):
        for losses, work in zip(rows, (ours, theirs), strict=True):
            losses.append(work.run(Clock(CPU)).item())
    return ours, theirs, rows[0], rows[1]


def test_loops_find_the_same_threshold_prototypes_and_numbers_of_keys() -> None:
    ours, theirs, _, _ = both(SMALL, steps=3)
    assert ours.pseudo_label().threshold.item() == pytest.approx(theirs.gamma, rel=1e-5)
    torch.testing.assert_close(ours.state.prototypes.vectors, theirs.prototypes)
    assert ours.state.prototypes.num_updates.tolist() == theirs.num_updates
    counts = ours.state.queues.num_keys.tolist()
    assert counts == [len(queue) for queue in theirs.queues]
    assert min(counts) > 60


def test_queues_hold_keys_of_the_same_pixels_where_all_of_them_fit() -> None:
    roomy = dataclasses.replace(SMALL, keys_per_step=5000, queue_size=5000)
    ours, theirs, _, _ = both(dataclasses.replace(roomy, background_queue_size=5000), steps=1)
    queues = ours.state.queues
    for class_id, queue in enumerate(theirs.queues):
        first = int(queues.offsets[class_id])
        mine = queues.keys[first : first + len(queue)]
        assert torch.equal(mine[mine[:, 0].argsort()], queue[queue[:, 0].argsort()])


def test_both_losses_are_the_same_number_but_for_chance() -> None:
    ours, theirs, own_losses, their_losses = both(SMALL, steps=4)
    assert own_losses == pytest.approx(their_losses, rel=0.02)
    student = ours.inputs.student.grad
    assert student is not None
    assert theirs.inputs is ours.inputs
    assert student.abs().sum() > 0


def test_queues_are_full_when_they_have_been_filled() -> None:
    inputs = make_inputs(SMALL, CPU)
    ours, theirs = Method(SMALL, inputs), Loops(SMALL, inputs)
    for work in (ours, theirs):
        work.fill_queues()
        work.run(Clock(CPU))
    assert ours.state.queues.num_keys.tolist() == SMALL.capacities
    assert [len(queue) for queue in theirs.queues] == SMALL.capacities
    assert SMALL.capacities == [300, *[200] * 6]


def test_sizes_are_those_of_the_papers_recipes() -> None:
    assert (VOC.grid, VOC.num_classes, sum(VOC.capacities)) == ((129, 129), 21, 650_000)
    assert (CITYSCAPES.grid, CITYSCAPES.num_classes) == ((193, 193), 19)
