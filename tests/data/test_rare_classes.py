from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from reference import rare_classes as reference
from u2pl.data.rare_classes import RareClassSampler, class_probabilities, images_with_class

# Images of 100 labelled pixels and fewer; class 2 is nowhere, class 4 is rare.
PIXELS = np.array([[90, 10, 0, 0, 0], [60, 30, 0, 9, 1], [80, 0, 0, 20, 0], [70, 0, 0, 10, 4]])


def _sampler(temperature: float = 0.2, min_pixels: int = 10) -> RareClassSampler:
    return RareClassSampler.of_pixels(PIXELS, temperature=temperature, min_pixels=min_pixels)


def test_two_classes_by_hand() -> None:
    probabilities = class_probabilities(np.array([[3, 0], [0, 1]]), temperature=0.5)
    odds = math.exp((1 - 0.25) / 0.5) / math.exp((1 - 0.75) / 0.5)
    assert probabilities[1] / probabilities[0] == pytest.approx(odds)


@pytest.mark.parametrize("temperature", [0.01, 0.2, 3.0])
def test_probabilities_are_those_of_the_slow_reference(temperature: float) -> None:
    found = class_probabilities(PIXELS, temperature=temperature)
    assert found.tolist() == pytest.approx(reference.probabilities(PIXELS.tolist(), temperature))
    assert found.sum() == pytest.approx(1)
    assert found[2] == 0


def test_temperature_goes_from_the_rarest_class_to_none() -> None:
    assert class_probabilities(PIXELS, temperature=1e-320).tolist() == [0, 0, 0, 0, 1]
    hot = class_probabilities(PIXELS, temperature=1e9)
    assert hot.tolist() == pytest.approx([0.25, 0.25, 0, 0.25, 0.25])


def test_the_rarer_a_class_the_likelier_it_is() -> None:
    probabilities = class_probabilities(PIXELS, temperature=0.1)
    assert np.argsort(-probabilities).tolist() == [4, 3, 1, 0, 2]


def test_one_class_is_always_drawn() -> None:
    assert class_probabilities(np.array([[0, 7]]), temperature=0.01).tolist() == [0, 1]


@pytest.mark.parametrize("min_pixels", [1, 9, 10, 1000])
def test_images_of_a_class_hold_enough_of_it_or_else_any(min_pixels: int) -> None:
    found = images_with_class(PIXELS, min_pixels=min_pixels)
    for c in range(5):
        assert found[c].tolist() == reference.candidates(PIXELS.tolist(), c, min_pixels)
    assert len(found[2]) == 0


@pytest.mark.parametrize("temperature", [0.01, 0.2, 3.0])
def test_draws_are_those_of_the_slow_reference(temperature: float) -> None:
    sampler = _sampler(temperature)
    for seed in range(200):
        numbers = torch.rand(
            2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).tolist()
        expected = reference.draw(PIXELS.tolist(), temperature, 10, *numbers)
        assert sampler.draw(torch.Generator().manual_seed(seed)) == expected


def test_frequencies_are_the_probabilities() -> None:
    sampler, generator, num = _sampler(), torch.Generator().manual_seed(0), 20_000
    draws = Counter(sampler.draw(generator) for _ in range(num))
    for c in range(5):
        images = reference.candidates(PIXELS.tolist(), c, 10)
        of_class = sum(count for (drawn, _), count in draws.items() if drawn == c)
        p = sampler.probabilities[c]
        assert abs(of_class - num * p) <= 4 * math.sqrt(num * p * (1 - p))
        for image in images:  # uniform over the images of the class
            share = p / len(images)
            deviation = 4 * math.sqrt(num * share * (1 - share))
            assert abs(draws[c, image] - num * share) <= deviation
        assert {image for drawn, image in draws if drawn == c} == set(images)


def test_numbers_at_the_ends_draw_a_class_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.array([[0, 1, 1, 1, 0]])
    sampler = RareClassSampler.of_pixels(pixels, temperature=0.1, min_pixels=1)
    for number, expected in ((0.0, 1), (1 - 2**-53, 3)):
        monkeypatch.setattr(
            torch, "rand", lambda *_, n=number, **__: torch.tensor([n, n], dtype=torch.float64)
        )
        assert sampler.draw(torch.Generator()) == (expected, 0)
