"""Published data sets, from their archives or trees to a dataset.yaml."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from u2pl.data.check import quick_check
from u2pl.data.images import write_whole
from u2pl.data.prepare import ade20k, camvid, cityscapes, coco, gta5, idd, synthia, voc
from u2pl.data.prepare.job import Benchmark, Draft, Job, OnProgress, spell
from u2pl.data.sources import Sample, default_colors, load_dataset
from u2pl.data.split import Split, import_split
from u2pl.errors import UserError, is_clean, nearest_name
from u2pl.plain_files import read_text

__all__ = ["BENCHMARKS", "Prepared", "prepare_dataset"]

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (voc, cityscapes, gta5, synthia, ade20k, coco, camvid, idd)
}
"""By name."""

_RECORD = "prepared.json"
_LICENCE = "LICENCE-OF-THE-DATA.txt"
_OPENED = 50  # masks of a section that are read at the end; `data check` reads all of them


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare_dataset` wrote.

    Attributes:
        path: the dataset.yaml.
        benchmark: of which it is made.
        variant: "" where there is none.
        notes: sentences about masks and what was left out; none where all was there already.
        sections: images each.
        was_there: whether an earlier call had done it all.
        split: the data set of ``split``, if one was asked for.
    """

    path: Path
    benchmark: Benchmark
    variant: str
    notes: tuple[str, ...]
    sections: dict[str, int]
    was_there: bool
    split: Split | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "dataset": str(self.path),
            "name": self.benchmark.name,
            "variant": self.variant or None,
            "notes": list(self.notes),
            "sections": self.sections,
            "licence": self.benchmark.licence,
            "was_there": self.was_there,
            "split": None if self.split is None else self.split.to_json(),
        }


def prepare_dataset(
    name: str,
    source: Path | str,
    *,
    out: Path | str,
    variant: str | None = None,
    target: Path | str | None = None,
    split: Path | None = None,
    split_unlabeled: Path | None = None,
    download: bool = False,
    counts: Mapping[str, int] | None = None,
    on_progress: OnProgress | None = None,
) -> Prepared:
    """Make a dataset.yaml of a published data set, as it comes from its page.

    Archives are unpacked to, and masks that a dataset.yaml cannot read as they are go to ``out``;
    nothing in ``source`` is changed. A call that was cut off is taken up where it was, one that has
    been done is not done again.

    Args:
        name: of :data:`BENCHMARKS`.
        source: a folder with the archives, or with what they unpack to.
        out: the folder to write.
        variant: of the data set; None takes the first.
        target: of ``gta5`` and ``synthia``, a dataset.yaml with the images to adapt to.
        split: a published list of labelled images, to write a data set of, too; see
            :func:`u2pl.data.split.import_split`.
        split_unlabeled: its list of unlabelled images; None takes all others.
        download: fetch archives that are missing, where that needs no account.
        counts: images by section instead of the published ones, for a part of the data set.
        on_progress: called with what is done, how much of it is done, and of how much.

    Raises:
        UserError: where the request is malformed, an archive or a file is missing or torn, numbers
            of images are not the published ones, or something is in the way.
    """
    benchmark = _benchmark(name)
    job = _job(benchmark, Path(source), Path(out), variant, target, download, on_progress)
    request = _request(benchmark, job, counts)
    path = job.out / "dataset.yaml"
    was_there = _is_done(job, request)
    notes: tuple[str, ...] = ()
    if not was_there:
        draft = _checked_draft(benchmark, job, counts or benchmark.counts[job.variant])
        _write_all(benchmark, job, draft)
        _write(job.out / _RECORD, json.dumps({**request, "done": True}, indent=2) + "\n")
        notes = tuple(draft.notes)
    dataset = load_dataset(path)
    made = import_split(path, labeled=split, unlabeled=split_unlabeled) if split else None
    return Prepared(
        path=path,
        benchmark=benchmark,
        variant=job.variant,
        notes=notes,
        sections={section: len(rows) for section, rows in dataset.sections.items() if rows},
        was_there=was_there,
        split=made,
    )


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise UserError(
            f"There is no published data set '{name}'.{nearest_name(name, BENCHMARKS)} Known: "
            f"{', '.join(BENCHMARKS)}.",
            exit_code=2,
        )
    return BENCHMARKS[name]


def _job(
    benchmark: Benchmark,
    source: Path,
    out: Path,
    variant: str | None,
    target: Path | str | None,
    download: bool,
    on_progress: OnProgress | None,
) -> Job:
    """Return the job that was asked for, after a look at each of its words."""
    names = [*benchmark.variants]
    if variant is not None and variant not in names:
        known = f"one of {', '.join(names)}" if names else "none"
        raise UserError(
            f"Expected the variant of {benchmark.name} to be {known}, got '{variant}'; change "
            "--variant.",
            exit_code=2,
        )
    if benchmark.needs_target and target is None:
        raise UserError(
            f"{benchmark.name} has no images to score on: name the data set to adapt to, such as "
            "--target cityscapes/dataset.yaml (u2pl data prepare cityscapes makes it).",
            exit_code=2,
        )
    if target is not None and not benchmark.needs_target:
        raise UserError(
            f"{benchmark.name} has images of its own to score on; leave --target out.", exit_code=2
        )
    if download and not any(part.url for part in benchmark.parts):
        page = benchmark.parts[0].page
        raise UserError(
            f"{benchmark.name} cannot be fetched by a program; fetch it from {page}, and leave "
            "--download out.",
            exit_code=2,
        )
    for place in (source, out):
        if not is_clean(str(place)):
            raise UserError(f"The path {place} has control characters, or is no UTF-8; rename it.")
    if not source.is_dir():
        raise UserError(f"Expected a folder with archives or their trees, got {source}; mend it.")
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise UserError(
            f"{out} lies in {source}, in which nothing is to be changed; give another --out.",
            exit_code=2,
        )
    chosen = variant or (names[0] if names else "")
    where = None if target is None else Path(target)
    return Job(source, out, chosen, where, download, on_progress)


