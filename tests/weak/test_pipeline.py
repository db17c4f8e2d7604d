from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import u2pl
from factories import write_dataset
from tiny import tiny_overrides
from u2pl import UserError, make_config
from u2pl.config import Config
from u2pl.data.images import image_size
from u2pl.data.loaders import LabeledStream, UnlabeledStream
from u2pl.data.sources import Dataset, Sample, load_dataset
from u2pl.engine.loop import Interrupted
from u2pl.engine.run_folder import RunFolder
from u2pl.weak import make_seeds, pipeline

SMALL = {
    "weak__steps": 3,
    "weak__batch_size": 2,
    "weak__cam_scales": [1.0],
    "weak__refine_iterations": 1,
    "weak__refine_dilations": [1, 2],
    "train__steps": 2,
    "train__checkpoint_every": 2,
}


def overrides(**changes: Any) -> dict[str, Any]:
    return tiny_overrides(**{**SMALL, **changes})


def weak_config(**changes: Any) -> Config:
    return make_config("demo", setting="weak", overrides=overrides(**changes))


def write_tagged(folder: Path, **arguments: Any) -> Path:
    """A data set of tags alone."""
    return write_dataset(folder, **{"num_labeled": 0, "num_unlabeled": 4, "tags": True} | arguments)


def load(path: Path) -> Dataset:
    return load_dataset(path, require=("unlabeled", "val"))


