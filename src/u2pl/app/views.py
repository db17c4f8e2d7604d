"""What the page shows of an answer: pictures of a size that a browser likes, and texts."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image as Pictures

from u2pl.app.answers import PixelAnswer, class_shares
from u2pl.app.desk import Look
from u2pl.data.images import colorize, entropy_picture, overlay
from u2pl.data.windows import Image
from u2pl.engine.trained import ModelCard, Prediction

LONGEST_SIDE = 1600
"""Of a picture on the page, in pixels; downloads have the image's own size."""
SHORTEST_SIDE = 960
"""A longest side shorter than half of this is enlarged."""
KINDS = ("overlay", "mask", "entropy", "reliable", "image")
"""Pictures of an answer, in the page's order."""
SHOWN_CLASSES = 3
"""The likeliest ones of a pixel that are shown with their probabilities."""
RELIABLE, UNRELIABLE = (0, 114, 178), (230, 159, 0)
"""Blue and orange, which colour-blind people tell apart (Okabe and Ito)."""
_REACH = 12  # pixels around the chosen one that the magnifier shows
_MAGNIFIED = 8


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in which an image of this (height, width) is shown.

    A small one is enlarged by a whole number, a large one is reduced.

    >>> shown_size((480, 640)), shown_size((96, 128)), shown_size((8000, 4000))
    ((480, 640), (672, 896), (1600, 800))
    """
    longest = max(size)
    if longest <= LONGEST_SIDE:
        factor = max(1, SHORTEST_SIDE // longest)
        return factor * size[0], factor * size[1]
    scale = LONGEST_SIDE / longest
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def clicked_pixel(place: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The (row, column) of an image under a place (x, y) of the picture that shows it.

    >>> clicked_pixel((5, 7), (480, 640)), clicked_pixel((799, 0), (8000, 4000))
    ((7, 5), (0, 3995))
    """
    shown = shown_size(size)
    row, column = (
        min(at * full // part, full - 1)
        for at, full, part in zip(reversed(place), size, shown, strict=True)
    )
    return row, column


def pictures(look: Look) -> dict[str, Image]:
    """Each kind of picture, RGB [h, w, 3] uint8 in the size to show."""
    image, prediction, card = look.labeled.image, look.labeled.prediction, look.chosen.model.card
    size = shown_size((image.shape[0], image.shape[1]))
    small = Prediction(
        mask=_thinned(prediction.mask, size),
        entropy=_averaged(prediction.entropy, size),
        reliable=_thinned(prediction.reliable, size),
    )
    photo = _averaged(image, size)
    return {
        "overlay": overlay(photo, small.mask, card.colors),
        "mask": colorize(small.mask, card.colors),
        "entropy": entropy_picture(small.entropy, len(card.classes)),
        "reliable": reliable_picture(photo, small.reliable),
        "image": photo,
    }


def reliable_picture(image: Image, reliable: npt.NDArray[np.bool_]) -> Image:
    """An image in grey, blue where reliable and orange where not."""
    grey = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    colors = (UNRELIABLE, RELIABLE)
    return overlay(np.repeat(grey[..., None], 3, axis=2), reliable.astype(np.uint8), colors)


def _thinned(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """The values [H, W] at the middle of each pixel of a picture of another size."""
    if values.shape[:2] == size:
        return values
    rows, columns = (
        ((np.arange(part) + 0.5) * full / part).astype(np.int64)
        for part, full in zip(size, values.shape, strict=False)
    )
    return values[np.ix_(rows, columns)]


def _averaged(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """The mean of the values [H, W] or [H, W, 3] under each pixel of a smaller picture.

    In a larger one each value is as many pixels.
    """
    if values.shape[0] <= size[0]:
        return _thinned(values, size)
    picture = Pictures.fromarray(values)
    return np.asarray(picture.resize((size[1], size[0]), Pictures.Resampling.BOX))


class ClassRow(NamedTuple):
    """A class in a text.

    Attributes:
        name: of the class.
        color: for CSS.
        text: a percentage.
        width: of a bar, in percent.
        more: a second percentage.
    """

    name: str
    color: str
    text: str
    width: float
    more: str = ""


def legend(look: Look) -> str:
    """HTML: which classes the image has, how much of each, and how much of that is reliable."""
    card, prediction = look.chosen.model.card, look.labeled.prediction
    shares = class_shares(prediction, len(card.classes))
    rows = [
        _row(card, share.class_id, share.share, more=percent(share.reliable_share))
        for share in shares
    ]
    present = {share.class_id for share in shares}
    absent = [
        _row(card, class_id, 0.0)
        for class_id in range(len(card.classes))
        if class_id not in present
    ]
    return _render("legend.html.j2", rows=rows, absent=absent)


def headline(look: Look) -> str:
    """HTML: the image, the network that was asked, and how much of its answer is reliable."""
    (run, weights, _), card, upload = look.choice, look.chosen.model.card, look.upload
    height, width = upload.image.shape[:2]
    how = "whole" if card.protocol == "whole" else f"in windows of {card.crop[1]} × {card.crop[0]}"
    scale = f"with its short side at {card.resize}" if card.resize else "at its own size"
    return _render(
        "headline.html.j2",
        name=upload.name,
        size=f"{width} × {height}",
        share=percent(float(look.labeled.prediction.reliable.mean())),
        network=f"{'teacher' if weights == 'ema' else weights} of {run}, step {card.step}",
        seen=f"{how}, {scale}",
        notes=upload.notes,
    )


def scales(look: Look) -> dict[str, str]:
    """HTML below the pictures of entropy and of reliability: what their colours mean."""
    card, prediction = look.chosen.model.card, look.labeled.prediction
    most = math.log(len(card.classes))
    place = 100 * min(max(card.reliable_entropy / most, 0.0), 1.0)
    reliable = float(prediction.reliable.mean())
    ramp = entropy_picture(np.linspace(0, most, 16)[None], len(card.classes))[0]
    return {
        "entropy": _render(
            "entropy.html.j2",
            colors=[css(color) for color in ramp],
            most=f"{most:.2f}",
            threshold=f"{card.reliable_entropy:.3f}",
            place=place,
        ),
        "reliable": _render(
            "reliable.html.j2",
            reliable=(css(RELIABLE), percent(reliable)),
            unreliable=(css(UNRELIABLE), percent(1 - reliable)),
            threshold=f"{card.reliable_entropy:.3f}",
        ),
    }


def answer(look: Look, pixel: PixelAnswer) -> str:
    """HTML: what the network says of a pixel."""
    card = look.chosen.model.card
    order = pixel.by_rank
    excluded = [_row(card, c, pixel.probs[c]) for c in order if pixel.excluded[c]]
    first, last = look.chosen.ranks
    return _render(
        "answer.html.j2",
        pixel=pixel,
        top=[_row(card, c, pixel.probs[c]) for c in order[:SHOWN_CLASSES]],
        rest=[_row(card, c, pixel.probs[c]) for c in order[SHOWN_CLASSES:]],
        excluded=excluded,
        entropy=f"{pixel.entropy:.3f}",
        threshold=f"{card.reliable_entropy:.3f}",
        ranks=(first, last - 1, len(order) - 1),
        magnified=magnified(look, pixel.row, pixel.column),
    )


def magnified(look: Look, row: int, column: int) -> dict[str, str]:
    """The pixel among its neighbours, of the image and of the mask, as data URIs of PNG."""
    image, mask = look.labeled.image, look.labeled.prediction.mask
    top, left = (
        max(0, min(at - _REACH, full - 2 * _REACH - 1))
        for at, full in zip((row, column), mask.shape, strict=True)
    )
    part = (slice(top, top + 2 * _REACH + 1), slice(left, left + 2 * _REACH + 1))
    crops = {
        "image": image[part],
        "mask": colorize(mask[part], look.chosen.model.card.colors),
    }
    return {name: _data_uri(crop, row - top, column - left) for name, crop in crops.items()}


def _data_uri(crop: Image, row: int, column: int) -> str:
    """A few pixels, large, with a frame around one of them."""
    large = crop.repeat(_MAGNIFIED, axis=0).repeat(_MAGNIFIED, axis=1)
    for width, color in ((2, 0), (1, 255)):  # white within black shows on any colour
        top, left = row * _MAGNIFIED, column * _MAGNIFIED
        inside = large[top : top + _MAGNIFIED, left : left + _MAGNIFIED].copy()
        outer = (
            slice(max(top - width, 0), top + _MAGNIFIED + width),
            slice(max(left - width, 0), left + _MAGNIFIED + width),
        )
        large[outer] = color
        large[top : top + _MAGNIFIED, left : left + _MAGNIFIED] = inside
    file = io.BytesIO()
    Pictures.fromarray(large).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def welcome() -> str:
    """HTML: what the page is for, while no image is chosen."""
    return _render("welcome.html.j2")


def hint() -> str:
    """HTML: what to do while no pixel is chosen."""
    return _render("hint.html.j2")


def problem(sentence: str) -> str:
    """HTML: what went wrong."""
    return _render("problem.html.j2", sentence=sentence)


def _row(card: ModelCard, class_id: int, share: float, *, more: str = "") -> ClassRow:
    return ClassRow(
        name=card.classes[class_id],
        color=css(card.colors[class_id]),
        text=percent(share),
        width=round(100 * share, 1),
        more=more,
    )


def css(color: Sequence[int] | npt.NDArray[np.uint8]) -> str:
    """A colour as CSS writes it.

    >>> css((230, 159, 0))
    '#e69f00'
    """
    red, green, blue = (int(channel) for channel in color)
    return f"#{red:02x}{green:02x}{blue:02x}"


def percent(share: float) -> str:
    """A share of 0 to 1 as text; what is not nothing, or not all, never reads as if it were.

    >>> percent(0.123), percent(0), percent(0.0001), percent(0.99999), percent(1)
    ('12.3 %', '0 %', '< 0.1 %', '> 99.9 %', '100 %')
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("u2pl.app"),
        autoescape=True,  # names of classes and files are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
