from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiny import patches, tiny_model
from u2pl.app import views
from u2pl.app.answers import PixelAnswer, ask_pixel, label
from u2pl.app.desk import Choice, Chosen, Look
from u2pl.app.uploads import Upload
from u2pl.data.images import colorize, entropy_picture, overlay

HOSTILE = "<img src=x onerror=alert(1)>${1+1}{{ value }}"


def make_look(*, size: tuple[int, int] = (41, 57), name: str = "photo.png", **options: Any) -> Look:
    model = tiny_model(**options)
    image = patches(size)
    upload = Upload(name, image, ("A note.",))
    return Look(Choice("a"), upload, Chosen(model, (3, 6), ()), label(model, image))


def words(html: str) -> str:
    """What is to be read of a text, in one line."""
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", html).split()))


def test_small_image_is_shown_enlarged_each_pixel_alike() -> None:
    look = make_look()
    shown = views.pictures(look)
    card, prediction = look.chosen.model.card, look.labeled.prediction
    assert {picture.shape for picture in shown.values()} == {(41 * 16, 57 * 16, 3)}
    own = {kind: picture[8::16, 8::16] for kind, picture in shown.items()}
    assert np.array_equal(own["image"], look.labeled.image)
    assert np.array_equal(own["mask"], colorize(prediction.mask, card.colors))
    assert np.array_equal(own["overlay"], overlay(look.labeled.image, prediction.mask, card.colors))
    assert np.array_equal(own["entropy"], entropy_picture(prediction.entropy, 7))


def test_large_image_is_shown_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LONGEST_SIDE", 20)
    look = make_look(size=(40, 10))
    shown = views.pictures(look)
    assert {picture.shape for picture in shown.values()} == {(20, 5, 3)}
    means = look.labeled.image.reshape(20, 2, 5, 2, 3).mean(axis=(1, 3))
    assert np.abs(shown["image"] - means).max() <= 0.5
    mask = look.labeled.prediction.mask[1::2, 1::2]
    assert np.array_equal(shown["mask"], colorize(mask, look.chosen.model.card.colors))


def test_line_of_pixels_can_be_shown() -> None:
    assert views.pictures(make_look(size=(1, 3000)))["mask"].shape == (1, 1600, 3)


def test_every_pixel_is_found_where_it_is_shown() -> None:
    for size in [(41, 57), (480, 640), (1, 1)]:
        shown = views.shown_size(size)
        scale = shown[0] // size[0]
        for row, column in {(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 3)}:
            for inside in (0, scale - 1):
                place = (column * scale + inside, row * scale + inside)
                assert views.clicked_pixel(place, size) == (row, column)
    height, width = 3001, 7000
    rows, columns = views.shown_size((height, width))
    assert views.clicked_pixel((columns, rows), (height, width)) == (height - 1, width - 1)


def test_reliable_pixels_are_blue_and_others_orange() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = views.reliable_picture(image, np.array([[True, False]])).astype(int)
    assert picture[0, 0, 2] > picture[0, 0, 0]
    assert picture[0, 1, 0] > picture[0, 1, 2]


def test_legend_lists_what_is_there_and_what_is_not() -> None:
    look = make_look()
    mask = np.zeros((41, 57), np.uint8)
    mask[:, :14] = 3
    reliable = np.zeros((41, 57), bool)
    reliable[:, :7] = True
    prediction = look.labeled.prediction._replace(mask=mask, reliable=reliable)
    text = words(views.legend(look._replace(labeled=replace(look.labeled, prediction=prediction))))
    assert "a 75.4 % 0 % d 24.6 % 50.0 %" in text
    assert text.endswith("Not found: b c e f g")


def test_headline_says_which_network_saw_what() -> None:
    text = words(views.headline(make_look(resize=24, protocol="slide")))
    assert "photo.png, 57 × 41 pixels · teacher of a, step 1" in text
    assert "seen in windows of 32 × 32, with its short side at 24" in text
    assert text.endswith("A note.")
    student = make_look()._replace(choice=Choice("a/b", "student"))
    assert "student of a/b, step 1 · seen whole, at its own size" in words(views.headline(student))


