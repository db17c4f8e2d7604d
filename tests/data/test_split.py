from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from factories import write_dataset
from u2pl.data.sources import load_dataset
from u2pl.data.split import (
    import_split,
    parse_share,
    split_dataset,
    spread_choice,
    stratified_order,
)
from u2pl.errors import UserError


def distance(pixels: Any, chosen: list[int]) -> float:
    """d of the docstring, by plain loops."""
    rows = np.asarray(pixels, float) / (np.sum(pixels) / len(pixels))
    total = 0.0
    for c in range(rows.shape[1]):
        p, q = rows[:, c].mean(), rows[chosen, c].mean()
        total += (q - p) ** 2 / p if p > 0 else 0.0
    return float(np.sqrt(total))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path, num_labeled=16, num_unlabeled=3)


def names(samples: Any) -> list[str]:
    return [sample.name for sample in samples]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


# the order


@settings(max_examples=60, deadline=None)
@given(
    num_images=st.integers(1, 60),
    num_classes=st.integers(1, 8),
    rarity=st.sampled_from([0.02, 0.2, 5.0]),
    seed=st.integers(0, 2**31),
)
def test_order_holds_each_image_once_and_every_beginning_keeps_the_bound(
    num_images: int, num_classes: int, rarity: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(num_classes, rarity), num_images)
    pixels = (shares * generator.integers(1, 10_000, (num_images, 1))).astype(np.int64)
    order = stratified_order(pixels, seed=seed)
    assert sorted(order) == list(range(num_images))
    if pixels.sum() == 0:
        return
    largest = max(distance(pixels, [i]) for i in range(num_images))
    for k in range(1, num_images + 1):
        assert distance(pixels, order[:k]) <= largest / np.sqrt(k) + 1e-9
        assert stratified_order(pixels, seed=seed, count=k) == order[:k]


def test_order_is_a_function_of_the_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (40, 3))
    assert stratified_order(pixels, seed=1) == stratified_order(pixels, seed=1)
    assert stratified_order(pixels, seed=1) != stratified_order(pixels, seed=2)


def test_stratified_beginnings_are_nearer_to_the_whole_than_random_ones() -> None:
    generator = np.random.default_rng(0)
    pixels = (generator.dirichlet(np.full(6, 0.2), 160) * 10_000).astype(np.int64)
    chosen = [stratified_order(pixels, seed=seed, count=10) for seed in range(10)]
    drawn = [[int(i) for i in generator.permutation(160)[:10]] for _ in range(100)]
    ours = [distance(pixels, order) for order in chosen]
    assert max(ours) < np.mean([distance(pixels, order) for order in drawn]) / 2
    for order in chosen:  # the rarest class is not forgotten
        assert (pixels[order].sum(axis=0) > 0).all()


def test_order_of_masks_without_a_class_is_random() -> None:
    order = stratified_order(np.zeros((9, 3), np.int64), seed=0)
    assert sorted(order) == list(range(9))
    assert order != list(range(9))
    assert stratified_order(np.zeros((0, 3), np.int64), seed=0) == []


# how many


@pytest.mark.parametrize(
    ("total", "counts"),
    [(1464, (92, 183, 366, 732)), (2975, (186, 372, 744, 1488)), (367, (23, 46, 92, 184))],
)
def test_fractions_give_the_published_numbers(total: int, counts: tuple[int, ...]) -> None:
    assert tuple(parse_share(f"1/{n}", total) for n in (16, 8, 4, 2)) == counts


@pytest.mark.parametrize(
    "text", ["0", "1/0", "2/1", "1.5", "-1", "a", "1e9", "1/16 ", "", "9" * 99]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="Expected a fraction such as 1/16") as caught:
        parse_share(text, 10)
    assert caught.value.exit_code == 2


def test_more_than_there_are_is_refused() -> None:
    assert parse_share("1/100", 10) == 1
    with pytest.raises(UserError, match="at most 10 images, as many as have masks, got 11"):
        parse_share("11", 10)


# the files


def test_split_is_nested_and_every_image_has_one_place(path: Path) -> None:
    before = {file: file.read_bytes() for file in path.parent.rglob("*.*") if file.is_file()}
    splits = split_dataset(path, labeled=["1/8", "1/4", "1/2"], seeds=[0, 1])
    assert [split.path.name for split in splits] == [
        f"dataset-1of{n}-seed{seed}.yaml" for seed in (0, 1) for n in (8, 4, 2)
    ]
    old = load_dataset(path)
    for split, count in zip(splits, [2, 4, 8, 2, 4, 8], strict=True):
        new = load_dataset(split.path)
        assert tuple(names(new.labeled)) == split.labeled
        assert (len(new.labeled), len(new.unlabeled)) == (count, 19 - count)
        assert {s.image for s in (*new.labeled, *new.unlabeled)} == {
            s.image for s in (*old.labeled, *old.unlabeled)
        }
        assert new.val == old.val
        assert {s.image: s.mask for s in new.labeled}.items() <= {
            s.image: s.mask for s in old.labeled
        }.items()
    for small, large in [(0, 1), (1, 2), (3, 4), (4, 5)]:
        assert splits[large].labeled[: len(splits[small].labeled)] == splits[small].labeled
    assert all(file.read_bytes() == content for file, content in before.items())


