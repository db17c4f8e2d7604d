from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from u2pl.errors import UserError
from u2pl.sweep.file import order_of, read_sweep

GOOD: dict[str, Any] = {"name": "a", "seeds": [0, 1], "rows": {"one": None, "two": {}}}
ROOT = Path(__file__).parents[2]


def written(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return path


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path / "a.yaml", data="d.yaml", seeds=3))
    assert sweep.base_row == "one"
    assert sweep.shares_of("one") == (None,)
    assert sweep.seeds_of("two") == (3,)
    assert sweep.data is not None
    assert sweep.data.file == "d.yaml"
    assert sweep.evaluation.columns == [("val", "ema")]


def test_row_may_have_shares_and_seeds_of_its_own(tmp_path: Path) -> None:
    rows = {"one": None, "two": {"shares": [0.25, 7], "seeds": 5}}
    sweep = read_sweep(written(tmp_path / "a.yaml", rows=rows, shares="1/8"))
    assert sweep.shares_of("one") == ("1/8",)
    assert sweep.shares_of("two") == ("0.25", "7")
    assert sweep.seeds_of("two") == (5,)


def test_columns_are_every_pair_of_split_and_weights(tmp_path: Path) -> None:
    scoring = {"split": ["val", "test"], "weights": ["student", "ema"]}
    sweep = read_sweep(written(tmp_path / "a.yaml", evaluation=scoring))
    assert sweep.evaluation.columns[:2] == [("val", "student"), ("val", "ema")]
    assert len(sweep.evaluation.columns) == 4


def test_rows_that_others_need_come_first(tmp_path: Path) -> None:
    rows = {"c": {"take": {"x": "b"}}, "b": {"take": {"x": "a"}}, "a": None}
    path = written(tmp_path / "a.yaml", rows=rows)
    assert order_of(path, read_sweep(path), "c") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sedes": [0]}, "unknown key 'sedes'. Did you mean 'seeds'?"),
        ({"rows": {"one": {"recpie": "demo"}}}, "'recpie' in 'rows.one'. Did you mean 'recipe'?"),
        ({"rows": {}}, "'rows': Dictionary should have at least 1 item"),
        ({"rows": [1]}, "'rows': Input should be a valid dictionary"),
        ({"seeds": [-1]}, "'seeds.0': Input should be greater than or equal to 0"),
        ({"seeds": []}, "'seeds': Tuple should have at least 1 item"),
        ({"seeds": [1, 1]}, "the seeds of the row 'one' hold 1 twice"),
        ({"shares": ["1/8", "1/8"]}, "the shares of the row 'one' hold 1/8 twice"),
        ({"base": "tow"}, "'base' names the row 'tow', which is not there. Did you mean 'two'?"),
        ({"rows": {"a/b": None}}, "the row 'a/b' gives its name to a folder"),
        ({"rows": {"..": None}}, "the row '..' gives its name to a folder"),
        ({"rows": {"One": None, "one": None}}, "the rows 'One' and 'one' differ in case alone"),
        ({"rows": {"a": {"take": {"k": "b"}}}}, "'rows.a.take.k' names the row 'b'"),
        (
            {"rows": {"a": {"take": {"k": "b"}}, "b": {"take": {"k": "a"}}}},
            "rows that need each other cannot begin: a → b → a",
        ),
        ({"data": {"draw": "spread"}}, "'data': give one of 'file' and 'dataset'"),
        ({"data": {"file": "a", "darw": "spread"}}, "Did you mean 'draw'?"),
        ({"data": {"file": "a", "deal": {"test": {"val": 0}}}}, "'data.deal.test.val'"),
        ({"evaluation": {"split": "train"}}, "'evaluation.split.0': Input should be 'val'"),
        ({"name": None}, "'name': Input should be a valid string. Got None."),
    ],
)
def test_fault_in_the_file_is_one_sentence_that_names_its_place(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_sweep(written(tmp_path / "a.yaml", **changes))
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nrows: {a: {}}\n")
    with pytest.raises(UserError, match="the key 'seeds' is missing; add it"):
        read_sweep(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not a YAML file"),
        ("- a", "expected keys such as 'rows', got list"),
        ("name: a\nname: b", "'name' stands twice"),
    ],
)
def test_what_is_no_sweep_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_sweep(path)
    with pytest.raises(UserError, match="Cannot read the sweep"):
        read_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/experiments/*.yaml")), ids=lambda p: p.stem)
def test_experiments_of_the_documentation_can_be_read(path: Path) -> None:
    assert len(read_sweep(path).rows) >= 4
