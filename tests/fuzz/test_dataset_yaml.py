"""What may stand in a dataset.yaml: sound, odd, torn and hostile text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import tar_bytes, write_dataset
from fuzz.trial import SOAK, Trials, mutations, rounds, trials
from u2pl.data.check import check_dataset
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.run_folder import absolute_dataset
from u2pl.errors import is_clean

# Any file system path here stays within the test's folder: nothing begins with a slash.
PATHS = [
    "images", "masks", "unlabeled", "val/images", "val/masks", ".", "", "none", "images/*.png",
    "*/*.png", "**/*.png", "**", "*", "images/labeled_?.png", "images/[", "images/[!x]*", "[]",
    "images/labeled_0.png", "images/../masks", "*/../masks/*.png", "images/", "./images", "~",
    "$HOME",
    "images\n", "ima\x1bges", "im\0ages", "\ud800", "n" * 300, "images/" + "../images/" * 50,
    "dataset.yaml", "lists/a.txt", "[/red]", "a:b", "tags.csv", "pool.tar", "*.tar", "{0..9}.tar",
    "memory://x/*.tar", "memory://x/a.tar", "none://x", "://", "a::b",
]  # fmt: skip
WORDS = [
    "index",
    "rgb",
    "binary",
    "ground",
    "wall",
    "tree",
    "tre",
    "255",
    "1e3",
    "é",
    "🌲",
    "[bold]",
]
NUMBERS = [0, 1, 2, 3, 7, 254, 255, 256, 65535, 65536, -1, 10**9, 10**30, 16**3500, 0.5, 1e308]

scalars = st.one_of(
    st.sampled_from([*PATHS, *WORDS]),
    st.sampled_from([*NUMBERS, float("nan"), float("inf"), None, True, False, b"bytes"]),
    st.integers(),
    st.text(st.characters(exclude_characters="/"), max_size=8),
    st.dates(),
)
KEYS = ["images", "shards", "masks", "list", "mask_format", "id_map", "name", "color", "file",
        "voc_xml", "always", "skip", "classes", "tags", "lst", 1, None, "images "]  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of mappings and lists."""
    found = [here] if here else []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        found += places(value, (*here, key)) if isinstance(value, dict | list) else [(*here, key)]
    return found


