"""Where in an image a tag classifier sees each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from u2pl.weak.classifier import TagClassifier


@torch.no_grad()
def class_activation_maps(
    model: TagClassifier,
    images: Tensor,
    possible_classes: Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
    scores: Literal["relative", "probability"] = "relative",
) -> Tensor:
    """Class activation maps (Zhou et al., CVPR 2016) over several sizes and both mirrorings.

    The maps of all views are brought to the images' size (bilinear, ``align_corners=False``).
    *Relative* scores are their sum, cut off below 0 and divided by each class's own maximum in the
    image. *Probabilities* are the sigmoid of their mean: where no class is a background, and one
    of the tagged ones stands at every pixel, a map below 0 still says which is likelier. Images
    are resized to whole cells of the classifier's grid, so that a view needs no padding.

    Args:
        model: put into evaluation mode by the caller.
        images: [B, 3, H, W] floating, RGB in [0, 1].
        possible_classes: [B, C] bool, the classes to map.
        scales: factors of the views' sizes.
        flip: also look at each view mirrored left and right.
        scores: what is made of the maps.

    Returns:
        [B, C, H, W] in [0, 1], 0 everywhere for classes that are not possible. Relative scores are
        1 at the maximum of a possible class, and 0 for one that the classifier sees nowhere.
    """
    height, width = images.shape[-2:]
    maps = images.new_zeros(*possible_classes.shape, height, width)
    for scale in scales:
        size = [max(1, round(n * scale / model.stride)) * model.stride for n in (height, width)]
        view = F.interpolate(
            images, size=size, mode="bilinear", align_corners=False, antialias=True
        )
        seen = model(view).maps
        if flip:
            seen = seen + model(view.flip(-1)).maps.flip(-1)
        maps += F.interpolate(seen, size=(height, width), mode="bilinear", align_corners=False)
    if scores == "probability":
        views = len(scales) * (2 if flip else 1)
        return (maps / views).sigmoid() * possible_classes[..., None, None]
    maps = maps.relu() * possible_classes[..., None, None]
    highest = maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0)
