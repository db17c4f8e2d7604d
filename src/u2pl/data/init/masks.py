"""What mask files hold, and what that says of how they spell classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from u2pl.data.class_counts import num_threads
from u2pl.data.images import Color, FileError, read_raw_mask
from u2pl.data.init.draft import Encoding, some
from u2pl.data.init.names import VOID, Names
from u2pl.errors import UserError

_MOST = 256  # values or colours; what holds more is no mask
_MOST_UNNAMED = 64  # ids without names; a blurred mask or a photograph has more


@dataclass(frozen=True)
class MaskFacts:
    """What some mask files hold, taken together.

    Attributes:
        files: how many there are.
        modes: Pillow's mode to number of files.
        values: pixel value to number of files that hold it, of grey and palette files.
        colors: the same of colours; of grey files too, as (v, v, v).
        palette: colour of each value, where all files have palettes that agree on it.
    """

    files: int
    modes: dict[str, int]
    values: dict[int, int]
    colors: dict[Color, int]
    palette: dict[int, Color]

    @property
    def in_color(self) -> bool:
        """Whether any file is a colour file."""
        return any(mode in ("RGB", "RGBA") for mode in self.modes) or not self.values


@dataclass(frozen=True)
class _One:
    mode: str
    values: tuple[int, ...]
    colors: tuple[Color, ...]


def examine(paths: Sequence[Path], *, workers: int | None = None) -> MaskFacts:
    """Decode mask files and note their modes, values and colours.

    Raises:
        UserError: where a file cannot be decoded, or holds more colours than a mask has.
    """
    with ThreadPoolExecutor(num_threads(workers)) as pool:
        found = list(pool.map(_examine, paths))
    values = Counter(value for one in found for value in one.values)
    shades: dict[int, set[Color]] = {}
    for one in found:
        for value, color in zip(one.values, one.colors, strict=False):
            shades.setdefault(value, set()).add(color)
    has_palettes = all(one.mode == "P" for one in found)
    return MaskFacts(
        files=len(found),
        modes=dict(Counter(one.mode for one in found)),
        values=dict(sorted(values.items())),
        colors=dict(sorted(Counter(color for one in found for color in one.colors).items())),
        palette={v: min(c) for v, c in shades.items() if len(c) == 1} if has_palettes else {},
    )


def _examine(path: Path) -> _One:
    mode, pixels, palette = read_raw_mask(path)
    if pixels.ndim == 3:
        red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
        codes = np.unique(red << 16 | green << 8 | blue)
        if len(codes) > _MOST:
            raise FileError(
                path,
                f"the mask holds {len(codes)} colors, as a photograph or a blurred mask does",
                "save masks as PNG, without smoothing or JPEG",
            )
        return _One(mode, (), tuple((c >> 16, c >> 8 & 255, c & 255) for c in codes.tolist()))
    values = [int(value) for value in np.unique(pixels)]
    if values[0] < 0:
        raise FileError(path, f"the mask holds the value {values[0]}", "save ids of 0 or more")
    colors: list[Color] = []
    for value in values if max(values) < _MOST else ():
        shade = [value] * 3 if palette is None or value >= len(palette) else palette[value].tolist()
        colors.append((shade[0], shade[1], shade[2]))
    return _One(mode, tuple(values), tuple(colors))


def conclude(facts: MaskFacts, names: Names | None) -> tuple[Encoding, list[str]]:
    """Return how masks are to be read, and the sentences that say why.

    Raises:
        UserError: where values or colours do not go with the names, or are too many to be classes.
    """
    modes = ", ".join(f"{count} {_MODES.get(mode, mode)}" for mode, count in facts.modes.items())
    said = [f"Masks: {facts.files} files ({modes})."]
    if facts.in_color or _palette_speaks(facts, names):
        encoding, more = _of_colors(facts, names)
    else:
        encoding, more = _of_values(facts, names)
    return encoding, said + more


def _palette_speaks(facts: MaskFacts, names: Names | None) -> bool:
    """Whether palette files spell classes by their colours, since their values are in no order."""
    if names is None or not names.colors or not facts.palette:
        return False
    by_id = dict(zip(names.ids, names.colors, strict=True))
    fits = all(by_id.get(value) == color for value, color in facts.palette.items() if value != 255)
    return not fits and {*facts.colors} <= {*names.colors}


_MODES = {"P": "palette", "L": "grey", "1": "black and white", "I;16": "16-bit grey", "RGB": "RGB"}


def _of_colors(facts: MaskFacts, names: Names | None) -> tuple[Encoding, list[str]]:
    colors = tuple(facts.colors)
    if names is None and {*colors} == {(0, 0, 0), (255, 255, 255)}:
        return _binary(None, "Only black and white occur")
    if names is None:
        if len(colors) > _MOST_UNNAMED:
            raise _too_many(len(colors), "colors")
        classes = tuple(f"color_{r:02x}{g:02x}{b:02x}" for r, g, b in colors)
        said = [
            f"{len(colors)} colors, black included, each taken for a class: {some(classes)}. "
            "Nothing here names them; rename them in the file, or put a class_dict.csv "
            "(name,r,g,b) beside the masks. If one stands for unknown pixels, move its color to "
            "ignore_color."
        ]
        return Encoding(classes, colors, "rgb"), said
    if not names.colors:
        if len(names.names) == 2 and {*colors} <= {(0, 0, 0), (255, 255, 255)}:
            return _binary(names, "Only black and white occur")
        raise UserError(
            f"Expected colors for the classes of {names.source}, since the masks are RGB "
            f"({some(colors)}); name them in a class_dict.csv with the columns name,r,g,b."
        )
    strange = [color for color in colors if color not in names.colors]
    if strange:
        raise UserError(
            f"Expected the colors that {names.source} names, got {len(strange)} others in the "
            f"masks: {some(strange)}; add them there."
        )
    pairs = list(zip(names.names, names.colors, strict=True))
    void = [pair for pair in pairs if pair[0].lower() in VOID][:1]
    kept = [pair for pair in pairs if pair not in void]
    said = [f"RGB masks: {len(kept)} classes by their color, as {names.source} says."]
    said += [f"'{name}' {color} is no class: ignore_color." for name, color in void]
    ignore = void[0][1] if void else None
    classes, shades = tuple(name for name, _ in kept), tuple(color for _, color in kept)
    return Encoding(classes, shades, "rgb", ignore_color=ignore), said


def _binary(names: Names | None, why: str) -> tuple[Encoding, list[str]]:
    classes = ("background", "foreground") if names is None else names.names
    return Encoding(classes, mask_format="binary"), [
        f"{why}, 0 and 255: binary, 0 is '{classes[0]}' and 255 '{classes[1]}'. "
        "(If 255 stands for unknown pixels, set mask_format: index.)"
    ]


def _of_values(facts: MaskFacts, names: Names | None) -> tuple[Encoding, list[str]]:
    values = [*facts.values]
    if values == [0, 255] and (names is None or (len(names.names) == 2 and 255 not in names.ids)):
        return _binary(names, "Only two values occur")
    named = set() if names is None else {*names.ids}
    ignore = next((v for v in (255, 65535) if v in values and v not in named), None)
    ids = [value for value in values if value != ignore]
    said = []
    if ignore is not None:
        said.append(f"{ignore} is taken for unknown pixels: ignore_index.")
    if not ids:
        raise UserError(
            f"Expected class ids in the masks, got {ignore} alone; label some pixels, or name "
            f"{ignore} as a class."
        )
    if names is not None:
        encoding, more = _with_names(ids, names)
    elif len(ids) > _MOST_UNNAMED:
        raise _too_many(len(ids), "values")
    else:
        encoding, more = _without_names(ids)
    taken = encoding.ignore_index if ignore is None else ignore
    return _finished(encoding, facts.palette, taken, encoding.id_map is None), said + more


def _with_names(ids: Iterable[int], names: Names) -> tuple[Encoding, list[str]]:
    pairs = list(zip(names.ids, names.names, strict=True))
    strange = [value for value in ids if value not in names.ids]
    if strange:
        raise UserError(
            f"Expected ids of {names.source} in the masks, {some(names.ids)} "
            f"({len(names.names)} classes), got {some(strange)}; name the missing classes "
            "in the order of their ids, with a name such as 'void' for an id that is no class."
        )
    kept = [(value, name) for value, name in pairs if name.lower() not in VOID]
    void = [(value, name) for value, name in pairs if name.lower() in VOID]
    said = [f"'{name}' ({value}) is no class: its pixels are ignored." for value, name in void]
    classes = tuple(name for _, name in kept)
    if not classes:
        raise UserError(f"{names.source} names no class but '{void[0][1]}'; name the others.")
    colors = tuple(
        color
        for name, color in zip(names.names, names.colors, strict=False)
        if name.lower() not in VOID
    )
    is_plain = [value for value, _ in kept] == list(range(len(kept)))
    absent = [name for value, name in kept if value not in ids]
    said.append(f"Index masks: ids {some(ids)} for {len(classes)} classes.")
    if absent:
        said.append(f"No mask holds {some(absent)}.")
    if is_plain and not void:
        return Encoding(classes, colors), said
    return Encoding(classes, colors, id_map=dict(kept)), said


def _without_names(ids: Sequence[int]) -> tuple[Encoding, list[str]]:
    advice = "Nothing here names them: rename them in the file, or give --classes."
    if ids[-1] < 2 * len(ids):
        classes = tuple(f"class_{value}" for value in range(ids[-1] + 1))
        return Encoding(classes), [
            f"Index masks: ids up to {ids[-1]}, so {len(classes)} classes, {some(classes)}.",
            advice,
        ]
    id_map = {value: f"class_{value}" for value in ids}
    return Encoding(tuple(id_map.values()), id_map=id_map), [
        f"Index masks: {len(ids)} ids with gaps, {some(ids)}; an id_map makes classes of "
        f"them. {advice}"
    ]


def _finished(
    encoding: Encoding, palette: dict[int, Color], ignore: int, may_color: bool
) -> Encoding:
    """Return an encoding with the palette's colours, where they differ, and its ignore index."""
    num_classes = len(encoding.classes)
    colors = encoding.colors
    if not colors and may_color and all(value in palette for value in range(num_classes)):
        shades = tuple(palette[value] for value in range(num_classes))
        colors = shades if len({*shades}) == num_classes else ()
    return Encoding(
        encoding.classes,
        colors,
        encoding.mask_format,
        ignore if ignore >= num_classes else 65535,
        encoding.ignore_color,
        encoding.id_map,
    )


def _too_many(count: int, what: str) -> UserError:
    return UserError(
        f"Expected masks of at most {_MOST_UNNAMED} unnamed classes, got {count} {what}, as a "
        "photograph, a probability or a blurred mask has; save class ids as PNG, or name the "
        "classes in a file or by --classes."
    )
