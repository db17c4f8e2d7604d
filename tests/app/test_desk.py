from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import u2pl
from factories import write_dataset
from tiny import patches, tiny_overrides
from u2pl.app import desk as desks
from u2pl.app.desk import Choice, Desk, find_runs, ranks_of
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; one of them deeper, and with an export inside."""
    root = tmp_path_factory.mktemp("app")
    dataset = write_dataset(root / "data", num_classes=4)
    for seed, name in enumerate(("a", "more/b")):
        overrides = tiny_overrides(train__steps=2, train__eval_every=1)
        u2pl.train(dataset, recipe="demo", out=root / "runs" / name, seed=seed, overrides=overrides)
    u2pl.export(root / "runs/a", format="safetensors")
    return root / "runs"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(patches()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_runs_of_a_folder_are_found_the_newest_first(runs: Path) -> None:
    assert find_runs(runs) == {"more/b": runs / "more/b", "a": runs / "a"}


def test_run_itself_is_the_only_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "a")
    assert find_runs(Path(".")) == {"a": Path(".")}
    assert find_runs(runs / "a/export/safetensors").keys() == {"safetensors"}


def test_runs_are_looked_for_four_folders_deep(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "1/2/3/4")
    shutil.copytree(runs / "a", tmp_path / "i/ii/iii/iv/v")
    shutil.copytree(runs / "a", tmp_path / ".hidden")
    (tmp_path / "link").symlink_to(runs, target_is_directory=True)
    assert list(find_runs(tmp_path)) == ["1/2/3/4"]


def test_folder_without_a_run_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="Found no run that has ended in"):
            find_runs(place)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"has no model\.json yet; it is written when training"):
        find_runs(tmp_path)


def test_answer_is_that_of_the_chosen_weights(runs: Path, photo: Path) -> None:
    desk = Desk(find_runs(runs))
    image = patches()
    seen = []
    for weights in ("ema", "student"):
        for checkpoint in ("last", "best"):
            look = desk.look(photo, Choice("a", weights, checkpoint))
            model = u2pl.load(runs / "a", weights=weights, checkpoint=checkpoint, device="cpu")
            for ours, theirs in zip(look.labeled.prediction, model.predict(image), strict=True):
                assert np.array_equal(ours, theirs)
            seen.append(look.labeled.prediction.entropy)
    assert not np.array_equal(seen[0], seen[2])


def test_run_offers_what_it_has(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    desk = Desk(find_runs(tmp_path / "a"))
    assert desk.offers("a") == (["ema", "student"], ["last", "best"])
    shutil.rmtree(tmp_path / "a/checkpoints")
    os.remove(tmp_path / "a/weights/student.safetensors")
    assert desk.offers("a") == (["ema"], ["last"])
    with pytest.raises(UserError, match="student"):
        desk.choose(Choice("a", "student"))
    exported = Desk(find_runs(runs / "a/export/safetensors"))
    assert exported.offers("safetensors") == (["ema"], ["last"])


def test_exported_model_answers_like_its_run(runs: Path, photo: Path) -> None:
    own = Desk(find_runs(runs)).ask(photo, Choice("a"), 3, 4)[1]
    place = runs / "a/export/safetensors"
    assert Desk(find_runs(place)).ask(photo, Choice("safetensors"), 3, 4)[1] == own


def test_unknown_run_is_refused(runs: Path, photo: Path) -> None:
    """As a request that the page did not make may have it."""
    desk = Desk(find_runs(runs))
    for name in ("../a", str(runs / "a"), ""):
        with pytest.raises(UserError, match="There is no run"):
            desk.look(photo, Choice(name))


def test_pixel_outside_is_moved_to_the_edge(runs: Path, photo: Path) -> None:
    desk = Desk(find_runs(runs))
    for asked, got in {(-5, 9): (0, 9), (999, 999): (40, 56)}.items():
        answer = desk.ask(photo, Choice("a"), *asked)[1]
        assert (answer.row, answer.column) == got


def test_second_question_loads_and_labels_nothing(
    runs: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(find_runs(runs))
    first = desk.look(photo, Choice("a"))
    desk.look(photo, Choice("a", "student"))
    photo.unlink()  # another network sees the image that was decoded before
    desk.look(photo, Choice("more/b"))
    monkeypatch.setattr(desks, "load_model", None)
    monkeypatch.setattr(desks, "label", None)
    assert desk.look(photo, Choice("a")) is first


def test_weights_that_changed_are_loaded_anew(runs: Path, photo: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "a", tmp_path / "run")
    desk = Desk(find_runs(run))
    before = desk.look(photo, Choice("run"))
    shutil.copy(runs / "more/b/weights/ema.safetensors", run / "weights")
    after = desk.look(photo, Choice("run"))
    assert not np.array_equal(before.labeled.prediction.entropy, after.labeled.prediction.entropy)


def test_answers_that_are_kept_have_a_bound(
    runs: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(find_runs(runs))
    first = desk.look(photo, Choice("a"))
    monkeypatch.setattr(desks, "_MOST_BYTES", 2 * first.labeled.num_bytes)
    desk.look(photo, Choice("a", "student"))
    assert desk.look(photo, Choice("a")) is first  # used last, so the student's goes first
    desk.look(photo, Choice("more/b"))
    assert desk.look(photo, Choice("a")) is first
    monkeypatch.setattr(desks, "_MOST_BYTES", 0)
    second = desk.look(photo, Choice("more/b"))
    assert desk.look(photo, Choice("more/b")) is second  # the newest stays
    assert desk.look(photo, Choice("a")) is not first


def test_models_that_are_kept_have_a_bound(runs: Path) -> None:
    desk = Desk(find_runs(runs))
    first = desk.choose(Choice("a"))
    for choice in (Choice("a", "student"), Choice("more/b"), Choice("more/b", "student")):
        desk.choose(choice)
    assert desk.choose(Choice("a")) is not first


def test_ranks_are_those_of_the_run(runs: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(runs / "a", tmp_path / "run"))
    assert ranks_of(run, 4) == (2, 4)
    text = run.config.read_text()
    run.config.write_text(text.replace("low_rank: null", "low_rank: 1"))
    assert ranks_of(run, 4) == (1, 4)
    run.config.write_text(text.replace("low_rank: null", "low_rank: 9"))
    with pytest.raises(UserError, match=r"config\.yaml does not fit .*model\.json: Expected 1 <="):
        ranks_of(run, 4)
    assert ranks_of(RunFolder(runs / "a/export/safetensors"), 21) == (3, 20)
