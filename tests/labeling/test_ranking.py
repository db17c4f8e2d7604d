"""What to label next: worked numbers, limits, ties, and frames of one video."""

from __future__ import annotations

import numpy as np
import pytest

from u2pl.labeling.ranking import (
    KNOWN,
    RARE,
    Pool,
    class_gain,
    class_weights,
    greedy_order,
    rank,
    ranked_rows,
    scores,
)


def pool(unsure: list[list[float]], features: list[list[float]]) -> Pool:
    """Images of which each half is of either class, with these unsure parts."""
    parts = np.array(unsure)
    shares = np.full(parts.shape, 1 / parts.shape[1])
    return Pool(parts.sum(axis=1), shares, parts, np.array(features))


def test_weights_are_as_the_formula_says() -> None:
    """f = (0.64, 0.36), so 0.5 / 0.8 and 0.9 / 0.6, scaled by 1 / 0.94."""
    found = class_weights(np.array([[0.6, 0.4], [0.68, 0.32]]), [0.5, 0.1])
    assert found == pytest.approx([0.625 / 0.94, 1.5 / 0.94])


def test_random_pixel_is_worth_one() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(5), size=7)
    weights = class_weights(shares, [0.1, None, 0.9, 1.0, 0.0])
    assert (shares.mean(axis=0) * weights).sum() == pytest.approx(1)
    assert (weights > 0).all()


def test_rarer_and_worse_known_classes_weigh_more() -> None:
    rare = class_weights(np.array([[0.9, 0.1]]), [0.5, 0.5])
    assert rare[1] > rare[0]
    unknown = class_weights(np.array([[0.5, 0.5]]), [0.5, None])
    assert unknown[1] == pytest.approx(2 * unknown[0])


def test_weights_are_finite_for_absent_and_perfect_classes() -> None:
    found = class_weights(np.array([[1.0, 0.0]]), [1.0, 1.0])
    assert found == pytest.approx([1.0, 1.0 / np.sqrt(RARE)])
    assert class_weights(np.array([[0.5, 0.5]]), [1.0, 0.0])[0] == pytest.approx(2 * KNOWN / 1.05)


def test_gain_is_the_unreliable_share_where_all_weigh_alike() -> None:
    unsure = np.random.default_rng(0).random((4, 3)) / 3
    assert class_gain(unsure, np.ones(3)) == pytest.approx(unsure.sum(axis=1))
    assert scores(np.array([0.2]), np.array([0.6])) == pytest.approx([0.4])


def test_first_has_the_highest_score_and_copies_come_last() -> None:
    score = np.array([0.5, 0.9, 0.9, 0.4])
    features = np.array([[0.0, 1], [1, 0], [1, 0], [0, 0.5]])
    order = greedy_order(score, features)
    assert [index for index, _, _ in order] == [1, 0, 3, 2]
    assert order[0] == (1, None, None)
    assert order[1] == (0, pytest.approx(np.sqrt(2)), 1)
    assert order[3] == (2, 0.0, 1)


def test_first_of_the_ranking_are_not_frames_of_one_video() -> None:
    """Ten videos of 50 frames; those of one are all the most unsure."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 8))
    features = (centres[:, None] + 0.01 * rng.normal(size=(10, 50, 8))).reshape(500, 8)
    score = np.repeat([0.9, *[0.5] * 9], 50) + 0.01 * rng.random(500)
    by_score = np.argsort(-score)[:10] // 50
    assert {*by_score.tolist()} == {0}
    chosen = {index // 50 for index, _, _ in greedy_order(score, features)[:10]}
    assert len(chosen) == 10


def test_ranking_is_the_same_every_time_and_names_each_image_once() -> None:
    rng = np.random.default_rng(1)
    score, features = rng.random(60), rng.normal(size=(60, 4))
    order = greedy_order(score, features, most=20)
    assert order == greedy_order(score, features, most=20)
    assert sorted(index for index, _, _ in order) == list(range(60))
    rest = [score[index] for index, _, _ in order[20:]]
    assert rest == sorted(rest, reverse=True)


def test_images_of_no_worth_are_ranked_all_the_same() -> None:
    order = greedy_order(np.zeros(3), np.zeros((3, 2)))
    assert [index for index, _, _ in order] == [0, 1, 2]
    assert greedy_order(np.zeros(0), np.zeros((0, 2))) == []
    empty = Pool(np.zeros(0), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 3)))
    assert rank(empty, [0.5, 0.5]) == []


def test_rank_names_the_classes_behind_it() -> None:
    images = pool([[0.0, 0.3], [0.2, 0.2], [0.0, 0.0]], [[0.0], [1.0], [3.0]])
    places = rank(images, [0.9, 0.0])
    assert [place.index for place in places] == [0, 1, 2]
    assert [place.classes for place in places] == [(1,), (1,), ()]
    assert places[0].unreliable == pytest.approx(0.3)
    # weights are 0.1 and 1.0 over their mean, 0.55
    assert places[0].gain == pytest.approx(0.3 / 0.55)
    assert places[0].score == pytest.approx((0.3 + 0.3 / 0.55) / 2)


def test_rows_say_what_a_place_means() -> None:
    places = rank(pool([[0.1, 0.1], [0.4, 0.2]], [[0.0], [2.0]]), [0.5, 0.5])
    first, second = ranked_rows(places, ["a.png", "b.png"], ["sky", "road"])
    assert (first["rank"], first["image"], first["nearest"]) == ("1", "b.png", "")
    assert first["classes"] == "sky;road"
    assert (second["nearest"], second["distance"]) == ("b.png", "2.000000")


def test_ten_thousand_images_are_ranked_in_seconds() -> None:
    rng = np.random.default_rng(0)
    order = greedy_order(rng.random(10_000), rng.normal(size=(10_000, 64)), most=50)
    assert len(order) == 10_000