def test_split_again_writes_the_same_and_never_over_something_else(path: Path) -> None:
    (first,) = split_dataset(path, labeled=["1/4"], seeds=[0])
    assert split_dataset(path, labeled=["1/4"], seeds=[0]) == [first]
    first.path.write_text(first.path.read_text() + "# mine\n")
    with pytest.raises(UserError, match=r"1of4-seed0\.yaml is there already, with other content"):
        split_dataset(path, labeled=["1/2", "1/4"], seeds=[0])
    assert not (path.parent / "dataset-1of2-seed0.yaml").exists()


def test_tags_go_with_their_images(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_labeled=4, tags=True)
    tags = {sample.image: sample.tags for sample in load_dataset(path).unlabeled}
    (split,) = split_dataset(path, labeled=["1/2"], seeds=[0])
    new = {sample.image: sample.tags for sample in load_dataset(split.path).unlabeled}
    assert len(new) == 8
    assert tags.items() <= new.items()


def test_tags_that_a_split_would_lose_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_labeled=1, num_unlabeled=2, tags=True)
    for section in ("images", "masks"):  # an image of the same stem as an unlabelled one
        image = Image.open(tmp_path / section / "labeled_0.png")
        for name in ("unlabeled_0", "other"):
            image.save(tmp_path / section / f"{name}.png")
        (tmp_path / section / "labeled_0.png").unlink()
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"1 images have lost their tags.*'unlabeled/unlabeled_0'"):
        import_split(path, labeled=_list(path, ["other"]))
    assert {*tmp_path.rglob("*")} - before == {
        tmp_path / "lists",
        tmp_path / "lists/published.txt",
        *tmp_path.glob(".u2pl-class-pixels-*.npz"),
    }


def test_split_out_of_one_folder_keeps_its_lists_and_names(path: Path) -> None:
    (path.parent / "all.txt").write_text("".join(f"labeled_{i}\n" for i in range(8)))
    edit(path, labeled={"images": "images", "masks": "masks", "list": "all.txt"}, unlabeled=None)
    (split,) = split_dataset(path, labeled=["1/4"], seeds=[3])
    new = load_dataset(split.path)
    assert (len(new.labeled), len(new.unlabeled)) == (2, 6)
    assert {*names(new.labeled), *names(new.unlabeled)} == {f"labeled_{i}" for i in range(8)}


def test_all_labelled_leaves_no_unlabelled_section(path: Path) -> None:
    edit(path, unlabeled=None)
    (split,) = split_dataset(path, labeled=["1/1"], seeds=[0])
    assert load_dataset(split.path).unlabeled == ()
    assert split.share_difference == 0
    assert split.absent == ()


def test_root_elsewhere_is_understood(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    path = tmp_path / "here" / "set.yaml"
    path.parent.mkdir()
    tree = yaml.safe_load((tmp_path / "data/dataset.yaml").read_text()) | {"root": "../data"}
    path.write_text(yaml.safe_dump(tree))
    (split,) = split_dataset(path, labeled=["1/2"], seeds=[0])
    assert split.path == tmp_path / "here/set-1of2-seed0.yaml"
    assert len(load_dataset(split.path).unlabeled) == 8
    assert not list((tmp_path / "data").glob("set-*"))


def test_absent_classes_and_share_are_those_of_the_masks(path: Path) -> None:
    for i in range(16):
        mask = np.zeros((40, 56), np.uint8)
        mask[:20] = 1 if i else 2
        Image.fromarray(mask).save(path.parent / "masks" / f"labeled_{i}.png")
    split = import_split(path, labeled=_list(path, ["labeled_3"]))
    assert split.absent == ("tree",)
    assert split.share_difference == pytest.approx(0.5 / 16)


def test_negative_seed_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="seeds of 0 or more, got -1"):
        split_dataset(path, labeled=["1/4"], seeds=[0, -1])


# lists of others


def _list(path: Path, lines: list[str], name: str = "published.txt") -> Path:
    file = path.parent / "lists" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{}.jpg",
        "images/{}.png",
        "JPEGImages/{}.jpg SegmentationClass/{}.png",
        "/data/voc/JPEGImages/{}.jpg /data/voc/SegmentationClassAug/{}.png",
        "images/{}",
    ],
)
def test_published_lists_of_every_form_are_found(path: Path, line: str) -> None:
    listed = ["labeled_5", "labeled_15", "labeled_0"]
    split = import_split(path, labeled=_list(path, [line.format(n, n) for n in listed]))
    assert split.path.name == "dataset-lists-published.yaml"
    new = load_dataset(split.path)
    assert names(new.labeled) == listed
    assert len(new.unlabeled) == 16


