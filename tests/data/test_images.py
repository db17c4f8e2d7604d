from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import published
from fuzz.test_images import encoded, huge_png, late_exif, picture
from u2pl.data.images import (
    FileError,
    colorize,
    entropy_picture,
    image_size,
    overlay,
    pixel_mode,
    read_first_channel,
    read_image,
    read_mask,
    refuse_way_out,
    write_image,
    write_mask,
)
from u2pl.errors import UserError

COLORS = ((10, 20, 30), (40, 50, 60), (70, 80, 90))


def _save(path: Path, array: Any, **options: Any) -> Path:
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "RGB"])
def test_every_pillow_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    source = Image.new("RGB", (6, 4), (255, 255, 255))
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    source.convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert (image == 255).all()


def test_transparency_of_a_palette_is_dropped(tmp_path: Path) -> None:
    source = Image.new("P", (3, 2), 1)
    source.putpalette([0, 0, 0, 9, 8, 7])
    source.save(tmp_path / "image.png", transparency=b"\x00\x80")
    assert (read_image(tmp_path / "image.png") == (9, 8, 7)).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 255]


def test_floating_point_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match="floating-point"):
        read_image(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_turns_image_and_size_alike(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / f"image.{suffix}", np.zeros((4, 10, 3)), exif=exif)
    assert image_size(path) == ((10, 4) if orientation == 6 else (4, 10))
    assert read_image(path).shape[:2] == image_size(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    path = _save(tmp_path / f"cut.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: the file cannot be decoded"):
        read_image(path)


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    for read in (read_image, image_size):
        with pytest.raises(UserError, match=r"text\.png: the file is not an image"):
            read(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"none\.png: the file does not exist"):
        read_image(tmp_path / "none.png")


def test_grey_and_palette_masks_read_as_their_values(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 255]], np.uint8)
    grey = _save(tmp_path / "grey.png", ids)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "palette.png")
    for path in (grey, tmp_path / "palette.png"):
        mask = read_mask(path, num_classes=3)
        assert mask.dtype == np.int64
        assert mask.tolist() == ids.tolist()


def test_one_bit_and_sixteen_bit_masks_read_as_their_values(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    Image.fromarray(np.array([[0, 299, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_mask(tmp_path / "bit.png", num_classes=2).tolist() == [[0, 1]]
    deep = read_mask(tmp_path / "deep.png", num_classes=300, ignore_index=65535)
    assert deep.tolist() == [[0, 299, 65535]]


def test_unknown_ids_are_listed(tmp_path: Path) -> None:
    path = _save(tmp_path / "mask.png", [[0, 3, 7, 255]])
    with pytest.raises(UserError, match=r"ids 0 to 2 or 255 \(ignore\), got 3, 7; name the"):
        read_mask(path, num_classes=3)


def test_rgb_file_under_index_says_what_to_set(tmp_path: Path) -> None:
    path = _save(tmp_path / "mask.png", np.zeros((2, 2, 3)))
    with pytest.raises(UserError, match="set mask_format: rgb"):
        read_mask(path, num_classes=3)


def test_grey_with_alpha_is_refused_as_index_mask(tmp_path: Path) -> None:
    Image.new("LA", (2, 2)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="Pillow mode LA"):
        read_mask(tmp_path / "mask.png", num_classes=3)


def test_rgb_masks_read_by_color(tmp_path: Path) -> None:
    path = _save(tmp_path / "mask.png", [[COLORS[2], COLORS[0], (0, 0, 0), COLORS[1]]])
    mask = read_mask(path, num_classes=3, mask_format="rgb", colors=COLORS, ignore_color=(0, 0, 0))
    assert mask.tolist() == [[2, 0, 255, 1]]
    with pytest.raises(UserError, match=r"no class has the color \(0, 0, 0\)"):
        read_mask(path, num_classes=3, mask_format="rgb", colors=COLORS)


def test_id_map_gives_classes_and_ignores_every_other_id(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 7], [8, 9, 255]], np.uint8)).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", num_classes=3, id_map={7: 2, 0: 1, 8: 2})
    assert mask.tolist() == [[1, 255, 2], [2, 255, 255]]
    assert mask.dtype == np.int64
    deep = Image.fromarray(np.array([[65535, 300, 70_000]], np.int32))
    deep.save(tmp_path / "deep.tif")
    deep_mask = read_mask(
        tmp_path / "deep.tif", num_classes=3, ignore_index=900, id_map={65535: 0, 299: 1}
    )
    assert deep_mask.tolist() == [[0, 900, 900]]


@pytest.mark.parametrize("channels", [1, 3])
def test_binary_masks_read_0_1_and_255(tmp_path: Path, channels: int) -> None:
    values = np.array([[0, 1, 255]])
    array = values if channels == 1 else np.repeat(values[..., None], 3, axis=2)
    path = _save(tmp_path / "mask.png", array)
    assert read_mask(path, num_classes=2, mask_format="binary").tolist() == [[0, 1, 1]]


def test_binary_mask_with_other_values_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "mask.png", [[0, 128, 255]])
    with pytest.raises(UserError, match="expected 0 and 255 in a binary mask, got 128"):
        read_mask(path, num_classes=2, mask_format="binary")


def test_written_mask_reads_back_and_shows_its_colors(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 255]])
    path = tmp_path / "deep" / "folder" / "mask.png"
    write_mask(path, mask, colors=COLORS)
    assert read_mask(path, num_classes=3).tolist() == mask.tolist()
    shown = [[COLORS[0], COLORS[1]], [COLORS[2], (255, 255, 255)]]
    assert read_image(path).tolist() == np.array(shown).tolist()
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_written_mask_keeps_ids_above_255(tmp_path: Path) -> None:
    mask = np.array([[0, 299]])
    write_mask(tmp_path / "mask.png", mask, colors=((0, 0, 0),) * 300)
    assert read_mask(tmp_path / "mask.png", num_classes=300, ignore_index=999).tolist() == [
        [0, 299]
    ]


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, format: str, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"Cannot write .*image\.png: disk full\."):
        write_image(tmp_path / "image.png", np.zeros((2, 2, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_overlay_blends_classes_and_leaves_ignore() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[0, 255, -1]])
    result = overlay(image, mask, [(200, 0, 100)], alpha=0.5)
    assert result.dtype == np.uint8
    assert result.tolist() == [[[150, 50, 100], [100, 100, 100], [100, 100, 100]]]
    opaque = overlay(image, mask * 0, COLORS, alpha=1.0)
    assert (opaque == colorize(mask * 0, COLORS)).all()


def test_entropy_picture_has_a_fixed_range() -> None:
    entropy = np.array([[0.0, math.log(4), 99.0, 0.5 * math.log(4)]], np.float32)
    picture = entropy_picture(entropy, 4)
    assert picture.shape == (1, 4, 3)
    assert picture[0, 0].max() < 10  # magma begins at black
    assert (picture[0, 1] == picture[0, 2]).all()
    assert (entropy_picture(entropy[:, :1], 2)[0, 0] == picture[0, 0]).all()
    assert picture[0, 3].sum() < picture[0, 1].sum()


def test_file_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FileError(Path("a.png"), "it is torn", "mend it")))
    assert str(error) == "a.png: it is torn; mend it."
    assert error.remedy == "mend it"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_stands_upright_in_every_format(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white above on the left
    turns = {1: 0, 2: "h", 3: 2, 4: "v", 5: "t", 6: 1, 7: "s", 8: -1}
    turn = turns[orientation]
    if isinstance(turn, int):
        stored = np.rot90(upright, turn)
    else:
        flips = {"h": upright[:, ::-1], "v": upright[::-1], "t": upright.swapaxes(0, 1)}
        flips["s"] = upright[::-1, ::-1].swapaxes(0, 1)
        stored = flips[turn]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    options = {"quality": 100} if suffix in ("jpg", "webp") else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    assert image_size(path) == (16, 32)
    assert np.abs(read_image(path).astype(int) - upright).max() < 40


def test_exif_behind_the_pixels_of_a_png_counts_in_header_and_image(tmp_path: Path) -> None:
    content = encoded(picture(4, 10), "png")
    (tmp_path / "late.png").write_bytes(late_exif(content, orientation=6))
    assert image_size(tmp_path / "late.png") == (10, 4)
    assert read_image(tmp_path / "late.png").shape == (10, 4, 3)


def test_broken_exif_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    path = _save(tmp_path / "image.jpg", np.zeros((4, 10, 3)), exif=b"Exif\0\0none at all")
    assert image_size(path) == (4, 10)
    assert read_image(path).shape == (4, 10, 3)


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        for read in (read_image, image_size):
            with pytest.raises(UserError, match=rf"{name}: this is no plain file"):
                read(tmp_path / name)


def test_formats_beyond_the_promised_ones_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "image.ppm")
    os.rename(tmp_path / "image.ppm", tmp_path / "image.png")
    with pytest.raises(UserError, match=r"can be read here \(JPEG, PNG, BMP, TIFF or WebP\)"):
        read_image(tmp_path / "image.png")


