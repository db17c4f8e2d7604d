from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import reference.losses as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl.losses import cross_entropy, ohem_cross_entropy


def two_class_logits(*own_probs: float) -> torch.Tensor:
    """[1, 2, 1, W]: logits by which class 0 has these probabilities."""
    odds = torch.tensor([math.log(p / (1 - p)) for p in own_probs])
    return torch.stack([odds, torch.zeros_like(odds)]).view(1, 2, 1, -1)


# Eq. 2


def test_cross_entropy_of_worked_numbers() -> None:
    labels = torch.tensor([[[0, 0, IGNORE]]])
    loss = cross_entropy(two_class_logits(0.5, 0.8, 0.1), labels, ignore_index=IGNORE)
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


@on_random_cases
def test_cross_entropy_equals_the_reference(case: Case) -> None:
    logits, labels = case.logits(), case.labels()
    expected = reference.cross_entropy(logits.tolist(), labels.tolist(), IGNORE)
    actual = cross_entropy(logits, labels, ignore_index=IGNORE)
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_of", [cross_entropy, ohem_cross_entropy])
def test_no_labeled_pixel_gives_zero_with_a_gradient_of_zero(
    loss_of: Callable[..., torch.Tensor],
) -> None:
    logits = Case(3, 4, 0).logits().requires_grad_()
    loss = loss_of(logits, torch.full((4, 4, 5), IGNORE), ignore_index=IGNORE)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@on_random_cases
def test_parts_of_a_batch_add_up_to_the_whole(case: Case) -> None:
    logits, labels = case.logits(), case.labels()
    num_pixels = (labels != IGNORE).sum()
    whole = cross_entropy(logits, labels, ignore_index=IGNORE)
    parts = sum(
        cross_entropy(
            logits[b : b + 1], labels[b : b + 1], ignore_index=IGNORE, num_pixels=num_pixels
        )
        for b in range(case.batch_size)
    )
    torch.testing.assert_close(parts, whole)


def test_cross_entropy_has_the_analytic_gradient() -> None:
    case = Case(3, 1, 0)
    logits = case.logits().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, case.labels(), ignore_index=IGNORE), logits
    )


@on_random_cases
def test_renaming_the_classes_changes_no_supervised_loss(case: Case) -> None:
    logits, labels = case.logits(), case.labels()
    order = torch.randperm(case.num_classes, generator=case.generator())
    renamed = torch.where(
        labels == IGNORE, labels, order.argsort()[labels.clamp_max(case.num_classes - 1)]
    )
    for loss_of in (cross_entropy, ohem_cross_entropy):
        torch.testing.assert_close(
            loss_of(logits[:, order], renamed, ignore_index=IGNORE),
            loss_of(logits, labels, ignore_index=IGNORE),
        )


# OHEM


@pytest.mark.parametrize(
    ("min_kept", "kept"),
    [
        (1, [0.2, 0.6]),  # both at most 0.7
        (2, [0.2, 0.6]),
        (3, [0.2, 0.6, 0.8]),  # the third hardest as well
        (9, [0.2, 0.6, 0.8, 0.9]),  # all there are
    ],
)
def test_ohem_keeps_hard_pixels_or_the_hardest(min_kept: int, kept: list[float]) -> None:
    logits = two_class_logits(0.8, 0.2, 0.9, 0.6, 0.1)
    labels = torch.tensor([[[0, 0, 0, 0, IGNORE]]])
    loss = ohem_cross_entropy(logits, labels, ignore_index=IGNORE, min_kept=min_kept)
    assert loss.item() == pytest.approx(-sum(map(math.log, kept)) / len(kept))


@pytest.mark.parametrize("threshold", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1, 6, 100_000])
@on_random_cases
def test_ohem_equals_the_reference(case: Case, min_kept: int, threshold: float) -> None:
    logits, labels = case.logits(), case.labels()
    expected = reference.ohem_cross_entropy(
        logits.tolist(), labels.tolist(), IGNORE, threshold, min_kept
    )
    actual = ohem_cross_entropy(
        logits, labels, ignore_index=IGNORE, threshold=threshold, min_kept=min_kept
    )
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_ohem_that_keeps_everything_is_cross_entropy() -> None:
    case = Case(7, 4, 0)
    torch.testing.assert_close(
        ohem_cross_entropy(case.logits(), case.labels(), ignore_index=IGNORE),
        cross_entropy(case.logits(), case.labels(), ignore_index=IGNORE),
    )


def test_ohem_keeps_ties_at_the_border_together() -> None:
    logits = two_class_logits(0.9, 0.9, 0.9, 0.95)
    labels = torch.zeros(1, 1, 4, dtype=torch.long)
    loss = ohem_cross_entropy(logits, labels, ignore_index=IGNORE, min_kept=1)
    assert loss.item() == pytest.approx(-math.log(0.9))


def test_easy_pixels_get_no_gradient_from_ohem() -> None:
    logits = two_class_logits(0.2, 0.9).requires_grad_()
    labels = torch.zeros(1, 1, 2, dtype=torch.long)
    ohem_cross_entropy(logits, labels, ignore_index=IGNORE, min_kept=1).backward()
    assert (logits.grad[..., 0] != 0).all()
    assert (logits.grad[..., 1] == 0).all()


def test_ohem_has_the_analytic_gradient() -> None:
    case = Case(3, 1, 0)
    logits = case.logits().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ohem_cross_entropy(x, case.labels(), ignore_index=IGNORE, min_kept=5), logits
    )
