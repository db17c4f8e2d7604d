from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import Tensor

import reference.partition as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl import partition

ALPHAS = pytest.mark.parametrize("alpha", [0.0, 0.05, 0.2, 0.5, 0.99])


def maps(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[1, 1, W]: one image of one row."""
    return torch.tensor(values, dtype=dtype).view(1, 1, -1)


def everywhere(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


# Eq. 5: entropy


def test_entropy_of_worked_distributions() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [1 / 3] * 3]).T.view(1, 3, 1, 3)
    expected = maps(0.0, 1.5 * math.log(2), math.log(3))
    torch.testing.assert_close(partition.prediction_entropy(probs), expected)


@on_random_cases
def test_entropy_equals_the_reference(case: Case) -> None:
    probs = case.probs()
    expected = torch.tensor(reference.prediction_entropy(probs.tolist()))
    torch.testing.assert_close(partition.prediction_entropy(probs), expected)


def test_entropy_is_never_below_zero() -> None:
    probs = torch.stack([torch.tensor(1 + 2**-23), torch.tensor(0.0)]).view(1, 2, 1, 1)
    assert partition.prediction_entropy(probs).item() == 0


@on_random_cases
def test_entropy_does_not_depend_on_the_order_of_the_classes(case: Case) -> None:
    order = torch.randperm(case.num_classes, generator=case.generator())
    probs = case.probs()
    torch.testing.assert_close(
        partition.prediction_entropy(probs[:, order]), partition.prediction_entropy(probs)
    )


def test_entropy_has_the_analytic_gradient() -> None:
    probs = Case(3, 1, 0).probs().double().requires_grad_()
    assert torch.autograd.gradcheck(partition.prediction_entropy, probs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_entropy_follows_the_dtype(dtype: torch.dtype) -> None:
    entropy = partition.prediction_entropy(Case(3, 1, 0).probs().to(dtype))
    assert entropy.dtype == dtype


# Eq. 7: the share


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.2), (25, 0.15), (50, 0.1), (100, 0.0), (150, 0.0)]
)
def test_unreliable_fraction_falls_linearly_to_zero_and_stays(step: int, expected: float) -> None:
    assert partition.unreliable_fraction(step, 100) == pytest.approx(expected)


@pytest.mark.parametrize("initial", [0.0, 0.2, 0.4])
def test_unreliable_fraction_equals_the_reference(initial: float) -> None:
    for step in range(12):
        expected = reference.unreliable_fraction(step, 10, initial)
        actual = partition.unreliable_fraction(step, 10, initial=initial)
        assert actual == pytest.approx(expected)


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_impossible_steps_are_named(step: int, total: int) -> None:
    with pytest.raises(
        ValueError, match=rf"step >= 0 and total_steps >= 1, got {step} and {total}\."
    ):
        partition.unreliable_fraction(step, total)


@pytest.mark.parametrize("initial", [-0.1, 1.0])
def test_impossible_initial_share_is_named(initial: float) -> None:
    with pytest.raises(ValueError, match=rf"initial in \[0, 1\), got {initial}\."):
        partition.unreliable_fraction(0, 10, initial=initial)


# Eq. 6: threshold


def test_threshold_of_worked_numbers() -> None:
    entropy = maps(4.0, 0.0, 3.0, 1.0, 2.0)
    threshold = partition.entropy_threshold(entropy, everywhere(entropy), unreliable_fraction=0.3)
    assert threshold.item() == pytest.approx(2.8)  # position 0.7 · 4 between 2 and 3


@ALPHAS
@on_random_cases
def test_threshold_equals_the_reference_and_torch_quantile(case: Case, alpha: float) -> None:
    entropy, valid = partition.prediction_entropy(case.probs()), case.valid()
    actual = partition.entropy_threshold(entropy, valid, unreliable_fraction=alpha)
    expected = reference.entropy_threshold(entropy.tolist(), valid.tolist(), alpha)
    torch.testing.assert_close(actual, torch.tensor(expected))
    torch.testing.assert_close(actual, entropy[valid].quantile(1 - alpha))


@ALPHAS
def test_threshold_leaves_the_asked_share_of_pixels_above_it(alpha: float) -> None:
    entropy = torch.rand(2, 25, 20, generator=torch.Generator().manual_seed(0))
    valid = everywhere(entropy)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=alpha)
    share = partition.unreliable_mask(entropy, threshold, valid).float().mean().item()
    assert share == pytest.approx(alpha, abs=1 / 1000)


def test_invalid_pixels_do_not_move_the_threshold() -> None:
    entropy = maps(0.0, 1.0, 2.0)
    padded = torch.cat([entropy, maps(9.0, 9.0, 0.0)], dim=2)
    valid = torch.arange(6).view(1, 1, -1) < 3
    assert partition.entropy_threshold(
        padded, valid, unreliable_fraction=0.2
    ) == partition.entropy_threshold(entropy, everywhere(entropy), unreliable_fraction=0.2)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("num_pixels", [1, 2, 17, 5000])
def test_threshold_found_by_counting_is_the_same_to_the_last_bit(
    num_pixels: int, fraction: float
) -> None:
    """What several processes do, of whom none holds all pixels."""
    generator = torch.Generator().manual_seed(num_pixels)
    entropy = torch.rand(1, 1, num_pixels, generator=generator).square() * 3
    entropy[..., ::3] = entropy[..., 0].item()  # some are equal
    entropy[..., 1::7] = 0.0
    valid = torch.rand(1, 1, num_pixels, generator=generator) < 0.8
    valid[..., 0] = True
    settings = {"unreliable_fraction": fraction}
    by_sorting = partition.entropy_threshold(entropy, valid, **settings)
    by_counting = partition.entropy_threshold(entropy, valid, **settings, total=lambda x: x)
    assert torch.equal(by_sorting, by_counting)


def test_threshold_of_shared_pixels_is_that_of_all_of_them() -> None:
    """Two parts whose counts are added, as two processes would add them."""
    entropy = torch.rand(2, 1, 400, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(entropy, dtype=torch.bool)
    expected = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.3)
    gate, shared = threading.Barrier(2), [torch.zeros(0), torch.zeros(0)]
    found: list[Tensor] = []

    def process(rank: int) -> None:
        def total(counts: Tensor) -> Tensor:
            shared[rank] = counts
            gate.wait(10)
            summed = shared[0] + shared[1]
            gate.wait(10)
            return summed

        part = slice(rank, rank + 1)
        found.append(
            partition.entropy_threshold(
                entropy[part], valid[part], unreliable_fraction=0.3, total=total
            )
        )

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(one, expected) for one in found] == [True, True]


def test_threshold_without_a_valid_pixel_is_infinite() -> None:
    entropy = maps(0.1, 0.2)
    valid = ~everywhere(entropy)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    assert threshold.item() == math.inf
    assert not partition.unreliable_mask(entropy, threshold, valid).any()


def test_threshold_of_one_valid_pixel_is_its_entropy() -> None:
    entropy = maps(0.1, 0.2, 0.3)
    valid = torch.tensor([[[False, True, False]]])
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    assert threshold.item() == pytest.approx(0.2)


# Eq. 6 for each class


@ALPHAS
@on_random_cases
def test_thresholds_of_classes_equal_the_reference_of_their_pixels(
    case: Case, alpha: float
) -> None:
    entropy, valid, labels = partition.prediction_entropy(case.probs()), case.valid(), case.labels()
    valid = valid & (labels < case.num_classes)
    found = partition.class_entropy_thresholds(
        entropy, labels, valid, num_classes=case.num_classes, unreliable_fraction=alpha
    )
    expected = [
        reference.entropy_threshold(entropy.tolist(), (valid & (labels == c)).tolist(), alpha)
        for c in range(case.num_classes)
    ]
    assert expected[-1] == math.inf  # the last class never occurs
    torch.testing.assert_close(found, torch.tensor(expected))


def test_thresholds_of_one_class_are_that_of_the_batch_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    entropy = torch.rand(2, 30, 40, generator=generator)
    valid = torch.rand(2, 30, 40, generator=generator) < 0.8
    nothing = torch.zeros_like(valid, dtype=torch.long)
    given = {"unreliable_fraction": 0.3, "total": lambda counts: counts}
    threshold = partition.entropy_threshold(entropy, valid, **given)
    found = partition.class_entropy_thresholds(entropy, nothing, valid, num_classes=2, **given)
    assert torch.equal(found[0], threshold)
    assert found[1] == math.inf


def test_thresholds_of_classes_are_those_of_all_processes() -> None:
    """Each part twice is as if two processes had the same pixels."""
    case = Case(7, 4, 0)
    entropy, valid, labels = partition.prediction_entropy(case.probs()), case.valid(), case.labels()
    valid = valid & (labels < 7)
    given = {"num_classes": 7, "unreliable_fraction": 0.2}
    twice = partition.class_entropy_thresholds(
        torch.cat([entropy] * 2), torch.cat([labels] * 2), torch.cat([valid] * 2), **given
    )
    shared = partition.class_entropy_thresholds(
        entropy, labels, valid, **given, total=lambda counts: 2 * counts
    )
    assert torch.equal(shared, twice)


def test_quantile_finds_its_place_where_float32_cannot_count_the_pixels() -> None:
    entropy = torch.zeros(1, 2**24 + 4, 1)  # float32 reads the last place, 2^24 + 3, as one more
    entropy[0, :3, 0] = torch.tensor([3.0, 1.0, 2.0])
    threshold = partition.entropy_threshold(entropy, everywhere(entropy), unreliable_fraction=0.0)
    assert threshold.item() == 3


# Eq. 6 and 15: the split


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 0.7, math.log(2)])
@ALPHAS
def test_constant_entropy_leaves_every_pixel_reliable(
    alpha: float, value: float, dtype: torch.dtype
) -> None:
    entropy = torch.full((2, 3, 4), value, dtype=dtype)
    valid = everywhere(entropy)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=alpha)
    assert not partition.unreliable_mask(entropy, threshold, valid).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_share_zero_leaves_every_pixel_reliable(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(1, 5, 5, generator=generator, dtype=torch.float64).to(dtype)
    valid = everywhere(entropy)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.0)
    assert not partition.unreliable_mask(entropy, threshold, valid).any()


def test_invalid_pixels_are_neither_reliable_nor_unreliable() -> None:
    entropy, valid = maps(0.0, 5.0), torch.tensor([[[False, False]]])
    threshold = torch.tensor(1.0)
    assert not partition.unreliable_mask(entropy, threshold, valid).any()
    labels = partition.pseudo_labels(
        torch.zeros(1, 1, 2, dtype=torch.long), entropy, threshold, valid, ignore_index=IGNORE
    )
    assert labels.tolist() == [[[IGNORE, IGNORE]]]


def test_pixel_at_the_threshold_keeps_its_pseudo_label() -> None:
    entropy = maps(0.5, 1.0, 1.5)
    labels = partition.pseudo_labels(
        torch.tensor([[[2, 1, 0]]]),
        entropy,
        torch.tensor(1.0),
        everywhere(entropy),
        ignore_index=IGNORE,
    )
    assert labels.tolist() == [[[2, 1, IGNORE]]]


@ALPHAS
@on_random_cases
def test_pseudo_labels_equal_the_reference(case: Case, alpha: float) -> None:
    probs, valid = case.probs(), case.valid()
    entropy = partition.prediction_entropy(probs)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=alpha)
    actual = partition.pseudo_labels(
        probs.argmax(dim=1), entropy, threshold, valid, ignore_index=IGNORE
    )
    expected = reference.pseudo_labels(
        probs.tolist(), entropy.tolist(), threshold.item(), valid.tolist(), IGNORE
    )
    assert actual.tolist() == expected


@on_random_cases
def test_every_valid_pixel_is_either_labeled_or_unreliable(case: Case) -> None:
    probs, valid = case.probs(), case.valid()
    entropy = partition.prediction_entropy(probs)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    labeled = (
        partition.pseudo_labels(probs.argmax(dim=1), entropy, threshold, valid, ignore_index=IGNORE)
        != IGNORE
    )
    unreliable = partition.unreliable_mask(entropy, threshold, valid)
    assert torch.equal(labeled ^ unreliable, valid)
    assert not (labeled & unreliable).any()


# the share of confident pixels


def test_confident_share_of_worked_pixels() -> None:
    probs = torch.tensor([[0.97, 0.03], [0.5, 0.5], [0.01, 0.99], [0.968, 0.032]]).T
    probs = probs.reshape(1, 2, 1, 4)
    valid = torch.tensor([True, True, False, True]).view(1, 1, 4)
    assert partition.confident_share(probs, valid).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.968])
@on_random_cases
def test_confident_share_equals_the_reference(case: Case, threshold: float) -> None:
    probs, valid = case.probs(), case.valid()
    expected = reference.confident_share(probs.tolist(), valid.tolist(), threshold)
    share = partition.confident_share(probs, valid, threshold=threshold)
    assert share.item() == pytest.approx(expected)


def test_confident_share_without_a_valid_pixel_is_zero() -> None:
    probs = Case(3, 2, 0).probs()
    nothing = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert partition.confident_share(probs, nothing, threshold=0.0).item() == 0


# tags


def test_tags_rescale_the_classes_that_are_possible() -> None:
    probs = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    restricted = partition.restrict_to_tags(probs, torch.tensor([[False, True, True]]))
    torch.testing.assert_close(restricted.flatten(), torch.tensor([0.0, 0.6, 0.4]))


@on_random_cases
def test_tags_equal_the_reference(case: Case) -> None:
    probs, tags = case.probs(), case.tags()
    expected = reference.restrict_to_tags(probs.tolist(), tags.tolist())
    torch.testing.assert_close(partition.restrict_to_tags(probs, tags), torch.tensor(expected))


@pytest.mark.parametrize("possible", [True, False], ids=["all", "none"])
@on_random_cases
def test_tags_that_say_nothing_change_no_bit(case: Case, possible: bool) -> None:
    probs = case.probs()
    tags = torch.full((case.batch_size, case.num_classes), possible)
    assert torch.equal(partition.restrict_to_tags(probs, tags), probs)


def test_possible_classes_share_evenly_what_lay_on_absent_ones() -> None:
    probs = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    restricted = partition.restrict_to_tags(probs, torch.tensor([[False, True, True]]))
    assert restricted.flatten().tolist() == [0.0, 0.5, 0.5]


@on_random_cases
def test_restricted_probabilities_sum_to_one_and_absent_classes_have_none(case: Case) -> None:
    tags = case.tags()
    restricted = partition.restrict_to_tags(case.probs(), tags)
    torch.testing.assert_close(restricted.sum(dim=1), torch.ones(case.batch_size, *case.size))
    forbidden = ~tags & tags.any(dim=1, keepdim=True)
    assert (restricted[forbidden] == 0).all()


def test_one_possible_class_is_certain() -> None:
    tags = torch.tensor([[False, True, False]])
    restricted = partition.restrict_to_tags(Case(3, 1, 0).probs(), tags)
    torch.testing.assert_close(restricted[:, 1], torch.ones(1, 4, 5))
    torch.testing.assert_close(partition.prediction_entropy(restricted), torch.zeros(1, 4, 5))


def test_confident_share_is_that_of_all_processes() -> None:
    """Two more processes, whose counts are 3 of 4 each, beside 1 of 2 here."""
    probs = torch.tensor([[0.99, 0.6], [0.01, 0.4]]).view(1, 2, 1, 2)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    share = partition.confident_share(
        probs, valid, total=lambda counts: counts + torch.tensor([6, 8])
    )
    assert share.item() == pytest.approx(7 / 10)


@on_random_cases
def test_logits_restricted_to_tags_are_those_of_the_restricted_probabilities(case: Case) -> None:
    logits, tags = case.logits(), case.tags()
    restricted = partition.restrict_logits_to_tags(logits, tags).softmax(dim=1)
    torch.testing.assert_close(restricted, partition.restrict_to_tags(case.probs(), tags))


@pytest.mark.parametrize("possible", [True, False])
def test_tags_that_say_nothing_change_no_logit(possible: bool) -> None:
    logits = Case(7, 4, 0).logits()
    tags = torch.full((4, 7), possible)
    assert torch.equal(partition.restrict_logits_to_tags(logits, tags), logits)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
@on_random_cases
def test_confident_pseudo_labels_equal_the_reference(case: Case, threshold: float) -> None:
    probs, valid = case.probs(), case.valid()
    confidence, predictions = probs.max(dim=1)
    labels = partition.confident_pseudo_labels(
        predictions, confidence, valid, threshold=threshold, ignore_index=IGNORE
    )
    expected = reference.confident_pseudo_labels(probs.tolist(), valid.tolist(), threshold, IGNORE)
    assert labels.tolist() == expected


def test_pixel_at_the_confidence_threshold_keeps_its_label() -> None:
    ones, valid = torch.ones(1, 1, 2), torch.tensor([[[True, False]]])
    labels = partition.confident_pseudo_labels(
        ones.long(), ones, valid, threshold=1.0, ignore_index=IGNORE
    )
    assert labels.tolist() == [[[1, IGNORE]]]
