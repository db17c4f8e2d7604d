"""One HTML page of what a check found: classes, findings, and images under their masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from u2pl.data.check import CheckReport, Finding
from u2pl.data.images import FileError, overlay, read_image, write_whole
from u2pl.data.sources import Dataset, Sample
from u2pl.data.thumbnails import data_url, small, small_mask
from u2pl.errors import printable

_MOST_FINDINGS = 200  # of a kind


@dataclass(frozen=True)
class _Card:
    """A thumbnail: images as data URLs, and what was found of their files."""

    name: str
    image: str | None
    over: str | None
    kind: str
    said: tuple[str, ...]


@dataclass(frozen=True)
class _Pictures:
    """The thumbnails of a section."""

    name: str
    total: int
    has_masks: bool
    cards: tuple[_Card, ...]


def write_check_page(
    path: Path, dataset: Dataset, report: CheckReport, *, images_per_section: int = 48
) -> None:
    """Write what a check found as one HTML file that needs no other file and no network.

    Args:
        path: the file to write.
        dataset: what was checked.
        report: what :func:`u2pl.data.check.check_dataset` found.
        images_per_section: how many thumbnails a section has: first those of which something was
            found, then others spread over the section.

    Raises:
        UserError: where the file cannot be written.
    """
    findings: dict[str, list[tuple[str, Finding]]] = defaultdict(list)
    for kind, items in (("error", report.errors), ("odd", report.warnings)):
        for finding in items:
            findings[finding.file].append((kind, finding))
    pictures = [
        _pictures(dataset, name, samples, findings, images_per_section)
        for name, samples in dataset.sections.items()
        if samples
    ]
    total = max(sum(report.pixels.values()), 1)
    shares = {name: count / total for name, count in report.pixels.items()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("u2pl.data"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.finalize = _shown
    text = environment.get_template("check.html").render(
        title=dataset.path.parent.resolve().name or dataset.path.name,
        path=dataset.path,
        errors=report.errors,
        warnings=report.warnings,
        most_findings=_MOST_FINDINGS,
        sections=report.sections,
        ignore_share=report.ignore_share,
        unmapped_share=report.unmapped_share,
        classes=[
            {
                "id": place,
                "name": name,
                "color": dataset.colors[place],
                "images": report.images[name],
                "pixels": report.pixels[name],
                "share": shares[name],
            }
            for place, name in enumerate(dataset.classes)
        ],
        largest=max(shares.values(), default=0) or 1,
        pictures=pictures,
    )
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def _shown(value: object) -> object:
    """Return what a page shows of a value: a name has no character that does not print."""
    return printable(str(value)) if isinstance(value, str | Path) else value


def _pictures(
    dataset: Dataset,
    section: str,
    samples: Sequence[Sample],
    findings: dict[str, list[tuple[str, Finding]]],
    most: int,
) -> _Pictures:
    odd = [s for s in samples if str(s.image) in findings or str(s.mask) in findings][:most]
    rest = [sample for sample in samples if sample not in odd]
    count = min(most - len(odd), len(rest))
    places = np.linspace(0, len(rest) - 1, count).round().astype(int) if count else []
    chosen = [*odd, *(rest[place] for place in places)]
    return _Pictures(
        section,
        len(samples),
        section != "unlabeled",
        tuple(_card(dataset, sample, findings) for sample in chosen),
    )


def _card(
    dataset: Dataset, sample: Sample, findings: dict[str, list[tuple[str, Finding]]]
) -> _Card:
    found = findings.get(str(sample.image), []) + findings.get(str(sample.mask), [])
    kinds = {kind for kind, _ in found}
    kind = "error" if "error" in kinds else "odd" if kinds else ""
    image, over = None, None
    try:
        pixels = small(read_image(sample.image))
        image = data_url(pixels)
        if sample.mask is not None:
            labels = dataset.read_mask(sample)
            shown = small_mask(labels, (pixels.shape[0], pixels.shape[1]))
            over = data_url(overlay(pixels, shown, dataset.colors, alpha=0.6))
    except FileError:
        pass  # the finding says what is wrong
    said = tuple(dict.fromkeys(finding.what for _, finding in found))
    return _Card(sample.name, image, over, kind, said)
