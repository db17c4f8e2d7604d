"""Tag files: CSV and VOC's XML, whole and torn."""

from __future__ import annotations

import os
from pathlib import Path

from fuzz.trial import mutations, rounds, trials
from u2pl.data.tags import read_csv_tags, read_voc_tags

CLASSES = ("road", "car", "Straße", "a b")
HEAD = "image,classes\n"

SOUND_CSV = {
    "plain": "image,classes\nx,road;car\ny,car\n",
    "byte order mark": "\ufeffimage,classes\nx,road\n",
    "windows": "image,classes\r\nx,road\r\n\r\ny,car\r\n",
    "old mac": "image,classes\rx,road\r",
    "quotes": 'image,classes\n"x, y","road;car"\n',
    "spaces": " image , classes \n x , road ; car \n",
    "other letters": "image,classes\nx,Straße\n",
    "a quoted line end": 'image,classes\n"x\ny",road\n',
    "no row": "image,classes\n",
    "a class twice": "image,classes\nx,road;road\n",
    "no last line end": "image,classes\nx,road",
    "many rows": HEAD + "".join(f"{i},road\n" for i in range(5000)),
}
BAD_CSV = {
    "nothing": "",
    "blank lines": "\n\n\n",
    "no header": "x,road\n",
    "header in capitals": "Image,Classes\nx,road\n",
    "unknown class": HEAD + "x,raod\n",
    "class of other letters": HEAD + "x,STRASSE\n",
    "control characters": HEAD + "x,\x1b[31mroad\x1b[0m\n",
    "markup": HEAD + "x,[/bold]road\n",
    "no class": HEAD + "x,\n",
    "semicolons alone": HEAD + "x,;;;\n",
    "one cell": HEAD + "x\n",
    "three cells": HEAD + "x,road,car\n",
    "an image twice": HEAD + "x,road\nx,car\n",
    "an image twice, once with suffix": HEAD + "x,road\nx.png,road\n",
    "open quote": HEAD + '"x,road\n',
    "huge cell": HEAD + "x," + "a" * 200_000 + "\n",
    "semicolon as comma": "image;classes\nx;road\n",
    "tabs": "image\tclasses\nx\troad\n",
    "null": HEAD + "x,\0\n",
    "html": "<!doctype html><p>404",
}
SOUND_XML = {
    "plain": "<annotation><object><name>road</name></object></annotation>",
    "spaces": "<annotation>\n<object><name> car </name></object>\n</annotation>",
    "parts": "<annotation><object><name>car</name><part><name>x</name></part></object>"
    "</annotation>",
    "escaped": "<annotation><object><name>&#114;oad</name></object></annotation>",
    "byte order mark": "\ufeff<annotation><object><name>car</name></object></annotation>",
}
BAD_XML = {
    "nothing": "",
    "no object": "<annotation/>",
    "unknown class": "<annotation><object><name>tree</name></object></annotation>",
    "escape in a name": "<annotation><object><name>ro&#9;ad\u2028</name></object></annotation>",
    "no name": "<annotation><object/></annotation>",
    "another root": "<svg/>",
    "cut": "<annotation><object><name>ro",
    "two roots": "<annotation/><annotation/>",
    "doctype": "<!DOCTYPE a [<!ENTITY b 'x'>]><annotation/>",
    "external entity": "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>"
    "<annotation><object><name>&b;</name></object></annotation>",
    "undefined entity": "<annotation><object><name>&b;</name></object></annotation>",
    "deep": "<a>" * 100_000,
    "deep and whole": "<annotation>" + "<a>" * 50_000 + "</a>" * 50_000 + "</annotation>",
    "many attributes": "<annotation " + " ".join(f"a{i}='1'" for i in range(20_000)) + "/>",
    "another encoding": "<?xml version='1.0' encoding='rot13'?><annotation/>",
    "json": '{"annotation": {}}',
}


def test_csv_tags_are_sets_of_ids_or_refused(tmp_path: Path) -> None:
    path, count = tmp_path / "tags.csv", rounds(30, long=400)
    with trials("tags") as group:

        def attempt(case: str, content: bytes) -> object:
            path.write_bytes(content)
            return group.attempt(
                case, lambda: read_csv_tags(path, CLASSES, suffixes={".png"}, may_be_empty=False)
            )

        for case, text in SOUND_CSV.items():
            group.expect(case, attempt(case, text.encode()) is not None, "it was refused")
        for case, text in BAD_CSV.items():
            group.expect(case, attempt(case, text.encode()) is None, "it was read")
        for encoding in ("latin-1", "utf-16", "utf-32"):
            attempt(encoding, SOUND_CSV["other letters"].encode(encoding))
        for seed, text in enumerate((SOUND_CSV["plain"], SOUND_CSV["quotes"])):
            for case, data in mutations(text.encode(), count=count, seed=seed):
                attempt(case, data)


def test_voc_tags_are_sets_of_ids_or_refused(tmp_path: Path) -> None:
    path, count = tmp_path / "a.xml", rounds(25, long=400)
    with trials("tags") as group:

        def attempt(case: str, content: bytes) -> object:
            path.write_bytes(content)
            return group.attempt(
                case, lambda: read_voc_tags(path, CLASSES, skip=(), may_be_empty=False)
            )

        for case, text in SOUND_XML.items():
            group.expect(case, attempt(case, text.encode()) is not None, "it was refused")
        for case, text in BAD_XML.items():
            group.expect(case, attempt(case, text.encode()) is None, "it was read")
        for case, data in mutations(SOUND_XML["plain"].encode(), count=count, seed=0):
            attempt(case, data)


def test_tags_that_are_no_plain_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    with trials("tags") as group:
        for path in [*tmp_path.iterdir(), tmp_path / "none", tmp_path / ("n" * 3000)]:
            csv = group.attempt(
                path.name[:9],
                lambda path=path: read_csv_tags(path, CLASSES, suffixes=(), may_be_empty=True),
            )
            xml = group.attempt(
                path.name[:9],
                lambda path=path: read_voc_tags(path, CLASSES, skip=(), may_be_empty=True),
            )
            group.expect(path.name[:9], csv is None and xml is None, "it was read")
