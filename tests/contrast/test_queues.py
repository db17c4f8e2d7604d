from __future__ import annotations

import io
from collections import Counter

import pytest
import torch

from reference.queues import Queues
from u2pl.contrast import NegativeQueues

CAPACITIES = pytest.mark.parametrize(
    "capacities", [[3, 3], [4, 9, 5], [7, 50, 6, 6, 11, 20, 8], [10 + c % 5 for c in range(21)]]
)
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def held(queues: NegativeQueues, class_id: int) -> list[tuple[float, ...]]:
    """The keys of one class's queue, oldest first."""
    start, capacity = queues.offsets[class_id], queues.capacities[class_id]
    ring = queues.keys[start : start + capacity]
    num_keys = int(queues.num_keys[class_id])
    if num_keys == capacity:
        ring = ring.roll(-int(queues.heads[class_id]), dims=0)
    return [tuple(key) for key in ring[:num_keys].tolist()]


def fill(queues: NegativeQueues, class_id: int, keys: torch.Tensor) -> None:
    """Push all ``keys`` [K, D] to one class."""
    mask = torch.zeros(len(queues.capacities), len(keys), dtype=torch.bool)
    mask[class_id] = True
    queues.push(keys, mask)


# push


def test_new_queues_are_empty() -> None:
    queues = NegativeQueues([3, 5], 2)
    assert queues.num_keys.tolist() == [0, 0]
    assert queues.keys.shape == (8, 2)
    assert torch.equal(queues.sample(2, 3), torch.zeros(2, 2, 3, 2))


def test_oldest_key_gives_way() -> None:
    queues = NegativeQueues([3, 2], 1)
    for value in range(5):
        fill(queues, 0, torch.tensor([[float(value)]]))
    assert held(queues, 0) == [(2.0,), (3.0,), (4.0,)]
    assert held(queues, 1) == []
    assert queues.heads.tolist() == [2, 0]


@CAPACITIES
@SEEDS
def test_single_keys_equal_the_reference_in_content_and_order(
    capacities: list[int], seed: int
) -> None:
    """One key a class and push leaves nothing to chance, so the order is known."""
    generator = torch.Generator().manual_seed(seed)
    num_classes = len(capacities)
    queues, slow = NegativeQueues(capacities, 2), Queues(capacities)
    for _ in range(3 * max(capacities)):
        features = torch.randn(5, 2, generator=generator)
        member = torch.randint(0, 5, (num_classes, 1), generator=generator)
        pushes = torch.rand(num_classes, 1, generator=generator) < 0.7
        queues.push(features, (torch.arange(5) == member) & pushes)
        slow.push(
            [
                [tuple(features[member[c, 0]].tolist())] if pushes[c, 0] else []
                for c in range(num_classes)
            ]
        )
    assert [held(queues, c) for c in range(num_classes)] == [list(q) for q in slow.queues]


@CAPACITIES
@SEEDS
@pytest.mark.parametrize("max_keys", [None, 2, 1000])
def test_each_push_keeps_as_many_keys_as_the_reference(
    capacities: list[int], seed: int, max_keys: int | None
) -> None:
    """Which keys are chosen is chance; how many of each push survive is not."""
    generator = torch.Generator().manual_seed(seed)
    num_classes, num_pixels = len(capacities), 12
    limit = min(min(capacities), max_keys or num_pixels)
    queues, slow = NegativeQueues(capacities, 2), Queues(capacities)
    for push in range(15):
        pixel = torch.arange(num_pixels)
        features = torch.stack([torch.full_like(pixel, push), pixel], dim=1).float()
        mask = torch.rand(num_classes, num_pixels, generator=generator) < 0.3
        mask[push % num_classes] = push % 2 == 0  # all pixels, or none
        queues.push(features, mask, max_keys=max_keys, generator=generator)
        chosen = mask.sum(dim=1).clamp_max(limit).tolist()
        slow.push([[(float(push),)] * n for n in chosen])
        for c in range(num_classes):
            keys = held(queues, c)
            newest = [p for p in keys if p[0] == push]
            assert [p[:1] for p in keys] == list(slow.queues[c])
            assert max(Counter(keys).values(), default=1) == 1
            assert all(mask[c, int(p[1])] for p in newest)


def test_more_keys_than_the_queue_holds_fill_it_with_a_random_subset() -> None:
    kept = set()
    for seed in range(20):
        queues = NegativeQueues([4], 1)
        generator = torch.Generator().manual_seed(seed)
        features = torch.arange(30.0).unsqueeze(1)
        queues.push(features, torch.ones(1, 30, dtype=torch.bool), generator=generator)
        assert queues.num_keys.tolist() == [4]
        assert len(set(held(queues, 0))) == 4
        kept.update(held(queues, 0))
    assert len(kept) > 20  # 80 draws out of 30: all but two in the mean


