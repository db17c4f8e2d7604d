"""The long forms judge rightly: what they would say of runs that differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from soak.__main__ import Part, run
from soak.ranks import Outcome, Record, Row, compare


def a_record() -> Record:
    """Of one image of 2 x 2 pixels and three classes."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.1, 0.25, 0.65]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone()
    entropy = torch.tensor([[[0.2, 0.4], [0.6, 0.8]]])
    return {
        "own_predictions": torch.full((1, 2, 2), 2),
        "lead": torch.full((1, 2, 2), 0.4),
        "predictions": torch.full((1, 2, 2), 2),
        "entropy": entropy,
        "reliable": entropy <= 0.6,
        "grid_labels": torch.tensor([[[2]]]),
        "probs_l": probs,
        "probs_u": probs,
        "features_l": torch.rand(1, 4, 1, 1, generator=generator),
        "features_u": torch.rand(1, 4, 1, 1, generator=generator),
        "threshold": torch.tensor([0.6]),
        "keys": torch.rand(6, 4, generator=generator),
    }


def a_row(**changes: float) -> Row:
    values = {"loss": 3.0, "loss_s": 1.0, "loss_u": 1.0, "loss_c": 1.0, "negatives_offered": 9.0}
    return {"step": 1, **values, **changes}


def judge(record: Record, **changes: float) -> Outcome:
    """Compare something with what one process alone has found."""
    return compare(([a_row()], {1: a_record()}), ([a_row(**changes)], {1: record}))


def test_equal_runs_are_compared_in_all() -> None:
    outcome = judge(a_record())
    assert (outcome.ties, outcome.faults, outcome.queues_to) == ([], [], 1)
    assert outcome.compared["loss_u"] == outcome.compared["loss_c"] == 1


def test_pixel_at_the_threshold_is_a_tie_and_its_loss_is_left_out() -> None:
    record = a_record()
    record["entropy"][0, 1, 0] += 1.2e-7
    record["reliable"] = record["entropy"] <= 0.6
    outcome = judge(record, loss=4.0, loss_u=2.0)
    assert outcome.faults == []
    (tie,) = outcome.ties
    assert tie.startswith("step 1, reliable at [0, 1, 0]: decided by 0.0e+00 and 1.")
    assert outcome.compared == {"loss_s": 1, "loss_c": 1, "negatives_offered": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reliable", torch.ones(1, 2, 2, dtype=torch.bool)),  # of a pixel far from the threshold
        ("own_predictions", torch.zeros(1, 2, 2, dtype=torch.int64)),
        ("predictions", torch.zeros(1, 2, 2, dtype=torch.int64)),
        ("threshold", torch.tensor([0.61])),
        ("keys", torch.zeros(6, 4)),
        ("features_u", torch.zeros(1, 4, 1, 1)),
        ("probs_u", torch.full((1, 3, 2, 2), 1 / 3)),
    ],
)
def test_what_rounding_cannot_do_is_a_fault(name: str, value: Any) -> None:
    assert judge(a_record() | {name: value}).faults


@pytest.mark.parametrize("name", ["loss", "loss_s", "loss_u", "loss_c", "negatives_offered"])
def test_other_loss_without_a_tie_is_a_fault(name: str) -> None:
    (fault,) = judge(a_record(), **{name: 9.01}).faults
    assert fault.startswith(f"step 1: {name} differs by ")


# all parts together


def test_figures_are_the_lines_from_the_first_that_begins_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = "print('at work'); print('kills: 2'); print('torn: 0'); raise SystemExit(3)"
    assert run(Part("kills", ("-c", program), "kills: ")) == (3, ["kills: 2", "torn: 0"])
    assert capfd.readouterr().out == "at work\nkills: 2\ntorn: 0\n"
