"""The page in a real browser, served by ``u2pl app`` in a process of its own."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import u2pl
from factories import write_dataset
from processes import free_port, running
from tiny import tiny_overrides
from u2pl.data.images import colorize

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="needs the Python package playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio"),
]
HOSTILE = '<img src="http://stranger.example/x" onerror="document.title=1">${1+1}{{value}}'
SECONDS = 60
# Gradio's own words about its streams of events
HARMLESS = ("Method not implemented.",)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``a`` and ``b`` in ``runs``; a class of ``b`` has a hostile name."""
    root = tmp_path_factory.mktemp("page")
    dataset = write_dataset(root / "data", num_classes=4, size=(48, 64))
    overrides = tiny_overrides(train__steps=60, train__eval_every=40)
    u2pl.train(dataset, recipe="demo", out=root / "runs/b", overrides=overrides)
    shutil.copytree(root / "runs/b", root / "runs/a")
    card = json.loads((root / "runs/b/model.json").read_text())
    card["classes"][0] = HOSTILE
    (root / "runs/b/model.json").write_text(json.dumps(card))
    os.utime(root / "runs/a/model.json")
    os.utime(root / "runs/b/model.json", (0, 0))  # the newest run comes first
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with running("app", root / "runs", "--no-browser", "--port", free_port()) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        yield found[0]
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert complaints == ""
    assert list(Path(tempfile.gettempdir()).glob("u2pl-app-*")) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """The page in a window of its own, with what it complained of and whom it asked."""

    def __init__(
        self, browser: Any, address: str, *, width: int = 1280, scheme: str = "light"
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(1000 * SECONDS)
        self.page = context.new_page()
        self.address = address
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._follow)
        self.page.goto(address)
        self.page.wait_for_selector("#upload input[type=file]", state="attached")

    def _hear(self, message: Any) -> None:
        if message.text not in HARMLESS:
            self.complaints.append(message.text)

    def _follow(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.strangers.append(request.url)

    def upload(self, file: Path) -> None:
        self.page.set_input_files("#upload input[type=file]", file)
        self.until("#headline", file.name)

    def until(self, place: str, text: str) -> None:
        self.page.wait_for_function(
            "([place, text]) => document.querySelector(place)?.innerText.includes(text)",
            arg=[place, text],
        )

    def ask(self, row: int, column: int, *, kind: str = "overlay", scale: int) -> None:
        """Click into the middle of an image's pixel, in a picture enlarged by ``scale``."""
        picture = self.picture(kind)
        box, natural = picture.bounding_box(), picture.evaluate("p => p.naturalWidth")
        shown = scale * box["width"] / natural
        picture.click(position={"x": (column + 0.5) * shown, "y": (row + 0.5) * shown})
        self.until("#answer", f"Column {column}, row {row}")

    def picture(self, kind: str) -> Any:
        """A picture of the tab that is open, once it is drawn."""
        picture = self.page.locator(f"#picture-{kind} img")
        picture.evaluate("picture => picture.decode()")
        return picture

    def pixels(self, kind: str) -> Any:
        """What the browser has got of a picture, [h, w, 3]."""
        source = self.picture(kind).get_attribute("src")
        with urllib.request.urlopen(source) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))

    def download(self, kind: str) -> Path:
        with self.page.expect_download() as found:
            self.page.click(f"#get-{kind}")
        return Path(found.value.path())


def test_image_is_labelled_and_a_pixel_answers(
    browser: Any, address: str, root: Path, tmp_path: Path
) -> None:
    """With either weights; what can be downloaded is what ``u2pl predict`` writes."""
    photo = root / "data/val/images/val_0.png"
    opened = Opened(browser, address)
    opened.upload(photo)
    models = {w: u2pl.load(root / "runs/a", weights=w, device="cpu") for w in ("ema", "student")}
    said = {weights: model.predict(photo) for weights, model in models.items()}
    card = models["ema"].card
    opened.page.get_by_role("tab", name="Mask").click()
    mask = opened.pixels("mask")[7::15, 7::15]
    assert np.array_equal(mask, colorize(said["ema"].mask, card.colors))
    assert len(np.unique(said["ema"].mask)) > 1

    opened.ask(30, 20, kind="mask", scale=15)
    for weights, title in (("ema", "Teacher"), ("student", "Student")):
        opened.page.get_by_label(title).check()
        opened.until("#headline", f"{'student' if weights == 'student' else 'teacher'} of a")
        entropy = said[weights].entropy[30, 20]
        opened.until("#answer", f"entropy {entropy:.3f}")
        text = opened.page.inner_text("#answer")
        assert "Column 20, row 30" in text
        first = re.findall(r"^(\w+)$", text, re.MULTILINE)[0]
        assert first == card.classes[said[weights].mask[30, 20]]
        verdict = "Reliable" if said[weights].reliable[30, 20] else "Unreliable"
        assert f"{verdict}:" in text
        assert "Ranks 2 to 3, of 0 (likeliest) to 3." in text
        opened.until("#headline", f"{100 * said[weights].reliable.mean():.1f} %")
        out = tmp_path / weights
        u2pl.predict(root / "runs/a", photo, out=out, save=["masks", "overlays"], weights=weights)
        for kind in ("mask", "overlay"):
            opened.page.wait_for_selector(f"#get-{kind}:not([disabled])")
            found = opened.download(kind).read_bytes()
            assert found == (out / f"{kind}s/val_0.png").read_bytes()
    opened.page.get_by_role("tab", name="Entropy").click()
    opened.ask(0, 0, kind="entropy", scale=15)
    assert opened.complaints == opened.strangers == []


