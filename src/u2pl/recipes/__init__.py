"""Named starting points; every number in them can be overridden."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from u2pl.config import Config
from u2pl.errors import UserError, nearest_name
from u2pl.recipes import adapt, benchmarks, semi, weak
from u2pl.recipes.methods import METHODS, get_method

__all__ = ["METHODS", "RECIPES", "SETTINGS", "get_method", "get_recipe"]

RECIPES: dict[str, Callable[[], Config]] = {
    "default": semi.default,
    "voc-classic-r101": partial(benchmarks.paper, "voc-classic", "r101"),
    "voc-classic-r50": partial(benchmarks.paper, "voc-classic", "r50"),
    "voc-classic-dinov2-s": partial(benchmarks.today, "voc-classic", "dinov2-s"),
    "voc-classic-dinov2-b": partial(benchmarks.today, "voc-classic", "dinov2-b"),
    "voc-blender-r101": partial(benchmarks.paper, "voc-blender", "r101"),
    "voc-blender-r50": partial(benchmarks.paper, "voc-blender", "r50"),
    "voc-blender-dinov2-s": partial(benchmarks.today, "voc-blender", "dinov2-s"),
    "voc-blender-dinov2-b": partial(benchmarks.today, "voc-blender", "dinov2-b"),
    "cityscapes-r101": partial(benchmarks.paper, "cityscapes", "r101"),
    "cityscapes-r50": partial(benchmarks.paper, "cityscapes", "r50"),
    "cityscapes-dinov2-s": partial(benchmarks.today, "cityscapes", "dinov2-s"),
    "cityscapes-dinov2-b": partial(benchmarks.today, "cityscapes", "dinov2-b"),
    "camvid": semi.camvid,
    "camvid-small": semi.camvid_small,
    "demo": semi.demo,
    "gta5-cityscapes": adapt.gta5_cityscapes,
    "gta5-cityscapes-dacs": adapt.gta5_cityscapes_dacs,
    "synthia-cityscapes": adapt.synthia_cityscapes,
    "street6-small": adapt.street6_small,
    "demo-adapt": adapt.demo_adapt,
    "voc-tags": weak.voc_tags,
    "msrc21-small": weak.msrc21_small,
    "demo-weak": weak.demo_weak,
}

_ONE_DOMAIN = {
    "method.mixing": "cutmix",
    "train.separate_statistics": False,
    "data.rare_class_temperature": None,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "semi": _ONE_DOMAIN,
    "adapt": adapt.CHANGES,
    "weak": _ONE_DOMAIN,
    "supervised": {
        "method.unsupervised_weight": 0.0,
        "method.contrastive_weight": 0.0,
        "train.supervised_steps": 0,
    },
}
"""What ``train`` can do, and what each changes in a recipe that was written for another."""


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
