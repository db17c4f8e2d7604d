"""What `u2pl predict` may be pointed at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from factories import write_dataset
from fuzz.test_data_sets import blank
from fuzz.test_images import bad_files, sound_files
from fuzz.trial import attempt_command, trials
from tiny import tiny_overrides
from u2pl import train
from u2pl.data.images import image_size

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    dataset = write_dataset(root / "data")
    train(dataset, recipe="demo", out=root / "run", overrides=tiny_overrides(train__steps=1))
    return root / "run"


def test_each_sound_image_is_labelled_at_its_own_size(run: Path, tmp_path: Path) -> None:
    with trials("predict sources") as group:
        files = {}
        for number, (_, suffix, content) in enumerate(sound_files()):
            files[number] = tmp_path / f"in/{number}.{suffix}"
            files[number].parent.mkdir(exist_ok=True)
            files[number].write_bytes(content)
        answer = attempt_command(
            group, "all", "predict", run, tmp_path / "in", "--out", tmp_path / "out"
        )
        assert answer is not None
        assert answer.status == 0, answer
        for number, file in files.items():
            for kind in ("masks", "overlays", "entropy", "reliable"):
                with Image.open(tmp_path / f"out/{kind}/{number}.png") as result:
                    size = (result.height, result.width)
                group.expect(file.name, size == image_size(file), f"{kind} of {size}")


def test_each_bad_image_ends_in_a_sentence_that_names_it(run: Path, tmp_path: Path) -> None:
    with trials("predict sources") as group:
        for number, (case, suffix, content) in enumerate(bad_files()):
            file = tmp_path / f"bad_{number}.{suffix}"
            file.write_bytes(content)
            answer = attempt_command(group, case, "predict", run, file, "--out", tmp_path / "out")
            assert answer is not None
            group.expect(case, answer.status == 1 and file.name in answer.err, str(answer))
        group.expect("all", not list((tmp_path / "out").rglob("*.png")), "something was written")


Change = Callable[[Path], object]
SOURCES: dict[str, tuple[str, Change, int]] = {
    "nothing there": ("none", lambda root: None, 1),
    "empty folder": ("in", lambda root: (root / "in").mkdir(), 1),
    "folder named like an image": ("in", lambda root: (root / "in/x.png").mkdir(parents=True), 1),
    "folder like an image beside one": (
        "in",
        lambda root: ((root / "in/x.png").mkdir(parents=True), blank(root / "in/y.png")),
        0,
    ),
    "link to itself": ("in", lambda root: (root / "in").symlink_to("in"), 1),
    "folder that leads back": (
        "in",
        lambda root: (blank(root / "in/a.png"), (root / "in/again").symlink_to(".")),
        0,
    ),
    "glob through links that lead back": (
        "in/**/*.png",
        lambda root: (
            blank(root / "in/a.png"),
            (root / "in/b").symlink_to("."),
            (root / "in/c").symlink_to("."),
        ),
        0,
    ),
    "pipe": ("in/x.png", lambda root: ((root / "in").mkdir(), os.mkfifo(root / "in/x.png")), 1),
    "pipe in a folder": (
        "in",
        lambda root: ((root / "in").mkdir(), os.mkfifo(root / "in/x.png")),
        1,
    ),
    "name that is no text": ("in", lambda root: blank(os.fsencode(root / "in") + b"/\xff.png"), 0),
    "name of two lines": ("in", lambda root: blank(root / "in/a\nb.png"), 0),
    "name of markup": ("in", lambda root: blank(root / "in/[/red]:car:.png"), 0),
    "damaged file of two lines": (
        "in",
        lambda root: ((root / "in").mkdir(), (root / "in/a\n\x1b[31m.png").write_text("x")),
        1,
    ),
    "name as long as can be": ("in", lambda root: blank(root / "in" / ("n" * 251 + ".png")), 0),
    "glob that climbs behind its wildcard": (
        "in/*/../../secret/*.png",
        lambda root: ((root / "in/a").mkdir(parents=True), blank(root / "secret/s.png")),
        2,
    ),
    "glob that climbs before its wildcard": (
        "in/../secret/*.png",
        lambda root: ((root / "in").mkdir(), blank(root / "secret/s.png")),
        0,
    ),
    "two files of one name": (
        "in",
        lambda root: (blank(root / "in/a.png"), shutil.copy(root / "in/a.png", root / "in/a.jpg")),
        1,
    ),
    "dots for a name": ("in", lambda root: blank(root / "in/...png"), 0),
    "hidden file": ("in", lambda root: blank(root / "in/.png"), 1),
}


@pytest.mark.parametrize("case", SOURCES)
def test_odd_sources_end_in_masks_or_in_a_sentence(run: Path, tmp_path: Path, case: str) -> None:
    source, change, status = SOURCES[case]
    change(tmp_path)
    out = tmp_path / "here/out"
    with trials("predict sources") as group:
        answer = attempt_command(group, case, "predict", run, tmp_path / source, "--out", out)
        assert answer is not None
        group.expect(case, answer.status == status, f"status {answer.status}: {answer}")
        group.expect(case, (len(list(out.rglob("*.png"))) > 0) == (status == 0), "wrong output")
        outside = [
            p for p in (tmp_path / "here").rglob("*") if p.is_file() and out not in p.parents
        ]
        group.expect(case, not outside, f"written outside: {outside}")
        group.expect(case, not list(tmp_path.rglob(".*.tmp")), "a half file is left")
