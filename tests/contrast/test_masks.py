from __future__ import annotations

import pytest
import torch

import reference.masks as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl.contrast import masks


def pixel(*values: float) -> torch.Tensor:
    """[1, C, 1, 1]: one pixel."""
    return torch.tensor(values).view(1, -1, 1, 1)


# bounds


@pytest.mark.parametrize(
    ("num_classes", "expected"),
    [
        (2, (1, 2)),
        (3, (1, 3)),
        (4, (2, 4)),
        (6, (3, 6)),
        (7, (3, 7)),
        (19, (3, 19)),
        (20, (3, 20)),
        (21, (3, 20)),
        (150, (3, 20)),
    ],
)
def test_bounds_follow_the_number_of_classes(num_classes: int, expected: tuple[int, int]) -> None:
    assert masks.rank_bounds(num_classes) == expected


def test_given_bounds_are_kept() -> None:
    assert masks.rank_bounds(21, low_rank=1, high_rank=3) == (1, 3)
    assert masks.rank_bounds(21, low_rank=10) == (10, 20)


@pytest.mark.parametrize(
    ("num_classes", "low", "high"),
    [(21, 0, 3), (21, 3, 3), (21, 4, 3), (21, 3, 22), (2, 3, None), (1, None, None)],
)
def test_bounds_out_of_order_are_named(num_classes: int, low: int | None, high: int | None) -> None:
    message = rf"1 <= low_rank < high_rank <= {num_classes} classes, got low_rank \d+ and"
    with pytest.raises(ValueError, match=message):
        masks.rank_bounds(num_classes, low_rank=low, high_rank=high)


def test_every_number_of_classes_has_unlabeled_negatives_to_offer() -> None:
    for num_classes in range(2, 40):
        low, high = masks.rank_bounds(num_classes)
        rank = masks.class_rank(torch.rand(1, num_classes, 1, 1))
        unreliable = torch.ones(1, 1, 1, dtype=torch.bool)
        mask = masks.unlabeled_negative_mask(unreliable, rank, low_rank=low, high_rank=high)
        assert mask.sum() == high - low >= 1


# Eq. 13


def test_likeliest_class_has_rank_zero() -> None:
    assert masks.class_rank(pixel(0.1, 0.4, 0.2, 0.3)).flatten().tolist() == [3, 0, 2, 1]


def test_ties_rank_in_order_of_class() -> None:
    assert masks.class_rank(pixel(0.2, 0.3, 0.2, 0.3)).flatten().tolist() == [2, 0, 3, 1]
    assert masks.class_rank(torch.ones(1, 21, 1, 1)).flatten().tolist() == list(range(21))


@on_random_cases
def test_rank_equals_the_reference(case: Case) -> None:
    probs = case.probs()
    assert masks.class_rank(probs).tolist() == reference.class_rank(probs.tolist())


@on_random_cases
def test_rank_with_many_ties_equals_the_reference(case: Case) -> None:
    probs = (case.probs() * 4).round() / 4
    assert masks.class_rank(probs).tolist() == reference.class_rank(probs.tolist())