def test_one_push_never_exceeds_the_smallest_queue() -> None:
    queues = NegativeQueues([2, 10], 1)
    queues.push(torch.arange(30.0).unsqueeze(1), torch.ones(2, 30, dtype=torch.bool))
    assert queues.num_keys.tolist() == [2, 2]


def test_push_of_nothing_changes_nothing() -> None:
    queues = NegativeQueues([3, 4], 2)
    fill(queues, 1, torch.randn(2, 2, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in queues.state_dict().items()}
    queues.push(torch.full((6, 2), 7.0), torch.zeros(2, 6, dtype=torch.bool))
    assert all(torch.equal(before[name], value) for name, value in queues.state_dict().items())


def test_push_keeps_no_graph() -> None:
    queues = NegativeQueues([3], 2)
    fill(queues, 0, torch.ones(2, 2, requires_grad=True))
    assert not queues.keys.requires_grad


@pytest.mark.parametrize("capacities", [[], [3, 0], [-1]])
def test_capacity_below_one_is_named(capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="capacity of at least 1 for each class, got"):
        NegativeQueues(capacities, 2)


# sample


def test_sample_draws_only_keys_of_the_class_and_zeros_where_it_has_none() -> None:
    queues = NegativeQueues([4, 4, 4], 1)
    fill(queues, 0, torch.tensor([[1.0], [2.0]]))
    fill(queues, 2, torch.tensor([[3.0]]))
    keys = queues.sample(6, 7, generator=torch.Generator().manual_seed(0))
    assert keys.shape == (3, 6, 7, 1)
    assert [set(keys[c].flatten().tolist()) for c in range(3)] == [{1.0, 2.0}, {0.0}, {3.0}]


def test_sample_is_uniform_over_what_the_queue_holds() -> None:
    queues = NegativeQueues([8], 1)
    fill(queues, 0, torch.arange(5.0).unsqueeze(1))
    keys = queues.sample(100, 200, generator=torch.Generator().manual_seed(0))
    counts = keys.flatten().long().bincount(minlength=5).float()
    assert (counts - 4000).abs().max() < 300  # five standard deviations of 57


def test_anchors_have_negatives_of_their_own() -> None:
    queues = NegativeQueues([50], 1)
    fill(queues, 0, torch.arange(50.0).unsqueeze(1))
    keys = queues.sample(2, 20, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(keys[0, 0], keys[0, 1])


def test_full_wrapped_queue_is_sampled_whole() -> None:
    queues = NegativeQueues([3, 5], 1)
    for value in range(9):
        fill(queues, 0, torch.tensor([[float(value)]]))
    keys = queues.sample(10, 20, generator=torch.Generator().manual_seed(0))
    assert set(keys[0].flatten().tolist()) == {6.0, 7.0, 8.0}


# storage


def test_bfloat16_storage_rounds_the_keys_and_nothing_else() -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 6, dtype=torch.bool)
    full, half = (
        NegativeQueues([5, 8], 4, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    for queues in (full, half):
        queues.push(features, mask, generator=torch.Generator().manual_seed(1))
    assert half.keys.dtype == half.sample(2, 3).dtype == torch.bfloat16
    assert torch.equal(half.keys, full.keys.bfloat16())
    assert torch.equal(half.num_keys, full.num_keys)


def test_half_precision_features_may_enter_a_float32_queue() -> None:
    queues = NegativeQueues([4], 2)
    fill(queues, 0, torch.ones(2, 2, dtype=torch.float16))
    assert held(queues, 0) == [(1.0, 1.0)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_queues_continue_identically(dtype: torch.dtype) -> None:
    capacities = [3, 7, 4]
    first, second = (NegativeQueues(capacities, 2, dtype=dtype) for _ in range(2))

    def advance(queues: NegativeQueues, generator: torch.Generator) -> None:
        for _ in range(5):
            features = torch.randn(9, 2, generator=generator)
            mask = torch.rand(3, 9, generator=generator) < 0.4
            queues.push(features, mask, generator=generator)

    advance(first, torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file))
    samples = []
    for queues in (first, second):
        generator = torch.Generator().manual_seed(1)
        advance(queues, generator)
        samples.append(queues.sample(4, 5, generator=generator))
    assert torch.equal(*samples)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_cleared_queues_are_empty_and_take_new_keys() -> None:
    queues = NegativeQueues([3, 3], feature_size=2)
    mask = torch.tensor([[True, True], [False, True]])
    queues.push(torch.ones(2, 2), mask)
    queues.clear()
    assert not queues.num_keys.any()
    queues.push(2 * torch.ones(2, 2), mask)
    assert queues.num_keys.tolist() == [2, 1]
    assert (queues.keys[:2] == 2).all()
