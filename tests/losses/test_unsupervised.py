from __future__ import annotations

import math

import pytest
import torch

import reference.losses as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl.losses import (
    cross_entropy,
    ramp_up,
    reverse_cross_entropy,
    symmetric_cross_entropy,
    unsupervised_weight,
)

# Eq. 8


@pytest.mark.parametrize(
    ("num_valid", "num_kept", "eta", "expected"),
    [(100, 80, 1.0, 1.25), (100, 100, 1.0, 1.0), (100, 50, 0.5, 1.0), (100, 80, 0.0, 0.0)],
)
def test_weight_of_worked_numbers(
    num_valid: int, num_kept: int, eta: float, expected: float
) -> None:
    weight = unsupervised_weight(torch.tensor(num_valid), torch.tensor(num_kept), eta=eta)
    assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("num_valid", [0, 100])
def test_weight_without_a_kept_pixel_is_zero(num_valid: int) -> None:
    assert unsupervised_weight(torch.tensor(num_valid), torch.tensor(0)).item() == 0


# reverse cross-entropy


def test_reverse_cross_entropy_of_a_worked_pixel() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5]).log().view(1, 3, 1, 1)
    loss = reverse_cross_entropy(logits, torch.tensor([[[1]]]), ignore_index=IGNORE)
    assert loss.item() == pytest.approx(-0.7 * math.log(1e-4))


@pytest.mark.parametrize("floor", [1e-4, 0.1])
@on_random_cases
def test_reverse_cross_entropy_equals_the_reference(case: Case, floor: float) -> None:
    logits, labels = case.logits(), case.labels()
    expected = reference.reverse_cross_entropy(logits.tolist(), labels.tolist(), IGNORE, floor)
    actual = reverse_cross_entropy(logits, labels, ignore_index=IGNORE, floor=floor)
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_reverse_cross_entropy_is_bounded() -> None:
    logits = torch.tensor([100.0, -100.0]).view(1, 2, 1, 1)
    right, wrong = (
        reverse_cross_entropy(logits, torch.tensor([[[label]]]), ignore_index=IGNORE).item()
        for label in (0, 1)
    )
    assert right == pytest.approx(0, abs=1e-6)
    assert wrong == pytest.approx(-math.log(1e-4))


# Eq. 3


@pytest.mark.parametrize("xi", [0.0, 0.1, 1.0])
@on_random_cases
def test_symmetric_cross_entropy_equals_the_reference(case: Case, xi: float) -> None:
    logits, labels = case.logits(), case.labels()
    lists = logits.tolist(), labels.tolist()
    expected = reference.cross_entropy(*lists, IGNORE)
    expected += xi * reference.reverse_cross_entropy(*lists, IGNORE, 1e-4)
    actual = symmetric_cross_entropy(logits, labels, ignore_index=IGNORE, reverse_weight=xi)
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("xi", [0.0, 0.1])
@on_random_cases
def test_pixel_weights_multiply_each_pixels_loss(case: Case, xi: float) -> None:
    logits, labels = case.logits(), case.labels()
    weights = torch.rand(labels.shape, generator=case.generator())
    expected = reference.weighted_symmetric_cross_entropy(
        logits.tolist(), labels.tolist(), weights.tolist(), IGNORE, xi
    )
    actual = symmetric_cross_entropy(
        logits, labels, ignore_index=IGNORE, reverse_weight=xi, pixel_weights=weights
    )
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@on_random_cases
def test_pixel_weights_of_one_change_nothing(case: Case) -> None:
    logits, labels = case.logits(), case.labels()
    plain, weighted = (
        symmetric_cross_entropy(
            logits, labels, ignore_index=IGNORE, reverse_weight=0.1, pixel_weights=weights
        )
        for weights in (None, torch.ones(labels.shape))
    )
    torch.testing.assert_close(weighted, plain)


def test_weight_zero_is_plain_cross_entropy() -> None:
    case = Case(7, 4, 0)
    assert torch.equal(
        symmetric_cross_entropy(
            case.logits(), case.labels(), ignore_index=IGNORE, reverse_weight=0
        ),
        cross_entropy(case.logits(), case.labels(), ignore_index=IGNORE),
    )


@on_random_cases
def test_parts_of_a_batch_add_up_to_the_whole(case: Case) -> None:
    logits, labels = case.logits(), case.labels()
    num_pixels = (labels != IGNORE).sum()
    whole = symmetric_cross_entropy(logits, labels, ignore_index=IGNORE, reverse_weight=0.3)
    parts = sum(
        symmetric_cross_entropy(
            logits[b : b + 1],
            labels[b : b + 1],
            ignore_index=IGNORE,
            reverse_weight=0.3,
            num_pixels=num_pixels,
        )
        for b in range(case.batch_size)
    )
    torch.testing.assert_close(parts, whole)


def test_no_pseudo_label_gives_zero_with_a_gradient_of_zero() -> None:
    logits = Case(3, 4, 0).logits().requires_grad_()
    loss = symmetric_cross_entropy(
        logits, torch.full((4, 4, 5), IGNORE), ignore_index=IGNORE, reverse_weight=0.1
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_symmetric_cross_entropy_has_the_analytic_gradient() -> None:
    case = Case(3, 1, 0)
    logits = case.logits().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: symmetric_cross_entropy(
            x, case.labels(), ignore_index=IGNORE, reverse_weight=0.5
        ),
        logits,
    )


@on_random_cases
def test_renaming_the_classes_changes_no_unsupervised_loss(case: Case) -> None:
    logits, labels = case.logits(), case.labels()
    order = torch.randperm(case.num_classes, generator=case.generator())
    renamed = torch.where(
        labels == IGNORE, labels, order.argsort()[labels.clamp_max(case.num_classes - 1)]
    )
    torch.testing.assert_close(
        symmetric_cross_entropy(logits[:, order], renamed, ignore_index=IGNORE, reverse_weight=0.3),
        symmetric_cross_entropy(logits, labels, ignore_index=IGNORE, reverse_weight=0.3),
    )


def test_wrong_label_pulls_less_on_the_reverse_term() -> None:
    """On a confident pixel with a wrong label CE's gradient is near 1, RCE's near 0."""
    labels = torch.tensor([[[1]]])
    gradients = []
    for loss_of in (cross_entropy, reverse_cross_entropy):
        logits = torch.tensor([20.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
        loss_of(logits, labels, ignore_index=IGNORE).backward()
        gradients.append(logits.grad.abs().max().item())
    assert gradients[0] == pytest.approx(1)
    assert gradients[1] < 1e-6


def test_ramp_rises_in_a_line_and_stays() -> None:
    shares = [ramp_up(step, 5) for step in range(8)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_no_ramp_is_all_of_the_weight_from_the_first_step() -> None:
    assert [ramp_up(step, 0) for step in (0, 1, 100)] == [1.0, 1.0, 1.0]
