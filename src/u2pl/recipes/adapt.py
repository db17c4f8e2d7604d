"""Recipes of the domain-adaptive setting: labelled source images, unlabelled target images."""

from __future__ import annotations

from typing import Any

from u2pl.config import (
    Config,
    DataSettings,
    MethodSettings,
    ModelSettings,
    OptimizerSettings,
    TrainSettings,
)
from u2pl.recipes import semi

CHANGES: dict[str, Any] = {
    "method.mixing": "classmix_labeled",
    "method.mix_probability": 1.0,
    "train.separate_statistics": True,
    "data.rare_class_temperature": 0.01,
}
"""What the setting changes in a recipe that was written for another one."""

DACS: dict[str, Any] = {
    "method.contrastive_weight": 0.0,
    "method.initial_unreliable_fraction": 0.0,
    "method.refine_iterations": 0,
    "method.symmetric_weight": 0.0,
    "method.pixel_weighting": "confident_share",
    "data.rare_class_temperature": None,
}
"""DACS (arXiv 2007.08702) in an ``adapt`` recipe: every target pixel has a pseudo-label, which
weighs as much as the teacher is confident; the source is sampled evenly. [R]"""


def gta5_cityscapes() -> Config:
    """GTA5 → Cityscapes on one GPU; the optimiser's numbers are DAFormer's (arXiv 2111.14887)."""
    return Config(
        recipe="gta5-cityscapes",
        setting="adapt",
        model=ModelSettings(encoder="resnet101"),
        data=DataSettings(
            resize=512,
            resize_labeled=720,
            crop=(512, 512),
            scale=(1.0, 1.0),
            batch_labeled=2,
            batch_unlabeled=2,
            jitter=0.25,
            grayscale_probability=0.0,
            rare_class_temperature=0.01,
        ),
        method=MethodSettings(mixing="classmix_labeled", mix_probability=1.0, ema_decay=0.999),
        optimizer=OptimizerSettings(
            name="adamw",
            lr=6e-5,
            head_lr_factor=10.0,
            weight_decay=1e-2,
            poly_power=1.0,
            lr_warmup_steps=1500,
        ),
        train=TrainSettings(
            steps=40_000, separate_statistics=True, eval_every=4000, checkpoint_every=1000
        ),
    )


def gta5_cityscapes_dacs() -> Config:
    """DACS with the numbers of ``gta5-cityscapes``, to compare with in the same step."""
    return gta5_cityscapes().with_overrides({**DACS, "recipe": "gta5-cityscapes-dacs"})


def synthia_cityscapes() -> Config:
    """SYNTHIA → Cityscapes: as from GTA5, with SYNTHIA's size."""
    return gta5_cityscapes().with_overrides(
        {"recipe": "synthia-cityscapes", "data.resize_labeled": 760}
    )


def street6_small() -> Config:
    """CamVid → LabelMeFacade, six classes, on two CPU cores: ImageNet MobileNetV2, FPN."""
    return semi.camvid_small().with_overrides(
        {
            **CHANGES,
            "recipe": "street6-small",
            "setting": "adapt",
            "data.crop": (128, 128),
            # at 0.01 the two rarest of six classes would take nearly all draws
            "data.rare_class_temperature": 0.1,
            "data.rare_class_min_pixels": 300,
            # all of CamVid is labelled: the source is learnt sooner than an eighth of it
            "train.steps": 1500,
            "train.supervised_steps": 500,
            "train.eval_every": 500,
        }
    )


def demo_adapt() -> Config:
    """The painted streets of ``u2pl demo --setting adapt``: from clear days to dusk."""
    return semi.demo().with_overrides(
        {
            **CHANGES,
            "recipe": "demo-adapt",
            "setting": "adapt",
            "data.rare_class_temperature": 0.1,
            "data.rare_class_min_pixels": 30,
            "train.steps": 1800,
            "train.supervised_steps": 300,
            "train.eval_every": 1800,
            "train.checkpoint_every": 600,
        }
    )
