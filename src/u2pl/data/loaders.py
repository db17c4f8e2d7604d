"""Streams of random training draws and of evaluation images.

Every training item is a pure function of the seed and its draw number, whichever process makes
it and wherever the run was resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import data as torch_data

from u2pl.config import DataSettings
from u2pl.data.batch import Batch, UnlabeledBatch
from u2pl.data.check import size_error
from u2pl.data.class_counts import class_pixels
from u2pl.data.decoded import Decoder, decoder
from u2pl.data.photometric import draw_colors
from u2pl.data.rare_classes import RareClassSampler
from u2pl.data.sources import Dataset, Sample
from u2pl.data.storage import ImageFile
from u2pl.data.transforms import (
    View,
    draw_view,
    eval_image,
    view_image,
    view_labels,
    wider_view,
)
from u2pl.data.unpack import label_dtype, unpack, unpack_unlabeled
from u2pl.errors import UserError
from u2pl.signals import ignore_signals

_CROP_TRIES = 10  # crops looked at for one that holds the drawn class, as in DAFormer's code
_ERROR = "error"  # the key under which a worker hands a user's mistake to the main process
_READY = "ready"  # the key of a batch that needs no more work

_CPU = torch.device("cpu")

T = TypeVar("T")


def derive_seed(*parts: int | str) -> int:
    """Return a seed from 0 to 2**63 - 1 that depends on every part and on their order.

    >>> derive_seed(0, "labeled", 7) == derive_seed(0, "labeled", 7)
    True
    >>> derive_seed(0, "labeled", 7) == derive_seed(0, "labeled", 8)
    False
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class _Stream(torch_data.Dataset[dict[str, Any]]):
    """Draws without end: item n is draw number n of the run, and each epoch has a new order."""

    def __init__(
        self, samples: Sequence[Sample], dataset: Dataset, settings: DataSettings, *, seed: int
    ) -> None:
        if not samples:
            raise UserError(f"{dataset.path}: expected images to train on, found none.")
        self._samples = samples
        self._dataset = dataset
        self._settings = settings
        self._decoder = decoder(dataset, settings)
        self._resize = settings.resize
        self._seed = seed
        self._name = type(self).__name__
        self._epoch = -1
        self._order: list[int] = []

    def sample(self, n: int) -> Sample:
        """Return the sample of draw ``n``; each stands once in every epoch."""
        epoch, place = divmod(n, len(self._samples))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(
                derive_seed(self._seed, self._name, "epoch", epoch)
            )
            self._order = torch.randperm(len(self._samples), generator=generator).tolist()
            self._epoch = epoch
        return self._samples[self._order[place]]

    def _generator(self, n: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, self._name, "draw", n))

    def _draw_view(self, size: tuple[int, int], generator: torch.Generator) -> View:
        """Return a random view of an image of ``size``, (height, width)."""
        return draw_view(
            size,
            crop=self._settings.crop,
            scale=self._settings.scale,
            flip=self._settings.flip,
            resize=self._resize,
            generator=generator,
        )


