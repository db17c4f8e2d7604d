"""What docs/explanation/security.md promises, proved by attempts to break it."""

from __future__ import annotations

import ast
import csv
import io
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import u2pl
from factories import write_dataset
from fuzz.trial import Spoken, run_u2pl
from tiny import assignments, tiny_overrides
from u2pl import train
from u2pl.data.class_counts import class_pixels
from u2pl.data.images import read_image
from u2pl.data.sources import Sample, load_dataset, write_lists
from u2pl.engine.run_folder import RunFolder, absolute_dataset
from u2pl.errors import UserError
from u2pl.weak.classifier import NAME as CLASSIFIER
from u2pl.weak.pipeline import SeedMaker, tags_text

SOURCES = sorted(Path(u2pl.__file__).parent.rglob("*.py"))
QUICK = assignments(tiny_overrides())


class Attack:
    """A pickle of this makes a folder when it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``data`` and a run of one step in ``run``."""
    root = tmp_path_factory.mktemp("security")
    dataset = write_dataset(root / "data", tags=True)
    train(dataset, recipe="demo", out=root / "run", overrides=tiny_overrides(train__steps=1))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "root")


def require_sentence(answer: Spoken, text: str) -> None:
    assert answer.status in (1, 2), answer
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    assert text in answer.err


# nothing that is loaded runs


def as_zip(attack: Attack) -> bytes:
    file = io.BytesIO()
    torch.save({"student": attack, "teacher": attack, CLASSIFIER: attack}, file)
    return file.getvalue()


def as_old_torch_file(attack: Attack) -> bytes:
    file = io.BytesIO()
    torch.save({"student": attack}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_plain_pickle(attack: Attack) -> bytes:
    return pickle.dumps({"student": attack})


@pytest.mark.parametrize("spelling", [as_zip, as_old_torch_file, as_plain_pickle])
@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("run/weights/ema.safetensors", ["predict", "run", "data/unlabeled", "--out", "out"]),
        ("run/checkpoints/best.pt", ["evaluate", "run", "--checkpoint", "best"]),
        ("run/checkpoints/last.pt", ["train", "data", "--out", "run", "--resume"]),
        (
            "encoder.pth",
            ["train", "data", "--recipe", "demo", "--out", "out", "model.pretrained=true",
             "model.encoder=test_efficientnet", "model.weights=encoder.pth"],
        ),
        ("run/model.json", ["predict", "run", "data/unlabeled", "--out", "out"]),
        ("run/config.yaml", ["evaluate", "run"]),
    ],
)  # fmt: skip
def test_pickle_in_place_of_any_file_does_not_run(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    spelling: Callable[[Attack], bytes],
    place: str,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(root)
    content = spelling(Attack(root / "executed"))
    careless = root / "careless"
    pickle.loads(as_plain_pickle(Attack(careless)))
    assert careless.exists()  # the attack is a real one
    (root / place).write_bytes(content)
    require_sentence(run_u2pl(*arguments), Path(place).name)
    assert not (root / "executed").exists()
    assert not (root / "out").exists()


def test_pickle_in_the_memory_of_pixels_does_not_run(tmp_path: Path) -> None:
    data = load_dataset(write_dataset(tmp_path, num_unlabeled=0))
    truth = class_pixels(data, data.labeled)
    (cache,) = tmp_path.glob(".u2pl-class-pixels-*")
    with np.load(cache) as saved:
        key = saved["key"]
    pixels = np.array([Attack(tmp_path / "executed")], object)
    with cache.open("wb") as file:
        np.savez(file, key=key, pixels=pixels)
    assert np.array_equal(class_pixels(data, data.labeled), truth)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{mark}']",
        "classes: !!python/object/apply:os.mkdir ['{mark}']",
        "train: !!python/object/new:os.mkdir ['{mark}']",
        "!!python/module:os: 1",
    ],
)
def test_yaml_that_would_run_code_is_refused(root: Path, text: str) -> None:
    mark = root / "executed"
    for file in (root / "data/dataset.yaml", root / "recipe.yaml", root / "run/config.yaml"):
        file.write_text(text.format(mark=mark))
    require_sentence(run_u2pl("data", "check", root / "data"), "is not a YAML file")
    line = ("train", root / "data", "--out", root / "out")
    require_sentence(run_u2pl(*line, "--recipe", root / "recipe.yaml"), "is not a YAML file")
    require_sentence(run_u2pl("evaluate", root / "run"), "is not a YAML file")
    assert run_u2pl(*line, f"train.steps={text.format(mark=mark)}").status == 2
    assert not mark.exists()


