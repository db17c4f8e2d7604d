from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl.data.init.masks import conclude, examine
from u2pl.data.init.names import Names
from u2pl.errors import UserError


def save(folder: Path, *arrays: object, palette: list[int] | None = None) -> list[Path]:
    paths = []
    for place, array in enumerate(arrays):
        image = Image.fromarray(np.asarray(array))
        if palette is not None:
            image.putpalette(palette)
        paths.append(folder / f"{place}.png")
        image.save(paths[-1])
    return paths


def grey(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.resize(np.array(values, dtype), (8, 8))


def names(*items: str) -> Names:
    return Names("classes.txt", items, tuple(range(len(items))))


def test_facts_are_those_of_all_files(tmp_path: Path) -> None:
    facts = examine(save(tmp_path, grey(0, 1), grey(0, 255)))
    assert (facts.files, facts.modes, facts.values) == (2, {"L": 2}, {0: 2, 1: 1, 255: 1})
    assert facts.colors == {(0, 0, 0): 2, (1, 1, 1): 1, (255, 255, 255): 1}
    assert facts.palette == {}


def test_ids_and_255_are_index_masks_with_ignore(tmp_path: Path) -> None:
    encoding, said = conclude(examine(save(tmp_path, grey(0, 1, 3, 255))), None)
    assert encoding.classes == ("class_0", "class_1", "class_2", "class_3")
    assert (encoding.mask_format, encoding.ignore_index, encoding.id_map) == ("index", 255, None)
    assert "255 is taken for unknown pixels: ignore_index." in said


def test_two_values_0_and_255_are_binary_and_the_other_reading_is_told(tmp_path: Path) -> None:
    encoding, said = conclude(examine(save(tmp_path, grey(0, 255), grey(0))), None)
    assert (encoding.mask_format, encoding.classes) == ("binary", ("background", "foreground"))
    assert "If 255 stands for unknown pixels, set mask_format: index." in said[-1]
    three, _ = conclude(examine(save(tmp_path, grey(0, 255))), names("a", "b", "c"))
    assert three.mask_format == "index"


def test_black_and_white_saved_as_rgb_is_binary(tmp_path: Path) -> None:
    facts = examine(save(tmp_path, np.stack([grey(0, 255)] * 3, -1)))
    assert conclude(facts, None)[0].mask_format == "binary"
    encoding, _ = conclude(facts, names("road", "crack"))
    assert (encoding.mask_format, encoding.classes) == ("binary", ("road", "crack"))


def test_ids_0_and_1_are_index_masks(tmp_path: Path) -> None:
    encoding, _ = conclude(examine(save(tmp_path, grey(0, 1))), None)
    assert (encoding.mask_format, encoding.classes) == ("index", ("class_0", "class_1"))


def test_palette_gives_colors_where_they_differ(tmp_path: Path) -> None:
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759
    encoding, said = conclude(examine(save(tmp_path, grey(0, 1, 2), palette=palette)), None)
    assert encoding.colors == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert "1 palette" in said[0]
    same, _ = conclude(examine(save(tmp_path, grey(0, 1, 2), palette=[0] * 768)), None)
    assert same.colors == ()


def test_ids_with_gaps_become_classes_by_an_id_map(tmp_path: Path) -> None:
    encoding, _ = conclude(examine(save(tmp_path, grey(50, 100, 200, 255))), None)
    assert encoding.classes == ("class_50", "class_100", "class_200")
    assert encoding.id_map == {50: "class_50", 100: "class_100", 200: "class_200"}


def test_void_among_the_names_is_ignored_by_an_id_map(tmp_path: Path) -> None:
    encoding, said = conclude(examine(save(tmp_path, grey(0, 1, 2))), names("void", "a", "b"))
    assert (encoding.classes, encoding.id_map) == (("a", "b"), {1: "a", 2: "b"})
    assert "'void' (0) is no class: its pixels are ignored." in said


def test_ids_that_no_name_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ids of classes.txt .* got 2; name the missing"):
        conclude(examine(save(tmp_path, grey(0, 1, 2))), names("a", "b"))


def test_16_bit_ids_and_their_ignore(tmp_path: Path) -> None:
    facts = examine(save(tmp_path, grey(0, 1, 300, 65535, dtype=np.uint16)))
    encoding, _ = conclude(facts, None)
    assert encoding.ignore_index == 65535
    assert encoding.id_map == {0: "class_0", 1: "class_1", 300: "class_300"}


def test_photographs_and_blurred_masks_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(UserError, match=r"0\.png: the mask holds \d+ colors, as a photograph"):
        examine(save(tmp_path, noise))
    with pytest.raises(UserError, match=r"unnamed classes, got \d+ values"):
        conclude(examine(save(tmp_path, noise[..., 0])), None)


def test_masks_of_ignore_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected class ids in the masks, got 255 alone"):
        conclude(examine(save(tmp_path, grey(255))), None)


def test_rgb_masks_need_colors_for_names_and_names_for_colors(tmp_path: Path) -> None:
    facts = examine(save(tmp_path, np.stack([grey(0, 9), grey(7), grey(7)], -1)))
    with pytest.raises(UserError, match=r"Expected colors for the classes of classes\.txt"):
        conclude(facts, names("a", "b"))
    known = Names("x.csv", ("a", "b"), (0, 1), ((0, 7, 7), (1, 1, 1)))
    with pytest.raises(UserError, match=r"got 1 others in the masks: \(9, 7, 7\)"):
        conclude(facts, known)


def test_palette_files_in_no_order_are_read_by_color(tmp_path: Path) -> None:
    palette = [0, 9, 0, 9, 0, 0] + [0] * 762
    facts = examine(save(tmp_path, grey(0, 1), palette=palette))
    known = Names("labelmap.txt", ("a", "b"), (0, 1), ((9, 0, 0), (0, 9, 0)))
    encoding, _ = conclude(facts, known)
    assert encoding.mask_format == "rgb"
    in_order = Names("labelmap.txt", ("a", "b"), (0, 1), ((0, 9, 0), (9, 0, 0)))
    assert conclude(facts, in_order)[0].mask_format == "index"
