from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from factories import write_dataset
from reference import rare_classes as reference
from u2pl.config import DataSettings
from u2pl.data.batch import Batch
from u2pl.data.loaders import (
    LabeledStream,
    UnlabeledStream,
    default_workers,
    derive_seed,
    evaluation_batches,
    training_batches,
    unlabeled_batches,
)
from u2pl.data.sources import Dataset, load_dataset
from u2pl.errors import UserError
from u2pl.signals import STOP_SIGNALS


def _settings(**changes: Any) -> DataSettings:
    values: dict[str, Any] = {
        "crop": (24, 32),
        "batch_labeled": 2,
        "batch_unlabeled": 3,
        "num_workers": 0,
    }
    return DataSettings(**values | changes)


def _batches(
    dataset: Dataset,
    start: int,
    stop: int,
    *,
    seed: int = 0,
    with_unlabeled: bool = True,
    **changes: Any,
) -> list[Batch]:
    batches = training_batches(
        dataset,
        _settings(**changes),
        seed=seed,
        start_step=start,
        stop_step=stop,
        with_unlabeled=with_unlabeled,
    )
    return list(batches)


def _tensors(batch: Batch) -> list[Tensor]:
    assert batch.unlabeled is not None
    unlabeled = batch.unlabeled
    return [
        batch.labeled.images,
        batch.labeled.labels,
        unlabeled.weak,
        *unlabeled.strong,
        unlabeled.valid,
        unlabeled.possible_classes,
    ]


def _are_equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(_tensors(one), _tensors(other), strict=True)
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_dataset(tmp_path))


