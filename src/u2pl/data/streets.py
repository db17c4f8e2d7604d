"""Street scenes painted on the spot: images with exact masks, for the demo and for tests.

A scene is laid out in metres on a ground plane, seen through a pinhole camera and painted from
far to near, so that size, occlusion, shadow and haze agree. Colour says little about the class on
purpose (grey cars on grey roads, green signs before trees, brick buildings beside red cars):
shape, texture and place say it, and those are the same in every colour. A handful of labelled
scenes therefore does not show all that a class may look like, many unlabelled ones do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from u2pl.errors import UserError, nearest_name

CLASSES: tuple[str, ...] = (
    "sky", "building", "road", "pavement", "tree", "car", "person", "pole", "sign",
)  # fmt: skip
"""Class names in the order of their ids."""

COLORS: tuple[tuple[int, int, int], ...] = (
    (70, 130, 180), (70, 70, 70), (128, 64, 128), (244, 35, 232), (107, 142, 35),
    (0, 0, 142), (220, 20, 60), (153, 153, 153), (220, 220, 0),
)  # fmt: skip
"""RGB in 0..255 in which a class is shown, in the order of the ids."""

IGNORE_INDEX = 255
"""The id of a pixel without a label; only ``void_border`` paints it."""

_SKY, _BUILDING, _ROAD, _PAVEMENT, _TREE, _CAR, _PERSON, _POLE, _SIGN = range(len(CLASSES))
_PLAIN, _PLASTER, _BRICK, _BLOCKS, _BOARDS, _ASPHALT, _PAVING, _LEAVES, _BARK, _CLOTH = range(10)

_MIN_SIDE = 32  # pixels; below, people and poles vanish
_OVERSAMPLING = 2  # painted at twice the size, then averaged: edges come out soft
_TILE = 256  # side in pixels of a texture, which repeats
_HAZE_LENGTH = 45.0  # metres in which haze hides 63 % of what it can hide
_FAR = 95.0  # metres to the backdrop

_Color = tuple[int, int, int]
_Point = tuple[float, float]
_Floats = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Palette:
    """The colours that scenes draw from: sky as (zenith, horizon, cloud), the rest one by one.

    The first ones are the plainest: a style of little variety draws from them alone.
    """

    skies: tuple[tuple[_Color, _Color, _Color], ...]
    buildings: tuple[_Color, ...]
    trees: tuple[_Color, ...]
    roads: tuple[_Color, ...]
    pavements: tuple[_Color, ...]


_PALETTES = {
    "midday": _Palette(
        skies=(
            ((70, 130, 205), (180, 212, 238), (248, 248, 250)),
            ((38, 105, 190), (125, 185, 232), (255, 255, 255)),
            ((160, 168, 178), (203, 208, 212), (128, 135, 145)),
            ((208, 212, 216), (236, 236, 234), (182, 186, 192)),
            ((112, 122, 134), (168, 168, 166), (82, 88, 98)),
            ((150, 190, 212), (242, 226, 190), (250, 238, 225)),
            ((92, 108, 168), (246, 178, 122), (250, 205, 170)),
        ),
        buildings=(
            (152, 74, 58), (196, 120, 88), (222, 204, 168), (232, 228, 220), (128, 128, 130),
            (92, 96, 104), (214, 178, 92), (128, 152, 178), (132, 158, 128), (216, 160, 156),
            (108, 82, 66), (72, 102, 124), (176, 182, 180), (184, 48, 44), (62, 64, 70),
        ),
        trees=(
            (58, 104, 44), (38, 76, 40), (96, 134, 52), (138, 150, 58), (78, 102, 82),
            (182, 132, 44), (168, 82, 38), (122, 50, 42), (214, 162, 178), (104, 96, 72),
        ),
        roads=(
            (92, 92, 94), (66, 66, 70), (84, 92, 106), (98, 90, 82), (124, 122, 118),
            (152, 148, 140), (132, 96, 84), (176, 170, 158),
        ),
        pavements=(
            (186, 182, 172), (152, 150, 146), (192, 172, 136), (168, 122, 106), (206, 200, 190),
            (136, 142, 152), (114, 112, 112), (88, 88, 92),
        ),
    ),
    "evening": _Palette(
        skies=(
            ((40, 38, 84), (250, 132, 72), (190, 90, 96)),
            ((28, 48, 92), (122, 132, 176), (74, 78, 122)),
            ((70, 52, 108), (226, 140, 158), (146, 92, 142)),
            ((56, 62, 76), (112, 112, 122), (42, 46, 58)),
            ((22, 62, 88), (166, 178, 142), (62, 92, 106)),
            ((16, 18, 38), (44, 48, 76), (34, 36, 58)),
        ),
        buildings=(
            (84, 92, 118), (120, 110, 132), (72, 66, 82), (146, 132, 122), (98, 62, 66),
            (56, 72, 92), (166, 150, 158), (112, 92, 72), (64, 88, 90), (136, 88, 78),
        ),
        trees=(
            (32, 56, 52), (52, 66, 42), (92, 62, 44), (44, 48, 62), (78, 88, 52), (112, 76, 82),
        ),
        roads=(
            (70, 72, 84), (54, 54, 66), (96, 92, 102), (118, 106, 104), (82, 92, 112),
        ),
        pavements=(
            (112, 112, 124), (142, 134, 134), (84, 84, 98), (128, 102, 98), (150, 146, 160),
        ),
    ),
}  # fmt: skip

_CAR_COLORS: tuple[_Color, ...] = (
    (28, 28, 32), (68, 70, 76), (232, 232, 230), (158, 26, 30), (38, 62, 132), (112, 148, 188),
    (224, 182, 48), (36, 82, 56), (112, 114, 118), (164, 166, 170), (206, 98, 36), (120, 84, 58),
    (196, 186, 160), (98, 34, 60),
)  # fmt: skip
_CLOTHES: tuple[_Color, ...] = (
    (30, 32, 38), (72, 74, 82), (42, 56, 98), (88, 118, 158), (150, 38, 42), (214, 208, 198),
    (72, 98, 58), (196, 158, 58), (148, 112, 82), (206, 112, 138), (232, 118, 36), (98, 58, 112),
    (134, 134, 138),
)  # fmt: skip
_SKINS: tuple[_Color, ...] = ((236, 196, 170), (204, 156, 124), (150, 106, 78), (92, 62, 46))
_POLE_COLORS: tuple[_Color, ...] = (
    (58, 60, 64), (128, 130, 132), (188, 190, 190), (36, 66, 52), (112, 82, 58), (224, 222, 216),
    (36, 38, 44), (146, 60, 48),
)  # fmt: skip
_SIGN_COLORS: tuple[_Color, ...] = (
    (198, 30, 36), (36, 82, 172), (24, 112, 72), (238, 200, 40), (240, 240, 236), (226, 118, 32),
    (58, 58, 62),
)  # fmt: skip
_GLASS: tuple[_Color, ...] = (
    (40, 46, 56), (74, 88, 104), (122, 142, 160), (172, 194, 212), (58, 52, 48), (96, 102, 100),
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How scenes look; what stands in them, and where, is the same in every style.

    Attributes:
        palette: ``midday`` or ``evening``: the colours of sky, ground, buildings and trees.
        light: mean brightness as a factor; 1 leaves the colours as painted.
        light_spread: half-width of the brightness range over scenes, as a fraction of ``light``.
        saturation: factor on the colourfulness; 0 is grey.
        hue_shift: rotation of all hues in degrees.
        warmth: in [-1, 1]: added to the red gain and taken from the blue one.
        texture: factor on the strength of bricks, asphalt grain and leaves; 0 paints flat colours.
        haze: in [0, 1]: the most that haze hides of a thing at infinite distance.
        noise: standard deviation of the sensor noise in [0, 1] units of brightness.
        variety: in (0, 1]: the share of the palette's colours in use.
        clutter: factor on the number of billboards, graffiti, puddles and patches.
        lit: in [0, 1]: the share of windows and lamps that shine.
    """

    palette: str = "midday"
    light: float = 1.0
    light_spread: float = 0.22
    saturation: float = 0.95
    hue_shift: float = 0.0
    warmth: float = 0.0
    texture: float = 1.0
    haze: float = 0.5
    noise: float = 0.012
    variety: float = 1.0
    clutter: float = 1.0
    lit: float = 0.04


