from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuzz.test_images import huge_png
from u2pl.app import uploads
from u2pl.app.uploads import read_upload
from u2pl.data.images import read_image
from u2pl.errors import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_ordinary_image_has_no_notes(tmp_path: Path) -> None:
    upload = read_upload(save(tmp_path / "a b.png", Image.fromarray(PHOTO)))
    assert (upload.name, upload.notes) == ("a b.png", ())
    assert np.array_equal(upload.image, PHOTO)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_first_picture_of_several_is_taken_and_told(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(np.roll(PHOTO, n, axis=0)) for n in range(3)]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(
        tmp_path / f"moving{suffix}",
        pictures[0],
        save_all=True,
        append_images=pictures[1:],
        **options,
    )
    upload = read_upload(path)
    assert "The file holds 3 pictures; this is the first." in upload.notes
    assert np.array_equal(upload.image, PHOTO)


def test_sixteen_bits_are_scaled_and_told(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    upload = read_upload(save(tmp_path / "deep.png", Image.fromarray(values)))
    assert upload.notes == ("16 bits were scaled to 8, as in training.",)
    assert upload.image[0, :, 0].tolist() == [0, 1, 255]


def test_cmyk_becomes_rgb_and_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "print.jpg", Image.fromarray(PHOTO).convert("CMYK"))
    upload = read_upload(path)
    assert len(upload.notes) == 1
    assert upload.notes[0].startswith("CMYK became RGB")
    assert np.array_equal(upload.image, read_image(path))


def test_transparency_is_dropped_and_told(tmp_path: Path) -> None:
    glass = np.concatenate([PHOTO, np.zeros((12, 16, 1), np.uint8)], axis=2)
    upload = read_upload(save(tmp_path / "glass.png", Image.fromarray(glass)))
    assert upload.notes == ("Transparency was dropped: what lies under it counts.",)
    assert np.array_equal(upload.image, PHOTO)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("notes.txt", b"hello", "not an image that can be read here"),
        ("empty.png", b"", "not an image that can be read here"),
        ("moving.gif", b"GIF89a" + bytes(20), "not an image that can be read here"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("torn.png", b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be decoded|not an image"),
    ],
)
def test_what_is_no_image_is_told_by_its_own_name(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what) as error:
        read_upload(tmp_path / name)
    text = str(error.value)
    assert text.startswith(f"{name}: ")
    assert text.endswith("; choose another image.")
    assert str(tmp_path) not in text


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "height.tif", Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(UserError, match="floating-point numbers; choose another"):
        read_upload(path)


def test_upload_that_was_put_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^a\.png: the file does not exist; choose another"):
        read_upload(tmp_path / "a.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_PIXELS", 16 * 12)
    path = save(tmp_path / "a.png", Image.fromarray(PHOTO))
    assert read_upload(path).image.shape == PHOTO.shape
    monkeypatch.setattr(uploads, "MOST_PIXELS", 16 * 12 - 1)
    monkeypatch.setattr(uploads, "read_image", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=r"\(16 × 12\).*label it with u2pl predict"):
        read_upload(path)


def test_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(30_000, 30_000))
    with pytest.raises(UserError, match="pixels"):
        read_upload(path)
