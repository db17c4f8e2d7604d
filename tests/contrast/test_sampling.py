from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reference.cases import Case, on_random_cases
from u2pl.contrast import (
    by_class,
    by_pixel,
    sample_with_replacement,
    sample_without_replacement,
    sampling,
)

Sample = Callable[..., tuple[Tensor, Tensor]]


def flat_mask(case: Case) -> torch.Tensor:
    """[C, B·h·w] bool; the last row is empty."""
    return case.class_mask().transpose(0, 1).flatten(1)


@on_random_cases
def test_draws_with_replacement_are_members(case: Case) -> None:
    mask = flat_mask(case)
    index, filled = sample_with_replacement(mask, 50, generator=case.generator())
    assert index.shape == (case.num_classes, 50)
    assert index.dtype == torch.int64
    assert torch.equal(filled, mask.any(dim=1))
    assert mask.gather(1, index)[filled].all()


def test_empty_row_gives_positions_that_can_be_read() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    index, filled = sample_with_replacement(mask, 4)
    assert not filled.any()
    assert ((index >= 0) & (index < 3)).all()
    index, chosen = sample_without_replacement(mask, 4)
    assert not chosen.any()
    assert ((index >= 0) & (index < 3)).all()


def test_draws_with_replacement_are_uniform_over_the_members() -> None:
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, [0, 7, 39]] = True
    mask[1, 20:25] = True
    generator = torch.Generator().manual_seed(0)
    index, _ = sample_with_replacement(mask, 30_000, generator=generator)
    for row in range(2):
        counts = index[row].bincount(minlength=40).float()
        expected = mask[row] * 30_000 / mask[row].sum()
        # five standard deviations of a binomial count
        assert (counts - expected).abs().max() < 5 * expected.max().sqrt()


def test_row_of_one_member_is_drawn_again_and_again() -> None:
    mask = torch.arange(5).unsqueeze(0) == 4
    index, filled = sample_with_replacement(mask, 6)
    assert index.tolist() == [[4] * 6]
    assert filled.all()


@pytest.mark.parametrize("num_samples", [1, 5, 1000])
@on_random_cases
def test_draws_without_replacement_are_distinct_members(case: Case, num_samples: int) -> None:
    mask = flat_mask(case)
    index, chosen = sample_without_replacement(mask, num_samples, generator=case.generator())
    size = min(num_samples, mask.shape[1])
    assert index.shape == chosen.shape == (case.num_classes, size)
    for row in range(case.num_classes):
        num_members = int(mask[row].sum())
        drawn = index[row][chosen[row]].tolist()
        assert chosen[row].tolist() == [n < min(num_members, size) for n in range(size)]
        assert len(set(drawn)) == len(drawn)
        assert mask[row][drawn].all()


@on_random_cases
def test_all_members_come_where_there_are_no_more(case: Case) -> None:
    mask = flat_mask(case)
    index, chosen = sample_without_replacement(mask, mask.shape[1], generator=case.generator())
    for row in range(case.num_classes):
        drawn = index[row][chosen[row]].sort().values
        assert torch.equal(drawn, mask[row].nonzero().flatten())


def test_each_member_is_as_likely_and_so_is_each_place() -> None:
    mask = torch.tensor([[True, False, True, True, False, True]])
    generator = torch.Generator().manual_seed(0)
    draws = [sample_without_replacement(mask, 2, generator=generator)[0] for _ in range(4000)]
    for place in torch.cat(draws).T:
        counts = place.bincount(minlength=6).float()
        assert counts[~mask[0]].sum() == 0
        assert (counts[mask[0]] - 1000).abs().max() < 150  # five standard deviations of 27


@pytest.mark.parametrize("sample", [sample_with_replacement, sample_without_replacement])
def test_same_generator_gives_the_same_draw(
    sample: Sample,
) -> None:
    case = Case(7, 4, 3)
    first = sample(flat_mask(case), 9, generator=case.generator())
    again = sample(flat_mask(case), 9, generator=case.generator())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("sample", [sample_with_replacement, sample_without_replacement])
def test_mask_may_be_any_view(sample: Sample) -> None:
    case = Case(3, 4, 0)
    strided = flat_mask(case).T.contiguous().T
    actual = sample(strided, 9, generator=case.generator())
    expected = sample(flat_mask(case), 9, generator=case.generator())
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@on_random_cases
def test_index_into_a_class_finds_the_feature_of_the_same_pixel(case: Case) -> None:
    """Features that say where they are: image, row and column of each pixel."""
    mask = case.class_mask()  # [B, C, h, w]
    places = mask.any(dim=1).new_ones(mask[:, 0].shape).nonzero()  # in order of image, row, column
    features = places.view(mask.shape[0], *mask.shape[2:], 3).permute(0, 3, 1, 2)
    index, filled = sample_with_replacement(by_class(mask), 20, generator=case.generator())
    found = by_pixel(features)[index]  # [C, S, 3]
    for class_id in filled.nonzero().flatten().tolist():
        for image, row, column in found[class_id].tolist():
            assert mask[image, class_id, row, column]


@on_random_cases
def test_a_gpu_counts_all_rows_at_once_and_finds_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = flat_mask(case)
    by_row = [
        sample(mask, number, generator=case.generator())
        for sample in (sample_with_replacement, sample_without_replacement)
        for number in (1, 50)
    ]
    counted = sampling._counted
    monkeypatch.setattr(sampling, "_counted", lambda mask: counted(mask, at_once=True))
    at_once = [
        sample(mask, number, generator=case.generator())
        for sample in (sample_with_replacement, sample_without_replacement)
        for number in (1, 50)
    ]
    assert counted(mask, at_once=True)[0].ndim == 1
    for expected, found in zip(by_row, at_once, strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