class LabeledStream(_Stream):
    """Random crops of the labelled images with their masks.

    Item n is ``{"image": [3, h, w] uint8, "label": [h, w] of label_dtype}``, geometry only; with
    ``strong`` there are also the draws of a strong view, ``"image_colors": [12] float64``. With
    ``settings.rare_class_temperature`` there are no epochs: each draw has a class, and an image
    that holds it; of at most ten crops the first is taken that holds half of
    ``settings.rare_class_min_pixels`` pixels of the class, or else the one that holds most.
    (DAFormer's code takes the last then.)
    """

    def __init__(
        self, dataset: Dataset, settings: DataSettings, *, seed: int, strong: bool = False
    ) -> None:
        super().__init__(dataset.labeled, dataset, settings, seed=seed)
        self._with_strong = strong
        if settings.resize_labeled is not None:
            self._resize = settings.resize_labeled
        self._rare: RareClassSampler | None = None
        if settings.rare_class_temperature is not None:
            pixels = class_pixels(dataset, dataset.labeled)
            if not pixels.any():
                raise UserError(
                    f"{dataset.path}: data.rare_class_temperature needs labelled pixels, but all "
                    "masks of 'labeled' are ignored; see `u2pl data check`."
                )
            self._rare = RareClassSampler.of_pixels(
                pixels,
                temperature=settings.rare_class_temperature,
                min_pixels=settings.rare_class_min_pixels,
            )

    def sample(self, n: int) -> Sample:
        """Return the sample of draw ``n``; without rare-class sampling each stands in an epoch."""
        return self._choose(n)[0]

    def _choose(self, n: int) -> tuple[Sample, int | None]:
        """Return the sample of draw ``n`` and the class that it was drawn for, if there is one."""
        if self._rare is None:
            return super().sample(n), None
        generator = torch.Generator().manual_seed(
            derive_seed(self._seed, self._name, "rare class", n)
        )
        class_id, index = self._rare.draw(generator)
        return self._samples[index], class_id

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Return draw ``n`` of the run.

        Raises:
            UserError: where a file cannot be read, or the mask does not fit the image.
        """
        sample, class_id = self._choose(n)
        pixels, mask = _read_pair(sample, self._decoder)
        generator = self._generator(n)
        view, label = self._crop(mask, class_id, generator)
        dtype = label_dtype(self._dataset.num_classes, self._dataset.ignore_index)
        item = {"image": view_image(pixels, view)[0], "label": label.to(dtype)}
        if self._with_strong:
            item["image_colors"] = draw_colors(generator)
        return item

    def _crop(
        self, mask: npt.NDArray[np.integer[Any]], class_id: int | None, generator: torch.Generator
    ) -> tuple[View, Tensor]:
        """Return a random view and its labels, chosen for a class where there is one."""
        size = (mask.shape[0], mask.shape[1])
        view = self._draw_view(size, generator)
        label = view_labels(mask, view, ignore_index=self._dataset.ignore_index)
        if class_id is None:
            return view, label
        wanted = max(1, self._settings.rare_class_min_pixels // 2)
        most = int((label == class_id).sum())
        for _ in range(_CROP_TRIES - 1):
            if most >= wanted:
                break
            other = self._draw_view(size, generator)
            other_label = view_labels(mask, other, ignore_index=self._dataset.ignore_index)
            found = int((other_label == class_id).sum())
            if found > most:
                view, label, most = other, other_label, found
        return view, label


class UnlabeledStream(_Stream):
    """Random crops of the unlabelled images, with the draws of strong views; no mask is opened.

    Item n is ``{"weak": [3, h, w] uint8, "colors": [V, 12] float64, "valid": [h, w] bool,
    "possible_classes": [C] bool}``, V being ``num_strong``; with ``settings.context`` also
    ``"context": [3, h', w'] uint8`` and ``"offsets": [2] int64``.
    """

    def __init__(
        self, dataset: Dataset, settings: DataSettings, *, seed: int, num_strong: int = 1
    ) -> None:
        super().__init__(dataset.unlabeled, dataset, settings, seed=seed)
        self._num_strong = num_strong

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Return draw ``n`` of the run.

        Raises:
            UserError: where the file cannot be read.
        """
        sample, generator = self.sample(n), self._generator(n)
        pixels = self._decoder.image(sample)
        view = self._draw_view((pixels.shape[0], pixels.shape[1]), generator)
        weak, valid = view_image(pixels, view)
        colors = [draw_colors(generator) for _ in range(self._num_strong)]
        possible = torch.ones(self._dataset.num_classes, dtype=torch.bool)
        if sample.tags is not None:
            possible.zero_()
            possible[list(sample.tags)] = True
        item = {
            "weak": weak,
            "colors": torch.stack(colors),
            "valid": valid,
            "possible_classes": possible,
        }
        if self._settings.context:
            wide, offsets = wider_view(view, self._settings.context)
            item["context"] = view_image(pixels, wide)[0]
            item["offsets"] = torch.tensor(offsets)
        return item


def _read_pair(
    sample: Sample, decoder: Decoder
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]:
    image, mask = decoder.image(sample), decoder.mask(sample)
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        raise size_error(sample.image, (height, width), (mask.shape[0], mask.shape[1]))
    return image, mask