def test_published_list_of_city_names_is_found_without_their_tail(tmp_path: Path) -> None:
    for city, count in {"aachen": 3, "bremen": 2}.items():
        for i in range(count):
            for kind in ("leftImg8bit", "gtFine"):
                suffix = "leftImg8bit" if kind == "leftImg8bit" else "gtFine_labelIds"
                file = tmp_path / kind / "train" / city / f"{city}_00{i}_000019_{suffix}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (40, 40), i % 2).save(file)
    Image.new("L", (40, 40)).save(tmp_path / "val.png")
    path = tmp_path / "dataset.yaml"
    section = {
        "images": "leftImg8bit/train/*/*_leftImg8bit.png",
        "masks": "gtFine/train/*/*_gtFine_labelIds.png",
    }
    val = {"images": ["val.png"], "masks": ["val.png"]}
    path.write_text(yaml.safe_dump({"classes": ["a", "b"], "labeled": section, "val": val}))
    for line in (
        "bremen_001_000019",
        "bremen/bremen_001_000019_leftImg8bit.png",
        "leftImg8bit/train/bremen/bremen_001_000019_leftImg8bit.png "
        "gtFine/train/bremen/bremen_001_000019_gtFine_labelTrainIds.png",
    ):
        split = import_split(path, labeled=_list(path, [line], f"{len(line)}.txt"))
        assert split.labeled == ("bremen/bremen_001_000019_leftImg8bit",)
        assert split.num_unlabeled == 4


def test_published_unlabelled_list_is_kept(path: Path) -> None:
    labeled = _list(path, ["labeled_1"], "labeled.txt")
    unlabeled = _list(path, ["labeled_2", "unlabeled_0"], "unlabeled.txt")
    split = import_split(path, labeled=labeled, unlabeled=unlabeled, name="paper")
    assert split.path.name == "paper.yaml"
    assert [s.image.stem for s in load_dataset(split.path).unlabeled] == [
        "labeled_2",
        "unlabeled_0",
    ]
    unlabeled.write_text("labeled_2\nlabeled_1\n")
    with pytest.raises(UserError, match=r"1 images stand in .*labeled\.txt, too"):
        import_split(path, labeled=labeled, unlabeled=unlabeled, name="other")


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["labeled_1", "nothing"], r"1 of 2 lines name no image of 'labeled'.*'nothing'"),
        (["labeled_1", "images/labeled_1.png"], r"'images/labeled_1.png' stands there twice"),
        (["", "# a comment"], "names no image; give one name a line"),
    ],
)
def test_list_that_does_not_fit_is_refused(path: Path, lines: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        import_split(path, labeled=_list(path, lines))


def test_list_that_is_not_there_or_no_text_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("no.txt does not exist")):
        import_split(path, labeled=path.parent / "no.txt")
    with pytest.raises(UserError, match="is not a text file"):
        import_split(path, labeled=path.parent / "images/labeled_0.png")


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "a\nb"])
def test_name_that_leads_elsewhere_is_refused(path: Path, name: str) -> None:
    with pytest.raises(UserError, match="Expected a file name without suffix"):
        import_split(path, labeled=_list(path, ["labeled_1"]), name=name)


# over the frames of videos


@given(total=st.integers(1, 300), part=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_spread_takes_one_of_each_stretch_and_none_twice(
    total: int, part: float, seed: int
) -> None:
    count = max(1, round(part * total))
    chosen = spread_choice(total, count, seed=seed)
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < total
    for place, index in enumerate(chosen):  # a border may move an index by one
        assert place * total / count - 1 <= index <= (place + 1) * total / count + 1


def test_spread_of_everything_is_everything() -> None:
    assert spread_choice(7, 7, seed=3) == list(range(7))
    assert spread_choice(7, 0, seed=3) == []


def test_spread_split_follows_names_and_has_a_file_of_its_own(path: Path) -> None:
    order = [f"labeled_{i}" for i in (9, 3, 12, 0, 1, 2, 4, 5)]
    (path.parent / "few.txt").write_text("\n".join(order))
    edit(path, labeled={"images": "images", "masks": "masks", "list": "few.txt"})
    (split,) = split_dataset(path, labeled=["1/4"], seeds=[2], draw="spread")
    in_order = sorted(order)
    assert list(split.labeled) == [in_order[i] for i in spread_choice(8, 2, seed=2)]
    assert split.path.name == "dataset-1of4-seed2-spread.yaml"
    assert split.num_unlabeled == 9
    assert "--draw spread" in split.path.read_text()
    (other,) = split_dataset(path, labeled=["1/4"], seeds=[2])
    assert other.path != split.path


def test_unknown_draw_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"got 'spred'. Did you mean 'spread'\?"):
        split_dataset(path, labeled=["1/4"], seeds=[0], draw="spred")
