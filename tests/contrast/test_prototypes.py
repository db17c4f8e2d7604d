from __future__ import annotations

import io

import pytest
import torch

import reference.prototypes as reference
from reference.cases import Case, on_random_cases
from u2pl.contrast import MomentumPrototypes, class_means, denoise_logits, prototypes


def random_prototypes(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """[C, D], and [C] bool of which the last is never seen."""
    shape = (case.num_classes, case.feature_size)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(case.seed + 100))
    seen = torch.arange(case.num_classes) < case.num_classes - 1
    return vectors * seen.unsqueeze(1), seen


# Eq. 12


def test_means_of_worked_numbers() -> None:
    features = torch.tensor([[1.0, 3.0, 5.0], [0.0, 2.0, 7.0]]).view(1, 2, 1, 3)
    mask = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    means, counts = class_means(features, mask.view(1, 3, 1, 3))
    assert means.tolist() == [[2.0, 1.0], [0.0, 0.0], [5.0, 7.0]]
    assert counts.tolist() == [2, 0, 1]


@on_random_cases
def test_means_equal_the_reference(case: Case) -> None:
    features, mask = case.features(), case.class_mask()
    means, counts = class_means(features, mask)
    expected_means, expected_counts = reference.class_means(features.tolist(), mask.tolist())
    torch.testing.assert_close(means, torch.tensor(expected_means))
    assert counts.tolist() == expected_counts


def test_means_of_no_pixel_at_all_are_zeros() -> None:
    case = Case(3, 4, 0)
    means, counts = class_means(case.features(), torch.zeros(4, 3, 4, 5, dtype=torch.bool))
    assert torch.equal(means, torch.zeros(3, 3))
    assert torch.equal(counts, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_precision_features_are_float32(dtype: torch.dtype) -> None:
    case = Case(3, 4, 0)
    features = case.features().to(dtype)
    means, _ = class_means(features, case.class_mask())
    expected, _ = class_means(features.float(), case.class_mask())
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, expected, atol=0.02, rtol=0.02)


def test_means_are_those_of_all_processes() -> None:
    """Here a mean of 1 over 4 pixels, in another process a sum of 12 over 2 of them."""
    features, mask = torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    others = {torch.float32: 12.0, torch.int64: 2}
    means, counts = class_means(features, mask, total=lambda x: x + others[x.dtype])
    assert counts.tolist() == [6]
    torch.testing.assert_close(means, torch.full((1, 3), 16 / 6))


def test_mean_of_many_float16_features_does_not_overflow() -> None:
    features = torch.ones(1, 2, 300, 300, dtype=torch.float16)  # the sum, 90 000, is above 65 504
    means, _ = class_means(features, torch.ones(1, 1, 300, 300, dtype=torch.bool))
    torch.testing.assert_close(means, torch.ones(1, 2))


def test_autocast_neither_overflows_nor_rounds_the_means() -> None:
    features = torch.full((9, 2, 100, 100), 1.001)
    mask = torch.ones(9, 1, 100, 100, dtype=torch.bool)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            means, _ = class_means(features, mask)
        # bfloat16 reads 1.001 as 1
        torch.testing.assert_close(means, torch.full((1, 2), 1.001), atol=1e-4, rtol=0)


# momentum


def test_first_update_is_the_mean_and_the_second_halves_the_way() -> None:
    prototypes = MomentumPrototypes(1, 2)
    prototypes.update(torch.tensor([[4.0, 8.0]]), torch.tensor([5]))
    assert prototypes.vectors.tolist() == [[4.0, 8.0]]
    prototypes.update(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert prototypes.vectors.tolist() == [[2.0, 4.0]]  # m = 1 - 1/2


def test_momentum_is_bounded() -> None:
    prototypes = MomentumPrototypes(1, 1, momentum=0.5)
    for value in (0.0, 0.0, 0.0, 8.0):
        prototypes.update(torch.tensor([[value]]), torch.tensor([1]))
    assert prototypes.vectors.item() == 4.0  # 1 - 1/4 would have left 2


def test_momentum_zero_takes_each_batchs_own_mean() -> None:
    prototypes = MomentumPrototypes(2, 1, momentum=0)
    prototypes.update(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 1]))
    prototypes.update(torch.tensor([[5.0], [0.0]]), torch.tensor([1, 0]))
    assert prototypes.vectors.tolist() == [[5.0], [2.0]]


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.999])
@on_random_cases
def test_updates_equal_the_reference(case: Case, momentum: float) -> None:
    generator = case.generator()
    prototypes = MomentumPrototypes(case.num_classes, case.feature_size, momentum=momentum)
    slow = reference.Prototypes(case.num_classes, case.feature_size, momentum)
    for _ in range(6):
        means = torch.randn(case.num_classes, case.feature_size, generator=generator)
        counts = torch.randint(0, 3, (case.num_classes,), generator=generator)
        prototypes.update(means, counts)
        slow.update(means.tolist(), counts.tolist())
    torch.testing.assert_close(prototypes.vectors, torch.tensor(slow.vectors))
    assert prototypes.num_updates.tolist() == slow.num_updates
    assert prototypes.seen.tolist() == [n > 0 for n in slow.num_updates]


