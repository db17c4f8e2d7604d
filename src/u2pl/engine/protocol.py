"""Named ways to score a network: what it sees of an image, and which pixels and classes count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from u2pl.config import Config
from u2pl.errors import UserError, nearest_name

Kind = Literal["whole", "slide", "center-crop"]
"""What is seen at once: the image, windows whose logits are averaged, or the image's middle."""

MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""What ``-ms`` behind a protocol's name means [R: DeepLabV3's; no paper of U2PL has one]."""

CLASS_SETS: dict[str, tuple[str, ...]] = {
    "synthia-16": (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "sky", "person", "rider", "car", "bus", "motorcycle", "bicycle",
    ),
    "synthia-13": (
        "road", "sidewalk", "building", "traffic light", "traffic sign", "vegetation", "sky",
        "person", "rider", "car", "bus", "motorcycle", "bicycle",
    ),
}  # fmt: skip
"""Of Cityscapes, those that SYNTHIA has, and these without wall, fence and pole: the two means that
papers on SYNTHIA → Cityscapes report as mIoU and mIoU*."""

_NAME = re.compile(r"(whole|slide|center-crop)(?:-(\d{1,5})(?:x(\d{1,5}))?)?(-ms)?(-flip)?")


@dataclass(frozen=True)
class Window:
    """A part of an image: rows ``top`` to ``bottom``, columns ``left`` to ``right``, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def scaled(self, old: tuple[int, int], new: tuple[int, int]) -> Window:
        """The same part of an image that was brought from one (height, width) to another.

        >>> Window(2, 8, 0, 10).scaled((10, 10), (20, 30))
        Window(top=4, bottom=16, left=0, right=30)
        """
        y, x = new[0] / old[0], new[1] / old[1]
        return Window(
            round(self.top * y), round(self.bottom * y), round(self.left * x), round(self.right * x)
        )


@dataclass(frozen=True)
class Protocol:
    """A way to score, with its numbers.

    Attributes:
        kind: what is seen at once.
        crop: (height, width) in pixels of the windows of ``slide``, or of the middle that
            ``center-crop`` sees and scores.
        stride_fraction: of the windows, as a fraction of a window.
        scales: sizes at which the image is seen, as factors; the probabilities are averaged.
        flip: at each of them also mirrored left and right.
    """

    kind: Kind = "whole"
    crop: tuple[int, int] = (512, 512)
    stride_fraction: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def has_views(self) -> bool:
        """Whether an image is seen more than once, at several sizes or mirrored."""
        return self.flip or self.scales != (1.0,)

    @property
    def name(self) -> str:
        """Without numbers, as ``--protocol`` takes it.

        >>> Protocol("slide", flip=True).name
        'slide-flip'
        """
        views = ("-ms" if self.scales != (1.0,) else "") + ("-flip" if self.flip else "")
        return self.kind + views

    @property
    def label(self) -> str:
        """With the numbers in which it differs from others, fit for a file's name.

        >>> Protocol("slide", crop=(769, 769)).label, Protocol("whole", scales=(1.0, 1.5)).label
        ('slide-769', 'whole-ms1+1.5')
        """
        parts: list[str] = [self.kind]
        if self.kind != "whole":
            parts.append("x".join(map(str, dict.fromkeys(self.crop))))
        if self.kind == "slide" and abs(self.stride_fraction - 2 / 3) > 1e-9:
            parts.append(f"stride{self.stride_fraction:g}")
        if self.scales != (1.0,):
            numbers = "+".join(f"{scale:g}" for scale in self.scales)
            parts.append("ms" if self.scales == MULTI_SCALES else f"ms{numbers}")
        return "-".join([*parts, *(["flip"] if self.flip else [])])

    def to_json(self) -> dict[str, Any]:
        """Every number, as a result states it; None where the kind has none."""
        stride = [max(1, round(side * self.stride_fraction)) for side in self.crop]
        return {
            "kind": self.kind,
            "crop": None if self.kind == "whole" else list(self.crop),
            "stride": stride if self.kind == "slide" else None,
            "scales": list(self.scales),
            "flip": self.flip,
        }


def protocol_of(config: Config) -> Protocol:
    """A run's own protocol."""
    settings = config.evaluation
    return Protocol(
        kind=settings.protocol,
        crop=settings.crop or config.data.crop,
        stride_fraction=settings.stride_fraction,
        scales=settings.scales,
        flip=settings.flip,
    )


