"""Named starting points; every number in them can be overridden."""

from __future__ import annotations

from collections.abc import Callable

from u2pl.config import Config
from u2pl.errors import UserError, nearest_name
from u2pl.recipes import semi

RECIPES: dict[str, Callable[[], Config]] = {
    "default": semi.default,
    "camvid": semi.camvid,
    "camvid-small": semi.camvid_small,
    "demo": semi.demo,
}


def get_recipe(name: str) -> Config:
    """Return a recipe's configuration.

    Raises:
        UserError: (exit status 2) for a name that no recipe has.
    """
    if name not in RECIPES:
        raise UserError(
            f"There is no recipe '{name}'.{nearest_name(name, RECIPES)} "
            f"Recipes: {', '.join(RECIPES)}.",
            exit_code=2,
        )
    return RECIPES[name]()
