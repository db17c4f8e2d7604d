from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import reference.weak as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl.weak.seeds import keep_leading, seed_labels

RULE: dict[str, Any] = {"low": 0.3, "high": 0.6, "margin": 0.2, "ignore_index": IGNORE}


def pixels(*scores: list[float]) -> Tensor:
    """[1, C, 1, W] from the scores of each pixel."""
    return torch.tensor(scores).T[None, :, None]


def tags(*present: int, num_classes: int = 3) -> Tensor:
    possible = torch.zeros(1, num_classes, dtype=torch.bool)
    possible[0, list(present)] = True
    return possible


@on_random_cases
@pytest.mark.parametrize("background_class", [None, 0, 1])
def test_labels_equal_the_reference(case: Case, background_class: int | None) -> None:
    maps, possible = case.probs().double() ** 0.5, case.tags()
    rule = {**RULE, "background_class": background_class}
    expected = reference.seed_labels(maps.tolist(), possible.tolist(), **rule)
    assert seed_labels(maps, possible, **rule).tolist() == expected


def test_with_background_the_best_score_decides() -> None:
    maps = pixels([0, 0.1, 0.2], [0, 0.4, 0.5], [0, 0.7, 0.9], [0, 0.61, 0.0])
    labels = seed_labels(maps, tags(1, 2), background_class=0, **RULE)
    assert labels.tolist() == [[[0, IGNORE, 2, 1]]]


def test_thresholds_themselves_are_unsure() -> None:
    maps = torch.tensor([0.3, 0.6], dtype=torch.float64).view(1, 1, 1, 2).repeat(1, 2, 1, 1)
    labels = seed_labels(maps, tags(1, num_classes=2), background_class=0, **RULE)
    assert labels.tolist() == [[[IGNORE, IGNORE]]]


def test_thresholds_are_the_argmax_beside_a_flat_background_score() -> None:
    maps = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = seed_labels(
        maps, torch.ones(2, 4, dtype=torch.bool), background_class=0, **{**RULE, "low": 0.4}
    )
    beside_high, beside_low = maps.clone(), maps.clone()
    beside_high[:, 0], beside_low[:, 0] = 0.6, 0.4
    of_class, of_background = beside_high.argmax(1), beside_low.argmax(1) == 0
    assert torch.equal(labels == 0, of_background)
    sure = labels != IGNORE
    assert torch.equal(labels[sure & ~of_background], of_class[sure & ~of_background])
    assert torch.equal(sure, (of_class != 0) | of_background)


def test_background_may_be_any_class_and_its_own_map_is_not_read() -> None:
    maps = pixels([0.1, 0.1, 0.9], [0.9, 0.1, 0.9])
    for possible in (tags(0, 1), tags(0, 1, 2)):
        labels = seed_labels(maps, possible, background_class=2, **RULE)
        assert labels.tolist() == [[[2, 0]]]


def test_without_background_the_lead_decides() -> None:
    """0.9 leads 0.7 by 22 %, 0.8 by 11 %; 0.4 leads 0.3 by 25 %; 0.2 is below ``low``."""
    maps = pixels([0.1, 0.9, 0.7], [0.1, 0.9, 0.8], [0.3, 0.4, 0.0], [0.0, 0.2, 0.0])
    labels = seed_labels(maps, tags(0, 1, 2), background_class=None, **RULE)
    assert labels.tolist() == [[[1, IGNORE, 1, IGNORE]]]


def test_absent_class_neither_wins_nor_narrows_the_lead() -> None:
    maps = pixels([1.0, 0.9, 0.1])
    assert seed_labels(maps, tags(1, 2), background_class=None, **RULE).item() == 1
    assert seed_labels(maps, tags(1, 2), background_class=2, **RULE).item() == 1


def test_without_background_a_single_tag_needs_no_lead() -> None:
    maps = pixels([0.0, 0.0, 0.0], [0.0, 0.29, 0.0], [0.0, 0.3, 0.0], [0.0, 1.0, 0.0])
    labels = seed_labels(maps.double(), tags(1), background_class=None, **RULE)
    assert labels.tolist() == [[[IGNORE, IGNORE, 1, 1]]]
    everywhere = seed_labels(maps, tags(1), background_class=None, **{**RULE, "low": 0.0})
    assert everywhere.tolist() == [[[1, 1, 1, 1]]]


