from __future__ import annotations

from pathlib import Path

import pytest

from u2pl.data.init.names import find_names, read_names
from u2pl.errors import UserError


@pytest.mark.parametrize(
    ("file", "text", "names", "ids", "colors"),
    [
        ("classes.txt", "sky\n# no\nroad works\n", ("sky", "road works"), (0, 1), ()),
        ("labels.txt", "7: sky\n8: road\n", ("sky", "road"), (7, 8), ()),
        ("classes.json", '["sky", "road"]', ("sky", "road"), (0, 1), ()),
        ("classes.json", '{"0": "sky", "4": "road"}', ("sky", "road"), (0, 4), ()),
        ("classes.json", '{"sky": 3, "road": 1}', ("sky", "road"), (3, 1), ()),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:9,8,7::\n",
            ("background", "car"),
            (0, 1),
            ((0, 0, 0), (9, 8, 7)),
        ),
        ("class_dict.csv", "name,r,g,b\nsky, 1,2,3\n", ("sky",), (0,), ((1, 2, 3),)),
        ("_classes.csv", "Pixel Value, Class\n0, sky\n1, road\n", ("sky", "road"), (0, 1), ()),
        ("label_colors.txt", "64 128 64\tAnimal\n", ("Animal",), (0,), ((64, 128, 64),)),
    ],
)
def test_usual_files_of_names_are_read(
    tmp_path: Path, file: str, text: str, names: object, ids: object, colors: object
) -> None:
    (tmp_path / file).write_text(text)
    found = read_names(tmp_path / file)
    assert (found.names, found.ids, found.colors) == (names, ids, colors)


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("classes.txt", "", "names no class"),
        ("classes.txt", "a\na\n", "the class 'a' stands there twice"),
        ("labels.txt", "1 a\n1 b\n", "the id 1 stands there twice"),
        ("classes.json", "[1]", "expected a list of names"),
        ("classes.json", "{", "expected a list of names"),
        ("classes.json", "[" * 100_000, "expected a list of names"),
        ("labelmap.txt", "road\n", "expected lines such as 'road:128,64,128::'"),
        ("labelmap.txt", "road:1,2,300::\n", "expected lines such as"),
        ("class_dict.csv", "name;r;g;b\n", "expected the columns|names no class"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2\n", "expected the columns name,r,g,b"),
        ("_classes.csv", "", "expected the columns 'Pixel Value, Class'"),
    ],
)
def test_faulty_files_of_names_are_a_sentence(
    tmp_path: Path, file: str, text: str, what: str
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=what):
        read_names(tmp_path / file)


def test_given_names_win_and_other_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\n")
    (tmp_path / "labels.txt").write_text("b\n")
    names, said = find_names(tmp_path, ("x", "y"))
    assert names is not None
    assert names.names == ("x", "y")
    names, said = find_names(tmp_path, None)
    assert names is not None
    assert names.names == ("a",)
    assert "labels.txt may name classes, too, and was not read." in said
    with pytest.raises(UserError, match="the class 'x' stands there twice"):
        find_names(tmp_path, ("x", "x"))
    assert find_names(tmp_path / "none", None) == (None, [])