def test_seeds_depend_on_every_part() -> None:
    seeds = [derive_seed(0, "a", 1), derive_seed(1, "a", 0), derive_seed(0, "a1"), derive_seed(0)]
    seeds += [derive_seed("0", "a", 1), derive_seed(0, "a", 1, "")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a", 1) == 8031848512307723215  # the same on every machine


def test_shapes_and_types_are_those_of_a_batch(dataset: Dataset) -> None:
    (batch,) = _batches(dataset, 0, 1)
    images, labels, weak, strong, valid, possible = _tensors(batch)
    assert images.shape == (2, 3, 24, 32)
    assert labels.shape == (2, 24, 32)
    assert weak.shape == strong.shape == (3, 3, 24, 32)
    assert valid.shape == (3, 24, 32)
    assert possible.shape == (3, 3)
    assert images.dtype == weak.dtype == strong.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert valid.dtype == possible.dtype == torch.bool
    assert possible.all()
    assert not torch.equal(weak, strong)


def test_streams_deliver_bytes_and_draws(dataset: Dataset) -> None:
    labeled = LabeledStream(dataset, _settings(), seed=0, strong=True)[0]
    unlabeled = UnlabeledStream(dataset, _settings(), seed=0, num_strong=2)[0]
    for pixels in (labeled["image"], labeled["label"], unlabeled["weak"]):
        assert pixels.dtype == torch.uint8
    assert labeled["image_colors"].shape == (12,)
    assert unlabeled["colors"].shape == (2, 12)


def test_context_is_what_lies_around_and_changes_nothing_else(dataset: Dataset) -> None:
    plain = UnlabeledStream(dataset, _settings(), seed=0)
    wider = UnlabeledStream(dataset, _settings(context=8), seed=0)
    for n in range(6):
        one, other = plain[n], wider[n]
        for key, value in one.items():
            assert torch.equal(value, other[key])
        assert other["context"].shape == (3, 24 + 16, 32 + 16)
        top, left = other["offsets"].tolist()
        inner = other["context"][:, top : top + 24, left : left + 32].int()
        assert (inner - one["weak"].int()).abs().max() <= 1
    (batch,) = _batches(dataset, 0, 1, context=8)
    assert batch.unlabeled is not None
    assert batch.unlabeled.context is not None
    assert batch.unlabeled.context.dtype == torch.float32
    assert 0.1 < batch.unlabeled.context.max() <= 1
    assert batch.unlabeled.offsets is not None
    assert batch.unlabeled.offsets.shape == (3, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_other_devices_than_the_cpu_make_the_views_themselves(
    dataset: Dataset, num_workers: int
) -> None:
    (batch,) = training_batches(
        dataset,
        _settings(num_workers=num_workers),
        seed=0,
        start_step=0,
        stop_step=1,
        with_unlabeled=True,
        labeled_strong=True,
        device=torch.device("meta"),  # a device on which nothing waits, as there are no values
    )
    assert batch.labeled.strong is not None
    assert all(tensor.is_meta for tensor in (*_tensors(batch), batch.labeled.strong))
    (half,) = unlabeled_batches(
        dataset, _settings(), seed=0, start_step=0, stop_step=1, device=torch.device("meta")
    )
    assert half.strong[0].is_meta


def test_workers_do_not_change_the_batches(dataset: Dataset) -> None:
    assert _are_equal(_batches(dataset, 0, 5), _batches(dataset, 0, 5, num_workers=2))


def test_resumed_run_goes_on_as_if_it_had_never_stopped(dataset: Dataset) -> None:
    assert _are_equal(_batches(dataset, 0, 6)[4:], _batches(dataset, 4, 6))
    assert _batches(dataset, 4, 4) == []


def test_seed_and_step_change_the_batches(dataset: Dataset) -> None:
    first, second = _batches(dataset, 0, 2)
    (other,) = _batches(dataset, 0, 1, seed=1)
    for a, b, c in zip(_tensors(first), _tensors(second), _tensors(other), strict=True):
        if a.dtype == torch.float32:
            assert not torch.equal(a, b)
            assert not torch.equal(a, c)


def test_draws_do_not_touch_the_global_generator(dataset: Dataset) -> None:
    state = torch.random.get_rng_state()
    _batches(dataset, 0, 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_each_sample_is_drawn_once_an_epoch_in_a_new_order(dataset: Dataset) -> None:
    stream = UnlabeledStream(dataset, _settings(), seed=0)
    epochs = [[stream.sample(n).name for n in range(6 * e, 6 * e + 6)] for e in range(4)]
    assert all(sorted(epoch) == [f"unlabeled_{i}" for i in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert stream.sample(0).name == epochs[0][0]


def test_the_shorter_list_repeats_beside_the_longer_one(dataset: Dataset) -> None:
    labeled = LabeledStream(dataset, _settings(), seed=0)
    drawn = Counter(labeled.sample(n).name for n in range(12))
    assert set(drawn.values()) == {3}
    assert len(_batches(dataset, 0, 7)) == 7  # 14 labelled and 21 unlabelled draws


def test_one_sample_gives_another_crop_in_each_draw(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path, num_labeled=1))
    stream = LabeledStream(dataset, _settings(), seed=0)
    assert not torch.equal(stream[0]["image"], stream[1]["image"])
    assert torch.equal(stream[0]["image"], stream[0]["image"])


def test_streams_do_not_share_their_draws(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_labeled=20)
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"unlabeled": {"images": "images"}}))
    dataset = load_dataset(path)
    labeled = LabeledStream(dataset, _settings(), seed=0)
    unlabeled = UnlabeledStream(dataset, _settings(), seed=0)
    assert [labeled.sample(n).name for n in range(20)] != [
        unlabeled.sample(n).name for n in range(20)
    ]


def _rare(**changes: Any) -> DataSettings:
    return _settings(rare_class_temperature=0.05, rare_class_min_pixels=40, **changes)


def _write_masks(dataset: Dataset, masks: list[np.ndarray[Any, Any]]) -> None:
    for sample, mask in zip(dataset.labeled, masks, strict=True):
        assert sample.mask is not None
        Image.fromarray(mask.astype(np.uint8)).save(sample.mask)


@pytest.fixture
def uneven(dataset: Dataset) -> Dataset:
    """Four masks of class 0; the last holds a small block of class 2, class 1 is nowhere."""
    masks = [np.zeros((40, 56)) for _ in range(4)]
    masks[3][4:12, 40:50] = 2
    _write_masks(dataset, masks)
    return dataset


def test_rare_classes_are_drawn_as_their_probabilities_say(uneven: Dataset) -> None:
    stream = LabeledStream(uneven, _rare(), seed=0)
    drawn = Counter(stream.sample(n).name for n in range(400))
    pixels = [[40 * 56, 0, 0]] * 3 + [[40 * 56 - 80, 0, 80]]
    rare = reference.probabilities(pixels, 0.05)[2]
    expected = rare + (1 - rare) / 4  # the last image holds both classes
    assert rare > 0.99
    assert drawn["labeled_3"] == pytest.approx(400 * expected, abs=8)


def test_rare_class_draws_are_a_function_of_seed_and_number(uneven: Dataset) -> None:
    changes = {"rare_class_temperature": 1.0, "rare_class_min_pixels": 40}
    whole = _batches(uneven, 0, 6, **changes)
    assert _are_equal(whole[4:], _batches(uneven, 4, 6, **changes))
    assert _are_equal(whole, _batches(uneven, 0, 6, num_workers=2, **changes))
    stream = LabeledStream(uneven, _settings(**changes), seed=0)
    order = [stream.sample(n).name for n in range(40)]
    assert order == [stream.sample(n).name for n in reversed(range(40))][::-1]
    other = LabeledStream(uneven, _settings(**changes), seed=1)
    assert order != [other.sample(n).name for n in range(40)]
    unlabeled = [batch.unlabeled for batch in _batches(uneven, 0, 6)]
    for one, batch in zip(unlabeled, whole, strict=True):  # the other stream draws as before
        assert one is not None
        assert batch.unlabeled is not None
        assert torch.equal(one.weak, batch.unlabeled.weak)


def test_crops_are_tried_until_one_holds_the_rare_class(uneven: Dataset) -> None:
    settings = {"crop": (16, 16), "scale": (1.0, 1.0), "flip": False}
    stream = LabeledStream(uneven, _rare(**settings), seed=0)
    mask = torch.from_numpy(uneven.read_mask(uneven.labeled[3]))
    held = []
    for n in range(30):
        generator = torch.Generator().manual_seed(derive_seed(0, "LabeledStream", "draw", n))
        labels = []
        for _ in range(10):
            draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            top, left = int(draws[1] * 25), int(draws[2] * 41)
            labels.append(mask[top : top + 16, left : left + 16])
        chosen = reference.best_crop([int((label == 2).sum()) for label in labels], 20)
        assert torch.equal(stream[n]["label"], labels[chosen])
        held.append(bool((stream[n]["label"] == 2).any()))
    plain = LabeledStream(uneven, _settings(**settings), seed=0)
    assert np.mean(held) > 0.75
    assert np.mean([bool((plain[n]["label"] == 2).any()) for n in range(100)]) < 0.2


def test_image_and_label_of_the_chosen_crop_agree(uneven: Dataset) -> None:
    for sample in uneven.labeled:
        ids = uneven.read_mask(sample).astype(np.uint8)
        Image.fromarray(np.stack([ids * 100] * 3, axis=-1)).save(sample.image)
    stream = LabeledStream(uneven, _rare(crop=(20, 20), scale=(1, 1)), seed=0)
    for n in range(10):
        item = stream[n]
        assert torch.equal(item["image"][0] // 100, item["label"])


def test_rare_classes_of_ignored_masks_alone_are_refused(dataset: Dataset) -> None:
    _write_masks(dataset, [np.full((40, 56), 255) for _ in range(4)])
    with pytest.raises(UserError, match="needs labelled pixels, but all masks of 'labeled'"):
        LabeledStream(dataset, _rare(), seed=0)
    LabeledStream(dataset, _settings(), seed=0)


def test_domains_of_different_resolution_are_resized_apart(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", num_unlabeled=0, num_val=0, size=(60, 90))
    path = write_dataset(tmp_path / "target", num_labeled=0, size=(40, 56))
    tree = yaml.safe_load(path.read_text())
    tree["labeled"] = {
        "images": str(source.parent / "images"),
        "masks": str(source.parent / "masks"),
        "id_map": {1: "wall", 2: "tree"},
    }
    path.write_text(yaml.safe_dump(tree))
    dataset = load_dataset(path)
    changes = {"crop": (64, 64), "scale": (1, 1), "flip": False, "resize": 20}
    for resize_labeled, shape in ((None, (20, 30)), (30, (30, 45)), (60, (60, 64))):
        (batch,) = _batches(dataset, 0, 1, resize_labeled=resize_labeled, **changes)
        assert batch.unlabeled is not None
        assert batch.unlabeled.valid.sum() == 3 * 20 * 28
        padded = (batch.labeled.images == 0).all(dim=1).sum(dim=(1, 2))
        assert (padded >= 64 * 64 - shape[0] * shape[1]).all()
        assert (batch.labeled.images[:, :, : shape[0], : shape[1]] > 0).float().mean() > 0.9
        settings = _settings(resize_labeled=resize_labeled, **changes)
        (scored,) = evaluation_batches(dataset.val, dataset, settings, batch_size=8)
        assert scored.images.shape == (3, 3, 20, 28)


def test_batches_of_one_work(dataset: Dataset) -> None:
    (batch,) = _batches(dataset, 0, 1, batch_labeled=1, batch_unlabeled=1)
    assert all(len(tensor) == 1 for tensor in _tensors(batch))


def test_padding_is_ignored_in_labels_and_invalid_in_unlabeled(dataset: Dataset) -> None:
    (batch,) = _batches(dataset, 0, 1, crop=(64, 64), scale=(1, 1), flip=False)
    _, labels, _, _, valid, _ = _tensors(batch)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[:40, :56] = True
    assert (labels[:, ~inside] == 255).all()
    assert (labels[:, inside] < 3).all()
    assert torch.equal(valid, inside.expand(3, -1, -1))


def test_strong_views_are_drawn_apart_and_keep_the_geometry(dataset: Dataset) -> None:
    (batch,) = training_batches(
        dataset,
        _settings(jitter_probability=1.0, grayscale_probability=0, blur_probability=0),
        seed=0,
        start_step=0,
        stop_step=1,
        with_unlabeled=True,
        num_strong=2,
    )
    assert batch.unlabeled is not None
    first, second = batch.unlabeled.strong
    assert not torch.equal(first, second)
    plain = _batches(dataset, 0, 1, jitter=0, grayscale_probability=0, blur_probability=0)
    assert plain[0].unlabeled is not None
    assert torch.equal(plain[0].unlabeled.strong[0], plain[0].unlabeled.weak)
    assert torch.equal(plain[0].unlabeled.weak, batch.unlabeled.weak)


def test_labelled_images_have_a_strong_view_where_it_is_asked_for(dataset: Dataset) -> None:
    settings = _settings(jitter_probability=1.0, grayscale_probability=0, blur_probability=0)
    plain, strong = (
        next(
            training_batches(
                dataset,
                settings,
                seed=0,
                start_step=0,
                stop_step=1,
                with_unlabeled=True,
                labeled_strong=asked,
            )
        )
        for asked in (False, True)
    )
    assert plain.labeled.strong is None
    view = strong.to("cpu").labeled.strong
    assert view is not None
    assert view.shape == strong.labeled.images.shape
    assert not torch.equal(view, strong.labeled.images)
    assert 0 <= view.min() <= view.max() <= 1
    # nothing else has moved
    assert torch.equal(plain.labeled.images, strong.labeled.images)
    assert torch.equal(plain.labeled.labels, strong.labeled.labels)
    assert all(map(torch.equal, _tensors(plain), _tensors(strong)))


def test_tags_become_possible_classes(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, tags=True)
    (tmp_path / "tags.csv").write_text("image,classes\nunlabeled_0,tree;ground\n")
    stream = UnlabeledStream(load_dataset(path), _settings(), seed=0)
    for n in range(6):
        is_tagged = stream.sample(n).name == "unlabeled_0"
        expected = [True, not is_tagged, True]
        assert stream[n]["possible_classes"].tolist() == expected


def test_without_unlabeled_no_unlabeled_file_is_read(dataset: Dataset) -> None:
    for sample in dataset.unlabeled:
        sample.image.unlink()
    assert [b.unlabeled for b in _batches(dataset, 0, 2, with_unlabeled=False)] == [None, None]


def test_unlabeled_half_alone_is_that_of_the_whole_batch(dataset: Dataset) -> None:
    whole = _batches(dataset, 1, 4)
    for sample in dataset.labeled:
        sample.image.unlink()
    for workers in (0, 2):
        settings = _settings(num_workers=workers)
        halves = unlabeled_batches(dataset, settings, seed=0, start_step=1, stop_step=4)
        for half, batch in zip(halves, whole, strict=True):
            assert all(map(torch.equal, _tensors(Batch(batch.labeled, half)), _tensors(batch)))


def test_broken_unlabeled_file_is_one_sentence(dataset: Dataset) -> None:
    dataset.unlabeled[2].image.write_bytes(b"torn")
    batches = unlabeled_batches(dataset, _settings(), seed=0, start_step=0, stop_step=4)
    with pytest.raises(UserError, match=r"unlabeled_2\.png: the file is not an image"):
        list(batches)


def test_unlabeled_masks_are_never_opened(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["unlabeled"]["masks"] = "nowhere"
    path.write_text(yaml.safe_dump(tree))
    assert len(_batches(load_dataset(path), 0, 2)) == 2


def test_no_image_to_train_on_is_refused(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path, num_unlabeled=0))
    with pytest.raises(UserError, match="expected images to train on"):
        _batches(dataset, 0, 1)
    assert len(_batches(dataset, 0, 1, with_unlabeled=False)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_file_is_one_sentence_whichever_process_read_it(
    dataset: Dataset, num_workers: int
) -> None:
    dataset.labeled[2].image.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"labeled_2\.png: the file is not an image") as error:
        _batches(dataset, 0, 4, num_workers=num_workers)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []


def test_mask_of_another_size_is_refused(dataset: Dataset) -> None:
    for sample in (*dataset.labeled, *dataset.val):
        assert sample.mask is not None
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(sample.mask)
    with pytest.raises(UserError, match="its mask 50 x 40"):
        _batches(dataset, 0, 1)
    with pytest.raises(UserError, match="its mask 50 x 40"):
        list(evaluation_batches(dataset.val, dataset, _settings(), batch_size=2))


def test_closing_early_ends_the_workers(dataset: Dataset) -> None:
    batches = training_batches(
        dataset,
        _settings(num_workers=2),
        seed=0,
        start_step=0,
        stop_step=1000,
        with_unlabeled=True,
    )
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to signal")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_workers_leave_signals_to_the_main_process(dataset: Dataset, number: int) -> None:
    batches = training_batches(
        dataset,
        _settings(num_workers=2),
        seed=0,
        start_step=0,
        stop_step=20,
        with_unlabeled=True,
    )
    first = [next(batches) for _ in range(4)]  # so that both workers have begun
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, number)
    assert _are_equal(first + list(batches), _batches(dataset, 0, 20))
    assert multiprocessing.active_children() == []


def test_default_workers_leave_a_core_for_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for cores in (None, 1, 2, 4, 6, 64):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        counts.append(default_workers())
    assert counts == [0, 0, 1, 2, 5, 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_order_and_groups_equal_sizes(tmp_path: Path, workers: int) -> None:
    path = write_dataset(tmp_path, num_val=5)
    for folder, shape in (("images", (20, 28, 3)), ("masks", (20, 28))):
        file = tmp_path / "val" / folder / "val_3.png"
        Image.fromarray(np.ones(shape, np.uint8)).save(file)
    dataset = load_dataset(path)
    batches = list(
        evaluation_batches(dataset.val, dataset, _settings(), batch_size=2, workers=workers)
    )
    assert [len(batch.samples) for batch in batches] == [2, 1, 1, 1]
    assert [s for batch in batches for s in batch.samples] == list(dataset.val)
    assert [size for batch in batches for size in batch.sizes] == [
        (40, 56), (40, 56), (40, 56), (20, 28), (40, 56)
    ]  # fmt: skip
    assert batches[2].images.shape == (1, 3, 20, 28)


def test_evaluation_masks_stay_at_their_own_size(dataset: Dataset) -> None:
    ((images, masks, samples, sizes),) = evaluation_batches(
        dataset.val, dataset, _settings(resize=20), batch_size=8
    )
    assert images.shape == (3, 3, 20, 28)
    assert masks is not None
    for mask, sample, size in zip(masks, samples, sizes, strict=True):
        assert mask.shape == size == (40, 56)
        assert np.array_equal(mask.numpy(), dataset.read_mask(sample))


def test_images_without_masks_are_read_too(dataset: Dataset) -> None:
    batches = list(evaluation_batches(dataset.unlabeled, dataset, _settings(), batch_size=4))
    assert [len(batch.samples) for batch in batches] == [4, 2]
    assert all(batch.masks is None for batch in batches)
    assert list(evaluation_batches((), dataset, _settings(), batch_size=4)) == []
