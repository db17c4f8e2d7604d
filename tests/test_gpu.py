"""Where there is a GPU: the method's functions find there what they find on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reference.cases import Case, on_random_cases
from u2pl import losses, partition
from u2pl.contrast import MomentumPrototypes, NegativeQueues, class_means, rank_band, rank_bounds
from u2pl.contrast.sampling import first_members, members_at
from u2pl.engine.targets import judge_pixels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]


def large(case: Case) -> Case:
    """The same on a grid of many pixels, with features of a usual length."""
    return replace(case, size=(65, 83), feature_size=64)


def agree(function: Function, *given: Tensor) -> None:
    """The function's results of tensors here and on a GPU, numbers to rounding, choices exactly."""
    here, there = function(*given), function(*(tensor.cuda() for tensor in given))
    pairs = [(here, there)] if isinstance(here, Tensor) else zip(here, there, strict=True)
    for expected, found in pairs:
        assert found.is_cuda
        if expected.is_floating_point():
            torch.testing.assert_close(found.cpu(), expected, atol=2e-5, rtol=2e-5)
        else:
            assert torch.equal(found.cpu(), expected)


@on_random_cases
def test_thresholds_and_choices_are_the_same(case: Case) -> None:
    case = large(case)
    low, high = rank_bounds(case.num_classes)
    probs, valid = case.probs(), case.valid()
    agree(lambda p: rank_band(p, low_rank=low, high_rank=high), probs)
    entropy = partition.prediction_entropy(probs)
    for fraction in (0.0, 0.2, 0.77):
        agree(
            lambda e, v, f=fraction: partition.entropy_threshold(e, v, unreliable_fraction=f),
            entropy,
            valid,
        )
    mask = case.class_mask().transpose(0, 1).flatten(1)
    draw = torch.rand(len(mask), 50, dtype=torch.float64, generator=case.generator())
    agree(members_at, mask, draw)
    order = torch.randperm(mask.shape[1], generator=case.generator())
    agree(lambda m, o: first_members(m, 40, order=o), mask, order)


@on_random_cases
def test_entropies_and_means_are_the_same(case: Case) -> None:
    case = large(case)
    agree(lambda logits: judge_pixels(logits, (130, 165))[1:], case.logits())
    agree(class_means, case.features(), case.class_mask())


@on_random_cases
def test_loss_and_its_gradient_are_the_same(case: Case) -> None:
    num_classes, generator = case.num_classes, case.generator()
    anchors = torch.randn(num_classes, 16, 64, generator=generator)
    keys = torch.randn(300, 64, generator=generator)
    drawn = torch.randint(300, (num_classes, 16, 50), generator=generator)
    active = torch.arange(num_classes) > 0
    positives = torch.randn(num_classes, 64, generator=generator)

    def loss(a: Tensor, p: Tensor, k: Tensor, d: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
        a = a.detach().requires_grad_()
        value = losses.contrastive_loss_of_drawn(a, p, k, d, on)
        (gradient,) = torch.autograd.grad(value, a)
        return value.detach(), gradient

    agree(loss, anchors, positives, keys, drawn, active)


def test_queues_and_prototypes_move_alike() -> None:
    case = large(Case(7, 2, 0))
    mask, features = case.class_mask().transpose(0, 1).flatten(1), case.features()
    rows = features.movedim(1, -1).flatten(0, 2)
    order = torch.randperm(mask.shape[1], generator=case.generator())

    def moved(mask: Tensor, rows: Tensor, order: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        queues = NegativeQueues([100] * 7, 64).to(mask.device)
        prototypes = MomentumPrototypes(7, 64, momentum=0.9).to(mask.device)
        for _ in range(3):
            index, chosen = queues.choose(mask, max_keys=40, order=order)
            queues.push_chosen(rows[index], chosen)
            prototypes.update(*class_means(features, mask.unflatten(1, (2, 65, 83)).movedim(1, 0)))
        return queues.keys, queues.num_keys, queues.heads, prototypes.vectors

    agree(moved, mask, rows, order, features)
