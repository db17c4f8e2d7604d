"""Disks that really are full: file systems in memory, of a few checkpoints' size."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from factories import write_dataset
from tiny import tiny_config
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.checkpoint import load_newest_checkpoint, load_weights
from u2pl.engine.loop import Progress, fit
from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.errors import UserError

CONFIG = tiny_config(train__steps=3, train__checkpoint_every=1, model__decoder_channels=8)

Disk = tuple[Path, Callable[[int], None]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with room enough."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    fit(CONFIG, dataset, folder)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A folder that is a disk of its own, and a function that gives it another size in bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    try:
        mount("size=64m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(
            f"no disk can be mounted here ({getattr(error, 'stderr', error)!s}); try as root, or "
            "with `unshare --map-root-user --mount` before the command"
        )
    yield place, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def require_resumes(folder: RunFolder, dataset: Dataset, whole: RunFolder) -> None:
    """The run goes on and ends as if nothing had been."""
    fit(CONFIG, dataset, folder, resume=True)
    for name in ("ema", "student"):
        assert folder.weights(name).read_bytes() == whole.weights(name).read_bytes()
    rows = [[r["step"] for r in read_metrics(f.metrics)] for f in (folder, whole)]
    assert rows[0] == rows[1]


# room for so many checkpoints: half a first one; that and half a second; two and the best, but not
# the one that must be whole before the oldest may go
@pytest.mark.parametrize(("room", "step"), [(0.5, 0), (1.5, 1), (3.5, 2)])
def test_full_disk_stops_with_a_sentence_and_costs_no_checkpoint(
    room: float, step: int, dataset: Dataset, whole: RunFolder, disk: Disk
) -> None:
    place, resize = disk
    resize(int(room * whole.checkpoint("last").stat().st_size))
    folder = RunFolder(place / "run")
    with pytest.raises(UserError) as caught:
        fit(CONFIG, dataset, folder)
    assert str(caught.value) == (
        f"Cannot write the checkpoint {folder.checkpoint('last')} (No space left on device); what "
        "was saved before is kept. Free space or mend the disk, then go on with --resume."
    )
    assert not list(folder.path.rglob("*.tmp"))
    if step:
        assert load_newest_checkpoint(folder.checkpoint("last"))["step"] == step
    resize(64 * 2**20)
    require_resumes(folder, dataset, whole)


def test_full_disk_under_the_weights_leaves_the_old_ones(
    dataset: Dataset, whole: RunFolder, disk: Disk
) -> None:
    place, resize = disk
    folder = RunFolder(place / "run")
    fit(CONFIG, dataset, folder)
    used = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    resize(used + folder.weights("ema").stat().st_size // 2)
    with pytest.raises(UserError) as caught:
        fit(CONFIG, dataset, folder, resume=True)
    assert str(caught.value) == (
        f"Cannot write the weights {folder.weights('student')} (No space left on device); what was "
        "saved before is kept. Free space or mend the disk, then go on with --resume."
    )
    for name in ("ema", "student"):
        assert load_weights(folder.weights(name)).keys() == load_weights(whole.weights(name)).keys()
    resize(64 * 2**20)
    require_resumes(folder, dataset, whole)


def test_disk_that_others_fill_meanwhile_stops_with_a_sentence(
    dataset: Dataset, whole: RunFolder, disk: Disk
) -> None:
    """Not even a row of metrics may fit any more."""
    folder, filler = RunFolder(disk[0] / "run"), disk[0] / "filler"

    def fill(progress: Progress) -> None:
        if progress.step == 2:
            with suppress(OSError), filler.open("wb", 0) as file:
                while file.write(bytes(4096)):
                    pass

    with pytest.raises(UserError, match=r"Cannot write .* \(No space left on device\); what was"):
        fit(CONFIG, dataset, folder, on_progress=fill)
    filler.unlink()
    assert load_newest_checkpoint(folder.checkpoint("last"))["step"] == 1
    require_resumes(folder, dataset, whole)
