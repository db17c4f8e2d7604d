from __future__ import annotations

import os
from pathlib import Path

import pytest

from u2pl.plain_files import parse_yaml, read_bytes, read_rows, read_text, read_yaml


def test_yaml_is_read_as_plain_values() -> None:
    text = "a: [1, 2.5, true, null, x]\nb: {c: 2020-01-02}\nd: &d {e: 1}\nf: {<<: *d, g: 2}\n"
    tree = parse_yaml(text)
    assert tree["a"] == [1, 2.5, True, None, "x"]
    assert str(tree["b"]["c"]) == "2020-01-02"
    assert tree["f"] == {"e": 1, "g": 2}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "expected the node content"),
        ("!!int x", "no such value: invalid literal"),
        ("!!int ''", "no such value"),
        ("!!bool x", "no such value"),
        ("!!timestamp x", "no such value"),
        ("2020-13-45", "no such value: month must be in"),
        ("0x_", "no such value"),
        ("9" * 5000, "no such value: Exceeds the limit"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("[" * 5000, "more than 40 levels deep"),
        ("[" * 41 + "]" * 41, "more than 40 levels deep"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("x: {a: 1, a: 1}", "'a' stands twice"),
    ],
)
def test_what_is_no_plain_yaml_is_a_value_error_that_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)


def test_forty_levels_are_not_too_deep() -> None:
    assert str(parse_yaml("[" * 40 + "]" * 40)) == "[" * 40 + "]" * 40


def test_merges_that_would_grow_without_bound_are_refused_at_once() -> None:
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 30):
        lines.append(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}")
    with pytest.raises(ValueError, match="too many merged keys"):
        parse_yaml("\n".join(lines))


def test_own_key_beside_a_merged_one_of_its_name_is_not_twice() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}")["b"] == {"x": 3, "y": 2}


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("\ufeffä: 1\n".encode())
    assert read_text(tmp_path / "a.yaml") == "ä: 1\n"
    assert read_yaml(tmp_path / "a.yaml") == {"ä": 1}


def test_what_may_have_no_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="it is no plain file"):
            read_bytes(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(ValueError, match="null"):
        read_bytes(tmp_path / "a\0b")


def test_torn_line_costs_no_other_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n[2]\n\xff\n' + b"[" * 10_000 + b'\n{"a": 3}\n')
    assert read_rows(file) == [{"a": 1}, {"a": 3}]
