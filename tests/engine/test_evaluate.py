from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from factories import write_dataset
from tiny import tiny_config
from u2pl.data.images import read_image
from u2pl.data.sources import Dataset, default_colors, load_dataset, split_hash
from u2pl.data.transforms import eval_image
from u2pl.engine.evaluate import (
    NUM_BINS,
    Evaluation,
    Tally,
    class_iou,
    entropy_histogram,
    evaluate,
    predict_logits,
    resize_logits,
    window_starts,
)
from u2pl.engine.protocol import CLASS_SETS, Protocol, at_scale
from u2pl.models import SegmentationOutput, Segmenter

CPU = torch.device("cpu")
WHOLE, SLIDE = Protocol("whole"), Protocol("slide", crop=(16, 16), stride_fraction=0.5)


class Colors(nn.Module):
    """Says three classes from the mean red, green and blue of each 4 x 4 cell alone."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor, *, with_features: bool = True) -> SegmentationOutput:
        assert not with_features
        self.sizes.append(tuple(images.shape))
        pooled = nn.functional.avg_pool2d(images, 4, ceil_mode=True, count_include_pad=False)
        return SegmentationOutput(8 * pooled, None)


def dataset_of(tmp_path: Path, sizes: list[tuple[int, int]], **changes: Any) -> Dataset:
    """Three classes; one val image of noise for each size, with random masks and some ignore."""
    path = write_dataset(tmp_path, num_val=1, **changes)
    for file in (*(tmp_path / "val/images").iterdir(), *(tmp_path / "val/masks").iterdir()):
        file.unlink()
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
        Image.fromarray(image).save(tmp_path / f"val/images/v{i}.png")
        Image.fromarray(mask).save(tmp_path / f"val/masks/v{i}.png")
    return load_dataset(path)


def score(model: nn.Module, dataset: Dataset, **changes: Any) -> Evaluation:
    config = tiny_config(**changes)
    return evaluate({"m": model}, dataset.val, dataset, config, device=CPU, workers=0)["m"]


def slow_confusion(model: nn.Module, dataset: Dataset, resize: int | None = None) -> list[Any]:
    """Pixel by pixel, image by image."""
    table = np.zeros((3, 3), np.int64)
    for sample in dataset.val:
        pixels = read_image(sample.image)
        image = eval_image(pixels, resize=resize).unsqueeze(0)
        logits = predict_logits(model, image, WHOLE)
        found = resize_logits(logits, pixels.shape[:2])[0].argmax(0).numpy()
        assert sample.mask is not None
        mask = np.asarray(Image.open(sample.mask))
        for row in range(mask.shape[0]):
            for column in range(mask.shape[1]):
                if mask[row, column] != 255:
                    table[mask[row, column], found[row, column]] += 1
    return table.tolist()


SIZES = [(40, 56), (40, 56), (33, 47), (40, 56)]


@pytest.mark.parametrize("resize", [None, 24])
def test_confusion_is_that_of_a_loop_over_pixels(tmp_path: Path, resize: int | None) -> None:
    """Images of several sizes in one list, scored at their masks' own size."""
    dataset = dataset_of(tmp_path, SIZES)
    result = score(Colors(), dataset, data__resize=resize)
    assert result.confusion.tolist() == slow_confusion(Colors(), dataset, resize)
    known = sum(int((np.asarray(Image.open(s.mask)) != 255).sum()) for s in dataset.val if s.mask)
    assert result.confusion.sum() == known
    assert result.entropy_histogram.sum() == sum(h * w for h, w in SIZES)
    assert result.num_images == 4
    assert result.split_sha256 == split_hash(dataset.val)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batch_size_does_not_change_the_score(tmp_path: Path, batch_size: int) -> None:
    dataset = dataset_of(tmp_path, SIZES)
    one = score(Colors(), dataset, evaluation__batch_size=1)
    some = score(Colors(), dataset, evaluation__batch_size=batch_size)
    assert torch.equal(one.confusion, some.confusion)


def test_networks_side_by_side_are_scored_apart_and_left_in_their_mode(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, SIZES[:1])
    training, still = Segmenter(tiny_config().model, 3), Colors().eval()
    statistics = training.decoder.aspp[0].convs[0][1].running_mean.clone()
    scores = evaluate(
        {"a": training.train(), "b": still}, dataset.val, dataset, tiny_config(), device=CPU
    )
    assert training.training
    assert not still.training
    assert torch.equal(training.decoder.aspp[0].convs[0][1].running_mean, statistics)
    assert torch.equal(scores["b"].confusion, score(Colors(), dataset).confusion)
    assert not torch.equal(scores["a"].confusion, scores["b"].confusion)