def calls_in(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a source file with the dotted name of what is called."""
    return [
        (ast.unparse(node.func), node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_source_holds_no_loader_that_runs_what_it_loads() -> None:
    forbidden = {
        "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.full_load",
        "yaml.unsafe_load", "pickle.load", "pickle.loads", "torch.hub.load", "torch.jit.load",
    }  # fmt: skip
    loads = 0
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        # torch's reader of .pt2 runs pickles: it gets bytes that this process has made
        assert text.count("torch.export.load(") == text.count("torch.export.load(io.BytesIO("), path
        assert "import pickle" not in text, path
        assert "import subprocess" not in text, path
        for name, call in calls_in(path):
            options = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in forbidden, (path, name)
            assert options.get("shell") is None, path
            if name == "torch.load":
                assert options["weights_only"] == "True", path
            if name == "np.load":
                assert options["allow_pickle"] == "False", path
            if name == "yaml.load":
                assert options["Loader"] == "_PlainLoader", path
            loads += name in ("torch.load", "np.load", "yaml.load")
    assert loads >= 4
    assert issubclass(u2pl.plain_files._PlainLoader, yaml.SafeLoader)  # type: ignore[attr-defined]


def test_no_image_is_handed_to_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow opens PostScript with Ghostscript, whatever the file is called."""
    import subprocess

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, start)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n"
    )
    with pytest.raises(UserError, match="is not an image that can be read here"):
        read_image(path)


# nothing is written outside


