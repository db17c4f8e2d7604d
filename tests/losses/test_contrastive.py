from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import reference.losses as reference
from reference.cases import Case, on_random_cases
from u2pl.losses import (
    contrastive,
    contrastive_floor,
    contrastive_loss,
    contrastive_loss_of_drawn,
)


@dataclass(frozen=True)
class Keys:
    """The arguments of one loss."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    active: Tensor

    def loss(self, *, temperature: float = 0.5, anchor_weights: Tensor | None = None) -> Tensor:
        return contrastive_loss(
            self.anchors,
            self.positives,
            self.negatives,
            self.active,
            temperature=temperature,
            anchor_weights=anchor_weights,
        )


def random_keys(
    case: Case, *, num_anchors: int = 4, num_negatives: int = 6, dtype: torch.dtype = torch.float32
) -> Keys:
    """Every class but the last is active."""
    generator = case.generator()
    c, d = case.num_classes, case.feature_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return Keys(
        anchors=normal(c, num_anchors, d),
        positives=normal(c, d),
        negatives=normal(c, num_anchors, num_negatives, d),
        active=torch.arange(c) < c - 1,
    )


def test_loss_of_worked_numbers() -> None:
    """One anchor at 0°, its positive there too, negatives at 90° and 180°; τ = 0.5."""
    keys = Keys(
        anchors=torch.tensor([[[3.0, 0.0]]]),
        positives=torch.tensor([[2.0, 0.0]]),
        negatives=torch.tensor([[[[0.0, 5.0], [-1.0, 0.0]]]]),
        active=torch.tensor([True]),
    )
    expected = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2)))
    assert keys.loss().item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@on_random_cases
def test_loss_equals_the_reference(case: Case, temperature: float) -> None:
    keys = random_keys(case)
    expected = reference.contrastive_loss(
        keys.anchors.tolist(),
        keys.positives.tolist(),
        keys.negatives.tolist(),
        keys.active.tolist(),
        temperature,
    )
    assert keys.loss(temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_indistinguishable_keys_is_log_of_their_number() -> None:
    one = torch.ones(2, 3, 7, 4)
    loss = contrastive_loss(one[:, :, 0], one[:, 0, 0], one, torch.tensor([True, True]))
    assert loss.item() == pytest.approx(math.log(8))


def test_floor_is_reached_by_opposite_negatives_and_never_passed() -> None:
    anchors = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    positives = anchors[:, 0]
    same = positives.unsqueeze(1).expand_as(anchors)
    negatives = -same.unsqueeze(2).expand(-1, -1, 6, -1)
    loss = contrastive_loss(same, positives, negatives, torch.ones(3, dtype=torch.bool))
    assert loss.item() == pytest.approx(contrastive_floor(6), rel=1e-5)
    assert random_keys(Case(3, 1, 0)).loss() > contrastive_floor(6)


@pytest.mark.parametrize(
    ("num_negatives", "temperature", "expected"),
    [(50, 0.5, 0.6504), (1, 0.5, 0.01815), (50, 0.1, 50 * math.exp(-20)), (0, 0.5, 0.0)],
)
def test_floor_of_worked_numbers(num_negatives: int, temperature: float, expected: float) -> None:
    actual = contrastive_floor(num_negatives, temperature=temperature)
    assert actual == pytest.approx(expected, rel=1e-3)


def test_no_active_class_gives_zero_with_a_gradient_of_zero() -> None:
    keys = random_keys(Case(3, 1, 0))
    keys = replace(keys, active=torch.zeros(3, dtype=torch.bool))
    keys.anchors.requires_grad_()
    loss = keys.loss()
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(keys.anchors.grad, torch.zeros_like(keys.anchors))


def test_inactive_class_changes_nothing_and_gets_no_gradient() -> None:
    keys = random_keys(Case(7, 1, 0))
    others = keys.active.view(-1, 1, 1)
    zeroed = Keys(
        anchors=(keys.anchors * others).requires_grad_(),
        positives=keys.positives * others[:, 0],
        negatives=keys.negatives * others.unsqueeze(3),
        active=keys.active,
    )
    loss = zeroed.loss()
    loss.backward()
    torch.testing.assert_close(loss, keys.loss())
    assert (zeroed.anchors.grad[~keys.active] == 0).all()
    assert (zeroed.anchors.grad[keys.active] != 0).any(dim=2).all()


def test_mean_is_over_the_active_classes_alone() -> None:
    keys = random_keys(Case(3, 1, 0))
    single = [replace(keys, active=torch.arange(3) == c).loss() for c in range(3)]
    torch.testing.assert_close(keys.loss(), (single[0] + single[1]) / 2)


def test_lengths_of_features_do_not_matter() -> None:
    keys = random_keys(Case(7, 1, 0))
    longer = Keys(9 * keys.anchors, 0.3 * keys.positives, 4 * keys.negatives, keys.active)
    torch.testing.assert_close(longer.loss(), keys.loss())


@on_random_cases
def test_renaming_the_classes_changes_no_contrastive_loss(case: Case) -> None:
    keys = random_keys(case)
    order = torch.randperm(case.num_classes, generator=case.generator())
    renamed = Keys(
        keys.anchors[order], keys.positives[order], keys.negatives[order], keys.active[order]
    )
    torch.testing.assert_close(renamed.loss(), keys.loss())


@on_random_cases
def test_parts_of_the_anchors_add_up_to_the_whole(case: Case) -> None:
    keys = random_keys(case)
    part = torch.randint(0, 3, keys.anchors.shape[:2], generator=case.generator())
    parts = sum(keys.loss(anchor_weights=(part == p).float()) for p in range(3))
    torch.testing.assert_close(parts, keys.loss())


def test_anchor_left_out_gets_no_gradient() -> None:
    keys = random_keys(Case(2, 1, 0))
    keys.anchors.requires_grad_()
    weights = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2)
    keys.loss(anchor_weights=weights).backward()
    assert torch.equal((keys.anchors.grad[0] != 0).any(dim=1), weights[0] > 0)


def test_loss_has_the_analytic_gradient_in_float64() -> None:
    keys = random_keys(Case(3, 1, 0), num_anchors=2, num_negatives=3, dtype=torch.float64)

    def loss(anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        return contrastive_loss(anchors, positives, negatives, keys.active)

    inputs = (keys.anchors, keys.positives, keys.negatives)
    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


def test_gradient_agrees_with_finite_differences_in_float32() -> None:
    keys = random_keys(Case(3, 1, 0))
    keys.anchors.requires_grad_()
    keys.loss().backward()
    direction = torch.randn(keys.anchors.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2
    ahead, behind = (
        replace(keys, anchors=keys.anchors.detach() + sign * step * direction).loss()
        for sign in (1, -1)
    )
    slope = (ahead - behind).item() / (2 * step)
    assert slope == pytest.approx((keys.anchors.grad * direction).sum().item(), rel=1e-3)


def test_one_step_downhill_brings_anchors_to_their_positives() -> None:
    keys = random_keys(Case(3, 1, 0))
    keys.anchors.requires_grad_()
    keys.loss().backward()
    moved = keys.anchors.detach() - 0.1 * keys.anchors.grad
    assert replace(keys, anchors=moved).loss() < keys.loss()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keys_give_a_float32_loss(dtype: torch.dtype) -> None:
    keys = random_keys(Case(7, 1, 0))
    rounded = replace(keys, anchors=keys.anchors.to(dtype), negatives=keys.negatives.to(dtype))
    assert rounded.loss().dtype == torch.float32
    torch.testing.assert_close(rounded.loss(), keys.loss(), atol=0.01, rtol=0.01)


def test_autocast_does_not_lower_the_precision_of_the_loss() -> None:
    keys = random_keys(Case(7, 1, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = keys.loss()
    torch.testing.assert_close(loss, keys.loss())


# keys that are read where they lie


@pytest.mark.parametrize("at_once", [1, 40, 2**20])
@pytest.mark.parametrize("weighted", [False, True])
@on_random_cases
def test_loss_of_drawn_keys_equals_that_of_the_keys_themselves(
    case: Case, weighted: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them are read at a time; the gradients, too."""
    monkeypatch.setitem(contrastive._NUMBERS_AT_ONCE, "cpu", at_once)
    keys = random_keys(case)
    bank = keys.negatives.flatten(0, 2)
    drawn = torch.arange(len(bank)).view(keys.negatives.shape[:3])
    weights = (torch.arange(4) % 2).expand(case.num_classes, 4) if weighted else None
    losses, gradients = [], []
    for negatives in ((keys.negatives,), (bank, drawn)):
        anchors = keys.anchors.clone().requires_grad_()
        function = contrastive_loss if len(negatives) == 1 else contrastive_loss_of_drawn
        loss = function(anchors, keys.positives, *negatives, keys.active, anchor_weights=weights)
        (3 * loss).backward()
        losses.append(loss.detach())
        gradients.append(anchors.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_loss_of_drawn_keys_has_the_analytic_gradient() -> None:
    keys = random_keys(Case(3, 1, 0), dtype=torch.float64)
    bank, drawn = keys.negatives.flatten(0, 2), torch.randint(0, 72, (3, 4, 6))
    assert torch.autograd.gradcheck(
        lambda anchors: contrastive_loss_of_drawn(
            anchors, keys.positives, bank, drawn, keys.active, temperature=0.4
        ),
        keys.anchors.requires_grad_(),
    )


def test_loss_of_drawn_keys_reads_half_precision_ones_in_float32() -> None:
    keys = random_keys(Case(3, 1, 0))
    bank = keys.negatives.flatten(0, 2).bfloat16()
    drawn = torch.arange(72).view(3, 4, 6)
    given = (keys.anchors, keys.positives)
    found = contrastive_loss_of_drawn(*given, bank, drawn, keys.active)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrastive_loss(*given, bank.float()[drawn], keys.active))