def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(100_000, 100_000))
    with pytest.raises(UserError, match=r"claims more than 178,956,970 pixels; cut it into parts"):
        read_image(tmp_path / "bomb.png")


def test_file_with_the_longest_name_there_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    write_image(path, np.zeros((2, 2, 3), np.uint8))
    assert list(tmp_path.iterdir()) == [path]


def test_way_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out/sub").mkdir(parents=True)
    (tmp_path / "out/link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "out/inner").symlink_to("sub", target_is_directory=True)
    for name in ("a.png", "sub/a.png", "new/folder/a.png", "inner/a.png", "sub/../a.png"):
        refuse_way_out(tmp_path / "out", tmp_path / "out" / name)
    for name in ("link/a.png", "../a.png", "sub/../../a.png", "/a.png"):
        with pytest.raises(UserError, match=r"which is not in .*out, where results go"):
            refuse_way_out(tmp_path / "out", tmp_path / "out" / name)


@pytest.mark.parametrize("channels", [3, 4])
def test_first_channel_of_16_bits_is_read_whole(channels: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 65536, (13, 9, channels), np.uint16)
    published.write_png_of_16_bits(tmp_path / "a.png", pixels)
    assert np.array_equal(read_first_channel(tmp_path / "a.png"), pixels[..., 0])


def test_first_channel_of_other_files_is_their_own(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 9, 3), np.uint8)
    _save(tmp_path / "rgb.png", pixels)
    _save(tmp_path / "grey.png", pixels[..., 1])
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    assert np.array_equal(read_first_channel(tmp_path / "rgb.png"), pixels[..., 0])
    assert np.array_equal(read_first_channel(tmp_path / "grey.png"), pixels[..., 1])
    wanted = pixels[..., 1].astype(np.int64) * 257
    assert np.array_equal(read_first_channel(tmp_path / "grey16.png"), wanted)


def test_mode_is_read_off_the_header(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    for mode in ("L", "P", "RGB"):
        image.convert(mode).save(tmp_path / "a.png")
        assert pixel_mode(tmp_path / "a.png") == mode
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="is not an image"):
        pixel_mode(tmp_path / "a.png")