# iou


def evaluation(confusion: list[list[int]], **changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "confusion": torch.tensor(confusion),
        "entropy_histogram": torch.zeros(NUM_BINS, dtype=torch.long),
        "classes": ("a", "b", "c"),
        "protocol": WHOLE,
        "num_images": 2,
        "split_sha256": "0",
    }
    return Evaluation(**values | changes)


def test_tally_is_torchmetrics_confusion_matrix() -> None:
    # imports torchvision, so it comes after u2pl; see u2pl._torchvision
    from torchmetrics.classification import MulticlassConfusionMatrix

    generator = torch.Generator().manual_seed(0)
    dataset = Dataset(Path("a"), tuple("abcde"), default_colors(5), ignore_index=200)
    tally = Tally(dataset, torch.device("cpu"))
    matrix = MulticlassConfusionMatrix(5, ignore_index=200)
    for _ in range(3):
        logits = torch.randn(1, 5, 17, 23, generator=generator)
        mask = torch.randint(0, 6, (17, 23), generator=generator, dtype=torch.uint8)
        mask[mask == 5] = 200
        tally.add(logits, mask)
        matrix.update(logits, mask.long().unsqueeze(0))
    assert tally.confusion.sum() < 3 * 17 * 23
    assert torch.equal(tally.confusion, matrix.compute())


