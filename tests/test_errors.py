from __future__ import annotations

import pytest

from u2pl.errors import UserError, nearest_name


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
