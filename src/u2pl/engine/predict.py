"""From a run's weights to masks: an image, a folder of them, a list, or a video.

Files are decoded and written beside the network's forward pass. What is held at a time does not
grow with the number of images, and an image too large for memory is labelled in tiles.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from u2pl.data.images import FileError, image_size, read_image
from u2pl.data.inputs import find_images, is_video, video_frames
from u2pl.data.transforms import eval_image
from u2pl.data.windows import ArrayWindows, Image, Windows, plain_tiff_size, tiff_windows
from u2pl.engine.manifest import Manifest, is_whole, outputs_of, state_of
from u2pl.engine.pictures import KINDS, check_kinds, rows_of_pictures, write_pictures
from u2pl.engine.servers import refuse_unfit, server_named
from u2pl.engine.tiles import Tiling, predict_bands
from u2pl.engine.trained import (
    ModelCard,
    Prediction,
    SegmentationModel,
    load_model,
    read_card,
)
from u2pl.engine.world import ALONE, World
from u2pl.errors import UserError

__all__ = [
    "KINDS",
    "ModelCard",
    "Prediction",
    "SegmentationModel",
    "find_images",
    "load_model",
    "predict_images",
    "read_card",
]

_AHEAD = 4  # images that wait for a network that sees one at a time
_MOST_TOGETHER, _PIXELS_TOGETHER = 8, 2**21  # that a GPU sees at a time
_MOST_PIXELS = 2**25  # of the images that wait: 100 MB of RGB; one image may be larger

T = TypeVar("T")


class Job(NamedTuple):
    """An image to label.

    Attributes:
        source: what the manifest calls it.
        file: where its pixels are.
        name: of its results, with suffix .png.
        state: of the file; see :func:`~u2pl.engine.manifest.state_of`.
    """

    source: str
    file: Path
    name: Path
    state: list[int]


class Loaded(NamedTuple):
    """An image that has been read.

    Attributes:
        job: what it is.
        image: its pixels; None for a large TIFF, which is read part by part.
        prepared: what the network is to see; None for an image that is cut into tiles.
    """

    job: Job
    image: Image | None
    prepared: Tensor | None


class Small(NamedTuple):
    """An image that the network sees as a whole.

    Attributes:
        job: what it is.
        pixels: [H, W, 3] uint8.
        prepared: [3, h, w], what the network is to see.
    """

    job: Job
    pixels: Image
    prepared: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the file."""
        return self.pixels.shape[0], self.pixels.shape[1]


class Damaged(NamedTuple):
    """An image that cannot be read, and why."""

    job: Job
    error: FileError


Read = Small | Loaded | Damaged
"""What has become of an image file; a Loaded one is to be cut."""


def what_was_read(reading: Iterable[tuple[Job, Future[Any]]]) -> Iterator[Read]:
    """Wait for one image after the other, until there is none."""
    for job, future in reading:
        try:
            loaded: Loaded | None = future.result()
        except FileError as error:
            yield Damaged(job, error)
            continue
        if loaded is None:
            return
        if loaded.image is None or loaded.prepared is None:
            yield loaded
        else:
            yield Small(loaded.job, loaded.image, loaded.prepared)


def grouped(images: Iterable[Read], at_once: Callable[[Small], int]) -> Iterator[list[Read]]:
    """Put neighbours of one size together.

    Args:
        images: in order.
        at_once: how many like one that the network sees at once may be in a group.

    Yields:
        Small images of one size, or a single image of another kind.
    """
    group: list[Read] = []
    for image in images:
        if group and not _alike(group[0], image):
            yield group
            group = []
        group.append(image)
        if not isinstance(image, Small) or len(group) >= at_once(image):
            yield group
            group = []
    if group:
        yield group


def _alike(first: Read, second: Read) -> bool:
    if not isinstance(first, Small) or not isinstance(second, Small):
        return False
    return first.size == second.size and first.prepared.shape == second.prepared.shape


