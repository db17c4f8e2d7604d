"""Image and mask files to arrays and back."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from u2pl.data.storage import ImageFile, ReadError
from u2pl.errors import UserError

MaskFormat = Literal["index", "rgb", "binary"]
Color = tuple[int, int, int]

_UNREADABLE = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_REPLACE = "replace the file or take it out of the data set"
# What Pillow may be asked to decode, whatever a file is called. It knows dozens of formats more,
# and hands some of them (PostScript) to other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# How a PNG spells colours of 16 bits, and the same with its bytes exchanged.
_SWAPPED = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of an EXIF orientation, to stand upright


class FileError(UserError):
    """A fault of one file. The message is ``file: what; remedy.``"""

    def __init__(self, file: ImageFile, what: str, remedy: str) -> None:
        super().__init__(f"{file}: {what}; {remedy}.")
        self.file = file
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[FileError], tuple[ImageFile, str, str]]:
        """Let the error pass between processes, which would hand over the message alone."""
        return type(self), (self.file, self.what, self.remedy)


@contextlib.contextmanager
def _opened(path: ImageFile, content: bytes | None = None) -> Iterator[Image.Image]:
    source = path if isinstance(path, Path) else BytesIO(content or read_bytes(path))
    if isinstance(path, Path) and os.path.exists(path) and not os.path.isfile(path):
        raise FileError(path, "this is no plain file", _REPLACE)  # opening a pipe would wait
    try:
        with Image.open(source, formats=_FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise FileError(path, "the file does not exist", _REPLACE) from None
    except UnidentifiedImageError:
        raise FileError(
            path,
            "the file is not an image that can be read here (JPEG, PNG, BMP, TIFF or WebP)",
            _REPLACE,
        ) from None
    except Image.DecompressionBombError:
        raise FileError(
            path,
            f"the image claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels",
            "cut it into parts, or take it out of the data set",
        ) from None
    except _UNREADABLE as error:
        raise FileError(path, f"the file cannot be decoded ({error})", _REPLACE) from None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, where the data are absent or broken."""
    try:
        # Not a PNG's own method: it decodes the pixels in search of data behind them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:
        return 1
    return value if value in _TURNS else 1


