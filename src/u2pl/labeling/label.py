"""From a run and a folder of images to what annotators open, and the order to do it in."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from u2pl.data.images import refuse_way_out, write_whole
from u2pl.data.inputs import is_video
from u2pl.data.sources import load_dataset
from u2pl.engine.manifest import Manifest
from u2pl.engine.predict import Job, image_jobs, make_folder
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.tiles import Tiling
from u2pl.engine.trained import SegmentationModel
from u2pl.engine.world import ALONE
from u2pl.errors import UserError
from u2pl.labeling.formats import FORMATS, Entry, Wishes, format_named, write_format
from u2pl.labeling.page import write_ranking_page
from u2pl.labeling.pseudo import FOLDER, PseudoLabeling
from u2pl.labeling.ranking import Place, Pool, rank, ranked_rows
from u2pl.plain_files import read_text

logger = logging.getLogger(__name__)

SHOWN = 50
"""Images that ``ranking.html`` shows where no number is asked for."""


@dataclass(frozen=True)
class LabelOptions:
    """What :func:`label_images` is asked for.

    Attributes:
        format: a name in :data:`u2pl.labeling.formats.FORMATS`.
        top: annotations and page hold so many images, the first of the ranking; None: all of them.
        max_entropy: γ in nats, above which a pixel is unreliable; None takes the run's.
        simplify: pixels that a polygon may lie off the outline.
        min_area: parts of fewer pixels have no polygon.
        url: what stands before an image's path in Label Studio.
        resume: pass over images whose labels are whole.
        skip_damaged: count images that cannot be read, and go on.
    """

    format: str = "png"
    top: int | None = None
    max_entropy: float | None = None
    simplify: float = 1.0
    min_area: float = 16.0
    url: str = "/data/local-files/?d="
    resume: bool = False
    skip_damaged: bool = False

    def checked(self) -> LabelOptions:
        """Return the options with the format's plain name.

        Raises:
            UserError: where a value is out of range.
        """
        if self.top is not None and self.top < 1:
            raise UserError(f"Expected --top of 1 or more, got {self.top}.", exit_code=2)
        for name, value in (
            ("--max-entropy", self.max_entropy),
            ("--simplify", self.simplify),
            ("--min-area", self.min_area),
        ):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"Expected {name} of 0 or more, got {value}.", exit_code=2)
        return replace(self, format=format_named(self.format))


def label_images(
    model: SegmentationModel,
    run: Path,
    source: Path,
    out: Path,
    options: LabelOptions,
    *,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Write pseudo-labels for annotators, and a ranking of the images.

    Args:
        model: of the run.
        run: its folder; images that stand in ``labeled``, ``val`` or ``test`` of its data set are
            left out, and its scores of each class weigh in the ranking.
        source: a file, folder, glob pattern or list (.txt) of images.
        out: gets ``masks/``, the format's files, ``ranking.csv``, ``ranking.html`` and
            ``manifest.jsonl``.
        options: what is wanted.
        on_image: called with images done and images in all.

    Returns:
        ``images`` (labelled now), ``skipped`` (whole before), ``damaged``, ``left_out`` (of the
        run's data set), ``total``, ``handed_out`` (in the annotations), ``reliable_share``,
        ``max_entropy`` (γ in nats), ``format``, ``files``, ``ranking``, ``page``, ``top`` (names
        of the first ones), ``out``.

    Raises:
        UserError: where there is no image, one cannot be read, names clash, or a class's name
            cannot stand in the format.
    """
    options = options.checked()
    FORMATS[options.format].check(model.classes)
    if options.max_entropy is not None:
        model.card = replace(model.card, reliable_entropy=options.max_entropy)
    labeling, jobs, num_left_out = _labeled(model, run, source, out, options, on_image)
    done = [job for job in jobs if job.source in labeling.summaries]
    if not done:
        raise UserError(f"None of the {len(jobs)} images of {source} could be read.")
    places = rank(_pool(labeling, done), class_iou(run, model.classes))
    chosen = places if options.top is None else places[: options.top]
    entries = [_entry(labeling, done[place.index], out) for place in chosen]
    files = write_format(options.format, out, entries, _wishes(model, options))
    names = [job.source for job in done]
    table = write_ranking(out / "ranking.csv", places, names, model.classes)
    shown = places[: options.top or SHOWN]
    page = out / "ranking.html"
    write_ranking_page(page, model, [(place, done[place.index], out) for place in shown], names)
    return _counts(labeling) | {
        "left_out": num_left_out,
        "total": len(jobs),
        "handed_out": len(entries),
        "max_entropy": model.card.reliable_entropy,
        "format": options.format,
        "files": [str(file) for file in files],
        "ranking": str(table),
        "page": str(page),
        "top": [names[place.index] for place in shown],
        "out": str(out),
    }