@pytest.mark.parametrize("reliable", [True, False])
def test_answer_says_what_the_pixel_is_and_is_not(reliable: bool) -> None:
    look = make_look()
    pixel = PixelAnswer(
        row=7,
        column=9,
        probs=(0.1, 0.6, 0.2, 0.05, 0.03, 0.0199, 0.0001),
        ranks=(2, 0, 1, 3, 4, 5, 6),
        excluded=(False, False, False, True, True, True, False),
        entropy=0.5,
        reliable=reliable,
    )
    text = words(views.answer(look, pixel))
    assert text.startswith("Column 9, row 7 b 60.0 % c 20.0 % a 10.0 % 4 more")
    assert "Surely not d e f Ranks 3 to 5, of 0 (likeliest) to 6." in text
    if reliable:
        assert "Reliable : entropy 0.500 ≤ 0.900 nats" in text
        assert "would be a pseudo-label, b; were it unreliable, a negative key" in text
    else:
        assert "Unreliable : entropy 0.500 > 0.900 nats" in text
        assert "would be no pseudo-label, but a negative key of these classes" in text


def test_two_classes_have_an_answer() -> None:
    """r_l = 1: whatever is not the likeliest is excluded."""
    look = make_look(classes=("wall", "crack"))
    look = look._replace(chosen=look.chosen._replace(ranks=(1, 2)))
    pixel = ask_pixel(look.chosen.model, look.labeled, 5, 5, ranks=(1, 2))
    text = words(views.answer(look, pixel))
    assert " more" not in text
    assert f"Surely not {look.chosen.model.classes[pixel.by_rank[1]]} Ranks 1 to 1" in text


@pytest.mark.parametrize("place", [(0, 0), (20, 30), (40, 56)])
@pytest.mark.parametrize("size", [(41, 57), (41, 3)])
def test_magnifier_shows_the_pixel_in_its_frame(
    size: tuple[int, int], place: tuple[int, int]
) -> None:
    row, column = place[0], min(place[1], size[1] - 1)
    look = make_look(size=size)
    uri = views.magnified(look, row, column)["image"]
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert picture.shape == (200, 8 * min(25, size[1]), 3)
    own = look.labeled.image[row, column]
    framed = [
        (y, x)
        for y in range(0, picture.shape[0], 8)
        for x in range(0, picture.shape[1], 8)
        if (picture[y : y + 8, x : x + 8] == own).all() and is_framed(picture, y, x)
    ]
    assert len(framed) == 1


def is_framed(picture: Any, y: int, x: int) -> bool:
    """Whether white pixels are on those sides of a square that lie in the picture."""
    lines = [
        picture[y - 1 : y, x : x + 8],
        picture[y + 8 : y + 9, x : x + 8],
        picture[y : y + 8, x - 1 : x] if x else picture[:0],
        picture[y : y + 8, x + 8 : x + 9],
    ]
    return all((line == 255).all() for line in lines) and sum(map(np.size, lines)) > 0


def test_names_are_text() -> None:
    look = make_look(classes=(HOSTILE, "b"), name=f"{HOSTILE}.png")
    look = look._replace(choice=Choice(HOSTILE), chosen=look.chosen._replace(ranks=(1, 2)))
    pixel = ask_pixel(look.chosen.model, look.labeled, 0, 0, ranks=(1, 2))
    texts = [views.headline(look), views.legend(look), views.answer(look, pixel)]
    for text in [*texts, views.problem(HOSTILE)]:
        assert "<img src=x" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_scales_say_what_the_colors_mean() -> None:
    scales = {kind: words(html) for kind, html in views.scales(make_look()).items()}
    assert "1.95 nats, all classes alike" in scales["entropy"]
    assert "threshold, 0.900 nats" in scales["entropy"]
    assert "reliable" in scales["reliable"]
    assert "left:46." in views.scales(make_look())["entropy"]  # 0.9 of log 7