def change_tags(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Rewrite the rows of tags.csv below its header."""
    file = path.parent / "tags.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *change(rows)]) + "\n")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A run folder with finished seeds, and the data set that they make."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    return folder, make_seeds(weak_config(), load(tagged), RunFolder(folder))


def seeds_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "seeds").iterdir()}


# what is made


def test_tags_alone_become_a_data_set_to_train_on(tagged: Path, made: tuple[Path, Dataset]) -> None:
    folder, data = made
    source = load(tagged)
    assert not source.labeled
    assert [sample.image for sample in data.labeled] == [s.image for s in source.unlabeled]
    assert data.unlabeled == source.unlabeled
    assert (data.val, data.classes) == (source.val, source.classes)
    for sample in data.labeled:
        assert sample.mask == folder / "seeds" / f"{sample.name}.png"
        labels = data.read_mask(sample)
        assert labels.shape == (40, 56)
        assert set(np.unique(labels)) <= {*(sample.tags or ()), data.ignore_index}


def test_run_folder_holds_what_a_user_looks_for(made: tuple[Path, Dataset]) -> None:
    folder, _ = made
    quality = json.loads((folder / "eval/seeds.json").read_text())
    assert (quality["images"], quality["scored_images"], quality["miou"]) == (4, 0, None)
    assert 0 <= quality["labeled_share"] <= 100
    assert image_size(folder / "pictures/seeds.png")[1] > 100
    assert (folder / "splits/tags.csv").read_text().startswith("image,classes\nunlabeled_0,ground")
    assert (folder / "weights/classifier.safetensors").is_file()
    assert not [file for file in folder.rglob("*") if ".part" in file.name or ".tmp" in file.name]


def test_background_class_is_never_vetoed_and_has_seeds(tagged: Path, tmp_path: Path) -> None:
    change = {"method__background_class": 0, "weak__low": 0.5, "weak__high": 0.5}
    path = write_tagged(tmp_path / "data")
    change_tags(path, lambda rows: [row.replace("ground;", "") for row in rows])
    data = make_seeds(weak_config(**change), load(path), RunFolder(tmp_path / "a"))
    assert all(0 in (sample.tags or ()) for sample in data.unlabeled)
    labels = [data.read_mask(sample) for sample in data.labeled]
    assert any((mask == 0).any() for mask in labels)


def test_image_tagged_with_the_background_alone_is_background(tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data")
    change_tags(path, lambda rows: [*rows[:-1], "unlabeled_3,ground"])
    config = weak_config(method__background_class=0)
    data = make_seeds(config, load(path), RunFolder(tmp_path / "a"))
    last = data.labeled[-1]
    assert last.mask is not None
    assert (data.read_mask(last) == 0).all()


def test_image_without_tags_has_no_seed_and_no_veto(tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data")
    change_tags(path, lambda rows: rows[:3])
    data = make_seeds(weak_config(), load(path), RunFolder(tmp_path / "a"))
    assert [sample.name for sample in data.labeled] == [f"unlabeled_{i}" for i in range(3)]
    assert len(data.unlabeled) == 4
    assert data.unlabeled[3].tags is None
    stream = UnlabeledStream(data, weak_config().data, seed=0)
    assert stream[[stream.sample(n).name for n in range(4)].index("unlabeled_3")][
        "possible_classes"
    ].all()


@pytest.mark.parametrize("mask_format", ["rgb", "binary"])
def test_seeds_are_read_as_ids_beside_masks_of_another_format(
    tmp_path: Path, mask_format: str
) -> None:
    num_classes = 2 if mask_format == "binary" else 3
    path = write_tagged(
        tmp_path / "data", num_labeled=2, mask_format=mask_format, num_classes=num_classes
    )
    config = weak_config()
    data = make_seeds(config, load(path), RunFolder(tmp_path / "a"))
    formats = [sample.mask_encoding.format for sample in data.labeled]
    assert formats == [mask_format] * 2 + ["index"] * 4
    stream = LabeledStream(data, config.data, seed=0)
    for n in range(6):
        assert set(stream[n]["label"].unique().tolist()) <= {*range(num_classes), 255}


def test_mask_of_an_image_that_has_tags_too_wins_and_measures_the_seed(tmp_path: Path) -> None:
    """Mixed supervision: two of the tagged images are labelled."""
    path = write_tagged(tmp_path / "data", num_labeled=2)
    tree = yaml.safe_load(path.read_text())
    tree["unlabeled"] = {"images": ["images/labeled_0.png", "images/labeled_1.png"]}
    tree["unlabeled"]["images"] += [f"unlabeled/unlabeled_{i}.png" for i in range(4)]
    path.write_text(yaml.safe_dump(tree))
    rows = [f"labeled_{i},ground;wall;tree" for i in range(2)]
    change_tags(path, lambda old: old + rows)
    source = load(path)
    data = make_seeds(weak_config(), source, RunFolder(tmp_path / "a"))
    assert data.labeled[:2] == source.labeled
    assert len(data.labeled) == 6
    assert len({sample.image for sample in data.labeled}) == 6
    assert len(data.unlabeled) == 6
    quality = json.loads((tmp_path / "a/eval/seeds.json").read_text())
    assert (quality["images"], quality["scored_images"]) == (6, 2)
    assert quality["miou"] is not None


def test_seeds_are_measured_against_hidden_masks(tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    Image.fromarray(np.ones((40, 56), np.uint8)).save(hidden / "unlabeled_1.png")
    config = weak_config(weak__true_masks=str(hidden))
    data = make_seeds(config, load(path), RunFolder(tmp_path / "a"))
    seed = data.read_mask(Sample("", Path(), tmp_path / "a/seeds/unlabeled_1.png"))
    quality = json.loads((tmp_path / "a/eval/seeds.json").read_text())
    assert quality["scored_images"] == 1
    assert quality["iou"]["wall"] == pytest.approx(100 * (seed == 1).mean())
    assert quality["iou"]["ground"] is None


# going on after a kill


def left_behind(folder: Path) -> dict[str, bytes]:
    """What the stages leave, byte for byte."""
    names = ("eval/classifier.json", "eval/seeds.json", "weights/classifier.safetensors")
    files = [*(folder / name for name in names), *(folder / "seeds").iterdir(), sheet_of(folder)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def sheet_of(folder: Path) -> Path:
    return folder / "pictures/seeds.png"


# (seeds, 4): all are there, but neither their picture nor their quality
@pytest.mark.parametrize(
    ("stage", "done"),
    [("classifier", 1), ("classifier", 2), ("classifier", 3), ("seeds", 1), ("seeds", 4)],
)
def test_killed_anywhere_the_seeds_are_the_same(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path, stage: str, done: int
) -> None:
    seen: list[tuple[str, int]] = []

    def die(where: str, count: int, total: int) -> None:
        if (where, count) == (stage, done):
            raise KeyboardInterrupt

    def note(where: str, count: int, total: int) -> None:
        seen.append((where, count))

    folder = RunFolder(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        make_seeds(weak_config(), load(tagged), folder, on_progress=die)
    data = make_seeds(weak_config(), load(tagged), folder, resume=True, on_progress=note)
    assert left_behind(folder.path) == left_behind(made[0])
    assert [sample.name for sample in data.labeled] == [s.name for s in made[1].labeled]
    expected = [("seeds", n) for n in range(1, 5)]
    if stage == "seeds":
        expected = expected[done:]  # neither the classifier nor a seed mask is made twice
    else:
        # a step is made again whose checkpoint, every second one, had not been written
        expected = [("classifier", n) for n in range(1 if done < 3 else 3, 4)] + expected
    assert seen == expected


@pytest.mark.parametrize("stage", ["refine_maps", "contact_sheet", "seed_quality"])
def test_killed_within_an_image_a_picture_or_the_count_the_seeds_are_the_same(
    tagged: Path,
    made: tuple[Path, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """In the middle of what is written in one piece: no half file is taken for a whole one."""
    folder, original, calls = RunFolder(tmp_path / "a"), getattr(pipeline, stage), []

    def die(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if stage != "refine_maps" or len(calls) == 2:  # in the second image
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, stage, die)
        with pytest.raises(KeyboardInterrupt):
            make_seeds(weak_config(), load(tagged), folder)
    make_seeds(weak_config(), load(tagged), folder, resume=True)
    assert left_behind(folder.path) == left_behind(made[0])


def test_finished_seeds_are_not_made_again(
    tagged: Path, made: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train_classifier", None)
    monkeypatch.setattr(pipeline, "seed_quality", None)
    again = make_seeds(weak_config(), load(tagged), RunFolder(made[0]), resume=True)
    assert again == made[1]


def test_signal_between_two_seed_masks_saves_and_says_how_to_go_on(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path
) -> None:
    def interrupt(where: str, count: int, total: int) -> None:
        if (where, count) == ("seeds", 2):
            signal.raise_signal(signal.SIGTERM)

    folder = RunFolder(tmp_path / "a")
    with pytest.raises(Interrupted, match=r"Stopped after 2 of 4 seed masks; .* --resume"):
        make_seeds(weak_config(), load(tagged), folder, on_progress=interrupt)
    assert len(seeds_in(folder.path)) == 2
    make_seeds(weak_config(), load(tagged), folder, resume=True)
    assert seeds_in(folder.path) == seeds_in(made[0])


def test_other_tags_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data")
    make_seeds(weak_config(), load(path), RunFolder(tmp_path / "a"))
    change_tags(path, lambda rows: [*rows[:-1], "unlabeled_3,wall"])
    with pytest.raises(UserError) as caught:
        make_seeds(weak_config(), load(path), RunFolder(tmp_path / "a"), resume=True)
    assert str(caught.value) == (
        f"The tags of {tmp_path / 'a'} have changed since it was started; resuming would mix two "
        "data sets. Restore the tags and lists, or start a new run."
    )


# seeds of another run


def test_seeds_of_another_run_are_copied_and_not_made_again(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train_classifier", None)
    config = weak_config(weak__seeds_from=str(made[0]), train__seed=7)
    data = make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))
    assert seeds_in(tmp_path / "a") == seeds_in(made[0])
    assert [sample.mask for sample in data.labeled] == [
        tmp_path / "a" / "seeds" / f"{sample.name}.png" for sample in made[1].labeled
    ]
    files = ("weights/classifier.safetensors", "pictures/seeds.png", "eval/classifier.json")
    for file in (*files, "eval/seeds.json", "splits/tags.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (made[0] / file).read_bytes()


def test_copying_that_was_killed_goes_on(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = weak_config(weak__seeds_from=str(made[0]))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.shutil, "copyfile", die)
        with pytest.raises(KeyboardInterrupt):
            make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))
    monkeypatch.setattr(pipeline, "train_classifier", None)
    make_seeds(config, load(tagged), RunFolder(tmp_path / "a"), resume=True)
    assert seeds_in(tmp_path / "a") == seeds_in(made[0])


def test_other_classes_images_or_tags_are_no_seeds_of_this_data_set(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path
) -> None:
    swapped = yaml.safe_load(tagged.read_text())
    swapped["classes"] = ["wall", "ground", "tree"]
    swapped["root"] = str(tagged.parent)
    other_classes = tmp_path / "classes.yaml"
    other_classes.write_text(yaml.safe_dump(swapped))
    other_tags = write_tagged(tmp_path / "tags")
    change_tags(other_tags, lambda rows: [*rows[:-1], "unlabeled_3,wall"])
    fewer = write_tagged(tmp_path / "fewer", num_unlabeled=3)
    config = weak_config(weak__seeds_from=str(made[0]))
    for path in (other_classes, other_tags, fewer):
        with pytest.raises(UserError) as caught:
            make_seeds(config, load(path), RunFolder(tmp_path / "a"))
        assert str(caught.value) == (
            f"weak.seeds_from: the seeds of {made[0]} are of other classes, images or tags than "
            f"those of {path}."
        )
        assert not (tmp_path / "a").exists()


def test_folder_without_finished_seeds_is_refused(tagged: Path, tmp_path: Path) -> None:
    config = weak_config(weak__seeds_from=str(tmp_path))
    with pytest.raises(UserError, match=r"holds no finished seeds; name the folder of a run"):
        make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_seeds_without_their_tags_are_not_finished(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path
) -> None:
    source = shutil.copytree(made[0], tmp_path / "source")
    (source / "splits/tags.csv").unlink()
    config = weak_config(weak__seeds_from=str(source))
    with pytest.raises(UserError, match="holds no finished seeds"):
        make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))


def test_only_the_seeds_of_tagged_images_are_copied(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path
) -> None:
    """Whatever else lies in the other run's folder, and wherever its links lead."""
    source = shutil.copytree(made[0], tmp_path / "source")
    (source / "seeds/again").symlink_to(".", target_is_directory=True)
    (source / "seeds/other.png").write_text("x")
    config = weak_config(weak__seeds_from=str(source))
    make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))
    assert seeds_in(tmp_path / "a") == seeds_in(made[0])