def test_absent_class_has_no_iou_and_is_left_out_of_the_mean() -> None:
    result = evaluation([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert result.iou == {"a": pytest.approx(75), "b": pytest.approx(80), "c": None}
    assert result.miou == pytest.approx(77.5)


def test_false_alarms_of_an_absent_class_count_against_the_others() -> None:
    result = evaluation([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    assert result.iou == {"a": pytest.approx(75), "b": pytest.approx(100), "c": None}


def test_class_that_is_never_found_has_iou_0() -> None:
    assert class_iou(torch.tensor([[4, 0], [4, 0]])).tolist() == [50, 0]


def test_result_as_json_has_the_promised_keys() -> None:
    result = evaluation([[3, 1, 0], [0, 4, 0], [0, 0, 0]]).to_json(weights="ema", step=9)
    assert {"miou", "iou", "protocol", "weights", "step", "images", "split_sha256"} <= set(result)
    assert (result["weights"], result["step"], result["images"]) == ("ema", 9, 2)
    assert result["pixel_accuracy"] == pytest.approx(700 / 8)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_result_without_a_known_pixel_is_still_json() -> None:
    """A val list whose masks are all ignore gives no mean, not a number that JSON has not."""
    result = evaluation([[0, 0, 0]] * 3)
    assert set(result.iou.values()) == {None}
    text = json.dumps(result.to_json(weights="ema", step=1), allow_nan=False)
    assert json.loads(text)["miou"] is None


# entropy


def test_entropy_histogram_counts_each_pixel_in_its_bin() -> None:
    probs = torch.tensor([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]).T.view(1, 3, 3, 1)
    counted = entropy_histogram(probs)
    assert counted.shape == (NUM_BINS,)
    place = int(math.log(2) / math.log(3) * NUM_BINS)
    assert counted.nonzero().flatten().tolist() == [0, place, NUM_BINS - 1]
    assert counted.sum() == 3


def test_entropy_quantile_is_that_of_the_pixels() -> None:
    torch.manual_seed(0)
    probs = (4 * torch.rand(1, 1, 50, 50) * torch.randn(1, 3, 50, 50)).softmax(1)
    entropy = torch.special.entr(probs).sum(1).flatten()
    result = evaluation([[1, 0, 0]] * 3, entropy_histogram=entropy_histogram(probs))
    for share in (0.1, 0.5, 0.8):
        expected = entropy.quantile(share).item()
        assert result.entropy_quantile(share) == pytest.approx(expected, abs=2e-3)
        assert (entropy <= result.entropy_quantile(share)).float().mean() >= share - 1e-3
    assert result.entropy_quantile(1.0) >= entropy.max().item() - 1e-6


def test_entropy_quantile_of_no_pixels_calls_everything_reliable() -> None:
    assert evaluation([[0, 0, 0]] * 3).entropy_quantile(0.8) == pytest.approx(math.log(3))


# windows


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 23, 40])
@pytest.mark.parametrize("stride", [0.01, 0.5, 2 / 3, 1.0])
def test_windows_cover_a_side_and_stay_inside(length: int, stride: float) -> None:
    starts = window_starts(length, 8, stride)
    covered = {pixel for start in starts for pixel in range(start, start + 8)}
    assert set(range(length)) <= covered
    assert starts == sorted(set(starts))
    if length >= 8:
        assert max(covered) == length - 1


def test_sliding_equals_whole_where_the_window_covers_the_image() -> None:
    torch.manual_seed(0)
    model = Segmenter(tiny_config().model, 3).eval()
    images = torch.rand(2, 3, 40, 52)
    whole, slide = (
        predict_logits(model, images, protocol)
        for protocol in (WHOLE, Protocol("slide", (40, 60), 0.5))
    )
    assert whole.shape == (2, 3, 40, 52)
    assert torch.equal(whole, slide)


def test_sliding_windows_are_averaged_where_they_overlap() -> None:
    class Count(nn.Module):
        """Each window's logits are its number."""

        calls = 0

        def forward(self, images: Tensor, *, with_features: bool = True) -> SegmentationOutput:
            self.calls += 1
            size = (images.shape[0], 2, images.shape[2] // 4, images.shape[3] // 4)
            return SegmentationOutput(torch.full(size, float(self.calls)), None)

    logits = predict_logits(Count(), torch.rand(1, 3, 16, 24), SLIDE)
    assert logits[0, 0, 3].tolist() == [1.0] * 8 + [1.5] * 8 + [2.0] * 8


def test_local_network_says_the_same_in_windows(tmp_path: Path) -> None:
    model, images = Colors(), torch.rand(1, 3, 32, 48)
    logits = predict_logits(model, images, SLIDE)
    assert set(model.sizes) == {(1, 3, 16, 16)}
    assert len(model.sizes) == 3 * 5
    whole = predict_logits(Colors(), images, WHOLE)
    assert (logits.argmax(1) == whole.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("size", "seen"),
    [((12, 40), {(1, 3, 12, 16)}), ((40, 12), {(1, 3, 16, 12)})],
)
def test_side_shorter_than_the_window_is_taken_whole(
    size: tuple[int, int], seen: set[tuple[int, ...]]
) -> None:
    model = Colors()
    logits = predict_logits(model, torch.rand(1, 3, *size), SLIDE)
    assert logits.shape == (1, 3, *size)
    assert set(model.sizes) == seen
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("windows", [2, 3, 100])
def test_windows_in_batches_say_the_same(windows: int) -> None:
    images, model = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)), Colors()
    expected = predict_logits(model, images, SLIDE)
    one_by_one = len(model.sizes)
    torch.testing.assert_close(predict_logits(model, images, SLIDE, windows=windows), expected)
    assert len(model.sizes) - one_by_one == -(-one_by_one // windows)
    assert model.sizes[one_by_one][0] == 2 * min(windows, one_by_one)


def test_protocol_and_window_come_from_the_settings(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, SIZES[:1])
    for crop, side in ((None, 32), ([16, 24], 16)):
        model = Colors()
        result = score(model, dataset, evaluation__protocol="slide", evaluation__crop=crop)
        assert result.protocol.name == "slide"
        assert {size[2] for size in model.sizes} == {side}


# the middle


@pytest.mark.parametrize("sizes", [[(40, 56), (20, 60)], [(33, 47), (17, 19), (40, 10)]])
def test_center_crop_scores_the_middle_and_no_padding(
    tmp_path: Path, sizes: list[tuple[int, int]]
) -> None:
    """As the published code cuts image and mask alike, but for padding, which it scores as 0."""
    dataset, table, (height, width) = dataset_of(tmp_path, sizes), np.zeros((3, 3), int), (24, 20)
    for sample in dataset.val:
        image = eval_image(read_image(sample.image), resize=None)
        assert sample.mask is not None
        mask = torch.from_numpy(np.asarray(Image.open(sample.mask)).astype(np.int64))
        down, right = max(height - mask.shape[0], 0), max(width - mask.shape[1], 0)
        border = (right // 2, right - right // 2, down // 2, down - down // 2)
        image, mask = nn.functional.pad(image, border), nn.functional.pad(mask, border, value=255)
        y, x = (mask.shape[0] - height) // 2, (mask.shape[1] - width) // 2
        logits = predict_logits(
            Colors(), image[None, :, y : y + height, x : x + width].clone(), WHOLE
        )
        found, mask = logits[0].argmax(0), mask[y : y + height, x : x + width]
        known = mask != 255
        np.add.at(table, (mask[known].numpy(), found[known].numpy()), 1)
    model = Colors()
    result = score(
        model, dataset, evaluation__protocol="center-crop", evaluation__crop=[height, width]
    )
    assert result.confusion.tolist() == table.tolist()
    assert {size[2:] for size in model.sizes} == {(height, width)}
    shown = sum(min(height, h) * min(width, w) for h, w in sizes)
    assert result.entropy_histogram.sum() == shown


def test_middle_of_a_resized_image_is_scored_at_the_masks_own_size(tmp_path: Path) -> None:
    dataset, model = dataset_of(tmp_path, [(40, 60)]), Colors()
    result = score(
        model,
        dataset,
        data__resize=20,
        evaluation__protocol="center-crop",
        evaluation__crop=[10, 16],
    )
    assert model.sizes == [(1, 3, 10, 16)]
    assert result.entropy_histogram.sum() == 20 * 32


# several sizes, mirrored


def test_views_are_averaged_as_probabilities() -> None:
    images, model = torch.rand(2, 3, 24, 32), Colors()
    scales = (0.5, 1.0, 1.5)
    expected = torch.zeros(2, 3, 24, 32)
    for scale in scales:
        view = at_scale(images, scale)
        for turn in (lambda x: x, lambda x: x.flip(-1)):
            logits = turn(predict_logits(model, turn(view), WHOLE))
            expected += resize_logits(logits, (24, 32)).softmax(1) / 6
    logits = predict_logits(model, images, Protocol(scales=scales, flip=True))
    torch.testing.assert_close(logits.softmax(1), expected)
    assert [size[2:] for size in model.sizes[-6:]] == 2 * [(12, 16)] + 2 * [(24, 32)] + 2 * [
        (36, 48)
    ]


def test_a_local_network_says_the_same_of_the_mirrored_image() -> None:
    """Cells of 4 pixels lie alike from both ends where the width is a multiple of 4."""
    images = torch.rand(1, 3, 16, 24)
    plain = predict_logits(Colors(), images, WHOLE).softmax(1)
    both = predict_logits(Colors(), images, Protocol(flip=True)).softmax(1)
    torch.testing.assert_close(both, plain)


def test_windows_of_every_size_are_of_one_size() -> None:
    model = Colors()
    protocol = Protocol("slide", crop=(16, 16), stride_fraction=0.5, scales=(0.5, 2.0), flip=True)
    logits = predict_logits(model, torch.rand(1, 3, 32, 32), protocol, windows=4)
    assert logits.shape == (1, 3, 32, 32)
    assert {size[2:] for size in model.sizes} == {(16, 16)}


def test_probabilities_of_nothing_stay_finite_logits() -> None:
    class Sure(nn.Module):
        """Says class 0 with all its might."""

        def forward(self, images: Tensor, *, with_features: bool = True) -> SegmentationOutput:
            logits = torch.zeros(1, 2, images.shape[2] // 4, images.shape[3] // 4)
            logits[:, 0] = 1e4
            return SegmentationOutput(logits, None)

    logits = predict_logits(Sure(), torch.rand(1, 3, 8, 8), Protocol(flip=True))
    assert logits.isfinite().all()
    assert (logits.softmax(1)[:, 0] == 1).all()


# some of the classes


def test_mean_over_some_classes_counts_false_alarms_on_the_others(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, SIZES[:2])
    every = score(Colors(), dataset)
    some = score(Colors(), dataset, evaluation__classes=["tree", "ground"])
    assert torch.equal(every.confusion, some.confusion)
    assert every.iou == some.iou
    first, last = every.iou["ground"], every.iou["tree"]
    assert first is not None
    assert last is not None
    assert some.miou == pytest.approx((first + last) / 2)
    assert some.to_json(weights="ema", step=1)["miou_classes"] == ["ground", "tree"]
    assert every.to_json(weights="ema", step=1)["miou_classes"] is None


def test_both_means_of_synthia_are_in_the_result() -> None:
    names = CLASS_SETS["synthia-16"]
    confusion = torch.diag(torch.arange(1, 17))
    confusion[names.index("wall"), names.index("fence")] = 40
    result = evaluation(confusion.tolist(), classes=names).to_json(weights="ema", step=1)
    assert result["miou_of_sets"]["synthia-13"] == 100
    assert result["miou_of_sets"]["synthia-16"] == result["miou"] < 100
    assert evaluation([[1, 0, 0]] * 3).to_json(weights="ema", step=1)["miou_of_sets"] == {}