def make_folder(path: Path) -> None:
    """Make a folder for results.

    Raises:
        UserError: where it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write into {path}: {error.strerror}.") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"Cannot write into {path}: permission denied.")


def refuse_clashes(base: Path, files: list[Path]) -> None:
    """Raise UserError where two images would be written to the same name."""
    seen: dict[Path, Path] = {}
    for file in files:
        name = file.relative_to(base).with_suffix("")
        if name in seen:
            raise UserError(
                f"{seen[name]} and {file} would both be written as {name}.png; rename one."
            )
        seen[name] = file


def predict_images(
    model: SegmentationModel,
    source: Path,
    out: Path,
    *,
    kinds: Iterable[str] = ("masks", "overlays", "entropy"),
    on_image: Callable[[int, int], None] = lambda *_: None,
    tiling: Tiling | None = None,
    every: int = 1,
    manifest: bool = False,
    resume: bool = False,
    skip_damaged: bool = False,
    server: str | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Label every image of a source and write the results as PNG.

    Args:
        model: from :func:`load_model`.
        source: a file, folder, glob pattern, list (.txt) or video.
        out: gets a folder a kind; a file's name and subfolder are those of its image, a video's
            frames lie in a folder of its name. Images that lie in it, from an earlier call, are
            passed over.
        kinds: of ``masks`` (class ids, shown in the classes' colours), ``colors``, ``overlays``,
            ``entropy`` (0 to log C) and ``reliable`` (255 where sure).
        on_image: called with images done and images in all (0 for a video).
        tiling: how large images are cut; None takes :class:`~u2pl.engine.tiles.Tiling`'s own.
        every: of a video, label the first frame and each that comes so many after one.
        manifest: write a ``manifest.jsonl``, a line for each image whose results are whole.
        resume: pass over images whose results an earlier manifest vouches for, and keep one.
        skip_damaged: count images that cannot be read, and go on.
        server: ``voc`` or ``cityscapes``: write what that test server takes too.
        world: which process of several this is; each takes its share of the images.

    Returns:
        ``images`` written now by this process, ``skipped`` (whole before), ``damaged``, ``total``
        of all processes (None for a video), ``out``, and ``reliable_share``, a fraction of all
        pixels of this process's images.

    Raises:
        UserError: where there is no image, one cannot be read, or names clash.
    """
    target = None if server is None else server_named(server)
    kinds = tuple(kinds)
    wanted = check_kinds(kinds) if kinds or target is None else ()
    if every < 1:
        raise UserError(f"Expected every N frames with N from 1 on, got {every}.", exit_code=2)
    jobs = None if is_video(source) else image_jobs(source, out)
    if target is not None:
        if jobs is None:
            raise UserError(f"The {target.name} server takes images, and {source} is a video.")
        refuse_unfit(target, [job.name for job in jobs], model.classes)
        wanted = (target.kind, *wanted)
    make_folder(out)
    book = None
    if manifest or resume:
        header = {"model_sha256": model.fingerprint(), "step": model.card.step}
        book = Manifest(out, world=world, model=header, resume=resume)
    labeling = Labeling(model, out, wanted, tiling or Tiling(), book, skip_damaged)
    try:
        if jobs is None:
            labeling.video(source, every, world, on_image)
        else:
            labeling.files(jobs[world.rank :: world.size], on_image)
    finally:
        if book is not None:
            book.close()
    return {
        "images": labeling.written,
        "skipped": labeling.skipped,
        "damaged": labeling.damaged,
        "total": None if jobs is None else len(jobs),
        "out": str(out),
        "reliable_share": labeling.sure / max(labeling.pixels, 1),
    }


def image_jobs(source: Path, out: Path) -> list[Job]:
    """The images that a source means, those in the folder of the results left out.

    Raises:
        UserError: where there is none, or two would be written to the same name.
    """
    base, files = find_images(source)
    results = out.resolve()
    files = [file for file in files if not file.resolve().is_relative_to(results)]
    if not files:
        raise UserError(f"All images of {source} lie in {out}, where the results go.")
    refuse_clashes(base, files)
    names = [file.relative_to(base) for file in files]
    return [
        Job(name.as_posix(), file, name.with_suffix(".png"), state_of(file))
        for name, file in zip(names, files, strict=True)
    ]


