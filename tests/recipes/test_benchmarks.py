from __future__ import annotations

from typing import Any

import pytest
import torch

from u2pl.config import Config
from u2pl.engine.protocol import protocol_of
from u2pl.models import Segmenter
from u2pl.models.encoders import timm
from u2pl.recipes import RECIPES, benchmarks, get_recipe

NAMES = [name for name in RECIPES if name.startswith(("voc-classic", "voc-blender", "cityscapes-"))]


def differing(first: Config, second: Config) -> set[str]:
    one, two = first.model_dump(), second.model_dump()
    return {
        f"{group}.{key}"
        for group, values in one.items()
        if isinstance(values, dict)
        for key in values
        if values[key] != two[group][key]
    }


@pytest.mark.parametrize("name", NAMES)
def test_recipe_builds_its_network_under_a_name_that_timm_has_weights_for(name: str) -> None:
    settings = get_recipe(name).model
    assert settings.encoder in timm.list_pretrained()
    with torch.device("meta"):
        model = Segmenter(settings, 21, load_pretrained=False)
    logits = model.eval()(torch.rand(1, 3, 56, 84, device="meta"), with_features=False).logits
    assert logits.shape == (1, 21, 14, 21)


@pytest.mark.parametrize("name", [name for name in NAMES if "dinov2" in name])
def test_crop_of_a_vision_transformer_is_of_whole_patches(name: str) -> None:
    assert [side % 14 for side in get_recipe(name).data.crop] == [0, 0]


@pytest.mark.parametrize(
    ("benchmark", "labels", "steps"),
    [
        ("voc-classic", 92, 80 * 655),
        ("voc-classic", 1464, 80 * 569),
        ("voc-blender", 662, 80 * 620),
        ("voc-blender", 5291, 80 * 330),
    ],
)
def test_pass_is_over_the_longer_list(benchmark: Any, labels: int, steps: int) -> None:
    assert benchmarks.passes(benchmark, 80, batch=16, labels=labels) == steps


def test_half_of_cityscapes_passes_over_the_labelled_images() -> None:
    assert benchmarks.passes("cityscapes", 1, batch=1, labels=1488) == 1488


def test_published_numbers_stand_in_the_recipes() -> None:
    """method.md's table of the paper, read again."""
    voc, city = get_recipe("voc-classic-r101"), get_recipe("cityscapes-r101")
    for config, crop, lr, decay in ((voc, 513, 1e-3, 1e-4), (city, 769, 1e-2, 5e-4)):
        assert (config.model.output_stride, config.model.atrous_rates) == (8, (12, 24, 36))
        assert (config.data.crop, config.data.batch_labeled) == ((crop, crop), 16)
        assert (config.optimizer.lr, config.optimizer.weight_decay) == (lr, decay)
        assert config.data.jitter == config.data.blur_probability == 0
        assert config.method.contrastive_weight == 0.1
    assert (voc.train.steps, voc.train.supervised_steps) == (52_400, 655)
    assert (city.train.steps, city.train.supervised_steps) == (34_800, 3_480)
    assert (voc.train.ohem, city.train.ohem) == (False, True)
    assert protocol_of(voc).label == "whole"
    assert protocol_of(city).label == "slide-769"


def test_numbers_of_unimatch_v2_stand_in_the_recipes() -> None:
    voc, city = get_recipe("voc-classic-dinov2-b"), get_recipe("cityscapes-dinov2-s")
    for config, crop, batch, width in ((voc, 518, 16, 128), (city, 798, 8, 64)):
        optimizer = config.optimizer
        assert (optimizer.name, optimizer.lr, optimizer.head_lr_factor) == ("adamw", 5e-6, 40)
        assert (config.data.crop, config.data.batch_unlabeled) == ((crop, crop), batch)
        assert (config.method.ema_decay, config.model.decoder_channels) == (0.996, width)
    assert (voc.train.steps, city.train.steps) == (39_300, 62_640)
    assert protocol_of(city).label == "slide-798"


def test_variants_differ_from_the_papers_in_what_they_are_named_for() -> None:
    paper = get_recipe("voc-classic-r101")
    assert differing(paper, get_recipe("voc-classic-r50")) == {"model.encoder"}
    steps = {"train.steps", "train.supervised_steps", "train.eval_every"}
    assert differing(paper, get_recipe("voc-blender-r101")) == steps
    small, base = (get_recipe(f"cityscapes-dinov2-{size}") for size in "sb")
    assert differing(small, base) == {"model.encoder", "model.decoder_channels"}
