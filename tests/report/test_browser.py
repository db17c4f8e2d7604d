"""The pages in a real browser: they draw, they can be clicked, and nothing complains."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from records import write_run
from u2pl.report import compare_records, read_record, write_comparison, write_report

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="needs the Python package playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system")

HOSTILE = '<img src="http://stranger.example/x" onerror="document.title=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        # a sandbox needs rights that containers and root do not have; the page is our own
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    run = write_run(root / "run", names=("sky", HOSTILE, "car"), images=("a", "b", HOSTILE, "d"))
    write_report(read_record(run), root / "report.html")
    return root / "report.html"


class Opened:
    """A page in a window of its own, with whatever it complained of or asked the network for."""

    def __init__(self, browser: Any, file: Path, *, width: int, scheme: str) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.wait_for(
            "[...document.querySelectorAll('[data-figure]')]"
            ".every(place => place.querySelector('.main-svg'))"
        )

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true; Playwright's own way the page's policy forbids."""
        for _ in range(200):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true: {condition}")

    def background(self) -> str:
        color: str = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return color

    def text_of_charts(self) -> str:
        color: str = self.page.evaluate(
            "getComputedStyle(document.querySelector('.main-svg .xtick text')).fill"
        )
        return color


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_report_draws_without_a_complaint_or_a_request(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    opened = Opened(browser, report, width=width, scheme=scheme)
    page = opened.page
    assert opened.complaints == []
    assert [url[:60] for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert page.title() == "run – u2pl report"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("[data-figure]").count() >= 8
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(loaded)
    assert page.locator(".keys").count() == 4
    dark = scheme == "dark"
    assert opened.background() == ("rgb(18, 22, 27)" if dark else "rgb(246, 247, 249)")
    assert page.locator("#theme").inner_text().endswith("light" if dark else "dark")


def test_switch_turns_page_and_charts_dark_and_back(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, width=1280, scheme="light")
    before = (opened.background(), opened.text_of_charts())
    opened.page.click("#theme")
    after = (opened.background(), opened.text_of_charts())
    assert after[0] != before[0]
    assert after[1] != before[1]
    opened.page.click("#theme")
    assert (opened.background(), opened.text_of_charts()) == before
    assert opened.complaints == []


def test_page_follows_the_system_while_it_is_open(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, width=1280, scheme="light")
    before = opened.text_of_charts()
    opened.page.emulate_media(color_scheme="dark")
    opened.wait_for(
        f"getComputedStyle(document.querySelector('.main-svg .xtick text')).fill !== '{before}'"
    )
    assert opened.background() == "rgb(18, 22, 27)"


def test_chosen_class_shows_its_own_keys(browser: Any, report: Path) -> None:
    """The picture has the classes one below the other: none, keys and wrong keys, by class."""
    opened = Opened(browser, report, width=1280, scheme="light")
    page = opened.page
    names = page.locator("#class option").all_inner_texts()
    assert names == ["sky", HOSTILE, "car"]
    seen = []
    for index in range(3):
        page.select_option("#class", str(index))
        sprite = page.locator(".sprite").first
        position = sprite.evaluate("place => getComputedStyle(place).backgroundPositionY")
        seen.append((position, sprite.screenshot()))
    shares = [float(re.findall(r"[\d.]+", position)[0]) for position, _ in seen]
    assert shares == [0, 50, 100]
    assert len({picture for _, picture in seen}) == 3
    assert opened.complaints == []


def test_images_can_be_chosen_by_how_good_they_are(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, width=1280, scheme="light")
    shown = opened.page.locator("article:visible")
    assert shown.count() == 4
    opened.page.select_option("#why", "worst")
    assert shown.count() == 2
    opened.page.select_option("#why", "best")
    assert shown.count() == 1
    opened.page.select_option("#why", "")
    assert shown.count() == 4


def test_script_that_got_in_would_not_run(browser: Any, report: Path, tmp_path: Path) -> None:
    """Were the escaping to fail, the page's policy would still forbid it."""
    text = report.read_text(encoding="utf-8")
    attack = "<script>document.title='a'</script><img src=x onerror=\"document.title='b'\">"
    (tmp_path / "page.html").write_text(text.replace("<h1>", f"{attack}<h1>", 1), encoding="utf-8")
    opened = Opened(browser, tmp_path / "page.html", width=1280, scheme="light")
    assert opened.page.title() == "run – u2pl report"
    assert any("Content Security Policy" in text for text in opened.complaints)


def test_comparison_draws_without_a_complaint(browser: Any, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{weight}-{seed}", seed=seed, method__contrastive_weight=weight)
        for weight in (0.0, 0.1)
        for seed in range(2)
    ]
    result = compare_records([read_record(run) for run in runs])
    write_comparison(result, tmp_path / "compare.html")
    opened = Opened(browser, tmp_path / "compare.html", width=390, scheme="light")
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.page.locator(".points path").count() == 6