def put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with everything that a dataset.yaml can say, one folder below the top."""
    root = tmp_path_factory.mktemp("yaml") / "data"
    path = write_dataset(root, num_labeled=2, num_unlabeled=2, num_val=1, size=(8, 9), tags=True)
    tree = yaml.safe_load(path.read_text())
    (root / "lists").mkdir()
    (root / "pool.tar").write_bytes(
        tar_bytes({"x.png": (root / "images/labeled_0.png").read_bytes()})
    )
    (root / "lists/a.txt").write_text("labeled_1\n# labeled_2\nlabeled_0.png\n")
    tree["labeled"] |= {"list": "lists/a.txt", "mask_format": "index", "id_map": {0: 0, 1: "wall"}}
    tree["unlabeled"]["shards"] = "pool.tar"
    tree["tags"] = {"file": "tags.csv", "always": ["ground"]}
    tree |= {"root": ".", "ignore_index": 255}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def attempt_dataset(group: Trials, case: str, path: Path) -> Dataset | None:
    """Load a data set; what is loaded must keep its promises and be checkable."""
    data = group.attempt(case, lambda: load_dataset(path, require=()))
    if data is None:
        return None
    for sample in (s for samples in data.sections.values() for s in samples):
        parts = sample.name.split("/")
        group.expect(case, ".." not in parts and parts[0] != "", f"the name {sample.name!r}")
        group.expect(case, is_clean(sample.name), f"the name {sample.name!r}")
    group.attempt(f"check of {case}", lambda: check_dataset(data, workers=1))
    copied = group.attempt(f"copy of {case}", lambda: absolute_dataset(path))
    group.expect(case, copied is not None, "it was read, and cannot be copied into a run folder")
    return data


NOT_YAML = {
    "nothing": "",
    "blank": "\n \n",
    "a word": "hello",
    "a list": "- classes\n- labeled\n",
    "a number": "3",
    "open bracket": "classes: [a, b",
    "open quote": "classes: ['a",
    "tab": "classes:\n\t- a\n",
    "null character": "classes: \0",
    "escape character": "classes: [\x1b[31m]",
    "python object": "!!python/object/apply:os.system ['true']",
    "python name": "classes: !!python/name:os.system",
    "own tag": "classes: !thing [a]",
    "no integer": "ignore_index: !!int x",
    "empty integer": "ignore_index: !!int ''",
    "no bool": "ignore_index: !!bool x",
    "no time": "ignore_index: !!timestamp x",
    "no float": "ignore_index: !!float ''",
    "impossible date": "root: 2020-13-45",
    "hexadecimal without digits": "root: 0x_",
    "binary without digits": "root: 0b_",
    "number of many digits": "root: " + "9" * 5000,
    "number of many hexadecimal digits": "root: 0x" + "f" * 50_000,
    "deep list": "classes: " + "[" * 100_000,
    "deep and closed list": "classes: " + "[" * 5000 + "]" * 5000,
    "deep mapping": "{a: " * 5000,
    "deep block": "".join(" " * i + "- \n" for i in range(500)),
    "itself": "&a [*a]",
    "itself as a class": "classes: &a [*a, b]",
    "itself as a key": "&a {*a : 1}",
    "unknown alias": "classes: *nowhere",
    "list as a key": "[a]: 1",
    "two documents": "classes: [a]\n---\nclasses: [b]\n",
    "a key twice": "classes: [a, b]\nclasses: [c, d]\n",
    "a key twice in a section": "labeled: {images: images, images: masks, masks: masks}",
    "a billion laughs": "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" if i else "a0: &a0 [x, x]\n"
        for i in range(12)
    )
    + "classes: *a11\n",
    "a billion laughs as a section": "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n"
        if i
        else "a0: &a0 {}\n"
        for i in range(12)
    )
    + "labeled: *a11\n",
    "a billion merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "merge of itself": "a: &a {<<: *a, b: 1}",
    "merge of a word": "a: {<<: b}",
    "huge key": "k" * 100_000 + ": 1",
    "key of a number": "0x" + "f" * 20_000 + ": 1",
    "long line": "classes: [" + "a, " * 20_000 + "]",
    "carriage returns": "classes: [a, b]\rlabeled: 3\r",
    "html": "<!doctype html><p>404: Not Found</p>",
    "json": '{"classes": ["a", "b"]}',
    "bom": "\ufeffclasses: [a, b]\nroot: none\n",
}


@pytest.mark.parametrize("case", NOT_YAML)
def test_text_that_describes_no_data_set_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_bytes(NOT_YAML[case].encode())
    with trials("dataset.yaml files") as group:
        found = group.attempt(case, lambda: load_dataset(path))
        group.expect(case, found is None, "it was read")


def test_changed_dataset_files_are_read_or_refused(sound: Path) -> None:
    text, path = sound.read_bytes(), sound.with_name("changed.yaml")
    with trials("dataset.yaml files") as group:
        for encoding in ("utf-8-sig", "utf-16", "latin-1"):
            path.write_bytes(text.decode().encode(encoding))
            attempt_dataset(group, encoding, path)
        for case, data in mutations(text, count=rounds(40, long=600), seed=0, header=len(text)):
            path.write_bytes(data)
            attempt_dataset(group, case, path)


def test_each_key_with_each_kind_of_value_is_read_or_refused(sound: Path) -> None:
    tree, path = yaml.safe_load(sound.read_text()), sound.with_name("changed.yaml")
    odd = [
        "",
        "none",
        "im\nages",
        -1,
        3,
        0.5,
        16**5000,
        None,
        True,
        [],
        {},
        [[]],
        {1: 2},
        ["images"],
    ]
    odd += ["**", "*/../images/*.png", "images/labeled_0.png"]
    with trials("dataset.yaml files") as group:
        for place in places(tree):
            for value in odd:
                changed = copy.deepcopy(tree)
                put(changed, place, value)
                attempt_dataset(
                    group,
                    f"{place} = {str(value)[:40]!r}"
                    if not isinstance(value, int)
                    else f"{place} = int",
                    write(path, changed),
                )


def write(path: Path, tree: Any) -> Path:
    """Write a tree as YAML; numbers in hexadecimal, which have no limit of digits."""

    class Dumper(yaml.SafeDumper):
        pass

    def represent_int(dumper: yaml.SafeDumper, value: int) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:int", hex(value))

    Dumper.add_representer(int, represent_int)
    path.write_text(yaml.dump(tree, Dumper=Dumper), encoding="utf-8", errors="surrogatepass")
    return path


def test_trees_of_random_values_are_read_or_refused(sound: Path) -> None:
    tree, path = yaml.safe_load(sound.read_text()), sound.with_name("changed.yaml")
    every = places(tree)

    with trials("dataset.yaml files") as group:

        @settings(
            max_examples=rounds(150, long=2000),
            deadline=None,
            derandomize=not SOAK,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.tuples(st.sampled_from(every), values), min_size=1, max_size=3))
        def change(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
            changed = copy.deepcopy(tree)
            for place, value in changes:
                try:
                    put(changed, place, value)
                except (TypeError, KeyError, IndexError):
                    continue  # an earlier change has taken the place away
            attempt_dataset(group, str([place for place, _ in changes]), write(path, changed))

        run: Callable[[], None] = change
        run()