def test_without_background_no_score_at_all_is_unsure() -> None:
    maps = torch.zeros(1, 3, 1, 1)
    for margin in (0.0, 0.2):
        rule = {**RULE, "low": 0.0, "margin": margin}
        assert seed_labels(maps, tags(0, 1), background_class=None, **rule).item() == IGNORE
        assert seed_labels(maps, tags(), background_class=None, **rule).item() == IGNORE


def test_with_background_a_single_tag_leaves_room_for_it() -> None:
    maps = pixels([0.0, 0.0, 0.0], [0.0, 0.4, 0.0], [0.0, 1.0, 0.0])
    labels = seed_labels(maps, tags(1), background_class=0, **RULE)
    assert labels.tolist() == [[[0, IGNORE, 1]]]


def test_image_without_a_sure_pixel_is_ignored_whole() -> None:
    flat = torch.full((1, 3, 2, 2), 0.5)
    for background_class in (None, 0):
        labels = seed_labels(flat, tags(1, 2), background_class=background_class, **RULE)
        assert labels.unique().tolist() == [IGNORE]


def test_image_without_tags_is_background_or_ignored() -> None:
    maps = torch.ones(1, 3, 2, 2)
    assert seed_labels(maps, tags(), background_class=None, **RULE).unique().tolist() == [IGNORE]
    assert seed_labels(maps, tags(), background_class=1, **RULE).unique().tolist() == [1]


def test_order_of_the_classes_does_not_matter() -> None:
    case, order = Case(5, 4, 0), [3, 0, 4, 1, 2]
    maps, possible = case.probs() ** 0.3, case.tags()
    labels = seed_labels(maps, possible, background_class=None, **RULE)
    shuffled = seed_labels(maps[:, order], possible[:, order], background_class=None, **RULE)
    back = torch.tensor([*order, *[IGNORE] * (IGNORE + 1 - len(order))])
    assert torch.equal(back[shuffled], labels)


def test_each_class_of_each_image_keeps_its_share_however_little_it_leads() -> None:
    """Class 1 leads by 10, 20, 30 and 40 % of its score, class 2 by 50 % and 60 %."""
    maps = pixels([0.0, 1.0, 0.9], [0.0, 1.0, 0.8], [0.0, 1.0, 0.7], [0.0, 1.0, 0.6],
                  [0.0, 0.5, 1.0], [0.0, 0.4, 1.0])  # fmt: skip
    rule: dict[str, Any] = {**RULE, "margin": 0.0, "background_class": None}
    labels = seed_labels(maps, tags(1, 2), share=0.5, **rule)
    assert labels.tolist() == [[[IGNORE, IGNORE, 1, 1, IGNORE, 2]]]
    two = seed_labels(maps.repeat(2, 1, 1, 1), tags(1, 2).repeat(2, 1), share=0.5, **rule)
    assert torch.equal(two, labels.repeat(2, 1, 1))


def test_share_is_of_what_the_margin_left_and_a_single_tag_keeps_all() -> None:
    maps = pixels([0.0, 1.0, 0.9], [0.0, 1.0, 0.7], [0.0, 1.0, 0.6])
    rule: dict[str, Any] = {**RULE, "background_class": None, "share": 0.5}
    assert seed_labels(maps, tags(1, 2), **rule).tolist() == [[[IGNORE, IGNORE, 1]]]
    assert seed_labels(maps, tags(1), **rule).tolist() == [[[1, 1, 1]]]


def test_share_rounds_up_keeps_ties_and_needs_no_label() -> None:
    labels = torch.tensor([[[0, 0, 0, 1, IGNORE]]])
    lead = torch.tensor([[[0.2, 0.2, 0.1, 0.0, 0.9]]])
    kept = keep_leading(labels, lead, share=0.1, ignore_index=IGNORE)
    assert kept.tolist() == [[[0, 0, IGNORE, 1, IGNORE]]]
    nothing = torch.full_like(labels, IGNORE)
    assert torch.equal(keep_leading(nothing, lead, share=0.1, ignore_index=IGNORE), nothing)


def test_input_is_not_changed() -> None:
    maps, possible = pixels([0.5, 0.6, 0.7]), tags(0, 1, 2)
    before = maps.clone(), possible.clone()
    seed_labels(maps, possible, background_class=0, **RULE)
    assert torch.equal(maps, before[0])
    assert torch.equal(possible, before[1])