def test_best_checkpoint_and_another_run_can_be_chosen(
    browser: Any, address: str, root: Path
) -> None:
    """The other run's class has a name that would do harm if it were more than text."""
    photo = root / "data/val/images/val_1.png"
    opened = Opened(browser, address)
    opened.upload(photo)
    opened.page.get_by_label("Best").check()
    best = u2pl.load(root / "runs/a", checkpoint="best", device="cpu")
    opened.until("#headline", f"teacher of a, step {best.card.step}")
    opened.ask(3, 4, scale=15)
    opened.page.click("#run input")
    opened.page.get_by_role("option", name="b").click()
    opened.until("#headline", "teacher of b")
    opened.until("#legend", HOSTILE)
    opened.until("#answer", HOSTILE)
    assert opened.page.title() == "u2pl"
    assert opened.complaints == opened.strangers == []


def test_bad_upload_is_one_sentence_and_the_next_one_works(
    browser: Any, address: str, root: Path, tmp_path: Path
) -> None:
    opened = Opened(browser, address)
    good = root / "data/val/images/val_0.png"
    opened.upload(good)
    (tmp_path / "notes.txt").write_text("hello")
    Image.open(good).save(tmp_path / "moving.gif")
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:200])
    for name in ("notes.txt", "moving.gif", "torn.png"):
        opened.page.set_input_files("#upload input[type=file]", tmp_path / name)
        opened.until("#message", f"{name}: ")
        sentence = opened.page.inner_text("#message")
        assert sentence.startswith("That did not work.")
        assert sentence.endswith("choose another image.")
        assert not opened.page.is_visible("#picture-overlay")
    Image.open(good).convert("CMYK").save(tmp_path / "print.jpg")
    opened.upload(tmp_path / "print.jpg")
    assert opened.page.inner_text("#message") == ""
    assert "CMYK became RGB" in opened.page.inner_text("#headline")
    assert opened.complaints == opened.strangers == []


def test_tall_image_is_clicked_where_it_is_shown(
    browser: Any, address: str, root: Path, tmp_path: Path
) -> None:
    """Its height is limited, so it is shown smaller than it is sent."""
    photo = Image.open(root / "data/val/images/val_0.png").resize((60, 900))
    photo.save(tmp_path / "tall.png")
    opened = Opened(browser, address)
    opened.upload(tmp_path / "tall.png")
    opened.page.get_by_role("tab", name="Image").click()
    picture = opened.picture("image")
    box = picture.bounding_box()
    assert box["height"] <= 0.72 * 900 + 1
    picture.click(position={"x": box["width"] / 2, "y": box["height"] - 3})
    opened.until("#answer", "Column 3")
    column, row = map(int, re.findall(r"\d+", opened.page.inner_text("#answer h3")))
    assert abs(column - 30) <= 1
    assert row >= 890


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_page_fits_its_window_and_follows_the_system(
    browser: Any, address: str, root: Path, width: int, scheme: str
) -> None:
    opened = Opened(browser, address, width=width, scheme=scheme)
    opened.upload(root / "data/val/images/val_0.png")
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", color)[:3])) / 3
    assert brightness < 60 if scheme == "dark" else brightness > 230
    for name in ("Overlay", "Mask", "Entropy", "Reliable", "Image"):
        assert page.get_by_role("tab", name=name).is_visible()
    assert opened.complaints == opened.strangers == []


def answer_of(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(address + path, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return (
                answer.status,
                {name.lower(): value for name, value in answer.headers.items()},
                answer.read().decode(),
            )
    except urllib.error.HTTPError as error:
        return error.code, {}, ""


def test_server_answers_its_own_page_alone(address: str, root: Path) -> None:
    status, headers, text = answer_of(address, "/")
    assert status == 200
    assert "connect-src 'self'" in headers["content-security-policy"]
    config = json.loads(answer_of(address, "/config")[2])
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert not config.get("is_space")
    assert "fonts.googleapis" not in text
    # a web site whose name points here
    assert answer_of(address, "/", Host="stranger.example")[0] == 400
    for file in ("/etc/passwd", str(root / "runs/a/config.yaml"), "pyproject.toml"):
        assert answer_of(address, f"/gradio_api/file={file}")[0] in (403, 404)
    for path in ("/docs", "/openapi.json", "/monitoring", "/gradio_api/runs"):
        assert answer_of(address, path)[0] in (403, 404), path