def test_missing_seed_of_another_run_is_named(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path
) -> None:
    source = shutil.copytree(made[0], tmp_path / "source")
    (source / "seeds/unlabeled_1.png").unlink()
    (source / "seeds/unlabeled_1.png").symlink_to("/dev/zero")
    config = weak_config(weak__seeds_from=str(source))
    with pytest.raises(UserError, match=r"there is no file .*unlabeled_1\.png; make the seeds"):
        make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))


# errors


def test_data_set_without_tags_is_refused(tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data", tags=False)
    with pytest.raises(UserError) as caught:
        make_seeds(weak_config(), load(path), RunFolder(tmp_path / "a"))
    assert str(caught.value) == (
        f"{path}: the setting weak needs tags of the images in 'unlabeled'; give 'tags', a CSV "
        "file with the header 'image,classes'."
    )
    assert not (tmp_path / "a").exists()


def test_folder_without_a_true_mask_is_refused(tagged: Path, tmp_path: Path) -> None:
    config = weak_config(weak__true_masks=str(tmp_path))
    with pytest.raises(UserError) as caught:
        make_seeds(config, load(tagged), RunFolder(tmp_path / "a"))
    assert str(caught.value) == (
        f"weak.true_masks: {tmp_path} holds no mask of a tagged image, such as unlabeled_0.png."
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weak__output_stride": 32}, "'small' encoder has output stride 8 or 16"),
        ({"model__decoder": "fpn"}, "fpn decoder needs five encoder stages"),
    ],
)
def test_network_that_cannot_be_built_is_told_before_the_first_step(
    tagged: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        make_seeds(weak_config(**changes), load(tagged), RunFolder(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_folder_that_holds_a_run_is_refused(tagged: Path, made: tuple[Path, Dataset]) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        make_seeds(weak_config(), load(tagged), RunFolder(made[0]))


def test_class_of_every_image_and_class_of_none_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tagged(tmp_path / "data")
    change_tags(path, lambda rows: [f"unlabeled_{i},ground;wall" for i in range(4)])
    make_seeds(weak_config(), load(path), RunFolder(tmp_path / "a"))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Every tagged image holds ground, wall",
        "No tag names tree",
    ]


# the whole way


def test_training_from_tags_leaves_a_model_and_goes_on_after_a_stop(
    tagged: Path, made: tuple[Path, Dataset], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"recipe": "demo", "setting": "weak"}
    stages: list[str] = []
    whole = u2pl.train(
        tagged,
        out=tmp_path / "a",
        overrides=overrides(),
        on_seeds=lambda stage, *_: stages.append(stage),
        **arguments,
    )
    assert stages == ["classifier"] * 3 + ["seeds"] * 4
    assert (whole["step"], whole["finished"]) == (2, True)
    assert seeds_in(tmp_path / "a") == seeds_in(made[0])
    stopped = overrides(train__stop_after=1)
    assert not u2pl.train(tagged, out=tmp_path / "b", overrides=stopped, **arguments)["finished"]
    resumed = u2pl.train(tagged, out=tmp_path / "b", resume=True)
    assert resumed["ema"]["confusion"] == whole["ema"]["confusion"]
    weights = [RunFolder(tmp_path / run).weights("ema").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]
    assert u2pl.evaluate(tmp_path / "a")["images"] == 3


def test_training_with_masks_and_tags_works(tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data", num_labeled=2)
    result = u2pl.train(
        path, recipe="demo", setting="weak", out=tmp_path / "a", overrides=overrides()
    )
    assert result["finished"]


def test_section_without_any_image_is_told(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", num_unlabeled=0)
    with pytest.raises(UserError, match="expected images in the section 'unlabeled', found none"):
        u2pl.train(path, recipe="demo", setting="weak", out=tmp_path / "a", overrides=overrides())
