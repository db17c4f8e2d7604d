"""Image files, sound, odd and damaged."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fuzz.trial import mutations, rounds, trials
from u2pl.data.images import image_size, read_image

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

FORMATS = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}


def picture(height: int = 13, width: int = 21, *, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that every compression has something to do."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return Image.fromarray((ramp + rng.integers(0, 50, ramp.shape)).astype(np.uint8))


def encoded(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=FORMATS[suffix], **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010F] = "maker"
    return data


def sound_files() -> Iterator[tuple[str, str, bytes]]:
    """Yield files that must be readable: a name, a suffix, and the bytes."""
    rgb = picture()
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.arange(13 * 21, dtype=np.uint8).reshape(13, 21)))
    deep = Image.fromarray((np.arange(13 * 21).reshape(13, 21) * 200).astype(np.uint16))
    for suffix in FORMATS:
        yield f"rgb {suffix}", suffix, encoded(rgb, suffix)
        yield f"one pixel {suffix}", suffix, encoded(picture(1, 1), suffix)
        yield f"grey as {suffix}", suffix, encoded(rgb.convert("L"), suffix)
    for suffix in ("jpg", "png", "tif", "webp"):
        for orientation in (*range(1, 9), 0, 77):
            name = f"orientation {orientation} {suffix}"
            yield name, suffix, encoded(rgb, suffix, exif=exif(orientation))
    yield "cmyk jpg", "jpg", encoded(rgb.convert("CMYK"), "jpg")
    yield "cmyk tif", "tif", encoded(rgb.convert("CMYK"), "tif")
    yield "progressive jpg", "jpg", encoded(rgb, "jpg", progressive=True)
    for mode in ("1", "P", "LA", "RGBA"):
        yield f"mode {mode} png", "png", encoded(alpha.convert(mode), "png")
    yield "palette with transparency", "png", encoded(rgb.convert("P"), "png", transparency=3)
    yield (
        "palette with alphas",
        "png",
        encoded(rgb.convert("P"), "png", transparency=bytes(range(9))),
    )
    yield "grey with transparency", "png", encoded(rgb.convert("L"), "png", transparency=3)
    yield "16 bits png", "png", encoded(deep, "png")
    yield "16 bits tif", "tif", encoded(deep, "tif")
    yield "32 bits tif", "tif", encoded(Image.fromarray(np.asarray(deep, np.int32)), "tif")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"{compression} tif", "tif", encoded(rgb, "tif", compression=compression)
    for mode in ("LAB", "YCbCr"):
        yield (
            f"{mode} tif",
            "tif",
            encoded(rgb.convert("YCbCr") if mode == "YCbCr" else Image.new("LAB", (5, 4)), "tif"),
        )
    yield "animation", "webp", encoded(rgb, "webp", save_all=True, append_images=[picture(seed=1)])
    yield "animated png", "png", encoded(rgb, "png", save_all=True, append_images=[picture(seed=1)])
    yield "two pages", "tif", encoded(rgb, "tif", save_all=True, append_images=[picture(5, 4)])
    yield "very wide", "png", encoded(picture(3, 30_000), "png")
    yield "very high", "jpg", encoded(picture(30_000, 2), "jpg")
    yield "jpg named png", "png", encoded(rgb, "jpg")
    yield "png named tif", "tif", encoded(rgb, "png")
    yield "bytes behind the end", "jpg", encoded(rgb, "jpg") + b"\0" * 99
    yield "broken exif", "jpg", encoded(rgb, "jpg", exif=b"Exif\0\0no exif at all")
    yield "exif behind the pixels", "png", late_exif(encoded(rgb, "png"), orientation=6)
    yield "upright says xmp", "png", with_xmp(rgb, orientation=6)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def late_exif(content: bytes, *, orientation: int) -> bytes:
    """A PNG whose EXIF data follow its pixels, as some programs write them."""
    data = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    return content[:-12] + png_chunk(b"eXIf", data) + content[-12:]


def with_xmp(image: Image.Image, *, orientation: int) -> bytes:
    """A PNG that says in XMP alone how it is to be turned."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", text)
    return encoded(image, "png", pnginfo=info)


def huge_png(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be a picture of so many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", body)
        + png_chunk(b"IEND", b"")
    )