def test_absent_class_keeps_its_prototype_whatever_its_mean_says() -> None:
    prototypes = MomentumPrototypes(2, 2)
    prototypes.update(torch.ones(2, 2), torch.tensor([3, 3]))
    prototypes.update(torch.full((2, 2), torch.nan), torch.tensor([0, 0]))
    assert torch.equal(prototypes.vectors, torch.ones(2, 2))
    assert prototypes.num_updates.tolist() == [1, 1]


def test_late_class_starts_from_its_own_first_mean() -> None:
    prototypes = MomentumPrototypes(2, 1)
    for _ in range(50):
        prototypes.update(torch.tensor([[1.0], [0.0]]), torch.tensor([1, 0]))
    assert prototypes.seen.tolist() == [True, False]
    prototypes.update(torch.tensor([[1.0], [7.0]]), torch.tensor([1, 1]))
    assert prototypes.vectors.tolist() == [[1.0], [7.0]]


def test_update_keeps_no_graph() -> None:
    prototypes = MomentumPrototypes(1, 2)
    prototypes.update(torch.ones(1, 2, requires_grad=True), torch.tensor([1]))
    assert not prototypes.vectors.requires_grad


def test_saved_prototypes_continue_identically() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = MomentumPrototypes(3, 4), MomentumPrototypes(3, 4)
    draws = [torch.randn(3, 4, generator=generator) for _ in range(8)]
    for means in draws[:4]:
        first.update(means, torch.tensor([1, 0, 2]))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file))
    for means in draws[4:]:
        for both in (first, second):
            both.update(means, torch.tensor([1, 1, 0]))
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(first.num_updates, second.num_updates)


# denoising


def test_denoising_of_a_worked_pixel() -> None:
    logits = torch.zeros(1, 2, 1, 1)
    features = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    prototypes = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # cosines 1 and 0
    denoised = denoise_logits(
        logits, features, prototypes, torch.tensor([True, True]), temperature=2
    )
    odds = denoised.softmax(dim=1).flatten().log()
    assert (odds[0] - odds[1]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 5.0])
@on_random_cases
def test_denoising_equals_the_reference(case: Case, temperature: float) -> None:
    logits, features = case.logits(), case.features()
    vectors, seen = random_prototypes(case)
    actual = denoise_logits(logits, features, vectors, seen, temperature=temperature)
    expected = reference.denoised_probs(
        logits.softmax(dim=1).tolist(),
        features.tolist(),
        vectors.tolist(),
        seen.tolist(),
        temperature,
    )
    torch.testing.assert_close(actual.softmax(dim=1), torch.tensor(expected), atol=1e-6, rtol=1e-4)


def test_denoising_without_any_prototype_changes_nothing() -> None:
    case = Case(7, 4, 0)
    none = torch.zeros(7, dtype=torch.bool)
    denoised = denoise_logits(
        case.logits(), case.features(), torch.zeros(7, 3), none, temperature=0.5
    )
    assert torch.equal(denoised, case.logits())


def test_denoising_with_one_prototype_changes_no_probability() -> None:
    case = Case(7, 4, 0)
    vectors, _ = random_prototypes(case)
    seen = torch.arange(7) == 2
    denoised = denoise_logits(case.logits(), case.features(), vectors, seen, temperature=0.5)
    torch.testing.assert_close(denoised.softmax(dim=1), case.probs())


def test_denoising_compares_directions_not_lengths() -> None:
    case = Case(7, 4, 0)
    vectors, seen = random_prototypes(case)
    arguments = (case.logits(), case.features(), vectors, seen)
    longer = (case.logits(), 9 * case.features(), 0.2 * vectors, seen)
    torch.testing.assert_close(
        denoise_logits(*arguments, temperature=0.5), denoise_logits(*longer, temperature=0.5)
    )


@on_random_cases
def test_renaming_the_classes_renames_the_denoised_logits(case: Case) -> None:
    order = torch.randperm(case.num_classes, generator=case.generator())
    logits, features = case.logits(), case.features()
    vectors, seen = random_prototypes(case)
    before = denoise_logits(logits, features, vectors, seen, temperature=0.5)
    after = denoise_logits(logits[:, order], features, vectors[order], seen[order], temperature=0.5)
    torch.testing.assert_close(before[:, order], after)


def test_denoising_has_the_analytic_gradient() -> None:
    case = Case(3, 1, 0, size=(1, 2))
    vectors, seen = random_prototypes(case)
    logits, features = case.logits().double(), case.features().double()

    def denoise(logits: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return denoise_logits(logits, features, vectors.double(), seen, temperature=0.5)

    assert torch.autograd.gradcheck(denoise, (logits.requires_grad_(), features.requires_grad_()))


@on_random_cases
def test_a_gpu_adds_row_by_row_and_finds_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, mask = case.features(), case.class_mask()
    expected, _ = class_means(features, mask)
    monkeypatch.setattr(prototypes, "_sums_of_images", prototypes._sums_of_rows)
    assert len(prototypes._sums_of_rows(features, mask)) == case.batch_size * case.size[0]
    torch.testing.assert_close(class_means(features, mask)[0], expected)
