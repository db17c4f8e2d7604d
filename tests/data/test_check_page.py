from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import write_dataset
from u2pl.data.check import check_dataset
from u2pl.data.check_page import write_check_page
from u2pl.data.sources import load_dataset


class Page(HTMLParser):
    """Notes tags, addresses and text, and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path, *, most: int = 48) -> Page:
    dataset = load_dataset(path)
    out = path.parent / "check.html"
    write_check_page(out, dataset, check_dataset(dataset), images_per_section=most)
    return Page(out.read_text(encoding="utf-8"))


def test_page_shows_every_image_and_needs_nothing_else(tmp_path: Path) -> None:
    found = page(write_dataset(tmp_path))
    assert found.open == []
    # An image and its overlay each, for unlabelled ones the image alone.
    assert found.tags.count("img") == 2 * (4 + 3) + 6
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses)
    assert "script" not in found.tags
    assert "No errors, 0 warnings." in " ".join(found.text.split())
    for name in ("ground", "wall", "tree", "labeled_3", "unlabeled_5", "val_0"):
        assert name in found.text


def test_overlay_differs_from_its_image_and_has_its_size(tmp_path: Path) -> None:
    found = page(write_dataset(tmp_path))
    image, over = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
        for address in found.addresses[:2]
    )
    assert image.shape == over.shape == (40, 56, 3)
    assert np.abs(image.astype(int) - over).mean() > 10


def test_findings_come_first_and_are_written_under_their_image(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    (tmp_path / "images/labeled_3.png").write_bytes(b"torn")
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(tmp_path / "masks/labeled_2.png")
    text = (found := page(path, most=3)).text
    assert "2 errors" in text
    assert "cannot be shown" in text
    names = re.findall(r"\blabeled_\d", text[text.index("3 of 4 images") :])
    assert names[:2] == ["labeled_2", "labeled_3"]
    assert text.count("expected ids 0 to 2 or 255 (ignore), got 9") == 2
    assert found.open == []


def test_names_are_text_and_neither_markup_nor_unprintable(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    names = ["<script>alert(1)</script>", "{{ 7 * 7 }}", "a\u202eb"]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"classes": names}))
    found = page(path)
    assert "script" not in found.tags
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7 * 7 }}" in found.text
    assert "a\\u202eb" in found.text


def test_page_has_both_color_schemes_and_lets_nothing_in(tmp_path: Path) -> None:
    page(write_dataset(tmp_path, num_val=1, num_unlabeled=0))
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'; img-src data:" in text
    assert 'name="viewport"' in text


@pytest.mark.parametrize("size", [(33, 2000), (600, 800)])
def test_thumbnails_are_small(tmp_path: Path, size: tuple[int, int]) -> None:
    found = page(write_dataset(tmp_path, num_labeled=1, num_val=1, num_unlabeled=0, size=size))
    for address in found.addresses:
        image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert max(image.size) == 320