@dataclass
class Labeling:
    """Labels images one after the other, and counts.

    Attributes:
        model: the network.
        out: the folder of the results.
        kinds: which pictures.
        tiling: how large images are cut.
        book: where lines go, or None.
        skip_damaged: whether to go on where an image cannot be read.
        written: images labelled now.
        skipped: images that were whole before.
        damaged: images that could not be read.
        pixels: of those labelled now or before.
        sure: how many of them are reliable.
    """

    model: SegmentationModel
    out: Path
    kinds: tuple[str, ...]
    tiling: Tiling
    book: Manifest | None
    skip_damaged: bool
    written: int = 0
    skipped: int = 0
    damaged: int = 0
    pixels: int = 0
    sure: float = 0

    def files(self, jobs: list[Job], on_image: Callable[[int, int], None]) -> None:
        """Label image files."""
        left = [job for job in jobs if not self.was_done(job)]
        if self.skipped:
            on_image(self.skipped, len(jobs))
        tasks = ((pixels_of(job.file), lambda job=job: self.load(job)) for job in left)
        with file_threads(2 if default_writers() < 4 else 4) as readers:
            reading = ahead(readers, tasks, most=self.images_ahead)
            self.label(zip(left, reading, strict=True), lambda done: on_image(done, len(jobs)))

    def video(
        self, path: Path, every: int, world: World, on_image: Callable[[int, int], None]
    ) -> None:
        """Label this process's share of a video's frames."""
        state, folder = state_of(path), Path(path.stem)
        mine = (
            (Job(f"{path.name}#{number}", path, folder / f"{number:06d}.png", state), image)
            for place, (number, image) in enumerate(video_frames(path, every=every))
            if place % world.size == world.rank
        )
        frames = ((job, image) for job, image in mine if not self.was_done(job))

        def load() -> Loaded | None:
            job, image = next(frames, (None, None))
            return None if job is None or image is None else self.prepare(job, image)

        # frames come from one decoder, so one thread reads them
        with file_threads(1) as reader:
            reading = ahead(reader, itertools.repeat((0, load)), most=self.images_ahead)
            pairs = ((Job(str(path), path, folder, state), future) for future in reading)
            self.label(pairs, lambda done: on_image(done, 0))

    def was_done(self, job: Job) -> bool:
        """Whether the manifest vouches for an image's results; then it is counted."""
        row = None if self.book is None else self.book.done.get(job.source)
        if row is None or not is_whole(row, self.out, job.name, self.kinds, job.state):
            return False
        self.skipped += 1
        self._count(row)
        return True

    def load(self, job: Job) -> Loaded:
        """Read an image, unless it is a large one of which parts can be read."""
        size = plain_tiff_size(job.file)
        if size is not None and self.tiling.is_large(size, len(self.model.classes)):
            return Loaded(job, None, None)
        return self.prepare(job, read_image(job.file))

    def prepare(self, job: Job, image: Image) -> Loaded:
        """Bring an image to the size that the network is to see, unless it is cut first."""
        if self.tiling.is_large(image.shape[:2], len(self.model.classes)):
            return Loaded(job, image, None)
        prepared = eval_image(image, resize=self.model.card.resize, file=job.file)
        if self.model.network.mean.is_cuda:  # else the network would wait for each copy
            prepared = prepared.pin_memory()
        return Loaded(job, image, prepared)

    def label(
        self, reading: Iterable[tuple[Job, Future[Any]]], on_done: Callable[[int], None]
    ) -> None:
        """Label what is read, until there is nothing more; see :class:`Labeling`."""
        # PNG writing leaves the interpreter's lock: it runs beside the forward pass
        num_writers = default_writers()
        with file_threads(num_writers) as writers, torch.inference_mode():
            writing: deque[tuple[int, Future[dict[str, Any]]]] = deque()
            asked: deque[list[tuple[Small, Any]]] = deque()

            def told() -> None:
                on_done(self.written + self.skipped + self.damaged)

            def settle(most_files: int, most_pixels: int = _MOST_PIXELS) -> None:
                while len(writing) > most_files or sum(n for n, _ in writing) > most_pixels:
                    self.note(writing.popleft()[1].result())
                    told()

            def hand_over(most_groups: int) -> None:
                while len(asked) > most_groups:
                    for image, answer in asked.popleft():
                        task = writers.submit(self.write, image.job, image.pixels, answer)
                        writing.append((image.size[0] * image.size[1], task))
                        settle(2 * num_writers)

            for group in grouped(what_was_read(reading), self.images_at_once):
                if isinstance(group[0], Small):
                    images = [image for image in group if isinstance(image, Small)]
                    asked.append(list(zip(images, self.ask(images), strict=True)))
                    hand_over(self.groups_asked_ahead)
                    continue
                hand_over(0)
                settle(0)
                if isinstance(group[0], Loaded):
                    self._large(group[0])
                else:
                    self._damaged(*group[0])
                told()
            hand_over(0)
            settle(0)

    @property
    def groups_asked_ahead(self) -> int:
        """How many groups wait before they are written: writers would wait for a GPU with them."""
        return 1 if self.model.network.mean.is_cuda else 0

    @property
    def images_ahead(self) -> int:
        """How many images are read before the network asks for them."""
        return 2 * _MOST_TOGETHER if self.model.network.mean.is_cuda else _AHEAD

    def images_at_once(self, image: Small) -> int:
        """How many images like this one the network sees together: on a CPU that gains nothing."""
        if not self.model.network.mean.is_cuda:
            return 1
        height, width = image.prepared.shape[-2:]
        return max(1, min(_MOST_TOGETHER, _PIXELS_TOGETHER // (height * width)))

    def ask(self, images: Sequence[Small]) -> Sequence[Any]:
        """What the network says of images of one size: of each what :meth:`write` takes."""
        prepared = [image.prepared for image in images]
        return self.judged(self.model.logits_of(prepared, size=images[0].size))

    def judged(self, logits: Tensor) -> list[Callable[[], Prediction]]:
        """How to come by what each image's logits, of [B, C, H, W], say.

        A GPU judges all of them at once; on a CPU the threads that write do, beside the network.
        """
        if logits.is_cuda:
            judged = self.model.judge_all(logits)
            return [partial(judged.of, row) for row in range(len(logits))]
        return [partial(self.model.judge, row) for row in torch.split(logits, 1)]

    @torch.inference_mode()
    def write(self, job: Job, image: Image, answer: Any) -> dict[str, Any]:
        """Take an image's prediction, write its pictures, and return its line."""
        prediction: Prediction = answer()
        write_pictures(self.out, job.name, image, prediction, self.model.card, self.kinds)
        sure = int(prediction.reliable.sum())
        return self.line(job, (image.shape[0], image.shape[1]), sure)

    def line(self, job: Job, size: tuple[int, int], sure: int) -> dict[str, Any]:
        """What the manifest says of an image; see docs/how-to/predict.md."""
        return {
            "source": job.source,
            "source_state": job.state,
            "size": list(size),
            "reliable_share": sure / (size[0] * size[1]),
            "outputs": outputs_of(self.out, job.name, self.kinds),
        }

    def _large(self, loaded: Loaded) -> None:
        """Label a large image band by band."""
        if loaded.image is not None:
            self.note(self.in_tiles(loaded.job, ArrayWindows(loaded.image)))
            return
        try:
            with tiff_windows(loaded.job.file) as windows:
                row = self.in_tiles(loaded.job, windows)
        except FileError as error:
            self._damaged(loaded.job, error)
        else:
            self.note(row)

    def in_tiles(self, job: Job, image: Windows) -> dict[str, Any]:
        """Label a large image band by band, and return its line."""
        sure = 0
        with rows_of_pictures(self.out, job.name, image, self.model.card, self.kinds) as add:
            for top, band in predict_bands(self.model, image, self.tiling):
                add(top, band)
                sure += int(band.reliable.sum())
        return self.line(job, image.size, sure)

    def note(self, row: dict[str, Any]) -> None:
        """An image is whole."""
        if self.book is not None:
            self.book.add(row)
        self.written += 1
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        pixels = row["size"][0] * row["size"][1]
        self.pixels += pixels
        self.sure += row["reliable_share"] * pixels

    def _damaged(self, job: Job, error: FileError) -> None:
        """Note an image that cannot be read, or raise where that ends the work."""
        if not self.skip_damaged:
            raise error
        self.damaged += 1
        if self.book is not None:
            self.book.add({"source": job.source, "error": str(error)})


def default_writers() -> int:
    """Return how many threads write results: a GPU labels an image faster than two write it."""
    cores = os.cpu_count() or 1
    return min(16, max(2, cores - 2))


@contextlib.contextmanager
def file_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read or write beside the network; each computes by itself.

    Without that each would have as many helpers as the network's own thread has, and all of them
    would stand in one another's way.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(before)  # for threads to come; this one has kept its number


def pixels_of(file: Path) -> int:
    """Pixels that decoding a file will take; 0 where its reader is to say what is wrong."""
    if plain_tiff_size(file) is not None:
        return 0
    try:
        height, width = image_size(file)
    except UserError:
        return 0
    return height * width


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[tuple[int, Callable[[], T]]], *, most: int = _AHEAD
) -> Iterator[Future[T]]:
    """Start a few tasks before their results are asked for.

    Args:
        pool: runs them, in order.
        tasks: pixels that each will hold, and what to call; not too many pixels wait.
        most: tasks that wait.
    """
    waiting: deque[tuple[int, Future[T]]] = deque()
    for pixels, task in tasks:
        while len(waiting) >= most or (
            waiting and pixels + sum(held for held, _ in waiting) > _MOST_PIXELS
        ):
            yield waiting.popleft()[1]
        waiting.append((pixels, pool.submit(task)))
    while waiting:
        yield waiting.popleft()[1]