def files_below(*folders: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", ["masks", "masks/sub", "overlays", "entropy", "reliable"])
def test_links_in_the_output_folder_lead_no_prediction_out_of_it(root: Path, kind: str) -> None:
    (root / "photos/sub").mkdir(parents=True)
    shutil.copy(root / "data/unlabeled/unlabeled_0.png", root / "photos/sub/x.png")
    (root / "secret").mkdir()
    link = root / "out" / kind
    link.parent.mkdir(parents=True)
    link.symlink_to(root / "secret", target_is_directory=True)
    answer = run_u2pl("predict", root / "run", root / "photos", "--out", root / "out")
    require_sentence(answer, "where results go; take out the link")
    assert list((root / "secret").iterdir()) == []


def test_link_in_place_of_a_result_is_replaced_and_not_followed(root: Path) -> None:
    (root / "secret.png").write_text("secret")
    (root / "out/masks").mkdir(parents=True)
    (root / "out/masks/unlabeled_0.png").symlink_to(root / "secret.png")
    image = root / "data/unlabeled/unlabeled_0.png"
    assert run_u2pl("predict", root / "run", image, "--out", root / "out").status == 0
    assert (root / "secret.png").read_text() == "secret"
    assert not (root / "out/masks/unlabeled_0.png").is_symlink()


def test_pattern_with_dots_behind_its_wildcard_writes_nothing(root: Path) -> None:
    before = files_below(root)
    pattern = root / "data/*/../../data/unlabeled/*.png"
    require_sentence(run_u2pl("predict", root / "run", pattern, "--out", root / "out"), "'..'")
    assert files_below(root) == before


@pytest.mark.parametrize(
    "link",
    [
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "weights",
        "eval",
        "tensorboard",
        "splits/a.txt",
    ],
)
def test_run_folder_with_a_link_out_of_it_is_not_written_to(root: Path, link: str) -> None:
    secret = root / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    place = root / "run" / link
    if place.is_dir():
        shutil.rmtree(place)
        place.symlink_to(secret, target_is_directory=True)
    else:
        content = place.read_bytes() if place.exists() else b""
        (secret / "file").write_bytes(content or b"secret")
        place.unlink(missing_ok=True)
        place.symlink_to(secret / "file")
    before = files_below(secret)
    resume = run_u2pl("train", root / "data", "--out", root / "run", "--resume")
    require_sentence(resume, "out of the run folder")
    require_sentence(run_u2pl("evaluate", root / "run"), "out of the run folder")
    assert files_below(secret) == before


def test_run_with_a_link_out_of_it_can_still_be_used_where_nothing_is_written(root: Path) -> None:
    """Weights may lie in a store of their own: what only reads a run follows its links."""
    store = root / "store"
    shutil.move(root / "run/weights", store)
    (root / "run/weights").symlink_to(store, target_is_directory=True)
    before = files_below(root / "run", store)
    image = root / "data/unlabeled/unlabeled_0.png"
    assert run_u2pl("predict", root / "run", image, "--out", root / "out").status == 0
    assert files_below(root / "run", store) == before


def test_run_folder_may_itself_be_a_link(root: Path) -> None:
    """The way to keep a run on another disk."""
    (root / "disk").mkdir()
    (root / "a").symlink_to(root / "disk", target_is_directory=True)
    (root / "runs").symlink_to(root / "disk", target_is_directory=True)
    for out in (root / "a", root / "runs" / "b"):
        new = run_u2pl("train", root / "data", "--recipe", "demo", "--out", out, *QUICK)
        assert new.status == 0, new
        assert run_u2pl("train", root / "data", "--out", out, "--resume").status == 0
    assert (root / "disk/weights/ema.safetensors").is_file()
    assert (root / "disk/b/weights/ema.safetensors").is_file()


def test_new_run_does_not_follow_a_link_laid_in_its_folder(root: Path) -> None:
    (root / "secret").write_text("secret")
    for name in ("dataset.yaml", "environment.json"):
        out = root / f"out-{name}"
        out.mkdir()
        (out / name).symlink_to(root / "secret")
        answer = run_u2pl("train", root / "data", "--recipe", "demo", "--out", out, *QUICK)
        require_sentence(answer, "out of the run folder")
    out = root / "out-config"
    out.mkdir()
    (out / "config.yaml").symlink_to(root / "made")
    answer = run_u2pl("train", root / "data", "--recipe", "demo", "--out", out, *QUICK)
    require_sentence(answer, "already holds a run")
    assert (root / "secret").read_text() == "secret"
    assert not (root / "made").exists()


@pytest.mark.parametrize("images", ["*/../../outside/*.png", "unlabeled/*/../*.png", "**/../x.png"])
def test_names_of_images_never_lead_upwards(root: Path, images: str) -> None:
    path = root / "data/dataset.yaml"
    tree = yaml.safe_load(path.read_text()) | {"unlabeled": {"images": images}}
    path.write_text(yaml.safe_dump(tree))
    (root / "outside").mkdir()
    shutil.copy(root / "data/unlabeled/unlabeled_0.png", root / "outside/x.png")
    with pytest.raises(UserError, match=r"has '\.\.' behind a wildcard"):
        load_dataset(path)


@pytest.mark.parametrize("images", ["../outside", "{root}/outside", ["../outside/x.png"]])
def test_images_from_elsewhere_have_names_without_their_way(root: Path, images: Any) -> None:
    """Reading outside the data set is allowed; what is written is named below the images."""
    (root / "outside").mkdir()
    shutil.copy(root / "data/unlabeled/unlabeled_0.png", root / "outside/x.png")
    path = root / "data/dataset.yaml"
    given = images.format(root=root) if isinstance(images, str) else images
    tree = yaml.safe_load(path.read_text()) | {"unlabeled": {"images": given}, "tags": None}
    path.write_text(yaml.safe_dump(tree))
    assert [sample.name for sample in load_dataset(path).unlabeled] == ["x"]


@pytest.mark.parametrize("name", ["../../../secret/x", "link/x", "/{root}/secret/x"])
def test_seed_mask_is_never_written_out_of_its_run(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = load_dataset(root / "data"), RunFolder(root / "run")
    (root / "secret").mkdir()
    (folder.path / "seeds").mkdir()
    (folder.path / "seeds/link").symlink_to(root / "secret", target_is_directory=True)
    maker = SeedMaker(folder.read_config(), data, folder, lambda *_: None)
    image = data.unlabeled[0].image
    sample = Sample(name.format(root=root), image, tags=(1,))

    class Example:
        labels = np.zeros((4, 4), np.int64)

    monkeypatch.setattr(maker, "example", lambda model, sample: Example())
    with pytest.raises(UserError, match="where results go"):
        maker.write_seeds(None, [sample], lambda: False)  # type: ignore[arg-type]
    assert list((root / "secret").iterdir()) == []


# names are text, whatever is in them


def test_no_name_steers_the_terminal(tmp_path: Path) -> None:
    nasty = "\x1b[31m\x07\x9b2J\u202e[/red][link=x]y:bomb:\r"
    folder = tmp_path / nasty
    for arguments in (
        ["data", "check", folder],
        ["train", folder, "--out", tmp_path / nasty / "a"],
        ["train", tmp_path, "--recipe", nasty],
        ["train", tmp_path, "--setting", nasty],
        ["train", tmp_path, f"{nasty}=1"],
        ["train", tmp_path, f"train.steps={nasty}"],
        ["evaluate", folder],
        ["predict", folder, folder, "--out", folder],
    ):
        answer = run_u2pl(*arguments)
        assert answer.status in (1, 2)
        for line in (answer.out + answer.err).split("\n"):
            assert line.isprintable(), line
    assert "\\x1b[31m" in answer.err
    assert "[/red][link=x]y:bomb:" in answer.err  # neither markup nor an emoji's code


def test_class_names_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    names = ["[/red]", "[bold]wall:car:", "a\u202eb"]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"classes": names}))
    answer = run_u2pl("data", "check", path)
    assert answer.status == 0, answer
    for name in ("[/red]", "[bold]wall:car:", "a\\u202eb"):
        assert name in answer.out