def _request(benchmark: Benchmark, job: Job, counts: Mapping[str, int] | None) -> dict[str, Any]:
    """Return what a folder is made of, to tell whether a later call asks for the same."""
    return {
        "name": benchmark.name,
        "variant": job.variant or None,
        "source": os.path.realpath(job.source),
        "target": None if job.target is None else os.path.realpath(job.target),
        "counts": None if counts is None else dict(counts),
    }


def _is_done(job: Job, request: dict[str, Any]) -> bool:
    """Whether an earlier call has done all; refuse a folder of something else, or begin one."""
    record = job.out / _RECORD
    if os.path.lexists(job.out) and not job.out.is_dir():
        raise UserError(f"{job.out} is there already and is no folder; give another --out.")
    if not os.path.lexists(record):
        if job.out.is_dir() and any(job.out.iterdir()):
            raise UserError(
                f"{job.out} is there already and holds something else; give another --out."
            )
        _write(record, json.dumps({**request, "done": False}, indent=2) + "\n")
        return False
    try:
        found = json.loads(read_text(record))
        is_done = found.pop("done")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError):
        raise UserError(f"{record} is damaged; move {job.out} away, and call this again.") from None
    if found != request:
        asked = next(key for key in request if found.get(key) != request[key])
        raise UserError(
            f"{job.out} is there already, made with {asked} {found.get(asked)} and not "
            f"{request[asked]}; give another --out."
        )
    return is_done is True and (job.out / "dataset.yaml").is_file()


def _checked_draft(benchmark: Benchmark, job: Job, counts: Mapping[str, int]) -> Draft:
    """Return what is to be written; where that cannot be said, leave no folder behind."""
    try:
        draft = benchmark.draft(job)
        _require_counts(benchmark, job, draft, counts)
    except UserError:
        record = job.out / _RECORD
        if [*job.out.iterdir()] == [record]:
            record.unlink()
            with contextlib.suppress(OSError):  # of a folder that somebody works in
                job.out.rmdir()
        raise
    return draft


def _require_counts(
    benchmark: Benchmark, job: Job, draft: Draft, counts: Mapping[str, int]
) -> None:
    for section, expected in counts.items():
        if section not in draft.sections:
            raise UserError(
                f"{benchmark.title} has no section '{section}' to count; expected "
                f"{', '.join(draft.sections)}.",
                exit_code=2,
            )
        found = draft.sections[section]
        if found.num_images != expected:
            part = found.part
            assert part is not None, "sections with a published number have an archive"
            raise UserError(
                f"{job.source}: expected {expected} images in '{section}' of {benchmark.title}, "
                f"found {found.num_images}; unpack {' and '.join(part.archives[:2])}"
                f"{' and the others' if len(part.archives) > 2 else ''} again, or fetch what is "
                f"missing from {part.page}."
            )


def _write_all(benchmark: Benchmark, job: Job, draft: Draft) -> None:
    """Write the licence, masks, lists, and last the dataset.yaml, when it is known to be right."""
    _write(job.out / _LICENCE, _licence_text(benchmark))
    job.make_masks(draft.masks, colors=draft.encoding.colors or default_colors(256))
    for file, text in draft.files.items():
        _write(file, text)
    tree = draft.encoding.head()
    if draft.root is not None:
        tree["root"] = spell(draft.root / "x", job.out).removesuffix("/x")
    for name in ("labeled", "unlabeled", "val", "test"):
        if name in draft.sections:
            tree[name] = draft.sections[name].keys
    variant = f" --variant {job.variant}" if job.variant else ""
    head = f"# u2pl data prepare {benchmark.name}{variant}\n# {benchmark.title}; {_LICENCE}\n"
    path = job.out / "dataset.yaml"
    temporary = job.out / ".dataset.yaml"
    _write(temporary, head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    dataset = load_dataset(temporary)
    for name, section in draft.sections.items():
        expected, found = section.num_images - section.num_left_out, len(dataset.sections[name])
        if found != expected:
            raise UserError(
                f"{temporary}: expected {expected} images in '{name}', found {found}; see whether "
                f"files were added to {job.source}, and call this again."
            )
    quick_check(replace(dataset, labeled=_some(dataset.labeled), val=_some(dataset.val)))
    os.replace(temporary, path)


def _some(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return at most 50 samples, evenly spread."""
    step = max(1, len(samples) // _OPENED)
    return samples[::step][:_OPENED]


def _licence_text(benchmark: Benchmark) -> str:
    pages = dict.fromkeys(part.page for part in benchmark.parts)
    return (
        f"{benchmark.title}\n\n{benchmark.licence}\n\nPages:\n"
        + "".join(f"- {page}\n" for page in pages)
        + "\nThe terms on these pages hold for the data and for what is made of them, the masks in "
        "this\nfolder included. u2pl's own licence is of its program alone.\n"
    )


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