@on_random_cases
def test_logits_rank_as_their_probabilities_do(case: Case) -> None:
    rank = masks.class_rank(case.logits().double())
    assert torch.equal(rank, masks.class_rank(case.logits().double().softmax(dim=1)))


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize(
    ("num_classes", "low", "high"),
    [(2, 1, 2), (3, 1, 3), (7, 3, 7), (7, 2, 5), (21, 3, 20), (21, 1, 19), (21, 9, 12)],
)
def test_band_compares_with_both_bounds_as_the_rank_does(
    num_classes: int, low: int, high: int, levels: int
) -> None:
    """With many equal scores, negative ones and both zeros among them."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randn(2, num_classes, 9, 8, generator=generator).mul(levels).round() / levels
    scores[0, ::2, 0] = -0.0
    for given in (scores, scores.double(), scores.bfloat16(), scores.softmax(dim=1)):
        rank = masks.class_rank(given)
        band = masks.rank_band(given, low_rank=low, high_rank=high)
        assert torch.equal(band < low, rank < low)
        assert torch.equal(band >= high, rank >= high)


def test_band_of_many_classes_is_that_of_the_rank_too() -> None:
    scores = torch.rand(1, 150, 4, 4, generator=torch.Generator().manual_seed(0))
    rank, band = masks.class_rank(scores), masks.rank_band(scores, low_rank=3, high_rank=20)
    assert torch.equal(band, (rank >= 3).int() * 3 + (rank >= 20).int() * 17)


# Eq. 9-11


def test_anchor_threshold_is_exclusive() -> None:
    labels = torch.zeros(1, 1, 3, dtype=torch.long)
    probs = torch.tensor([[0.25, 0.5, 0.75], [0.75, 0.5, 0.25]]).view(1, 2, 1, 3)
    mask = masks.anchor_mask(labels, probs, threshold=0.5)
    assert mask.tolist() == [[[[False, False, True]], [[False, False, False]]]]


@on_random_cases
def test_anchor_mask_equals_the_reference(case: Case) -> None:
    labels, probs = case.labels(), case.probs()
    expected = reference.anchor_mask(labels.tolist(), probs.tolist(), 0.3)
    assert masks.anchor_mask(labels, probs).tolist() == expected


@on_random_cases
def test_label_mask_equals_the_reference(case: Case) -> None:
    labels = case.labels()
    expected = reference.label_mask(labels.tolist(), case.probs().tolist())
    assert masks.label_mask(labels, case.num_classes).tolist() == expected


@pytest.mark.parametrize("label", [-1, 3, IGNORE])
def test_label_outside_the_classes_belongs_to_none(label: int) -> None:
    assert not masks.label_mask(torch.full((2, 3, 3), label), 3).any()


# Eq. 14


def test_labeled_negatives_of_one_worked_pixel() -> None:
    rank = masks.class_rank(pixel(0.4, 0.3, 0.2, 0.1))
    mask = masks.labeled_negative_mask(torch.tensor([[[1]]]), rank, low_rank=3)
    assert mask.flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("low_rank", [1, 3])
@on_random_cases
def test_labeled_negatives_equal_the_reference(case: Case, low_rank: int) -> None:
    labels, rank = case.labels(), masks.class_rank(case.probs())
    expected = reference.labeled_negative_mask(labels.tolist(), rank.tolist(), low_rank)
    actual = masks.labeled_negative_mask(labels, rank, low_rank=low_rank)
    assert actual.tolist() == expected


@on_random_cases
def test_ignored_pixel_is_no_anchor_and_nobodys_negative(case: Case) -> None:
    ignored = torch.full_like(case.labels(), IGNORE)
    rank = masks.class_rank(case.probs())
    assert not masks.anchor_mask(ignored, case.probs(), threshold=0).any()
    assert not masks.labeled_negative_mask(ignored, rank, low_rank=case.num_classes).any()


# Eq. 15


def test_unlabeled_negatives_lie_between_the_ranks() -> None:
    rank = torch.tensor([0, 1, 2, 3]).view(1, 4, 1, 1)
    unreliable = torch.ones(1, 1, 1, dtype=torch.bool)
    mask = masks.unlabeled_negative_mask(unreliable, rank, low_rank=1, high_rank=3)
    assert mask.flatten().tolist() == [False, True, True, False]


@on_random_cases
def test_unlabeled_negatives_equal_the_reference(case: Case) -> None:
    unreliable, rank = case.valid(), masks.class_rank(case.probs())
    low, high = masks.rank_bounds(case.num_classes)
    expected = reference.unlabeled_negative_mask(unreliable.tolist(), rank.tolist(), low, high)
    actual = masks.unlabeled_negative_mask(unreliable, rank, low_rank=low, high_rank=high)
    assert actual.tolist() == expected


def test_reliable_pixel_gives_no_unlabeled_negative() -> None:
    rank = masks.class_rank(Case(7, 4, 0).probs())
    unreliable = torch.zeros(4, 4, 5, dtype=torch.bool)
    assert not masks.unlabeled_negative_mask(unreliable, rank, low_rank=1, high_rank=7).any()


# tags


def test_absent_class_is_a_negative_where_the_pixel_ranks_it_high() -> None:
    rank = torch.tensor([0, 1, 2, 3]).view(1, 4, 1, 1)
    possible = torch.tensor([[True, False, False, False]])
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    mask = masks.tag_negative_mask(possible, valid, rank, low_rank=2)
    assert mask.flatten().tolist() == [False, True, False, False]


@on_random_cases
def test_tag_negatives_equal_the_reference(case: Case) -> None:
    tags, valid, rank = case.tags(), case.valid(), masks.class_rank(case.probs())
    low, _ = masks.rank_bounds(case.num_classes)
    expected = reference.tag_negative_mask(tags.tolist(), valid.tolist(), rank.tolist(), low)
    assert masks.tag_negative_mask(tags, valid, rank, low_rank=low).tolist() == expected


@pytest.mark.parametrize("possible", [True, False], ids=["all", "none"])
def test_tags_that_say_nothing_give_no_certain_negative(possible: bool) -> None:
    rank = masks.class_rank(Case(7, 4, 0).probs())
    valid = torch.ones(4, 4, 5, dtype=torch.bool)
    mask = masks.tag_negative_mask(torch.full((4, 7), possible), valid, rank, low_rank=7)
    assert not mask.any()


# symmetry


@on_random_cases
def test_renaming_the_classes_renames_the_masks(case: Case) -> None:
    labels, probs, tags = case.labels(), case.probs(), case.tags()
    order = torch.randperm(case.num_classes, generator=case.generator())
    new_name = order.argsort()
    renamed = torch.where(labels == IGNORE, labels, new_name[labels.clamp_max(len(order) - 1)])
    low, high = masks.rank_bounds(case.num_classes)
    valid = case.valid()

    def all_masks(
        labels: torch.Tensor, probs: torch.Tensor, tags: torch.Tensor
    ) -> list[torch.Tensor]:
        rank = masks.class_rank(probs)
        return [
            masks.anchor_mask(labels, probs),
            masks.labeled_negative_mask(labels, rank, low_rank=low),
            masks.unlabeled_negative_mask(valid, rank, low_rank=low, high_rank=high),
            masks.tag_negative_mask(tags, valid, rank, low_rank=low),
        ]

    before = all_masks(labels, probs, tags)
    after = all_masks(renamed, probs[:, order], tags[:, order])
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, order], new)
