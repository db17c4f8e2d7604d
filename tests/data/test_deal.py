from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from factories import write_dataset
from u2pl.data.deal import deal_dataset
from u2pl.data.sources import load_dataset
from u2pl.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Six images in test and none in val, two unlabelled ones elsewhere."""
    path = write_dataset(tmp_path, num_unlabeled=2, num_val=6)
    tree = yaml.safe_load(path.read_text())
    tree["test"] = tree.pop("val") | {"id_map": {0: "ground", 1: "wall", 2: "tree"}}
    path.write_text(yaml.safe_dump(tree))
    return path


def test_images_move_by_a_shuffle_of_the_seed_and_the_rest_stays(path: Path) -> None:
    before = load_dataset(path, require=())
    made = deal_dataset(path, {"test": {"unlabeled": 3, "val": 2}}, seed=5)
    after = load_dataset(made, require=("labeled", "unlabeled", "val", "test"))
    names = sorted(sample.name for sample in before.test)
    random.Random(5).shuffle(names)
    assert [s.name for s in after.unlabeled[2:]] == [f"val/images/{name}" for name in names[:3]]
    assert [s.image for s in after.unlabeled[:2]] == [s.image for s in before.unlabeled]
    assert [s.name for s in after.val] == names[3:5]
    assert [s.name for s in after.test] == names[5:]
    assert after.val[0].mask_encoding == before.test[0].mask_encoding
    assert after.labeled == before.labeled
    assert {s.mask for s in after.unlabeled} == {None}


def test_same_seed_writes_the_same_and_another_another(path: Path) -> None:
    deal = {"test": {"val": 3}}
    first = deal_dataset(path, deal, seed=0)
    text = first.read_text()
    assert deal_dataset(path, deal, seed=0).read_text() == text
    lists = [load_dataset(deal_dataset(path, deal, seed=seed)).val for seed in (0, 1)]
    assert lists[0] != lists[1]


def test_section_that_gives_all_is_left_out(path: Path) -> None:
    made = deal_dataset(path, {"test": {"val": 6}}, seed=0)
    assert len(load_dataset(made).val) == 6
    assert load_dataset(made).test == ()


@pytest.mark.parametrize(
    ("deal", "text"),
    [
        ({"test": {"val": 4, "unlabeled": 3}}, "3 images of 'test' are to become 'unlabeled', but"),
        ({"unlabeled": {"val": 1}}, "images of 'unlabeled' have no masks for 'val'"),
        ({"test": {"labeled": 1}}, "'labeled' has images of its own"),
        ({"val": {"unlabeled": 1}}, "expected images in the section 'val', found none"),
    ],
)
def test_deal_that_cannot_be_is_one_sentence(path: Path, deal: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        deal_dataset(path, deal, seed=0)