def protocol_settings(name: str) -> dict[str, Any]:
    """What a protocol's name sets, by dotted key; what it does not say stays as it is.

    >>> protocol_settings("center-crop-513")["evaluation.crop"]
    (513, 513)

    Raises:
        UserError: (exit status 2) for a name that is none.
    """
    found = _NAME.fullmatch(name)
    if found is None or (found[1] == "whole" and found[2]):
        raise UserError(
            "Expected a protocol of whole, slide or center-crop, with a size and -ms, -flip or "
            f"-ms-flip behind it where wanted (slide-769, center-crop-513, whole-ms-flip), got "
            f"'{name}'.",
            exit_code=2,
        )
    settings: dict[str, Any] = {
        "evaluation.protocol": found[1],
        "evaluation.scales": MULTI_SCALES if found[4] else (1.0,),
        "evaluation.flip": found[5] is not None,
    }
    if found[2]:
        settings["evaluation.crop"] = (int(found[2]), int(found[3] or found[2]))
    return settings


def middle(images: Tensor, crop: tuple[int, int]) -> tuple[Tensor, Window, Window]:
    """The middle of images, as VOC was scored while U2PL trained [C].

    A side that is shorter than the crop is padded with black on both ends alike, as training
    pads; what is odd goes right and below, and what is left over when cutting too.

    Args:
        images: [B, 3, H, W].
        crop: (height, width).

    Returns:
        images [B, 3, *crop]; the part of the given images that they show; and where in them that
        part lies.
    """
    height, width = images.shape[-2:]
    pad_h, pad_w = max(crop[0] - height, 0), max(crop[1] - width, 0)
    top, left = max(height - crop[0], 0) // 2, max(width - crop[1], 0) // 2
    shown = Window(top, top + min(height, crop[0]), left, left + min(width, crop[1]))
    inside = Window(pad_h // 2, pad_h // 2 + shown.size[0], pad_w // 2, pad_w // 2 + shown.size[1])
    pixels = images[..., shown.top : shown.bottom, shown.left : shown.right]
    border = (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
    return F.pad(pixels, border), shown, inside


def at_scale(images: Tensor, scale: float) -> Tensor:
    """Images [B, 3, H, W] at another size, bilinear with antialias; sides are rounded."""
    if scale == 1:
        return images
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    return F.interpolate(
        images, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )


def scored_classes(
    wanted: Sequence[str] | None, classes: tuple[str, ...]
) -> tuple[int, ...] | None:
    """The ids of the classes that count in the mean.

    Args:
        wanted: names of classes, or of sets in :data:`CLASS_SETS`; None is all.
        classes: of the data set, in id order.

    Returns:
        Ids in ascending order; None where nothing is wanted.

    Raises:
        UserError: (exit status 2) for a name that the data set does not have.
    """
    if wanted is None:
        return None
    by_name = {name: i for i, name in enumerate(classes)}
    by_plain = {plain_name(name): i for i, name in enumerate(classes)}
    ids: set[int] = set()
    for name in wanted:
        members = CLASS_SETS[name] if name in CLASS_SETS and name not in by_name else (name,)
        for member in members:
            found = by_name.get(member)
            if found is None and members != (name,):
                found = by_plain.get(plain_name(member))
            if found is None:
                of_set = "" if members == (name,) else f" of the set '{name}'"
                raise UserError(
                    f"evaluation.classes: the data set has no class '{member}'{of_set}."
                    f"{nearest_name(member, [*classes, *CLASS_SETS])}",
                    exit_code=2,
                )
            ids.add(found)
    return tuple(sorted(ids))


def sets_within(
    scored: Sequence[int] | None, classes: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """The ids of each set of :data:`CLASS_SETS`, where the classes that count are the largest.

    Empty for any other data set, Cityscapes' own 19 classes included.
    """
    counted = [classes[i] for i in (range(len(classes)) if scored is None else scored)]
    plain = {plain_name(name) for name in counted}
    if plain != set(map(plain_name, CLASS_SETS["synthia-16"])):
        return {}
    ids = {name: scored_classes((name,), classes) for name in CLASS_SETS}
    return {name: members for name, members in ids.items() if members is not None}


def plain_name(name: str) -> str:
    """A class's name without case, blanks and signs, which data sets spell differently.

    >>> plain_name("Traffic light"), plain_name("tv/monitor")
    ('trafficlight', 'tvmonitor')
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())