def _to_uint8(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return 16-bit grey [H, W] scaled to 8 bits; older Pillows open it in the 32-bit mode I."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return ((values * 255 + 32767) // 65535).astype(np.uint8)


def read_bytes(file: ImageFile) -> bytes:
    """Return what an image's file, or its place in a shard, holds.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        return file.read_bytes() if isinstance(file, Path) else file.read()
    except ReadError as error:
        raise FileError(file, error.what, error.remedy) from None
    except OSError as error:
        raise FileError(file, f"the file cannot be read ({error})", _REPLACE) from None


def read_image(path: ImageFile, content: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Return an image file as RGB [H, W, 3] uint8, turned upright as its EXIF data say.

    Grey, palette and CMYK files become RGB, transparency is dropped, 16 bits are scaled to 8.

    Args:
        path: the file, or the place in a shard.
        content: what is there, if it has been fetched from a shard already.

    Raises:
        UserError: where the file is missing, truncated or no image.
    """
    with _opened(path, content) as image:
        image.load()
        if image.mode == "F":
            raise FileError(path, "its pixels are floating-point numbers", "save it with 8 bits")
        # A TIFF is upright by now and says so: loading it has turned it.
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        if upright.mode.startswith("I"):
            upright = Image.fromarray(_to_uint8(upright))
        elif upright.mode in ("P", "PA", "LA"):
            upright = upright.convert("RGBA")  # a palette with transparency has no way to RGB
        # a copy of a large image costs more memory than the image
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


class FileFacts(NamedTuple):
    """What an image file holds before :func:`read_image` makes RGB of 8 bits of it.

    Attributes:
        mode: Pillow's word for its channels: ``RGB``, ``L``, ``CMYK``, ``I;16``, ….
        frames: pictures in it; more than 1 where it is animated or has pages.
        transparent: whether its pixels may be seen through.
    """

    mode: str
    frames: int
    transparent: bool


def file_facts(path: Path) -> FileFacts:
    """Return what an image file holds, from its headers, without decoding it.

    Raises:
        UserError: where the file is missing or no image.
    """
    with _opened(path) as image:
        # a JPEG's second picture is a camera's preview or depth map, nothing that moves
        frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
        return FileFacts(image.mode, frames, image.has_transparency_data)


def image_size(path: ImageFile) -> tuple[int, int]:
    """Return (height, width) of an upright image from the file's header, without decoding it.

    Only a PNG whose EXIF data may stand behind its pixels is decoded.

    Raises:
        UserError: where the file is missing or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillows differ in whether the size is that before the turn
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height = tags[256], tags[257]
        if image.format == "PNG" and "exif" not in image.info and _has_late_text(path):
            image.load()
        lies_on_its_side = _orientation(image) in (5, 6, 7, 8)
    return (width, height) if lies_on_its_side else (height, width)


def pixel_mode(path: Path) -> str:
    """Return Pillow's mode of an image file, such as P, L or RGB, from its header.

    Raises:
        UserError: where the file is missing or no image.
    """
    with _opened(path) as image:
        return image.mode


def read_first_channel(path: Path) -> npt.NDArray[np.int64]:
    """Return the first channel [H, W] int64 of an image file, of a colour PNG with all 16 bits.

    Pillow knows no colours of 16 bits: it keeps the upper byte of each. So it is made to decode the
    file a second time as if the lower byte were the upper one.

    Raises:
        UserError: where the file cannot be read.
    """
    with _opened(path) as image:
        swapped = [_SWAPPED.get(tile[3]) for tile in getattr(image, "tile", [])]
        image.load()
        upper = np.asarray(image).astype(np.int64)
    first = upper if upper.ndim == 2 else upper[..., 0]
    if not any(swapped):
        return first
    with _opened(path) as image:
        image.tile = [  # type: ignore[attr-defined]
            (*tile[:3], mode)
            for tile, mode in zip(image.tile, swapped, strict=True)  # type: ignore[attr-defined]
        ]
        image.load()
        lower = np.asarray(image).astype(np.int64)[..., 0]
    return first << 8 | lower


def _has_late_text(path: ImageFile) -> bool:
    """Return whether a PNG has chunks behind its pixels that may say how it is turned."""
    seen_pixels = False
    with path.open("rb") if isinstance(path, Path) else BytesIO(read_bytes(path)) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            seen_pixels |= kind == b"IDAT"
            if seen_pixels and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False


def read_mask(
    path: Path,
    *,
    num_classes: int,
    mask_format: MaskFormat = "index",
    colors: Sequence[Color] = (),
    ignore_index: int = 255,
    ignore_color: Color | None = None,
    id_map: Mapping[int, int] | None = None,
) -> npt.NDArray[np.int64]:
    """Return a mask file as class ids [H, W] int64, ``ignore_index`` where nothing is known.

    Args:
        path: the file.
        num_classes: C; ids are 0 to C - 1.
        mask_format: ``index``, a grey or palette file whose pixel values are the ids; ``rgb``, a
            file whose colours stand for the classes; ``binary``, 0 for class 0 and 255 or 1 for
            class 1.
        colors: C colours, used by ``rgb`` alone.
        ignore_index: the id of unknown pixels.
        ignore_color: the colour of unknown pixels in ``rgb``.
        id_map: from ids in an ``index`` file, 0 or more, to class ids; ids that it does not name
            are unknown. None takes the ids as they are.

    Raises:
        UserError: where the file cannot be read, or a pixel is neither a class nor unknown.
    """
    pixels = _mask_pixels(path, mask_format)
    if mask_format == "rgb":
        return _ids_of_colors(path, pixels, colors, ignore_index, ignore_color)
    if mask_format == "binary":
        return _ids_of_binary(path, pixels)
    ids = pixels.astype(np.int64)
    if id_map is not None:
        return _mapped(ids, id_map, ignore_index)
    unknown = ((ids < 0) | (ids >= num_classes)) & (ids != ignore_index)
    if unknown.any():
        raise FileError(
            path,
            f"expected ids 0 to {num_classes - 1} or {ignore_index} (ignore), "
            f"got {_first(np.unique(ids[unknown]).tolist())}",
            "name the missing classes in dataset.yaml, set ignore_index, or mend the mask",
        )
    return ids


def read_raw_mask(path: Path) -> tuple[str, npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    """Return what a mask file holds before anybody says how it is to be read.

    Returns:
        Pillow's mode; the pixels, [H, W] of grey and palette files, else [H, W, 3] uint8; and of a
        palette file its colours [n, 3] uint8, n up to 256.

    Raises:
        UserError: where the file cannot be read, or its pixels are floating-point numbers.
    """
    with _opened(path) as image:
        image.load()
        if image.mode == "F":
            raise FileError(path, "its pixels are floating-point numbers", "save class ids")
        if image.mode == "P":
            palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            return "P", np.asarray(image), palette
        if image.mode in ("1", "L") or image.mode.startswith("I"):
            return image.mode, np.asarray(image).astype(np.int64), None
        return image.mode, np.asarray(image.convert("RGBA").convert("RGB")), None


def _mask_pixels(path: Path, mask_format: MaskFormat) -> npt.NDArray[Any]:
    """Return what a mask file holds: [H, W], or with ``rgb`` [H, W, 3]."""
    with _opened(path) as image:
        image.load()
        if mask_format == "rgb":
            return np.asarray(image.convert("RGBA").convert("RGB"))
        if mask_format == "binary" and image.mode in ("RGB", "RGBA"):
            return np.asarray(image.convert("L"))
        if image.mode in ("RGB", "RGBA"):
            raise FileError(
                path,
                "the mask is a colour file, but mask_format is index",
                "set mask_format: rgb and give each class its color",
            )
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise FileError(
                path,
                f"the mask has Pillow mode {image.mode}",
                "save it as a grey or palette PNG whose values are class ids",
            )
        return np.asarray(image)


def _mapped(
    ids: npt.NDArray[np.int64], id_map: Mapping[int, int], ignore_index: int
) -> npt.NDArray[np.int64]:
    """Return the classes of ids [H, W]; ids that are not named become ``ignore_index``."""
    table = np.full(max(id_map) + 2, ignore_index, np.int64)
    table[list(id_map)] = list(id_map.values())
    # What lies outside the table falls on its last place, which no id has.
    labels: npt.NDArray[np.int64] = table[ids.clip(-1, len(table) - 1)]
    return labels


def _ids_of_colors(
    path: Path,
    pixels: npt.NDArray[np.uint8],
    colors: Sequence[Color],
    ignore_index: int,
    ignore_color: Color | None,
) -> npt.NDArray[np.int64]:
    known = [*colors] if ignore_color is None else [*colors, ignore_color]
    ids = np.array([*range(len(colors)), ignore_index][: len(known)], np.int64)
    codes = np.array([_code(color) for color in known], np.int64)
    order = np.argsort(codes)
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    found = red << 16 | green << 8 | blue
    place = order[np.searchsorted(codes, found, sorter=order).clip(max=len(codes) - 1)]
    unknown = codes[place] != found
    if unknown.any():
        strange = [(c >> 16, c >> 8 & 255, c & 255) for c in np.unique(found[unknown]).tolist()]
        raise FileError(
            path,
            f"no class has the color {_first(strange)}",
            "add it to dataset.yaml, set ignore_color, or mend the mask",
        )
    labels: npt.NDArray[np.int64] = ids[place]
    return labels


def _code(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _ids_of_binary(path: Path, pixels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    values = pixels.astype(np.int64)
    unknown = (values != 0) & (values != 1) & (values != 255)
    if unknown.any():
        strange = _first(np.unique(values[unknown]).tolist())
        raise FileError(
            path,
            f"expected 0 and 255 in a binary mask, got {strange}",
            "set mask_format: index, or mend the mask",
        )
    ids: npt.NDArray[np.int64] = (values != 0).astype(np.int64)
    return ids


def _first(items: list[Any]) -> str:
    """Return at most five items as text."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(str(item) for item in items[:5]) + more


SMALL, FAST = 6, 2
"""Levels of PNG's compression: a photograph is a tenth larger at the second, and takes a quarter of
the time."""


def write_mask(
    path: Path,
    mask: npt.NDArray[np.integer[Any]],
    *,
    colors: Sequence[Color] | npt.NDArray[np.uint8],
    level: int = SMALL,
) -> None:
    """Write class ids as a PNG that reads as an index mask and shows in the classes' colours.

    The file appears whole or not at all; missing folders are made. Values that are no class
    (ignore) show white. Ids above 255 fit no palette, so such a mask becomes 16-bit grey.

    Args:
        path: the file, with suffix .png.
        mask: [H, W] of integers from 0 to 65535.
        colors: one colour a class.
        level: of compression, 1 (fast) to 9.
    """
    if mask.max(initial=0) > 255:
        _save_png(path, Image.fromarray(mask.astype(np.uint16)), level=level)
        return
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette_of(colors).tobytes())
    _save_png(path, image, level=level)


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write RGB [H, W, 3] or grey [H, W] uint8 as a PNG, whole or not at all."""
    _save_png(path, Image.fromarray(image), level=FAST)


def _save_png(path: Path, image: Image.Image, *, level: int) -> None:
    write_whole(path, lambda file: image.save(file, format="PNG", compress_level=level))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path and move what it wrote to ``path`` in one go.

    See :func:`whole_file`.
    """
    with whole_file(path) as temporary:
        write(temporary)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path; what is written there moves to ``path`` in one go at the end.

    Readers see the old file or the new one; of several writers the last one wins. Missing folders
    are made. A link at ``path`` is replaced, not followed. An error leaves nothing behind.

    Raises:
        UserError: where the file cannot be written.
    """
    # The name is unique to this writer, so two that write the same file do not mix, and short,
    # since that of the file may be as long as a name can be.
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()
    temporary = path.with_name(f".{digest}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from None


def refuse_way_out(folder: Path, path: Path) -> None:
    """Refuse to write a result whose name, or a link on the way to it, leads out of its folder.

    Args:
        folder: where all results go.
        path: of one of them; it need not exist.

    Raises:
        UserError: where ``path`` does not lie below ``folder``.
    """
    place = Path(os.path.realpath(path.parent))
    if not place.is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"{path} lies in {place}, which is not in {folder}, where results go; take out the "
            "link or the '..' that leads there."
        )


def palette_of(colors: Sequence[Color] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return [256, 3]: the classes' colours, then white."""
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(colors)] = np.array(colors, np.uint8).reshape(-1, 3)[:256]
    return palette


