"""Images a second that the loader gives, against those that a training step takes."""

from __future__ import annotations

import cProfile
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from PIL import Image

from u2pl.bench import steps
from u2pl.bench.clock import finish
from u2pl.config import Config
from u2pl.data import loaders, transforms
from u2pl.data.decoded import Decoder
from u2pl.data.images import read_image
from u2pl.data.loaders import default_workers, training_batches
from u2pl.data.sources import Dataset, load_dataset
from u2pl.data.synthetic import write_streets
from u2pl.data.unpack import unpack
from u2pl.engine.loop import uses_unlabeled
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError

PAINTED_SIZE = (512, 1024)
_PAINTED = 8  # images with and without masks
_JPEG_QUALITY = 90

PHASES: dict[str, tuple[Callable[..., Any], ...]] = {
    "decode images": (read_image,),
    "decode masks": (Dataset.read_mask,),
    "geometry": (transforms.draw_view, transforms.view_image, transforms.view_labels),
    "floats and colours": (unpack,),
}
"""What an image's time is spent on, by the functions that do it."""


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        name: ``jpeg``, ``png`` or ``run``.
        dataset: of the images.
        config: of the run; its steps are those whose need is measured.
    """

    name: str
    dataset: Dataset
    config: Config


@contextmanager
def sources(
    run: Path | None, device: torch.device, overrides: Mapping[str, Any]
) -> Iterator[list[Source]]:
    """A run's own images; without a run, painted ones as JPEG and as PNG.

    Args:
        run: folder, or None.
        device: decides the size of the step for painted images.
        overrides: settings by dotted key.

    Raises:
        UserError: where there is no such run, or its images are gone.
    """
    if run is not None:
        folder = RunFolder(run)
        if not folder.config.is_file():
            raise UserError(f"{run} holds no run: expected {folder.config}.")
        config = folder.read_config()
        config = config.model_copy(update={"model": config.model.without_pretrained()})
        config = config.with_overrides(dict(overrides))
        yield [Source("run", load_dataset(folder.dataset), config)]
        return
    config = steps.step_config(device).with_overrides(dict(overrides))
    with tempfile.TemporaryDirectory() as place:
        png = paint(Path(place) / "png", size=PAINTED_SIZE)
        jpeg = as_jpeg(png, Path(place) / "jpeg")
        yield [Source(path.parent.name, load_dataset(path), config) for path in (jpeg, png)]


def paint(folder: Path, *, size: tuple[int, int]) -> Path:
    """Paint streets as PNG; return their dataset.yaml."""
    return write_streets(
        folder, num_labeled=_PAINTED, num_unlabeled=_PAINTED, num_val=1, size=size, with_tags=False
    )


def as_jpeg(dataset_yaml: Path, folder: Path) -> Path:
    """Copy a painted data set with its images as JPEG; return the copy's dataset.yaml."""
    dataset = load_dataset(dataset_yaml)
    shutil.copytree(dataset_yaml.parent, folder)
    for sample in (*dataset.labeled, *dataset.unlabeled, *dataset.val):
        file = folder / sample.file.relative_to(dataset_yaml.parent.resolve())
        with Image.open(file) as image:
            image.convert("RGB").save(file.with_suffix(".jpg"), quality=_JPEG_QUALITY)
        file.unlink()
    return folder / dataset_yaml.name


class Loading:
    """The loader of a run, which takes nothing but time.

    Args:
        source: images and settings.
        device: where batches end.
        workers: loader processes.
        num_batches: that count; as many come before them as fill what workers hold ready.
    """

    def __init__(
        self, source: Source, device: torch.device, *, workers: int, num_batches: int
    ) -> None:
        self._source, self._device = source, device
        self.workers = workers
        self._warm_up, self._num_batches = 2 * workers + 1, num_batches

    def run(self) -> float:
        """Load; return the seconds of a batch."""
        with closing(self._batches(self._warm_up + self._num_batches)) as batches:
            for _ in range(self._warm_up):
                next(batches)
            finish(self._device)
            started = time.perf_counter()
            for _ in batches:
                pass
            finish(self._device)
        return (time.perf_counter() - started) / self._num_batches

    def phases(self) -> dict[str, float]:
        """Milliseconds of an image by phase, in one process; the last is all that is left."""
        profile = cProfile.Profile()
        with closing(self._batches(self._num_batches, workers=0)) as batches:
            profile.runcall(list, batches)
        stats = pstats.Stats(profile)
        images = self._num_batches * self.images_per_batch
        found = {
            phase: sum(_seconds(stats, function.__code__) for function in functions)
            for phase, functions in PHASES.items()
        }
        read = sum(_seconds(stats, way.__code__) for way in (Decoder.image, Decoder.mask))
        found["cache"] = read - found["decode images"] - found["decode masks"]
        streams = (loaders.LabeledStream, loaders.UnlabeledStream)
        drawn = sum(_seconds(stats, stream.__getitem__.__code__) for stream in streams)
        found["collate"] = _seconds(stats, loaders.stacked.__code__) - drawn
        found["other"] = _total(stats) - sum(found.values())
        return {phase: 1000 * seconds / images for phase, seconds in found.items()}

    @property
    def images_per_batch(self) -> int:
        """Labelled and unlabelled ones."""
        data = self._source.config.data
        return data.batch_labeled + (data.batch_unlabeled if self._with_unlabeled else 0)

    @property
    def _with_unlabeled(self) -> bool:
        return uses_unlabeled(self._source.config, self._source.dataset)

    def _batches(self, count: int, *, workers: int | None = None) -> Any:
        config = self._source.config
        number = self.workers if workers is None else workers
        return training_batches(
            self._source.dataset,
            config.data.model_copy(update={"num_workers": number}),
            seed=config.train.seed,
            start_step=0,
            stop_step=count,
            with_unlabeled=self._with_unlabeled,
            labeled_strong=self._with_unlabeled and config.method.mixing == "classmix_labeled",
            device=self._device,
        )


def loader_processes(config: Config) -> int:
    """How many a run has."""
    given = config.data.num_workers
    return default_workers() if given is None else given


def _seconds(stats: pstats.Stats, code: CodeType) -> float:
    """All seconds inside a function."""
    rows: dict[Any, Any] = stats.stats  # type: ignore[attr-defined]
    row = rows.get((code.co_filename, code.co_firstlineno, code.co_name))
    return 0.0 if row is None else float(row[3])


def _total(stats: pstats.Stats) -> float:
    return float(stats.total_tt)  # type: ignore[attr-defined]
