from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch.nn import functional

import reference.losses as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl.losses import (
    cross_entropy,
    ramp_up,
    reverse_cross_entropy,
    soft_symmetric_cross_entropy,
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


# what others have in place of Eq. 8


@pytest.mark.parametrize(
    ("scaling", "expected"), [("inverse_share", 2.5), ("even", 2.0), ("share", 1.6)]
)
def test_weight_by_the_share_of_kept_pixels(
    scaling: Literal["inverse_share", "even", "share"], expected: float
) -> None:
    weight = unsupervised_weight(torch.tensor(100), torch.tensor(80), eta=2.0, scaling=scaling)
    assert weight.item() == pytest.approx(expected)
    for num_valid in (0, 100):
        nothing = torch.tensor(num_valid), torch.tensor(0)
        assert unsupervised_weight(*nothing, scaling=scaling).item() == 0


def test_weights_of_several_streams_are_those_of_each() -> None:
    valid, kept = torch.tensor([100, 50, 10]), torch.tensor([80, 50, 0])
    weights = unsupervised_weight(valid, kept)
    torch.testing.assert_close(weights, torch.tensor([1.25, 1.0, 0.0]))


# soft pseudo-labels


@pytest.mark.parametrize("reverse_weight", [0.0, 0.1])
@on_random_cases
def test_soft_labels_of_one_class_are_hard_ones(case: Case, reverse_weight: float) -> None:
    logits, labels = case.logits(), case.labels()
    kept = labels != IGNORE
    targets = functional.one_hot(labels.masked_fill(~kept, 0), case.num_classes)
    soft = soft_symmetric_cross_entropy(
        logits, targets.movedim(-1, 1).float(), kept, reverse_weight=reverse_weight
    )
    hard = symmetric_cross_entropy(
        logits, labels, ignore_index=IGNORE, reverse_weight=reverse_weight
    )
    torch.testing.assert_close(soft, hard)


@on_random_cases
def test_soft_loss_equals_the_reference(case: Case) -> None:
    logits, kept = case.logits(), case.valid()
    targets = case.logits().flip(0).roll(1, dims=-1).softmax(dim=1)
    weights = torch.rand(kept.shape, generator=case.generator())
    expected = reference.soft_symmetric_cross_entropy(
        logits.tolist(), targets.tolist(), kept.tolist(), weights.tolist(), 0.3, 1e-4
    )
    actual = soft_symmetric_cross_entropy(
        logits, targets, kept, reverse_weight=0.3, pixel_weights=weights
    )
    assert actual.item() == pytest.approx(expected, rel=1e-4)


def test_soft_loss_of_parts_adds_up_to_that_of_the_whole() -> None:
    case = Case(num_classes=4, batch_size=4, seed=3)
    logits, targets, kept = case.logits(), case.probs().flip(0), case.valid()
    whole = soft_symmetric_cross_entropy(logits, targets, kept, reverse_weight=0.1)
    parts = [
        soft_symmetric_cross_entropy(
            logits[i::2], targets[i::2], kept[i::2], reverse_weight=0.1, num_pixels=kept.sum()
        )
        for i in range(2)
    ]
    torch.testing.assert_close(whole, parts[0] + parts[1])


def test_soft_loss_without_a_kept_pixel_is_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    loss = soft_symmetric_cross_entropy(
        logits, torch.full((1, 3, 2, 2), 1 / 3), nothing, reverse_weight=0.1
    )
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