def colorize(mask: npt.NDArray[np.integer[Any]], colors: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """Return a mask [H, W] as a picture [H, W, 3] uint8; values that are no class are white.

    >>> colorize(np.array([[0, 1, 255]]), [(0, 0, 0), (9, 8, 7)]).tolist()
    [[[0, 0, 0], [9, 8, 7], [255, 255, 255]]]
    """
    table = np.full((len(colors) + 1, 3), 255, np.uint8)
    table[:-1] = np.array(colors, np.uint8).reshape(-1, 3)
    is_class = (mask >= 0) & (mask < len(colors))
    return _looked_up(table, np.where(is_class, mask, len(colors)))


def _looked_up(table: npt.NDArray[np.uint8], index: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """``table[index]``; unlike that it lets other threads work meanwhile."""
    return np.take(table, index, axis=0, mode="clip")


def overlay(
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.integer[Any]],
    colors: Sequence[Color],
    *,
    alpha: float = 0.5,
) -> npt.NDArray[np.uint8]:
    """Return an image [H, W, 3] uint8 with its mask [H, W] laid over it.

    ``alpha`` is the mask's share, 0 to 1. Pixels that are no class (ignore) stay as they are.
    """
    # 256 values of a channel and 256 of a colour: looked up, not computed for each pixel
    table = np.rint((1 - alpha) * np.arange(256)[:, None] + alpha * np.arange(256)).astype(np.uint8)
    painted = np.empty_like(image)
    rows = max(1, 2**18 // max(mask.shape[1], 1))  # looking up takes 10 bytes a value for a while
    for top in range(0, mask.shape[0], rows):
        part = slice(top, top + rows)
        pair = np.left_shift(image[part], 8, dtype=np.uint16) | colorize(mask[part], colors)
        painted[part] = _looked_up(table.ravel(), pair)
    is_class = (mask >= 0) & (mask < len(colors))
    return painted if is_class.all() else np.where(is_class[..., None], painted, image)


def entropy_picture(
    entropy: npt.NDArray[np.floating[Any]], num_classes: int
) -> npt.NDArray[np.uint8]:
    """Return an entropy map [H, W] in nats as a picture [H, W, 3] uint8, dark where sure.

    The range is fixed, 0 to log(num_classes), so that pictures can be compared. Colours are
    matplotlib's magma.
    """
    return _looked_up(magma(), entropy_levels(entropy, num_classes))


def entropy_levels(
    entropy: npt.NDArray[np.floating[Any]], num_classes: int
) -> npt.NDArray[np.uint8]:
    """Return an entropy map [H, W] in nats as uint8: 0 for none, 255 for log(num_classes).

    >>> entropy_levels(np.array([[0, math.log(4) / 2, math.log(4)]]), 4).tolist()
    [[0, 128, 255]]
    """
    share = np.nan_to_num(entropy) / math.log(max(num_classes, 2))
    levels: npt.NDArray[np.uint8] = (share.clip(0, 1) * 255).round().astype(np.uint8)
    return levels


@functools.cache
def magma() -> npt.NDArray[np.uint8]:
    """Return the colours of :func:`entropy_levels`, [256, 3], from dark to light."""
    from matplotlib import colormaps  # slow to import, and only pictures need it

    table: npt.NDArray[np.uint8] = (
        (colormaps["magma"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    )
    return table