def _counts(labeling: PseudoLabeling) -> dict[str, Any]:
    return {
        "images": labeling.written,
        "skipped": labeling.skipped,
        "damaged": labeling.damaged,
        "reliable_share": labeling.sure / max(labeling.pixels, 1),
    }


def _labeled(
    model: SegmentationModel,
    run: Path,
    source: Path,
    out: Path,
    options: LabelOptions,
    on_image: Callable[[int, int], None],
) -> tuple[PseudoLabeling, list[Job], int]:
    """Label the images; return what labelled them, the images, and how many were left out."""
    if is_video(source):
        raise UserError(
            f"Expected images, got the video {source}: annotation tools name files; write its "
            "frames as images first."
        )
    jobs = image_jobs(source, out)
    known = known_images(run)
    wanted = [job for job in jobs if job.file.resolve() not in known]
    if not wanted:
        raise UserError(
            f"All {len(jobs)} images of {source} stand in labeled, val or test of the run's data "
            "set; name images that have no masks yet."
        )
    make_folder(out)
    header = {
        "model_sha256": model.fingerprint(),  # the threshold is a part of it
        "step": model.card.step,
        "max_entropy": model.card.reliable_entropy,
    }
    book = Manifest(out, world=ALONE, model=header, resume=options.resume)
    labeling = PseudoLabeling(model, out, (FOLDER,), Tiling(), book, options.skip_damaged)
    try:
        labeling.files(wanted, on_image)
    finally:
        book.close()
    return labeling, wanted, len(jobs) - len(wanted)


def known_images(run: Path) -> set[Path]:
    """The images that need no label: those of ``labeled``, ``val`` and ``test`` of a run's data."""
    folder = RunFolder(run)
    if not folder.dataset.is_file():
        return set()
    try:
        data = load_dataset(folder.dataset, require=())
    except UserError as error:
        logger.warning("Labelled images cannot be left out: %s", error)
        return set()
    samples = (*data.labeled, *data.val, *data.test)
    return {sample.file.resolve() for sample in samples}


def class_iou(run: Path, classes: tuple[str, ...]) -> list[float | None]:
    """The teacher's IoU of each class on val, 0 to 1; None where it is not known."""
    try:
        found = json.loads(read_text(RunFolder(run).result))["ema"]["iou"]
        values = [found.get(name) for name in classes]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [None] * len(classes)
    return [
        value / 100 if isinstance(value, int | float) and 0 <= value <= 100 else None
        for value in values
    ]


def _pool(labeling: PseudoLabeling, jobs: list[Job]) -> Pool:
    summaries = [labeling.summaries[job.source] for job in jobs]
    return Pool(
        unreliable=np.array([1 - labeling.reliable[job.source] for job in jobs]),
        shares=np.array([summary.shares for summary in summaries], np.float64),
        unsure=np.array([summary.unsure for summary in summaries], np.float64),
        features=np.array([summary.features for summary in summaries], np.float64),
    )


def _entry(labeling: PseudoLabeling, job: Job, out: Path) -> Entry:
    return Entry(
        image=job.source,
        size=labeling.sizes[job.source],
        mask=out / FOLDER / job.name,
        reliable=labeling.reliable[job.source],
    )


def _wishes(model: SegmentationModel, options: LabelOptions) -> Wishes:
    return Wishes(
        classes=model.classes,
        colors=model.card.colors,
        ignore_index=model.card.ignore_index,
        model=f"u2pl {model.card.recipe} step {model.card.step}",
        simplify=options.simplify,
        min_area=options.min_area,
        url=options.url,
    )


def write_ranking(
    path: Path, places: list[Place], names: list[str], classes: tuple[str, ...]
) -> Path:
    """Write the ranking of all images as CSV, and return the file."""
    rows = ranked_rows(places, names, classes)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    refuse_way_out(path.parent, path)
    write_whole(path, lambda place: place.write_text(text.getvalue(), encoding="utf-8"))
    return path