STYLES: dict[str, Style] = {
    "day": Style(),
    "clear": Style(variety=0.5, light_spread=0.12, clutter=0.6),
    "plain": Style(variety=0.25, light_spread=0.08, clutter=0.4, noise=0.008),
    "dusk": Style(
        palette="evening",
        light=0.95,
        saturation=0.85,
        hue_shift=-6.0,
        warmth=-0.06,
        texture=0.8,
        haze=0.8,
        noise=0.035,
        lit=0.4,
    ),
}
"""The named looks: ``day``; ``clear``, the same with fewer colours and steadier light, which a
small net can learn in minutes; ``plain``, with fewer still, of which it can learn things from
their names alone; and ``dusk``, a shifted domain with the same classes and layout."""


@dataclass(frozen=True)
class _Camera:
    """A pinhole above the ground plane. Metres: x to the right, y up, z away from the viewer."""

    focal: float  # pixels
    center: float  # u of the vanishing point, pixels
    horizon: float  # v of the horizon, pixels
    height: float  # metres
    roll: float  # v gained for each u
    bend: float  # the street curves: metres to the right for each squared metre away

    def project(self, x: float, y: float, z: float) -> _Point:
        """Return (u, v) in pixels; z must be positive."""
        du = self.focal * (x + self.bend * z * z) / z
        return self.center + du, self.horizon + self.focal * (self.height - y) / z + self.roll * du


@dataclass(frozen=True)
class _Street:
    """The cross-section of the street, as x in metres from left to right, and what it lacks.

    Nearly every class is missing from some scenes, so that tags of an image tell something.
    """

    left_front: float
    left_curb: float
    right_curb: float
    right_front: float
    crossing: tuple[float, float] | None  # z of a crossing street's near and far edge
    has_road: bool  # not on a square
    has_pavement: bool  # not on a car park
    has_houses: bool  # not in a park
    has_woods: bool  # on the skyline
    wall: float | None  # z of a house that closes the view; no sky is seen above it


@dataclass(frozen=True)
class _Scene:
    """All that the painters share: the canvas, the camera, the street, the style and the chance.

    ``image`` holds the colours; ``codes`` holds, at the same pixels, the label, the texture, the
    distance and the glow. Every stroke goes to both, so that image and mask cannot part.
    """

    image: ImageDraw.ImageDraw
    codes: ImageDraw.ImageDraw
    size: tuple[int, int]  # (height, width) of the canvas in pixels
    camera: _Camera
    street: _Street
    style: Style
    palette: _Palette
    rng: np.random.Generator
    sun: float  # -1: it shines from the left, 1: from the right

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        """Return a uniform number."""
        return low + (high - low) * float(self.rng.random())

    def vary(self, colors: Sequence[_Color], spread: float = 0.12) -> _Color:
        """Return one of the colours, a little lighter, darker and tinted."""
        color = colors[int(self.rng.integers(math.ceil(len(colors) * self.style.variety)))]
        gain = 1 + self.between(-spread, spread)
        red, green, blue = (c * gain + self.between(-60, 60) * spread for c in color)
        return _clip(red), _clip(green), _clip(blue)

    def polygon(self, points: Sequence[_Point], color: _Color, paint: _Paint) -> None:
        """Fill a polygon."""
        self.image.polygon(points, fill=color)
        self.codes.polygon(points, fill=paint)

    def disc(self, center: _Point, radius: _Point, color: _Color, paint: _Paint) -> None:
        """Fill an ellipse with the two radii, in pixels, along u and v."""
        (u, v), (ru, rv) = center, radius
        box = (u - ru, v - rv, u + ru, v + rv)
        self.image.ellipse(box, fill=color)
        self.codes.ellipse(box, fill=paint)

    def line(self, points: Sequence[_Point], width: float, color: _Color, paint: _Paint) -> None:
        """Draw a stroke of at least two canvas pixels, one pixel of the finished image."""
        pixels = max(2, round(width))
        self.image.line(points, fill=color, width=pixels)
        self.codes.line(points, fill=paint, width=pixels)


class _Paint(NamedTuple):
    """What a stroke writes beside its colour; each in 0..255."""

    label: int
    texture: int
    distance: int
    glow: int = 0


class _Thing(NamedTuple):
    """Something that stands on the ground, still to be painted; metres."""

    x: float
    z: float
    width: float
    length: float  # along z
    height: float
    paint: Callable[[], None]


def paint_scene(
    *,
    size: tuple[int, int] = (96, 96),
    style: Style = STYLES["day"],
    generator: np.random.Generator,
    void_border: bool = False,
) -> tuple[_Bytes, _Bytes]:
    """Paint one street scene and its mask.

    Args:
        size: height and width in pixels, each at least 32.
        style: the look; one of :data:`STYLES` or your own.
        generator: the only source of chance: the same state paints the same scene.
        void_border: give the pixels along class borders, one pixel wide, the id 255.

    Returns:
        The image, [H, W, 3] uint8 RGB, and the mask, [H, W] uint8 of ids of :data:`CLASSES`.

    Raises:
        UserError: where the size is too small or the style names an unknown palette.

    >>> image, mask = paint_scene(size=(64, 96), generator=np.random.default_rng(0))
    >>> image.shape, mask.shape
    ((64, 96, 3), (64, 96))
    """
    check_size(size)
    if style.palette not in _PALETTES:
        raise UserError(
            f"Expected a palette out of {', '.join(_PALETTES)}, got '{style.palette}'; "
            f"choose one of them.{nearest_name(style.palette, _PALETTES)}"
        )
    canvas_size = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    palette = _PALETTES[style.palette]
    camera = _place_camera(generator, canvas_size)
    num_skies = math.ceil(len(palette.skies) * style.variety)
    sky, haze_color = _sky(generator, palette.skies[:num_skies], canvas_size, camera.horizon)
    codes = Image.new("RGBA", (canvas_size[1], canvas_size[0]), _Paint(_SKY, _PLAIN, 0))
    scene = _Scene(
        image=ImageDraw.Draw(sky),
        codes=ImageDraw.Draw(codes),
        size=canvas_size,
        camera=camera,
        street=_lay_out_street(generator),
        style=style,
        palette=palette,
        rng=generator,
        sun=float(generator.uniform(-1, 1)),
    )
    things = _place_things(scene)
    _paint_backdrop(scene)
    _paint_ground(scene)
    _cast_shadows(scene, sky, things)
    _paint_standing(scene, things)
    image, mask = _develop(scene, np.asarray(sky), np.asarray(codes), haze_color)
    if void_border:
        mask = _with_void_border(mask)
    return image, mask


def check_size(size: tuple[int, int]) -> None:
    """Refuse a size in which little would be seen."""
    if min(size) < _MIN_SIDE:
        raise UserError(
            f"Expected scenes of at least {_MIN_SIDE} x {_MIN_SIDE} pixels, "
            f"got {size[0]} x {size[1]}; choose a larger size."
        )