def test_names_come_back_equal_from_every_file_that_is_written(tmp_path: Path) -> None:
    """CSV, lists and YAML, with names that mean something to each of them."""
    folder = tmp_path / "data"
    write_dataset(folder, num_unlabeled=1)
    images = ["- a: b", '"q", x', "=1+1", "#x", "'", "%s", "{a}", "&a", "*b", "!t", "a\u00a0b", "é"]
    for name in images:
        shutil.copy(folder / "unlabeled/unlabeled_0.png", folder / f"unlabeled/{name}.png")
    classes = ["=1+1", '"wall", x', "- !!python/name:os.system"]
    tree = yaml.safe_load((folder / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump(tree | {"classes": classes}))
    data = load_dataset(folder)
    samples = tuple(Sample(s.name, s.image, tags=(0, 1, 2)) for s in data.unlabeled)
    rows = list(csv.reader(io.StringIO(tags_text(samples, data))))
    assert rows[1:] == [[sample.name, ";".join(classes)] for sample in samples]
    write_lists(data, tmp_path)
    listed = (tmp_path / "unlabeled.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [sample.name for sample in data.unlabeled]
    copied = tmp_path / "copy.yaml"
    copied.write_text(absolute_dataset(data.path), encoding="utf-8")
    assert load_dataset(copied).classes == tuple(classes)
    assert load_dataset(copied).unlabeled == data.unlabeled


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\u2028b", "\x85"])
def test_names_that_would_break_a_line_are_refused(tmp_path: Path, name: str) -> None:
    path = write_dataset(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "unlabeled" / f"{name}.png")
    with pytest.raises(UserError, match=r"1 file names of 'unlabeled: images' have control char"):
        load_dataset(path)
    (tmp_path / "unlabeled" / f"{name}.png").unlink()
    tree = yaml.safe_load(path.read_text()) | {"classes": ["ground", name, "tree"]}
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="expected class names of visible characters"):
        load_dataset(path)


def test_weights_of_a_run_are_safetensors(root: Path) -> None:
    """Whoever gets a run's weights need not trust them, whatever else reads them."""
    from safetensors import safe_open

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("ema", "student"):
            with safe_open(RunFolder(root / "run").weights(name), "pt") as file:
                assert len(list(file.keys())) > 20


def test_every_test_that_the_page_names_is_there() -> None:
    root = Path(__file__).parent
    page = (root.parent / "docs/explanation/security.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(test_\w+)`", page))
    assert len(names) > 12
    source = "".join(path.read_text(encoding="utf-8") for path in root.rglob("test_*.py"))
    assert {name for name in names if f"def {name}(" not in source} == set()
    files = set(re.findall(r"`(tests/[\w/.]+)`", page))
    assert {name for name in files if not (root.parent / name).exists()} == set()
