from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny import patches, tiny_model
from u2pl.app.answers import PixelAnswer, ask_pixel, class_shares, label
from u2pl.data.windows import ArrayWindows
from u2pl.engine.tiles import Tiling, predict_bands
from u2pl.engine.trained import Prediction

TILES = Tiling(size=64, overlap=32, whole=1)  # every image is a large one


def same(one: Prediction, other: Prediction) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("resize", [None, 24, 80])
@pytest.mark.parametrize("protocol", ["whole", "slide"])
def test_answer_is_what_predict_says(resize: int | None, protocol: str) -> None:
    model = tiny_model(resize=resize, protocol=protocol)
    image = patches()
    labeled = label(model, image)
    assert same(labeled.prediction, model.predict(image))
    assert len(np.unique(labeled.prediction.mask)) > 2
    assert 0 < labeled.prediction.reliable.mean() < 1


@pytest.mark.parametrize("resize", [None, 70])
def test_large_image_is_answered_as_predict_labels_it_in_tiles(resize: int | None) -> None:
    model = tiny_model(resize=resize)
    image = patches((130, 100))
    heard: list[tuple[int, int]] = []
    labeled = label(model, image, tiling=TILES, on_rows=lambda *rows: heard.append(rows))
    bands = [band for _, band in predict_bands(model, ArrayWindows(image), TILES)]
    joined = Prediction(*(np.concatenate(maps) for maps in zip(*bands, strict=True)))
    assert same(labeled.prediction, joined)
    assert heard[-1] == (130, 130)
    assert (labeled.logits is None) is (resize is None)


def pixel_by_loops(
    logits: list[float], row: int, column: int, *, low: int, high: int, threshold: float
) -> PixelAnswer:
    """Eq. 5 and 13-15 for one pixel, slowly."""
    largest = max(logits)
    powers = [math.exp(x - largest) for x in logits]
    probs = [power / sum(powers) for power in powers]
    ranks = []
    for c, p in enumerate(probs):
        before = [d for d, q in enumerate(probs) if q > p or (q == p and d < c)]
        ranks.append(len(before))
    entropy = -sum(p * math.log(p) for p in probs if p > 0)
    return PixelAnswer(
        row=row,
        column=column,
        probs=tuple(probs),
        ranks=tuple(ranks),
        excluded=tuple(low <= rank < high for rank in ranks),
        entropy=entropy,
        reliable=entropy <= threshold,
    )


@pytest.mark.parametrize("ranks", [(3, 7), (1, 2), (2, 5), (6, 7)])
@pytest.mark.parametrize("resize", [None, 24, 80])
def test_pixel_is_answered_as_by_loops(ranks: tuple[int, int], resize: int | None) -> None:
    model = tiny_model(resize=resize)
    image = patches()
    labeled = label(model, image)
    images = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    for row, column in [(0, 0), (40, 56), (17, 23), (40, 0), (9, 50)]:
        answer = ask_pixel(model, labeled, row, column, ranks=ranks)
        if resize is None:
            logits = model(images)[0, :, row, column].tolist()
            expected = pixel_by_loops(
                logits, row, column, low=ranks[0], high=ranks[1], threshold=0.9
            )
            assert answer.probs == pytest.approx(expected.probs, abs=1e-6)
            assert answer.entropy == pytest.approx(expected.entropy, abs=1e-5)
            assert answer._replace(probs=(), entropy=0) == expected._replace(probs=(), entropy=0)
        prediction = labeled.prediction
        assert answer.by_rank[0] == prediction.mask[row, column] == np.argmax(answer.probs)
        assert answer.entropy == prediction.entropy[row, column]
        assert answer.reliable == prediction.reliable[row, column]
        found = -sum(p * math.log(p) for p in answer.probs)
        assert found == pytest.approx(answer.entropy, abs=1e-4)
        assert sum(answer.excluded) == ranks[1] - ranks[0]


@pytest.mark.parametrize("resize", [None, 70])
def test_pixel_of_a_large_image_agrees_with_its_maps(resize: int | None) -> None:
    """Also where two and where four tiles say something of it."""
    model = tiny_model(resize=resize)
    labeled = label(model, patches((130, 100)), tiling=TILES)
    for row, column in [(0, 0), (129, 99), (40, 40), (50, 10), (63, 63), (64, 95), (110, 32)]:
        answer = ask_pixel(model, labeled, row, column, ranks=(3, 7), tiling=TILES)
        assert answer.by_rank[0] == labeled.prediction.mask[row, column]
        found = -sum(p * math.log(p) for p in answer.probs if p > 0)
        assert found == pytest.approx(answer.entropy, abs=1e-4)


def test_equal_probabilities_rank_in_order_of_class() -> None:
    model = tiny_model()
    labeled = replace(label(model, patches()), logits=torch.zeros(7, 41, 57))
    answer = ask_pixel(model, labeled, 0, 0, ranks=(3, 6))
    assert answer.by_rank == (0, 1, 2, 3, 4, 5, 6)
    assert answer.excluded == (False, False, False, True, True, True, False)


def test_memory_is_counted() -> None:
    labeled = label(tiny_model(), patches((8, 8)))
    assert labeled.num_bytes == 64 * (3 + 1 + 4 + 1 + 4 * 7)


def test_shares_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 2, 5], size=(9, 11), p=[0.2, 0.5, 0.3]).astype(np.uint8)
    reliable = rng.random((9, 11)) < 0.5
    found = class_shares(Prediction(mask, np.zeros((9, 11), np.float32), reliable), 7)
    counts = {c: [0, 0] for c in (0, 2, 5)}
    for class_id, sure in zip(mask.ravel().tolist(), reliable.ravel().tolist(), strict=True):
        counts[class_id][0] += 1
        counts[class_id][1] += sure
    order = sorted(counts, key=lambda c: -counts[c][0])
    assert [share.class_id for share in found] == order
    assert [share.share for share in found] == [counts[c][0] / 99 for c in order]
    assert [share.reliable_share for share in found] == [counts[c][1] / counts[c][0] for c in order]
