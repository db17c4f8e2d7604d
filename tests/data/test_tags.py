from __future__ import annotations

import os
from pathlib import Path

import pytest

from u2pl.data.tags import class_ids, read_csv_tags, read_voc_tags
from u2pl.errors import UserError

CLASSES = ("ground", "wall", "tree")


def _voc(folder: Path, content: str | bytes, *, may_be_empty: bool = False) -> frozenset[int]:
    path = folder / "a.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_voc_tags(path, CLASSES, skip=("bird",), may_be_empty=may_be_empty)


def test_rows_are_read_by_name_without_suffix_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("\ufeffimage, classes\n a.JPG , wall; tree;\nb.c,ground\n\n", encoding="utf-8")
    tags = read_csv_tags(path, CLASSES, suffixes=(".jpg",), may_be_empty=False)
    assert tags == {"a": {1, 2}, "b.c": {0}}


def test_row_without_classes_is_empty_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("image,classes\na,\nb\n")
    assert read_csv_tags(path, CLASSES, suffixes=(), may_be_empty=True) == {"a": set(), "b": set()}
    with pytest.raises(UserError, match="leave out images whose classes are not known"):
        read_csv_tags(path, CLASSES, suffixes=(), may_be_empty=False)


def test_objects_are_named_and_their_parts_are_not(tmp_path: Path) -> None:
    text = "<object><name>tree</name><part><name>leaf</name></part></object>"
    text += "<object><name>bird</name></object><object><name>\n wall </name></object>"
    assert _voc(tmp_path, f"<annotation>{text}</annotation>") == {1, 2}


def test_annotation_of_skipped_names_alone_is_empty(tmp_path: Path) -> None:
    text = "<annotation><object><name>bird</name></object></annotation>"
    assert _voc(tmp_path, text, may_be_empty=True) == frozenset()
    with pytest.raises(UserError, match=r"a\.xml: no object names a class; .* tags 'always'"):
        _voc(tmp_path, text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_doctype_is_refused_before_its_entities_are_read(tmp_path: Path, encoding: str) -> None:
    entities = '<!ENTITY a "wall"><!ENTITY b "&a;&a;&a;&a;">'
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [{entities}]>'
    text += "<annotation><object><name>&b;</name></object></annotation>"
    with pytest.raises(UserError, match=r"a\.xml: the file has a DOCTYPE"):
        _voc(tmp_path, text.encode(encoding))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not an XML file"),
        ("<annotation>", "is not an XML file"),
        (b"\x00", "is not an XML file"),
        ("<?xml version='1.0' encoding='nope'?><annotation/>", "is not an XML file"),
        ("<html/>", "expected <annotation> with a <name> in each <object>"),
        ("<annotation><object/></annotation>", "expected <annotation> with a <name>"),
        (
            "<annotation><object><name>tre</name></object></annotation>",
            "unknown class 'tre'; mend it, or name it under 'skip'. Did you mean 'tree'?",
        ),
    ],
)
def test_faulty_annotation_is_one_sentence_with_its_file(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        _voc(tmp_path, content)
    assert "a.xml" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_tags_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the tags .*no\.xml: No such file"):
        read_voc_tags(tmp_path / "no.xml", CLASSES, skip=(), may_be_empty=False)
    with pytest.raises(UserError, match=r"no\.csv do not exist"):
        read_csv_tags(tmp_path / "no.csv", CLASSES, suffixes=(), may_be_empty=False)
    with pytest.raises(UserError, match="are not a CSV file"):
        read_csv_tags(tmp_path, CLASSES, suffixes=(), may_be_empty=False)


def test_class_ids_say_where_an_unknown_name_stands() -> None:
    assert class_ids(["tree", "ground"], CLASSES, path=Path("a"), context="") == {0, 2}
    with pytest.raises(UserError, match=r"^a: unknown class 'moon' for 'b'\.$"):
        class_ids(["moon"], CLASSES, path=Path("a"), context=" for 'b'")


@pytest.mark.parametrize("second", ["x,wall", "x,tree", "x.png,wall"])
def test_image_with_two_rows_is_refused(tmp_path: Path, second: str) -> None:
    path = tmp_path / "tags.csv"
    path.write_text(f"image,classes\nx,wall\ny,tree\n{second}\n")
    with pytest.raises(UserError, match=r"'x' stands there twice; give each image one row"):
        read_csv_tags(path, CLASSES, suffixes={".png"}, may_be_empty=False)


def test_tags_are_not_read_from_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="are not a CSV file"):
        read_csv_tags(tmp_path / "pipe", CLASSES, suffixes=(), may_be_empty=False)
    with pytest.raises(UserError, match=r"Cannot read the tags .*: it is no plain file"):
        read_voc_tags(tmp_path / "pipe", CLASSES, skip=(), may_be_empty=False)