def _clip(value: float) -> int:
    """Round to a byte."""
    return min(255, max(0, round(value)))


def _shade(color: _Color, gain: float) -> _Color:
    """Multiply a colour."""
    return _clip(color[0] * gain), _clip(color[1] * gain), _clip(color[2] * gain)


def _at(label: int, texture: int, z: float, *, glow: float = 0.0) -> _Paint:
    """Return the paint of something z metres away; ``glow`` in [0, 1] is light of its own."""
    return _Paint(label, texture, _clip(255 * (1 - math.exp(-z / _HAZE_LENGTH))), _clip(255 * glow))


def _value_noise(rng: np.random.Generator, cells: int) -> _Floats:
    """Return smooth noise of about unit size that repeats at the tile's edges, [_TILE, _TILE]."""
    border, step = 2, _TILE // cells
    grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), border, mode="wrap")
    side = (cells + 2 * border) * step
    big = np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))
    return big[border * step :, border * step :][:_TILE, :_TILE]


def _masonry(rng: np.random.Generator, width: int, height: int) -> _Floats:
    """Return bricks of the given size in pixels: a tone each, light joints, shifted rows."""
    rows, columns = np.mgrid[:_TILE, :_TILE]
    course = rows // height
    shifted = (columns + course % 2 * (width // 2)) % _TILE
    tones = rng.standard_normal((_TILE // height, _TILE // width)) * 0.09
    joint = (rows % height == 0) | (shifted % width == 0)
    return np.where(joint, 0.16, tones[course, shifted // width]).astype(np.float32)


@lru_cache(maxsize=1)
def _textures() -> tuple[_Floats, _Floats]:
    """Return the relative brightness of each texture, [10, _TILE, _TILE], and the clouds."""
    rng = np.random.default_rng(20220608)  # fixed: textures are part of the world, not of a scene
    grain = rng.standard_normal((_TILE, _TILE)).astype(np.float32)
    noise = {cells: _value_noise(rng, cells) for cells in (4, 8, 16, 32, 64, 128)}
    boards = np.broadcast_to(np.where(np.arange(_TILE) % 6 == 0, -0.16, 0.03), (_TILE, _TILE))
    stack = np.zeros((10, _TILE, _TILE), np.float32)
    stack[_PLAIN] = 0.02 * grain
    stack[_PLASTER] = 0.06 * noise[8] + 0.05 * noise[32] + 0.03 * grain
    stack[_BRICK] = _masonry(rng, 8, 4) + 0.05 * noise[16]
    stack[_BLOCKS] = _masonry(rng, 16, 8) + 0.05 * noise[8]
    stack[_BOARDS] = boards + 0.04 * noise[32]
    stack[_ASPHALT] = 0.11 * grain + 0.05 * noise[8] + 0.03 * noise[64]
    stack[_PAVING] = 0.04 * grain + 0.07 * noise[64] + 0.04 * noise[16]
    stack[_LEAVES] = 0.16 * noise[128] + 0.17 * noise[64] + 0.08 * noise[16]
    stack[_BARK] = 0.1 * noise[64] + 0.08 * grain
    stack[_CLOTH] = 0.07 * noise[64] + 0.03 * grain
    clouds = noise[4] + 0.6 * noise[8] + 0.35 * noise[16] + 0.15 * noise[32]
    return stack, clouds


def _place_camera(rng: np.random.Generator, size: tuple[int, int]) -> _Camera:
    """Choose the viewpoint."""
    height, width = size
    return _Camera(
        focal=float(rng.uniform(0.75, 1.15)) * min(height, width),
        center=float(rng.uniform(0.3, 0.7)) * width,
        horizon=float(rng.uniform(0.34, 0.58)) * height,
        height=float(rng.uniform(1.4, 2.9)),
        roll=float(rng.normal(0, 0.025)),
        bend=float(rng.normal(0, 0.003)),
    )


def _lay_out_street(rng: np.random.Generator) -> _Street:
    """Choose the street; the viewer, at x = 0, stands on the road or on a pavement."""
    width = float(rng.uniform(5, 11))
    left = -width * float(rng.uniform(0.05, 0.95))
    if rng.random() < 0.25:  # seen from the pavement on either side
        left = float(rng.choice([-width - 1.2, 1.2]))
    near = float(rng.uniform(12, 35))
    crossing = (near, near + float(rng.uniform(5, 9)))
    surface = rng.random()
    has_houses = bool(rng.random() < 0.82)
    return _Street(
        left_front=left - float(rng.uniform(2, 6)),
        left_curb=left,
        right_curb=left + width,
        right_front=left + width + float(rng.uniform(2, 6)),
        crossing=crossing if rng.random() < 0.35 else None,
        has_road=bool(surface > 0.08),
        has_pavement=bool(surface < 0.92),
        has_houses=has_houses,
        has_woods=bool(rng.random() < 0.4) or not has_houses,
        wall=float(rng.uniform(14, 32)) if has_houses and rng.random() < 0.14 else None,
    )


def _sky(
    rng: np.random.Generator,
    skies: Sequence[tuple[_Color, _Color, _Color]],
    size: tuple[int, int],
    horizon: float,
) -> tuple[Image.Image, _Color]:
    """Return a sky with clouds that fills the canvas, and the colour of haze below it."""
    height, width = size
    zenith, low, cloud = skies[int(rng.integers(len(skies)))]
    ramp = np.clip(np.arange(height) / (horizon * 1.05), 0, 1) ** rng.uniform(0.6, 1.8)
    clouds = _textures()[1]
    # Stretched sideways, as clouds are when seen from below at a slant.
    rows = ((np.arange(height) * rng.uniform(0.6, 1.6)).astype(int) + rng.integers(_TILE)) % _TILE
    columns = ((np.arange(width) * rng.uniform(0.3, 0.8)).astype(int) + rng.integers(_TILE)) % _TILE
    cover = np.clip((clouds[rows[:, None], columns] - rng.uniform(-0.8, 2.0)) * 0.9, 0, 1)
    cover = cover * rng.uniform(0.4, 1.0)
    gradient = np.asarray(zenith) + (np.asarray(low) - np.asarray(zenith)) * ramp[:, None]
    painted = gradient[:, None] + (np.asarray(cloud) - gradient[:, None]) * cover[..., None]
    return Image.fromarray(painted.astype(np.uint8)), low


def _ground_band(scene: _Scene, left: float, right: float, near: float, far: float) -> list[_Point]:
    """Return the outline of a strip of ground along the street; it follows the bend."""
    steps = [near * (far / near) ** (i / 7) for i in range(8)]
    project = scene.camera.project
    return [project(left, 0, z) for z in steps] + [project(right, 0, z) for z in reversed(steps)]


def _ground_quad(scene: _Scene, left: float, right: float, near: float, far: float) -> list[_Point]:
    """Return the outline of a small rectangle on the ground."""
    corners = ((left, near), (right, near), (right, far), (left, far))
    return [scene.camera.project(x, 0, z) for x, z in corners]


def _paint_ground(scene: _Scene) -> None:
    """Paint pavement everywhere below the horizon, then the road, its marks and its blemishes."""
    street, camera = scene.street, scene.camera
    height, width = scene.size
    # The distance code of the ground is set for each row later: see _develop.
    pavement, road = _at(_PAVEMENT, _PAVING, 0), _at(_ROAD, _ASPHALT, 0)
    pavement_color = scene.vary(scene.palette.pavements)
    road_color = scene.vary(scene.palette.roads)
    edge = camera.horizon + camera.focal * camera.height / _FAR
    tilt = [edge + camera.roll * (u - camera.center) for u in (0, width)]
    everywhere = [(0, tilt[0]), (width, tilt[1]), (width, height), (0, height)]
    if not street.has_pavement:
        scene.polygon(everywhere, road_color, road)
        _paint_road_marks(scene, road)
        _paint_blemishes(scene, road_color, road)
        return
    scene.polygon(everywhere, pavement_color, pavement)
    if scene.chance(0.9):
        _paint_slabs(scene, _shade(pavement_color, scene.between(0.65, 0.85)))
    if not street.has_road:
        return
    near = 0.8
    curb_color = _shade(pavement_color, 1.25 if scene.chance(0.6) else 0.7)
    bands = [(street.left_curb, street.right_curb, near, _FAR)]
    if street.crossing is not None:
        bands.append((-70.0, 70.0, *street.crossing))
    for left, right, start, end in bands:
        curb = _ground_band(scene, left - 0.25, right + 0.25, max(near, start - 0.25), end + 0.25)
        scene.polygon(curb, curb_color, pavement)
    for band in bands:
        scene.polygon(_ground_band(scene, *band), road_color, road)
    _paint_road_marks(scene, road)
    _paint_blemishes(scene, road_color, road)


def _paint_slabs(scene: _Scene, color: _Color) -> None:
    """Draw the joints of paving slabs, which run to the vanishing point and across."""
    left, right = scene.street.left_curb - 6, scene.street.right_curb + 6
    step = scene.between(0.7, 1.4)
    project = scene.camera.project
    # All that lies there so far is pavement, so only the colour changes.
    for i in range(int((right - left) / step) + 1):
        x = left + step * i
        scene.image.line([project(x, 0, z) for z in (1.0, 6.0, 25.0)], fill=color, width=1)
    for i in range(14):
        z = 1.5 + step * 1.2 * i
        scene.image.line([project(left, 0, z), project(right, 0, z)], fill=color, width=2)


def _paint_road_marks(scene: _Scene, road: _Paint) -> None:
    """Paint the centre line, edge lines and a zebra crossing, each on some roads only."""
    street = scene.street
    color = scene.vary(((232, 230, 222), (206, 204, 198), (222, 186, 72)), 0.06)
    middle = (street.left_curb + street.right_curb) / 2
    if scene.chance(0.7):
        period = scene.between(3, 7)
        dash = period if scene.chance(0.25) else period * 0.5
        z = 1.0 + scene.between(0, period)
        while z < 45:
            scene.polygon(
                _ground_quad(scene, middle - 0.08, middle + 0.08, z, z + dash), color, road
            )
            z += period
    if scene.chance(0.35):
        for x in (street.left_curb + 0.3, street.right_curb - 0.3):
            scene.polygon(_ground_band(scene, x - 0.06, x + 0.06, 1.0, 60.0), color, road)
    if scene.chance(0.35):
        z = scene.between(4, 14) if street.crossing is None else street.crossing[0] - 3.5
        x = street.left_curb + 0.4
        while x < street.right_curb - 0.5:
            scene.polygon(_ground_quad(scene, x, x + 0.5, z, z + 2.6), color, road)
            x += 1.0


def _paint_blemishes(scene: _Scene, road_color: _Color, road: _Paint) -> None:
    """Paint tyre tracks, mended patches and puddles that mirror the sky."""
    street = scene.street
    if scene.chance(0.4):
        for x in (0.25, 0.4, 0.6, 0.75):
            x = street.left_curb + x * (street.right_curb - street.left_curb)
            track = _ground_band(scene, x - 0.2, x + 0.2, 0.9, 50.0)
            scene.polygon(track, _shade(road_color, 0.9), road)
    for _ in range(int(scene.rng.poisson(1.5 * scene.style.clutter))):
        x = scene.between(street.left_curb, street.right_curb - 1)
        z = scene.between(2.5, 16)
        patch = _ground_quad(scene, x, x + scene.between(0.5, 2), z, z + scene.between(0.5, 3))
        scene.polygon(patch, _shade(road_color, scene.between(0.65, 1.25)), road)
    for _ in range(int(scene.rng.poisson(0.5 * scene.style.clutter))):
        x = scene.between(street.left_curb, street.right_curb)
        z = scene.between(3, 12)
        size = scene.camera.focal / z * scene.between(0.3, 1.0)
        wet = road._replace(texture=_PLAIN)
        mirror = _shade(scene.vary(scene.palette.skies[0]), 0.8)
        scene.disc(scene.camera.project(x, 0, z), (size, size * 0.25), mirror, wet)


def _paint_backdrop(scene: _Scene) -> None:
    """Paint the skyline: houses and woods far away, with gaps."""
    x = -_FAR
    while x < _FAR:
        width = scene.between(6, 18)
        height = scene.between(2, 9)
        if scene.street.has_houses and scene.chance(0.45):
            end = (x + width, _FAR)
            _paint_facade(scene, (x, _FAR), end, height * 1.6, scene.vary(scene.palette.buildings))
        elif scene.street.has_woods and scene.chance(0.8):
            color = scene.vary(scene.palette.trees)
            for _ in range(4):
                center = scene.camera.project(x + width * scene.between(0, 1), height * 0.4, _FAR)
                radius = scene.camera.focal / _FAR * height * scene.between(0.5, 0.8)
                shade = _shade(color, scene.between(0.8, 1.2))
                scene.disc(center, (radius, radius), shade, _at(_TREE, _LEAVES, _FAR))
        x += width


def _cast_shadows(scene: _Scene, image: Image.Image, things: Sequence[_Thing]) -> None:
    """Darken the ground under things and away from the sun; the labels stay."""
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    hard = scene.chance(0.6)  # otherwise overcast: only what lies under a thing is dark
    strength = _clip(scene.between(90, 165))
    if hard and scene.chance(0.6):
        street = scene.street
        x = street.left_front if scene.sun < 0 else street.right_front
        reach = x - math.copysign(scene.between(2, 9), scene.sun or 1.0)
        draw.polygon(_ground_band(scene, min(x, reach), max(x, reach), 0.9, 70.0), fill=strength)
    for thing in things:
        half = thing.width / 2
        near = max(thing.z - 0.2, 1.0)
        if hard:
            tip = thing.x - scene.sun * thing.height * 1.3
            quad = [(thing.x - half, near), (thing.x + half, near)]
            quad += [(tip + half, near + 1.5), (tip - half, near + 1.5)]
            draw.polygon([scene.camera.project(x, 0, z) for x, z in quad], fill=strength)
        under = _ground_quad(scene, thing.x - half, thing.x + half, near, thing.z + thing.length)
        draw.polygon(under, fill=min(255, strength + 30))
    image.paste((18, 20, 30), mask=mask.filter(ImageFilter.BoxBlur(1)))


def _paint_standing(scene: _Scene, things: Sequence[_Thing]) -> None:
    """Paint house rows and things together, from far to near."""
    strokes = [(thing.z, thing.paint) for thing in things]
    if scene.street.has_houses:
        strokes += _house_row(scene, -1)
        strokes += _house_row(scene, 1)
    if scene.street.wall is not None:
        strokes.append((scene.street.wall, partial(_paint_wall, scene, scene.street.wall)))
    for _, paint in sorted(strokes, key=lambda stroke: -stroke[0]):
        paint()


def _house_row(scene: _Scene, side: int) -> Iterator[tuple[float, Callable[[], None]]]:
    """Yield (distance, painter) of the houses on the left (-1) or the right (1) of the street."""
    street = scene.street
    front = street.left_front if side < 0 else street.right_front
    end = scene.between(25, 75)
    gaps = scene.between(0.05, 0.5)
    usual = scene.between(4, 15)  # metres of height
    z = scene.between(2.0, 5.0)
    light = 1 - 0.22 * scene.sun * side
    while z < end:
        length = scene.between(5, 14)
        if street.crossing and street.crossing[0] - length < z < street.crossing[1]:
            z = street.crossing[1]
            continue
        if not scene.chance(gaps):
            height = usual * scene.between(0.6, 1.5)
            x = front + side * (scene.between(0, 3) if scene.chance(0.2) else 0.0)
            color = scene.vary(scene.palette.buildings)
            yield z + length, partial(_paint_house, scene, side, x, z, length, height, color, light)
        z += length


def _paint_wall(scene: _Scene, z: float) -> None:
    """Paint a house across the whole view, higher than the view."""
    camera = scene.camera
    middle = -camera.bend * z * z
    start = middle - 1.1 * camera.center / camera.focal * z
    end = middle + 1.1 * (scene.size[1] - camera.center) / camera.focal * z
    height = camera.height + 1.25 * camera.horizon / camera.focal * z
    _paint_facade(scene, (start, z), (end, z), height, scene.vary(scene.palette.buildings))


def _paint_house(
    scene: _Scene,
    side: int,
    x: float,
    z: float,
    length: float,
    height: float,
    color: _Color,
    light: float,
) -> None:
    """Paint a house of a row: the wall that faces the viewer, then the front along the street."""
    corner, far_corner, back = (x, z), (x, z + length), (x + side * 9.0, z)
    wall = _shade(color, scene.between(0.75, 1.1))
    if scene.chance(0.5):
        _paint_gable(scene, corner, back, height, wall)
    _paint_facade(scene, corner, back, height, wall)
    _paint_facade(scene, corner, far_corner, height, _shade(color, light))


def _paint_gable(scene: _Scene, start: _Point, end: _Point, height: float, color: _Color) -> None:
    """Paint a pitched roof over a wall."""
    (xa, za), (xb, zb) = start, end
    ridge = height + scene.between(1.0, 3.0)
    roof = scene.vary(((132, 66, 52), (74, 72, 76), (108, 92, 84), color))
    points = ((xa, height, za), ((xa + xb) / 2, ridge, (za + zb) / 2), (xb, height, zb))
    outline = [scene.camera.project(*point) for point in points]
    scene.polygon(outline, roof, _at(_BUILDING, _BOARDS, za))


def _paint_facade(scene: _Scene, start: _Point, end: _Point, height: float, color: _Color) -> None:
    """Paint an upright wall between two ground points (x, z) with windows, doors and clutter."""
    (xa, za), (xb, zb) = start, end
    project = scene.camera.project

    def wall(u: float, y: float) -> _Point:
        return project(xa + (xb - xa) * u, y, za + (zb - za) * u)

    texture = int(scene.rng.choice((_PLASTER, _BRICK, _BLOCKS, _BOARDS, _PLASTER)))
    paint = _at(_BUILDING, texture, (za + zb) / 2)
    outline = [wall(0, 0), wall(1, 0), wall(1, height), wall(0, height)]
    scene.polygon(outline, color, paint)
    left, right = sorted((outline[0][0], outline[1][0]))
    if right < 0 or left > scene.size[1] or right - left < 8:
        return  # out of sight, or too narrow for a window to show
    length = math.hypot(xb - xa, zb - za)
    columns, rows = max(1, round(length / scene.between(1.8, 3.2))), max(1, round(height / 3))
    while columns > 1 and (right - left) / columns < 5:
        columns //= 2
    glass, storey = scene.vary(_GLASS), height / rows
    share_u, share_y = scene.between(0.35, 0.75), scene.between(0.4, 0.75)
    shop = scene.chance(0.35)
    for row in range(rows):
        wide, tall = (0.85, 0.75) if shop and row == 0 else (share_u, share_y)
        low = storey * (row + (0.1 if row == 0 and shop else (1 - tall) * 0.55))
        for column in range(columns):
            u = (column + (1 - wide) / 2) / columns
            quad = [wall(u + i * wide / columns, low + j * tall * storey) for i, j in _UNIT_SQUARE]
            lit = scene.chance(scene.style.lit)
            pane = scene.vary(((255, 214, 130), (255, 236, 180))) if lit else glass
            glow = scene.between(0.5, 1.0) if lit else 0.0
            scene.polygon(quad, pane, paint._replace(texture=_PLAIN, glow=_clip(255 * glow)))
    _paint_wall_clutter(scene, wall, height, paint)


_UNIT_SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))


def _paint_wall_clutter(
    scene: _Scene, wall: Callable[[float, float], _Point], height: float, paint: _Paint
) -> None:
    """Paint a cornice, an awning, a billboard or graffiti: colours of other classes on a wall."""
    flat = paint._replace(texture=_PLAIN)
    clutter = scene.style.clutter

    def board(u: float, width: float, low: float, high: float, colors: Sequence[_Color]) -> None:
        quad = [wall(u + i * width, low + j * (high - low)) for i, j in _UNIT_SQUARE]
        scene.polygon(quad, scene.vary(colors), flat)

    if scene.chance(0.4):
        board(0, 1, height * 0.95, height, scene.palette.pavements)
    if scene.chance(0.25 * clutter):
        board(scene.between(0, 0.4), scene.between(0.3, 0.6), 2.5, 3.2, _SIGN_COLORS + _CLOTHES)
    if scene.chance(0.15 * clutter) and height > 6:
        u, low = scene.between(0, 0.5), height * scene.between(0.4, 0.6)
        board(u, 0.4, low, low + 2.0, _SIGN_COLORS + _CAR_COLORS)
        board(u + 0.1, 0.15, low + 0.5, low + 1.5, _CLOTHES)
    if scene.chance(0.2 * clutter):
        start = scene.between(0, 0.6)
        points = [wall(start + 0.05 * i, scene.between(0.4, 1.7)) for i in range(7)]
        scene.line(points, 2, scene.vary(_CLOTHES), flat)
    if scene.chance(0.7):
        u = scene.between(0.1, 0.8)
        board(u, 0.1, 0, 2.2, _CAR_COLORS)


def _place_things(scene: _Scene) -> list[_Thing]:
    """Choose cars, people, trees, poles and signs, where they can be seen."""
    street, between = scene.street, scene.between
    things: list[_Thing] = []

    def some(mean: float, most: int) -> range:
        """Count none in three scenes of ten, and else one or more."""
        more = int(scene.rng.poisson(mean - 1))
        return range(0 if scene.chance(0.3) else min(1 + more, most))

    def add(
        x: float, near: float, far: float, make: Callable[[_Scene, float, float], _Thing]
    ) -> None:
        z = _visible_distance(scene, x, near, far)
        if z is not None:
            things.append(make(scene, x, z))

    def beside(least: float, most: float) -> float:
        """Return an x on one of the pavements, so far from the curb."""
        offset = between(least, most)
        return street.left_curb - offset if scene.chance(0.5) else street.right_curb + offset

    for _ in some(3.0, 6):
        parked = between(0.2, 0.5) + 0.9
        lanes = (street.left_curb + parked, street.right_curb - parked)
        x = lanes[scene.rng.integers(2)] if scene.chance(0.6) else between(*lanes)
        if scene.chance(0.2):
            add(between(-8, 8), 7.5, 18, _car_across)
        else:
            add(x, 5.0, 30, _car_along)
    for _ in some(3.8, 8):
        x = beside(0.3, 3.0)
        if scene.chance(0.3):
            x = between(street.left_curb, street.right_curb)
        add(x, 3.5, 12, _person)
    for _ in some(5.0 if street.has_houses else 7.0, 9):
        add(beside(0.6, 7.0), 4.5, 30, _tree)
    for _ in some(2.8, 6):
        add(beside(0.2, 0.8), 3.5, 12, _pole)
    for _ in some(2.4, 5):
        add(beside(0.2, 1.2), 3.5, 11, _sign)
    return things


def _visible_distance(scene: _Scene, x: float, near: float, far: float) -> float | None:
    """Return a z at which ground x lies inside the picture, or None where there is none."""
    half = scene.camera.center if x < 0 else scene.size[1] - scene.camera.center
    near = max(near, 1.05 * abs(x) * scene.camera.focal / half)
    if near >= far:
        return None
    share = float(scene.rng.random()) ** 1.2
    return near * math.pow(far / near, share)


class _CarShape(NamedTuple):
    """A silhouette from the side as (metres from the tail, metres up)."""

    body: tuple[_Point, ...]
    windows: tuple[_Point, ...]
    roof: tuple[float, float, float]  # from, to along the car; height
    length: float


_CAR_SHAPES = (
    _CarShape(  # saloon
        ((0, 0.3), (0, 0.9), (0.3, 1.0), (0.9, 1.42), (2.5, 1.42), (3.2, 1.0), (4.4, 0.85),
         (4.4, 0.3)),
        ((0.65, 1.02), (1.0, 1.33), (2.4, 1.33), (2.95, 1.02)),
        (0.9, 2.5, 1.42),
        4.4,
    ),
    _CarShape(  # hatchback
        ((0, 0.3), (0, 0.95), (0.35, 1.5), (2.3, 1.5), (3.0, 1.0), (3.8, 0.85), (3.8, 0.3)),
        ((0.3, 1.02), (0.55, 1.4), (2.2, 1.4), (2.75, 1.02)),
        (0.35, 2.3, 1.5),
        3.8,
    ),
    _CarShape(  # van
        ((0, 0.35), (0, 2.1), (3.7, 2.1), (4.3, 1.3), (4.9, 1.1), (4.9, 0.35)),
        ((2.9, 1.3), (2.9, 1.85), (3.65, 1.85), (4.15, 1.3)),
        (0.0, 3.7, 2.1),
        4.9,
    ),
)  # fmt: skip


def _car_along(scene: _Scene, x: float, z: float) -> _Thing:
    """A car that drives or stands along the street: seen from behind or from the front."""
    shape = _CAR_SHAPES[scene.rng.choice((0, 0, 1, 1, 2))]
    paint = partial(_paint_car_along, scene, x, z, shape, scene.vary(_CAR_COLORS))
    return _Thing(x, z, 1.75, shape.length, shape.roof[2], paint)


def _car_across(scene: _Scene, x: float, z: float) -> _Thing:
    """A car seen from the side."""
    shape = _CAR_SHAPES[scene.rng.choice((0, 0, 1, 1, 2))]
    if scene.street.crossing:
        z = scene.between(*scene.street.crossing)
    paint = partial(_paint_car_across, scene, x, z, shape, scene.vary(_CAR_COLORS))
    return _Thing(x, z, shape.length, 1.7, shape.roof[2], paint)


def _paint_car_side(
    scene: _Scene,
    shape: _CarShape,
    color: _Color,
    side: Callable[[float, float], _Point],
    z: float,
    narrowing: float,
) -> None:
    """Paint a car's side: ``side`` maps (metres from the tail, metres up) to the canvas."""
    paint = _at(_CAR, _PLAIN, z)
    scene.polygon([side(s, y) for s, y in shape.body], color, paint)
    scene.polygon([side(s, y) for s, y in shape.windows], scene.vary(_GLASS), paint)
    sill = [
        side(s, y) for s, y in ((0.1, 0.3), (0.1, 0.45), (shape.length, 0.45), (shape.length, 0.3))
    ]
    scene.polygon(sill, _shade(color, 0.6), paint)
    for s in (0.8, shape.length - 0.85):
        radius = 0.36 * scene.camera.focal / z
        scene.disc(side(s, 0.34), (radius * narrowing, radius), (24, 24, 26), paint)
        inner = radius * 0.5
        scene.disc(side(s, 0.34), (inner * narrowing, inner), (140, 140, 142), paint)


def _paint_car_across(scene: _Scene, x: float, z: float, shape: _CarShape, color: _Color) -> None:
    """Paint a car from the side."""
    heading = 1 if scene.chance(0.5) else -1

    def side(s: float, y: float) -> _Point:
        return scene.camera.project(x + heading * (s - shape.length / 2), y, z)

    _paint_car_side(scene, shape, color, side, z, 1.0)


def _paint_car_along(scene: _Scene, x: float, z: float, shape: _CarShape, color: _Color) -> None:
    """Paint a car from behind or from the front, with the side that the viewer can see."""
    project, half = scene.camera.project, 0.88
    inner = x - half if x > 0 else x + half
    tail = scene.chance(0.6)
    start, end, top = shape.roof
    if not tail:
        start, end = shape.length - end, shape.length - start

    def side(s: float, y: float) -> _Point:
        return project(inner, y, z + (s if tail else shape.length - s))

    if abs(x) > half:  # straight ahead, only the near end shows
        narrowing = min(1.0, abs(x) / z + 0.15)
        _paint_car_side(scene, shape, _shade(color, 0.85), side, z + 1.0, narrowing)
    paint = _at(_CAR, _PLAIN, z)

    def face(points: Sequence[tuple[float, float]], depth: float, tone: _Color) -> None:
        """Fill a shape on a plane across the street; points are (share of half width, y)."""
        outline = [project(x + u * half, y, z + depth) for u, y in points]
        scene.polygon(outline, tone, paint)

    def lid(share: float, y: float, first: float, last: float, tone: _Color) -> None:
        """Fill a level part of the car: its roof, or the deck before the window."""
        corners = ((-share, first), (share, first), (share, last), (-share, last))
        scene.polygon([project(x + u * half, y, z + s) for u, s in corners], tone, paint)

    waist, screen = (0.95 if top < 2 else 1.1), min(start, 1.0)
    pane = ((-0.8, waist), (0.8, waist), (0.66, top - 0.1), (-0.66, top - 0.1))
    lid(0.8, top, screen, end, _shade(color, 1.15))
    face(((-1, waist), (1, waist), (0.8, top), (-0.8, top)), screen, color)
    face(pane, screen, scene.vary(_GLASS))
    lid(1.0, waist, 0, screen, _shade(color, 1.1))
    face(((-1, 0.3), (1, 0.3), (1, waist), (-1, waist)), 0, color)
    face(((-1, 0.3), (1, 0.3), (1, 0.5), (-1, 0.5)), 0, _shade(color, 0.55))
    face(((-0.3, 0.5), (0.3, 0.5), (0.3, 0.65), (-0.3, 0.65)), 0, (226, 224, 206))
    for u in (-0.8, 0.8):
        face(((u - 0.17, 0), (u + 0.17, 0), (u + 0.17, 0.35), (u - 0.17, 0.35)), 0, (20, 20, 22))
    lamp = (200, 24, 24) if tail else (244, 240, 220)
    glow = paint._replace(glow=255 if scene.chance(scene.style.lit) else 0)
    for u in (-0.78, 0.78):
        radius = 0.14 * scene.camera.focal / z
        scene.disc(project(x + u * half, 0.75, z), (radius * 1.3, radius), lamp, glow)


def _person(scene: _Scene, x: float, z: float) -> _Thing:
    """Someone who stands or walks."""
    height = scene.between(1.0, 1.3) if scene.chance(0.12) else scene.between(1.55, 1.95)
    return _Thing(x, z, 0.5, 0.3, height, partial(_paint_person, scene, x, z, height))


def _paint_person(scene: _Scene, x: float, z: float, height: float) -> None:
    """Paint legs, body, arms and a head, each in a colour of its own."""
    paint = _at(_PERSON, _CLOTH, z)
    facing = 1 if scene.chance(0.5) else -1
    broad = scene.between(0.9, 1.3)
    unit = scene.camera.focal / z * height  # pixels of the whole height
    top, trousers, skin = scene.vary(_CLOTHES), scene.vary(_CLOTHES), scene.vary(_SKINS)
    stride = scene.between(0.0, 0.16)

    def body(u: float, y: float) -> _Point:
        """Map shares of the height to the canvas."""
        return scene.camera.project(x + facing * u * height, y * height, z)

    limb = unit * 0.085 * broad
    for foot in (-stride, stride):
        scene.line(
            [body(0.3 * foot, 0.5), body(foot * 0.6, 0.27), body(foot, 0.02)], limb, trousers, paint
        )
        shoe = [body(foot - 0.03, 0.025), body(foot + 0.06, 0.025)]
        scene.line(shoe, unit * 0.05, (40, 36, 34), paint)
    shoulder, hip, hem = 0.125 * broad, 0.085 * broad, 0.46
    if scene.chance(0.3):  # a coat or a dress
        hip, hem = 0.13 * broad, 0.27
    swing = scene.between(0.02, 0.14)
    if scene.chance(0.25):  # a bag on the back
        bag = [body(-0.2, 0.55), body(-0.05, 0.55), body(-0.05, 0.78), body(-0.2, 0.78)]
        scene.polygon(bag, scene.vary(_CLOTHES), paint)
    torso = (
        (-hip, hem),
        (hip, hem),
        (shoulder, 0.79),
        (0.04, 0.84),
        (-0.04, 0.84),
        (-shoulder, 0.79),
    )
    scene.polygon([body(u, y) for u, y in torso], top, paint)
    for arm in (-1, 1):
        elbow = arm * (shoulder + 0.02) + swing * 0.3
        hand = body(elbow + swing * arm, 0.44)
        sleeve = [body(arm * shoulder * 0.85, 0.78), body(elbow, 0.6), hand]
        scene.line(sleeve, unit * 0.06 * broad, _shade(top, 0.85), paint)
        scene.disc(hand, (unit * 0.025, unit * 0.025), skin, paint)
    head = body(0, 0.915)
    hair = scene.vary(((34, 28, 26), (84, 58, 38), (176, 142, 92), (150, 148, 146), top))
    scene.disc(head, (unit * 0.062, unit * 0.078), hair, paint)
    scene.disc((head[0] + facing * unit * 0.014, head[1] + unit * 0.02),
               (unit * 0.048, unit * 0.056), skin, paint)  # fmt: skip


def _tree(scene: _Scene, x: float, z: float) -> _Thing:
    """A tree, or a bush."""
    kind = int(scene.rng.choice((0, 0, 0, 0, 1, 1, 2, 3)))
    height = scene.between(0.9, 2.2) if kind == 3 else scene.between(4, 10)
    return _Thing(x, z, height * 0.35, 0.6, height, partial(_paint_tree, scene, x, z, height, kind))


def _paint_tree(scene: _Scene, x: float, z: float, height: float, kind: int) -> None:
    """Paint a broad-leaved tree (kind 0), a conifer (1), a bare tree (2) or a bush (3)."""
    bark, leaves = _at(_TREE, _BARK, z), _at(_TREE, _LEAVES, z)
    scale = scene.camera.focal / z  # pixels a metre
    trunk = scene.vary(((92, 72, 54), (70, 62, 56), (124, 114, 102), (60, 48, 40)))
    color = scene.vary(scene.palette.trees)

    def grow(dx: float, y: float) -> _Point:
        return scene.camera.project(x + dx, y, z)

    if kind == 2:
        _paint_branches(scene, grow(0, 0), math.pi / 2, height * 0.32 * scale, 5, trunk, bark)
        return
    if kind != 3:
        scene.line([grow(0, 0), grow(0.1, height * 0.6)], scale * height * 0.05, trunk, bark)
    if kind == 1:
        for low in (0.12, 0.28, 0.45, 0.62):
            half = height * 0.26 * (1.1 - low)
            tier = [
                grow(-half, height * low),
                grow(half, height * low),
                grow(0, height * min(1, low + 0.4)),
            ]
            scene.polygon(tier, _shade(color, 0.7 + 0.5 * low), leaves)
        return
    middle, spread = (0.5, 0.5) if kind == 3 else (0.66, 0.3)
    for i in range(14):
        angle, reach = scene.between(0, 2 * math.pi), math.sqrt(scene.between(0, 1))
        dx = math.cos(angle) * reach * height * spread * 0.85
        dy = math.sin(angle) * reach * height * spread * 0.7
        radius = scale * height * spread * scene.between(0.3, 0.52)
        # Light from above: blobs painted later and higher are lighter.
        shade = _shade(color, 0.72 + 0.025 * i + 0.35 * (dy / height + 0.2))
        scene.disc(grow(dx, height * middle + dy), (radius, radius * 0.9), shade, leaves)


def _paint_branches(
    scene: _Scene,
    start: _Point,
    angle: float,
    length: float,
    levels: int,
    color: _Color,
    paint: _Paint,
) -> None:
    """Paint a branch and, from its end, the thinner ones that leave it."""
    end = (start[0] + length * math.cos(angle), start[1] - length * math.sin(angle))
    scene.line([start, end], length * 0.2, color, paint)
    if levels == 0 or length < 2:
        return
    for turn in (-1, 1):
        bent = angle + turn * scene.between(0.25, 0.6)
        shorter = length * scene.between(0.62, 0.8)
        _paint_branches(scene, end, bent, shorter, levels - 1, color, paint)


def _pole(scene: _Scene, x: float, z: float) -> _Thing:
    """A street lamp, a telegraph pole, traffic lights or a mast."""
    kind = int(scene.rng.integers(4))
    height = (
        scene.between(4, 8),
        scene.between(5, 8),
        scene.between(2.8, 3.6),
        scene.between(2, 6),
    )[kind]
    return _Thing(x, z, 0.25, 0.25, height, partial(_paint_pole, scene, x, z, height, kind))


def _paint_pole(scene: _Scene, x: float, z: float, height: float, kind: int) -> None:
    """Paint a lamp (kind 0), a telegraph pole (1), traffic lights (2) or a mast (3)."""
    paint, color = _at(_POLE, _PLAIN, z), scene.vary(_POLE_COLORS)
    scale = scene.camera.focal / z
    middle = (scene.street.left_curb + scene.street.right_curb) / 2
    inward = 1 if x < middle else -1

    def at(dx: float, y: float) -> _Point:
        return scene.camera.project(x + inward * dx, y, z)

    foot, top = at(0, 0), at(0, height)
    scene.line([foot, top], scale * scene.between(0.2, 0.3), color, paint)
    scene.line([foot, at(0, 0.6)], scale * 0.3, _shade(color, 0.8), paint)
    if kind == 0:
        arm = scene.between(0.6, 1.6)
        scene.line([top, at(arm, height + 0.3)], scale * 0.12, color, paint)
        glow = paint._replace(glow=255 if scene.chance(scene.style.lit) else 0)
        lamp = (255, 226, 160) if glow.glow else _shade(color, 1.3)
        scene.disc(at(arm, height + 0.2), (scale * 0.35, scale * 0.16), lamp, glow)
    elif kind == 1:
        for y in (height - 0.3, height - 0.9):
            scene.line([at(-0.8, y), at(0.8, y)], scale * 0.14, color, paint)
    elif kind == 2:
        low = height - 1.0
        box = [at(-0.22, low), at(0.22, low), at(0.22, height), at(-0.22, height)]
        scene.polygon(box, (34, 36, 36), paint)
        on = int(scene.rng.integers(3))
        for i, light in enumerate(((40, 210, 110), (240, 180, 40), (230, 40, 36))):
            bulb = light if i == on else _shade(light, 0.3)
            glow = paint._replace(glow=230 if i == on else 0)
            scene.disc(at(0, low + 0.2 + 0.3 * i), (scale * 0.11, scale * 0.11), bulb, glow)


def _sign(scene: _Scene, x: float, z: float) -> _Thing:
    """A traffic sign on its pole, or a board with directions on two."""
    board = scene.chance(0.22)
    height = scene.between(2.0, 2.8)
    paint = partial(_paint_direction_board if board else _paint_sign, scene, x, z, height)
    return _Thing(x, z, 0.8, 0.2, height, paint)


def _paint_sign(scene: _Scene, x: float, z: float, height: float) -> None:
    """Paint a disc, a triangle, a diamond, an octagon or a plate, with a rim and a mark."""
    post, face = _at(_POLE, _PLAIN, z), _at(_SIGN, _PLAIN, z)
    radius = scene.between(0.4, 0.6)
    project = scene.camera.project
    ends = [project(x, 0, z), project(x, height + radius, z)]
    scene.line(ends, scene.camera.focal / z * 0.16, scene.vary(_POLE_COLORS), post)
    corners, turn = ((24, 0.0), (3, 90.0), (3, 270.0), (4, 0.0), (8, 22.5), (4, 45.0))[
        scene.rng.integers(6)
    ]

    def ring(size: float) -> list[_Point]:
        angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
        return [project(x + size * math.cos(a), height + size * math.sin(a), z) for a in angles]

    rim, inner = scene.vary(_SIGN_COLORS), scene.vary(_SIGN_COLORS)
    scene.polygon(ring(radius * (1.25 if corners == 3 else 1.0)), rim, face)
    if scene.chance(0.75):
        scene.polygon(ring(radius * 0.72), inner, face)
    if scene.chance(0.7):
        half = radius * scene.between(0.1, 0.4)
        mark = [(x + i * half, height + j * 0.15) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        scene.polygon([project(u, y, z) for u, y in mark], scene.vary(_SIGN_COLORS), face)


def _paint_direction_board(scene: _Scene, x: float, z: float, height: float) -> None:
    """Paint a wide board with lines of writing on two posts."""
    post, face = _at(_POLE, _PLAIN, z), _at(_SIGN, _PLAIN, z)
    half, tall = scene.between(0.6, 1.1), scene.between(0.6, 1.1)
    project, color = scene.camera.project, scene.vary(_SIGN_COLORS)
    metal = scene.vary(_POLE_COLORS)
    for dx in (-half * 0.7, half * 0.7):
        ends = [project(x + dx, 0, z), project(x + dx, height, z)]
        scene.line(ends, scene.camera.focal / z * 0.14, metal, post)

    def plate(left: float, right: float, low: float, high: float, tone: _Color) -> None:
        points = ((left, low), (right, low), (right, high), (left, high))
        scene.polygon([project(x + u * half, height + v * tall, z) for u, v in points], tone, face)

    plate(-1, 1, 0, 1, scene.vary(_SIGN_COLORS))
    plate(-0.92, 0.92, 0.08, 0.92, color)
    for low in (0.2, 0.55):
        plate(-0.75, scene.between(-0.2, 0.7), low, low + 0.16, scene.vary(_SIGN_COLORS))


def _develop(
    scene: _Scene, painted: _Bytes, codes: _Bytes, haze_color: _Color
) -> tuple[_Bytes, _Bytes]:
    """Turn the canvas into the photograph and the mask: texture, haze, light, lens and sensor."""
    rng, style = scene.rng, scene.style
    height, width = scene.size
    stack = _textures()[0]
    rows = (np.arange(height) + rng.integers(_TILE)) % _TILE
    columns = (np.arange(width) + rng.integers(_TILE)) % _TILE
    relief = stack[codes[..., 1], rows[:, None], columns]
    relief = 1 + relief * np.float32(style.texture * rng.uniform(0.6, 1.3))
    fine = np.clip(painted * relief[..., None], 0, 255)
    corners = fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]
    image = corners / np.float32(4 * 255)
    mask = np.ascontiguousarray(codes[1::2, 1::2, 0])

    haze = _distance(scene, mask, codes[1::2, 1::2, 2])[..., None]
    haze = haze * np.float32(style.haze * rng.random() ** 1.5)
    image = image + (np.asarray(haze_color, np.float32) / 255 - image) * haze
    image = _grade(image, codes[..., 3], style, rng)
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + noise * np.float32(style.noise * rng.uniform(0.3, 1.6))
    photograph = Image.fromarray(np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        photograph = photograph.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.7))))
    return np.array(photograph), mask


def _distance(scene: _Scene, mask: _Bytes, painted: _Bytes) -> _Floats:
    """Return how much of the haze lies before each pixel, [H, W] in [0, 1].

    One stroke of ground spans many distances, so ground takes them from its row.
    """
    camera = scene.camera
    below = np.maximum(np.arange(1, scene.size[0], 2) - camera.horizon, 0.5)
    ground = 1 - np.exp(-camera.focal * camera.height / below / _HAZE_LENGTH)
    is_ground = (mask == _ROAD) | (mask == _PAVEMENT)
    return np.where(is_ground, ground[:, None], painted / 255).astype(np.float32)


def _grade(image: _Floats, glow: _Bytes, style: Style, rng: np.random.Generator) -> _Floats:
    """Apply exposure, contrast, colour and vignetting; what glows stays as bright as painted."""
    height, width = image.shape[:2]
    exposure = style.light * rng.uniform(1 - style.light_spread, 1 + style.light_spread)
    contrast = rng.uniform(0.85, 1.2)
    matrix = _color_matrix(
        saturation=style.saturation * rng.uniform(0.7, 1.2),
        degrees=style.hue_shift + rng.normal(0, 5),
        warmth=style.warmth + rng.normal(0, 0.08),
    )
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    vignette = 1 - rng.uniform(0, 0.25) * (y * y + x * x) / 2
    light = (vignette * exposure)[..., None]
    lamps = Image.fromarray(np.ascontiguousarray(glow)).reduce(_OVERSAMPLING)
    halo = lamps.filter(ImageFilter.GaussianBlur(2.5))
    graded = (image @ matrix.T * light - 0.45) * contrast + 0.45
    graded = graded + (image - graded) * np.asarray(lamps)[..., None] / 255
    graded = graded + np.asarray(halo)[..., None] / 255 * np.array((0.3, 0.24, 0.12))
    return np.asarray(graded, np.float32)


def _color_matrix(*, saturation: float, degrees: float, warmth: float) -> _Floats:
    """Return the [3, 3] matrix that rotates hues about grey, scales chroma and warms."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    grey = np.full((3, 3), 1 / 3)
    skew = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = cos * np.eye(3) + (1 - cos) * grey + sin * skew
    chroma = saturation * np.eye(3) + (1 - saturation) * np.array([0.299, 0.587, 0.114])
    gains = np.array([1 + warmth, 1.0, 1 - warmth])[:, None]
    return (gains * (chroma @ rotation)).astype(np.float32)


def _with_void_border(mask: _Bytes) -> _Bytes:
    """Return a copy in which a pixel is void where its right or lower neighbour differs."""
    void = np.zeros(mask.shape, bool)
    void[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    void[:-1] |= mask[:-1] != mask[1:]
    return np.where(void, np.uint8(IGNORE_INDEX), mask)