class _Steps(torch_data.Dataset[dict[str, Any]]):
    """Item t is the whole input of step t, so that a worker makes a batch without the others.

    Where several processes share a batch, it is the part of one of them.

    Args:
        streams: each with its batch size.
        finish: applied to the item in the worker, or None.
        rank, num_ranks: of the processes.
    """

    def __init__(
        self,
        *streams: tuple[_Stream, int],
        finish: Callable[[dict[str, Any]], Any] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._streams = streams
        self._finish = finish
        self._rank, self._num_ranks = rank, num_ranks

    def __getitem__(self, t: int) -> dict[str, Any]:
        try:
            item: dict[str, Any] = {}
            for stream, batch_size in self._streams:
                item |= stacked(stream, _draws(t, batch_size, self._rank, self._num_ranks))
        except UserError as error:
            return {_ERROR: str(error)}  # as an exception it would arrive with a traceback inside
        return item if self._finish is None else {_READY: self._finish(item)}


def _draws(t: int, batch_size: int, rank: int, num_ranks: int) -> range:
    """Return the numbers of step t's draws, or of one process's equal part of them."""
    part = batch_size // num_ranks
    first = t * batch_size + rank * part
    return range(first, first + part)


def stacked(stream: _Stream, draws: range) -> dict[str, Tensor]:
    """Return some draws of a stream, each field stacked."""
    items = [stream[n] for n in draws]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def training_batches(
    dataset: Dataset,
    settings: DataSettings,
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    with_unlabeled: bool,
    labeled_strong: bool = False,
    num_strong: int = 1,
    device: torch.device = _CPU,
    rank: int = 0,
    num_ranks: int = 1,
) -> Generator[Batch, None, None]:
    """Yield the batch of each step from ``start_step`` to ``stop_step`` - 1, on ``device``.

    Step t takes the draws t * B to (t + 1) * B - 1 of each stream, so a resumed run goes on as if
    it had never stopped, and the shorter list repeats beside the longer one. Closing the iterator
    ends its worker processes.

    Args:
        dataset: where the files are.
        settings: geometry, colours, batch sizes and workers.
        seed: of every random draw.
        start_step: first step, counted from 0.
        stop_step: the step after the last.
        with_unlabeled: False gives batches whose ``unlabeled`` is None.
        labeled_strong: give labelled images a strong view, too.
        num_strong: strong views of each unlabelled image, each with draws of its own.
        device: of the step. A GPU makes floats and strong views of the bytes that it is sent; on
            a CPU the workers do.
        rank: of the process, where several share each batch.
        num_ranks: how many do; the batch sizes are multiples of it.

    Raises:
        UserError: where there is no image, or a file cannot be read.
    """
    streams = _training_streams(dataset, settings, seed, with_unlabeled, labeled_strong, num_strong)
    return _finished(
        streams,
        partial(unpack, settings=settings, device=device),
        range(start_step, stop_step),
        workers=settings.num_workers,
        device=device,
        rank=rank,
        num_ranks=num_ranks,
    )


def _finished(
    streams: list[tuple[_Stream, int]],
    finish: Callable[[dict[str, Any]], T],
    order: range,
    *,
    workers: int | None,
    device: torch.device,
    rank: int = 0,
    num_ranks: int = 1,
) -> Generator[T, None, None]:
    """Yield what ``finish`` makes of each step's input: in the workers, or for a GPU here."""
    on_cpu = device.type == "cpu"
    items = _loader(
        _Steps(*streams, finish=finish if on_cpu else None, rank=rank, num_ranks=num_ranks),
        order,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    return (item[_READY] if on_cpu else finish(item) for item in items)


def _training_streams(
    dataset: Dataset,
    settings: DataSettings,
    seed: int,
    with_unlabeled: bool,
    labeled_strong: bool = False,
    num_strong: int = 1,
) -> list[tuple[_Stream, int]]:
    """The streams of a training, each with its batch size."""
    labeled = LabeledStream(dataset, settings, seed=seed, strong=labeled_strong)
    streams: list[tuple[_Stream, int]] = [(labeled, settings.batch_labeled)]
    if with_unlabeled:
        unlabeled = UnlabeledStream(dataset, settings, seed=seed, num_strong=num_strong)
        streams.append((unlabeled, settings.batch_unlabeled))
    return streams


def images_of_step(
    dataset: Dataset,
    settings: DataSettings,
    *,
    seed: int,
    step: int,
    with_unlabeled: bool,
    rank: int = 0,
    num_ranks: int = 1,
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return the labelled and the unlabelled images of step t's batch, in its order.

    Args:
        dataset, settings, seed, with_unlabeled, rank, num_ranks: as for :func:`training_batches`.
        step: t, counted from 0.
    """
    files: list[list[ImageFile]] = [
        [stream.sample(n).image for n in _draws(step, size, rank, num_ranks)]
        for stream, size in _training_streams(dataset, settings, seed, with_unlabeled)
    ]
    return files[0], files[1] if with_unlabeled else []


def unlabeled_batches(
    dataset: Dataset,
    settings: DataSettings,
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    device: torch.device = _CPU,
) -> Generator[UnlabeledBatch, None, None]:
    """Yield the unlabelled half alone of each step; see :func:`training_batches`.

    Raises:
        UserError: where there is no unlabelled image, or a file cannot be read.
    """
    stream = UnlabeledStream(dataset, settings, seed=seed)
    return _finished(
        [(stream, settings.batch_unlabeled)],
        partial(unpack_unlabeled, settings=settings, device=device),
        range(start_step, stop_step),
        workers=settings.num_workers,
        device=device,
    )


def _loader(
    dataset: torch_data.Dataset[dict[str, Any]],
    order: range,
    *,
    workers: int | None,
    pin_memory: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """Yield the items in order, made by worker processes; a user's mistake is raised here."""
    num_workers = default_workers() if workers is None else workers
    loader = torch_data.DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=min(num_workers, len(order)),
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # else the loader draws a number of the global one
        pin_memory=pin_memory,
    )
    items = iter(loader)
    try:
        for item in items:
            if _ERROR in item:
                raise UserError(item[_ERROR])
            yield item
    finally:
        del items  # the last reference: its workers end here, also when the caller stops early


def default_workers() -> int:
    """Return how many loader processes suit the machine: a core is left for the step itself."""
    cores = os.cpu_count() or 1
    return min(8, cores - 1) if cores > 4 else min(2, cores - 1)


def _ignore_signals(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach the whole process group. The main process then ends
    # its step and saves, which a dying worker would interrupt; it stops its workers itself.
    ignore_signals()


class EvaluationBatch(NamedTuple):
    """Consecutive images of one size.

    Attributes:
        images: [b, 3, h, w] float32 in [0, 1], resized as the settings say.
        masks: b tensors [H, W] int64 at the files' own size; None where the samples have none.
        samples: b samples.
        sizes: b pairs (H, W) of the files' own size.
    """

    images: Tensor
    masks: list[Tensor] | None
    samples: list[Sample]
    sizes: list[tuple[int, int]]


class _EvaluationItems(torch_data.Dataset[dict[str, Any]]):
    def __init__(self, samples: Sequence[Sample], decoder: Decoder, resize: int | None) -> None:
        self._samples = samples
        self._decoder = decoder
        self._resize = resize

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        try:
            if sample.mask is None:
                pixels, mask = self._decoder.image(sample), None
            else:
                pixels, labels = _read_pair(sample, self._decoder)
                mask = torch.from_numpy(labels.astype(np.int64))
            image = eval_image(pixels, resize=self._resize, file=str(sample.image))
        except UserError as error:
            return {_ERROR: str(error)}
        return {"index": index, "image": image, "mask": mask, "size": pixels.shape[:2]}


def evaluation_batches(
    samples: Sequence[Sample],
    dataset: Dataset,
    settings: DataSettings,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Generator[EvaluationBatch, None, None]:
    """Yield every sample once and in order; neighbours of the same size share a batch.

    Args:
        samples: what to read, such as ``dataset.val``.
        dataset: how to read masks.
        settings: ``resize``, and ``num_workers`` where ``workers`` is None.
        batch_size: images in a batch at most.
        workers: loader processes; 0 reads in this one.

    Raises:
        UserError: where a file cannot be read, or a mask does not fit its image.
    """
    items = _loader(
        _EvaluationItems(samples, decoder(dataset, settings), settings.resize),
        range(len(samples)),
        workers=settings.num_workers if workers is None else workers,
    )
    for _, group in itertools.groupby(
        items, key=lambda item: (item["image"].shape, item["mask"] is None)
    ):
        while batch := list(itertools.islice(group, batch_size)):
            yield EvaluationBatch(
                images=torch.stack([item["image"] for item in batch]),
                masks=None if batch[0]["mask"] is None else [item["mask"] for item in batch],
                samples=[samples[item["index"]] for item in batch],
                sizes=[(int(item["size"][0]), int(item["size"][1])) for item in batch],
            )
