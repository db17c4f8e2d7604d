from __future__ import annotations

import pytest

from u2pl.errors import UserError, import_extra, is_clean, nearest_name, shown


def test_user_error_prints_its_message_alone() -> None:
    error = UserError("Expected a folder, got 'x'. Give a folder.")
    assert str(error) == "Expected a folder, got 'x'. Give a folder."


@pytest.mark.parametrize(("given", "expected"), [({}, 1), ({"exit_code": 2}, 2)])
def test_exit_status_is_one_unless_the_request_was_malformed(
    given: dict[str, int], expected: int
) -> None:
    assert UserError("What.", **given).exit_code == expected


def test_nearest_name_is_suggested() -> None:
    known = ["train.steps", "train.seed", "data.crop"]
    assert nearest_name("train.stepz", known) == " Did you mean 'train.steps'?"


@pytest.mark.parametrize("known", [[], ["train.steps"], iter(["a", "b"])])
def test_nothing_is_suggested_where_nothing_is_near(known: list[str]) -> None:
    assert nearest_name("qqqqq", known) == ""


def test_message_is_one_printable_line_whatever_stands_in_it() -> None:
    error = UserError("a\nb\x1b[2J\u202e\udcff.png: no image.")
    assert str(error) == "a\\nb\\x1b[2J\\u202e\\udcff.png: no image."


def test_long_message_is_shortened_in_its_middle() -> None:
    text = str(UserError("begin " + "x" * 1_000_000 + " end."))
    assert text.startswith("begin xxx")
    assert text.endswith("xxx end.")
    assert len(text) < 5000


def test_long_name_has_no_near_one() -> None:
    assert nearest_name("train.stepz" * 100, ["train.steps"]) == ""


@pytest.mark.parametrize("value", [None, 3, -1.5, "x", [1, "a"], {"a": [1]}, (1, 2), True])
def test_short_values_are_shown_as_python_writes_them(value: object) -> None:
    assert shown(value) == repr(value)


def test_values_that_grow_without_bound_are_shown_short() -> None:
    laughs: list[object] = ["x"]
    for _ in range(40):
        laughs = [laughs] * 9
    endless: list[object] = []
    endless.append(endless)
    for value in (laughs, endless, "x" * 10**6, {i: i for i in range(10**5)}, 7**100_000):
        assert len(shown(value)) < 20_000


def test_clean_names_have_no_control_characters() -> None:
    assert is_clean("Straße 1 猫 a\u00a0b [x]")
    for name in ("a\nb", "\x1b", "\x9b", "\0", "\u2028", "\x85", "\udcff"):
        assert not is_clean(name)


def test_module_of_an_extra_is_imported_or_its_absence_told() -> None:
    assert import_extra("json", "never said").dumps([1]) == "[1]"
    with pytest.raises(UserError, match="do pip install it"):
        import_extra("u2pl_has_no_such_module", "Not installed; do pip install it.")
