from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from records import write_run
from u2pl.errors import UserError
from u2pl.report import compare_records, read_record, write_comparison, write_report
from u2pl.report.page import data_uri

HOSTILE = "<img src=x onerror=alert(1)>\"'</script>&"


class Page(HTMLParser):
    """Tags with their attributes, the text outside of scripts, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path, out: Path | None = None) -> Page:
    out = out or run / "report.html"
    write_report(read_record(run), out)
    return Page(out.read_text(encoding="utf-8"))


def figures_of(page: Page) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(page.scripts[0])
    return figures


def test_page_has_all_its_parts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    told = write_report(read_record(run), run / "report.html")
    assert told["pictures"] == 3
    assert told["bytes"] == (run / "report.html").stat().st_size
    page = page_of(run)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {"headline", "training", "classes", "trust", "images", "run", "theme", "class"} <= ids
    drawn = {a["data-figure"] for a in page.all("div") if "data-figure" in a}
    assert drawn == set(figures_of(page))
    assert {"losses", "miou", "shares", "class_iou", "confusion", "coverage"} <= drawn
    assert len(page.all("article")) == 3
    assert len(page.all("img")) == 3 * 6
    text = " ".join(page.words)
    for words in ("60.0 %", "59.0 %", "u2pl train data.yaml", "5 of 9 images", "5 of 10"):
        assert words in text, words


def test_page_fetches_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/", "#")) or not value, (tag, value[:80])
        assert tag not in ("link", "iframe", "object", "embed", "base")
    (policy,) = (
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_policy_names_the_scripts_that_are_there_and_no_other(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(read_record(run), run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    allowed = set(re.findall(r"'sha256-([^']+)'", text.replace("&#39;", "'")))
    bodies = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in bodies}
    assert digests == allowed
    assert bodies[0] == get_plotlyjs()


@pytest.mark.parametrize("place", ["classes", "images", "command", "folder"])
def test_hostile_names_are_text(tmp_path: Path, place: str) -> None:
    folder = HOSTILE.replace("/", "") if place == "folder" else "run"
    options: dict[str, Any] = {
        "classes": {"names": (HOSTILE, "b", "c")},
        "images": {"images": (HOSTILE,)},
        "command": {"command": ("u2pl", HOSTILE)},
        "folder": {},
    }[place]
    harmless = page_of(write_run(tmp_path / "other"))
    run = write_run(tmp_path / folder, **options)
    page = page_of(run, tmp_path / "page.html")
    assert "onerror" in " ".join(page.words)
    assert len(page.scripts) == len(harmless.scripts)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    if place == "classes":
        figures = figures_of(page)  # still JSON, and the heading of a tick is no markup
        assert "<img" not in json.dumps(figures["class_iou"]["layout"])
    if place != "images":
        assert len(page.all("img")) == len(harmless.all("img"))


def test_paths_in_files_are_not_followed(tmp_path: Path) -> None:
    """Else a stranger's run folder could put a file of the reader's into a page."""
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    run = write_run(tmp_path / "run", images=("../../../../secret", "val_1"))
    place = run / "pictures/inspection/001"
    (place / "truth.png").unlink()
    (place / "truth.png").symlink_to(tmp_path / "secret.png")
    page = page_of(run)
    assert len(page.all("article")) == 1  # the linked one is left out
    assert base64.b64encode(b"secret").decode()[:6] not in (run / "report.html").read_text()


def test_only_jpeg_and_png_are_put_in(tmp_path: Path) -> None:
    file = tmp_path / "truth.png"
    assert data_uri(file, tmp_path) is None
    file.write_text("<svg onload='alert(1)'/>")
    assert data_uri(file, tmp_path) is None
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert data_uri(file, tmp_path) == "data:image/png;base64,iVBORw0KGgo="


def test_run_that_goes_on_has_a_page_of_its_curves(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", ended=False))
    assert set(figures_of(page)) == {"losses", "miou", "shares"}
    assert "training goes on" in page.words
    assert page.all("select") == page.all("img") == []


def test_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ended=False)
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    assert figures_of(page_of(run)) == {}


def test_run_that_was_not_inspected_has_no_pictures(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", inspected=False))
    assert "confusion" in figures_of(page)
    assert "coverage" not in figures_of(page)
    assert page.all("article") == []


def test_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="Cannot write"):
        write_report(read_record(run), run / "config.yaml" / "report.html")


def test_comparison_shows_groups_differences_and_notes(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"{HOSTILE[:4]}-{weight}-{seed}",
            seed=seed,
            miou=50 + 9 * weight + seed,
            method__contrastive_weight=weight,
        )
        for weight in (0.0, 0.1)
        for seed in range(3)
    ]
    result = compare_records([read_record(run) for run in runs])
    write_comparison(result, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    text = " ".join(page.words)
    assert "6 runs in 2 groups" in text
    assert "method.contrastive_weight" in text
    assert "+0.90 on 3 common seeds" in text
    assert result["notes"][-1] in text
    assert page.all("img") == []
    assert set(figures_of(page)) == {"groups"}
