from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny import tiny_config
from u2pl.engine.protocol import (
    CLASS_SETS,
    MULTI_SCALES,
    Protocol,
    at_scale,
    middle,
    protocol_of,
    protocol_settings,
    scored_classes,
    sets_within,
)
from u2pl.errors import UserError

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "crop", "scales", "flip"),
    [
        ("whole", "whole", None, (1.0,), False),
        ("whole-ms-flip", "whole", None, MULTI_SCALES, True),
        ("slide-769", "slide", (769, 769), (1.0,), False),
        ("slide-512x1024-flip", "slide", (512, 1024), (1.0,), True),
        ("center-crop-513", "center-crop", (513, 513), (1.0,), False),
        ("center-crop-ms", "center-crop", None, MULTI_SCALES, False),
    ],
)
def test_name_of_a_protocol_sets_its_numbers(
    name: str, kind: str, crop: Any, scales: tuple[float, ...], flip: bool
) -> None:
    config = tiny_config(evaluation__flip=True, evaluation__scales=[2.0])
    protocol = protocol_of(config.with_overrides(protocol_settings(name)))
    assert protocol == Protocol(kind, crop or (32, 32), 2 / 3, scales, flip)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["", "center", "whole-513", "slide-", "slide-0x", "whole-flip-ms", "center-crop-513px"]
)
def test_name_that_is_no_protocol_is_told(name: str) -> None:
    with pytest.raises(UserError, match=rf"slide-769, .* got '{name}'\.$") as caught:
        protocol_settings(name)
    assert caught.value.exit_code == 2


def test_size_of_nothing_is_told_by_its_setting() -> None:
    with pytest.raises(UserError, match=r"evaluation\.crop"):
        tiny_config().with_overrides(protocol_settings("slide-0"))


@pytest.mark.parametrize(
    ("protocol", "name", "label"),
    [
        (Protocol("whole", crop=(9, 9), stride_fraction=0.5), "whole", "whole"),
        (Protocol("slide", crop=(769, 769)), "slide", "slide-769"),
        (Protocol("slide", (8, 9), 0.5, flip=True), "slide-flip", "slide-8x9-stride0.5-flip"),
        (Protocol(scales=MULTI_SCALES, flip=True), "whole-ms-flip", "whole-ms-flip"),
        (Protocol("center-crop", (5, 5), 1, (0.5, 1.0)), "center-crop-ms", "center-crop-5-ms0.5+1"),
    ],
)
def test_label_tells_protocols_apart(protocol: Protocol, name: str, label: str) -> None:
    assert (protocol.name, protocol.label) == (name, label)


def test_numbers_of_a_result_are_those_that_count() -> None:
    numbers = Protocol("slide", crop=(769, 769)).to_json()
    assert numbers == {
        "kind": "slide", "crop": [769, 769], "stride": [513, 513], "scales": [1.0], "flip": False
    }  # fmt: skip
    assert Protocol("whole").to_json()["crop"] is None
    assert Protocol("center-crop").to_json()["stride"] is None


@pytest.mark.parametrize("size", [(7, 12), (12, 7), (5, 6), (12, 13), (4, 4)])
def test_middle_is_that_of_the_published_code(size: tuple[int, int]) -> None:
    """Pad by half of what is missing, rounded down, before; then cut from half of what is over."""
    crop = (8, 9)
    images = torch.rand(1, 3, *size)
    pad_h, pad_w = max(crop[0] - size[0], 0), max(crop[1] - size[1], 0)
    before_h, before_w = int(pad_h / 2), int(pad_w / 2)
    padded = torch.zeros(1, 3, size[0] + pad_h, size[1] + pad_w)
    valid = torch.zeros(padded.shape[-2:], dtype=torch.bool)
    padded[..., before_h : before_h + size[0], before_w : before_w + size[1]] = images
    valid[before_h : before_h + size[0], before_w : before_w + size[1]] = True
    y, x = (padded.shape[2] - crop[0]) // 2, (padded.shape[3] - crop[1]) // 2
    expected = padded[..., y : y + crop[0], x : x + crop[1]]

    seen, shown, inside = middle(images, crop)
    assert torch.equal(seen, expected)
    part = seen[..., inside.top : inside.bottom, inside.left : inside.right]
    assert torch.equal(part, images[..., shown.top : shown.bottom, shown.left : shown.right])
    kept = torch.zeros(crop, dtype=torch.bool)
    kept[inside.top : inside.bottom, inside.left : inside.right] = True
    assert torch.equal(kept, valid[y : y + crop[0], x : x + crop[1]])


def test_image_at_its_own_scale_is_the_image() -> None:
    images = torch.rand(1, 3, 9, 11)
    assert at_scale(images, 1.0) is images
    assert at_scale(images, 1.5).shape == (1, 3, 14, 16)
    assert at_scale(images, 0.01).shape == (1, 3, 1, 1)


# classes


def test_sets_of_synthia_are_cityscapes_without_what_it_lacks() -> None:
    ids = scored_classes(["synthia-16"], CITYSCAPES)
    assert ids is not None
    assert [CITYSCAPES[i] for i in ids] == list(CLASS_SETS["synthia-16"])
    assert set(CITYSCAPES) - set(CLASS_SETS["synthia-16"]) == {"terrain", "truck", "train"}
    assert set(CLASS_SETS["synthia-16"]) - set(CLASS_SETS["synthia-13"]) == {
        "wall", "fence", "pole"
    }  # fmt: skip


def test_classes_are_counted_once_and_in_their_order() -> None:
    assert scored_classes(["c", "a", "c"], ("a", "b", "c")) == (0, 2)
    assert scored_classes(None, ("a", "b")) is None


def test_set_finds_classes_that_are_spelled_otherwise() -> None:
    names = tuple(name.replace(" ", "_").title() for name in CITYSCAPES)
    assert scored_classes(["synthia-13"], names) == scored_classes(["synthia-13"], CITYSCAPES)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [("roads", r"no class 'roads'\. Did you mean 'road'\?"), ("Road", "no class 'Road'")],
)
def test_class_that_is_not_there_is_told(wanted: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        scored_classes([wanted], CITYSCAPES)
    assert caught.value.exit_code == 2


def test_set_that_a_data_set_lacks_a_class_of_is_told() -> None:
    with pytest.raises(UserError, match="no class 'sidewalk' of the set 'synthia-16'"):
        scored_classes(["synthia-16"], ("road", "wall"))


def test_both_means_of_synthia_are_given_where_the_sixteen_count() -> None:
    sixteen = CLASS_SETS["synthia-16"]
    for scored, classes in ((None, sixteen), (scored_classes(sixteen, CITYSCAPES), CITYSCAPES)):
        sets = sets_within(scored, classes)
        assert {name: len(ids) for name, ids in sets.items()} == {
            "synthia-16": 16,
            "synthia-13": 13,
        }
        assert tuple(classes[i] for i in sets["synthia-13"]) == CLASS_SETS["synthia-13"]
    assert sets_within(None, CITYSCAPES) == {}
    assert sets_within(None, ("road", "car")) == {}
