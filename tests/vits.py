"""A vision transformer with patches of 14 pixels, as DINOv2's, small enough for a test."""

from __future__ import annotations

from typing import Any

from torch import nn

from u2pl.models import encoders

timm = encoders.timm  # imported there after u2pl has made torchvision importable

TINY_VIT = "tiny_vit_patch14"
"""Its name in timm, from when this module is imported."""


def tiny_vit_patch14(pretrained: bool = False, **changes: Any) -> nn.Module:
    """DINOv2's layers and keys, 5 x 5 patches of a 70 x 70 image."""
    given = {"patch_size": 14, "img_size": 70, "init_values": 1e-5, "num_classes": 0, **changes}
    model: nn.Module = timm.create_model("test_vit", pretrained=pretrained, **given)
    return model


if not timm.is_model(TINY_VIT):  # doctests import this file once more
    timm.models.register_model(tiny_vit_patch14)