def bad_files() -> Iterator[tuple[str, str, bytes]]:
    """Yield files that no one can read."""
    rgb = picture()
    for suffix in FORMATS:
        yield f"nothing {suffix}", suffix, b""
        yield f"zeros {suffix}", suffix, bytes(500)
        yield f"a word {suffix}", suffix, b"hello"
        yield f"head alone {suffix}", suffix, encoded(rgb, suffix)[:12]
    yield "bomb", "png", huge_png(100_000, 100_000)
    yield "long bomb", "png", huge_png(2**31 - 1, 1)
    yield "high bomb", "png", huge_png(1, 2**31 - 1)
    yield "no width", "png", huge_png(0, 9)
    yield (
        "bmp of no height",
        "bmp",
        struct.pack("<2sIHHIIiiHHIIIIII", b"BM", 54, 0, 0, 54, 40, 9, 0, 1, 24, 0, 0, 0, 0, 0, 0),
    )
    yield (
        "bmp bomb",
        "bmp",
        struct.pack(
            "<2sIHHIIiiHHIIIIII", b"BM", 54, 0, 0, 54, 40, 99999, 99999, 1, 24, 0, 0, 0, 0, 0, 0
        ),
    )
    text = zlib.compress(bytes(200_000_000))
    chunk = png_chunk(b"zTXt", b"a\0\0" + text)
    content = encoded(rgb, "png")
    yield "text bomb", "png", content[:33] + chunk + content[33:]
    yield "floats", "tif", encoded(Image.new("F", (4, 3)), "tif")
    yield (
        "postscript",
        "png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    )
    yield "gif", "png", b"GIF89a" + bytes(200)
    yield "ppm", "jpg", b"P6 2 2 255\n" + bytes(12)
    yield "svg", "png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"


def read_both(path: Path) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    return read_image(path), image_size(path)


def test_sound_and_odd_images_are_readable_and_their_header_tells_the_size(tmp_path: Path) -> None:
    with trials("images") as group:
        for number, (case, suffix, content) in enumerate(sound_files()):
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(content)
            found = group.attempt(case, lambda path=path: read_both(path))
            group.expect(case, found is not None, "it was refused")
            if found is not None:
                image, size = found
                group.expect(case, image.dtype == np.uint8 and image.ndim == 3, "no RGB image")
                group.expect(case, image.shape == (*size, 3), f"{image.shape} but header {size}")
        assert group.refused == 0


def test_files_that_are_no_image_are_refused(tmp_path: Path) -> None:
    with trials("images") as group:
        for number, (case, suffix, content) in enumerate(bad_files()):
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(content)
            found = group.attempt(case, lambda path=path: read_image(path))
            group.expect(case, found is None, "it was read")
            group.attempt(f"size of {case}", lambda path=path: image_size(path))


def test_things_that_are_no_plain_file_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "nowhere.png").symlink_to("none.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with trials("images") as group:
        for path in [*sorted(tmp_path.iterdir()), tmp_path / ("n" * 3000), tmp_path / "a\0b.png"]:
            for read in (read_image, image_size):
                found = group.attempt(path.name[:20], lambda path=path, read=read: read(path))
                group.expect(path.name[:20], found is None, "it was read")


def test_damaged_images_are_read_or_refused_and_never_crash(tmp_path: Path) -> None:
    rgb, count = picture(), rounds(9, long=150)
    sources = [
        *((suffix, encoded(rgb, suffix)) for suffix in FORMATS),
        ("jpg", encoded(rgb, "jpg", exif=exif(6))),
        ("png", encoded(rgb.convert("P"), "png", exif=exif(6), transparency=3)),
        ("tif", encoded(rgb, "tif", compression="tiff_lzw", exif=exif(8))),
        ("tif", encoded(rgb.convert("P"), "tif", compression="tiff_adobe_deflate")),
        ("webp", encoded(rgb, "webp", lossless=True, exif=exif(3))),
        ("bmp", encoded(rgb.convert("P"), "bmp")),
    ]
    with trials("images") as group:
        for number, (suffix, content) in enumerate(sources):
            path = tmp_path / f"{number}.{suffix}"
            for case, damaged in mutations(content, count=count, seed=number):
                path.write_bytes(damaged)
                name = f"{path.name} {case}"
                image = group.attempt(name, lambda path=path: read_image(path))
                size = group.attempt(f"size of {name}", lambda path=path: image_size(path))
                if image is not None:
                    group.expect(name, image.shape[:2] == size, f"{image.shape}, header {size}")
        assert group.refused > 50
