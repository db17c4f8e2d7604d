"""``u2pl data init``, ``prepare``, ``check`` and ``split``, as typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import published
from factories import write_dataset
from fuzz.trial import run_u2pl
from tiny import assignments, tiny_overrides
from u2pl.data.prepare import BENCHMARKS
from u2pl.data.sources import load_dataset


def test_split_says_what_it_wrote_and_its_json_names_the_files(tmp_path: Path) -> None:
    path, result = write_dataset(tmp_path, num_labeled=8), tmp_path / "split.json"
    arguments = ["--labeled", "1/4", "--labeled", "3", "--seed", 1, "--seed", 2, "--json", result]
    answer = run_u2pl("data", "split", path, *arguments)
    assert (answer.status, answer.err) == (0, "")
    assert "dataset-1of4-seed1.yaml: 2 labelled, 12 unlabelled; class shares within" in answer.out
    splits = json.loads(result.read_text())["splits"]
    assert [row["labeled"] for row in splits] == [2, 3, 2, 3]
    assert {"dataset", "unlabeled", "share_difference", "absent", "sha256"} <= set(splits[0])
    assert all(len(load_dataset(row["dataset"]).labeled) == row["labeled"] for row in splits)


def test_published_list_is_imported(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    (tmp_path / "paper.txt").write_text(
        "JPEGImages/labeled_2.jpg SegmentationClass/labeled_2.png\n"
    )
    arguments = ["--import", tmp_path / "paper.txt", "--name", "paper"]
    answer = run_u2pl("data", "split", path, *arguments)
    assert answer.status == 0, answer
    assert [sample.name for sample in load_dataset(tmp_path / "paper.yaml").labeled] == [
        "labeled_2"
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Expected --labeled 1/16, or --import LIST; give one."),
        (["--labeled", "1/2", "--import", "x.txt"], "Expected --labeled or --import, got both"),
        (["--seed", "1", "--import", "x.txt"], "Expected --labeled or --import, got both"),
        (["--labeled", "1/2", "--name", "x"], "--import-unlabeled and --name need --import."),
        (["--labeled", "many"], "Expected a fraction such as 1/16 or 0.05"),
    ],
)
def test_malformed_split_is_a_sentence_and_status_2(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    answer = run_u2pl("data", "split", write_dataset(tmp_path), *arguments)
    assert answer.status == 2
    assert sentence in answer.err


def test_folder_becomes_a_data_set_that_is_checked_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    write_dataset(folder).unlink()
    answer = run_u2pl(
        "data", "init", folder, "--classes", "ground, wall, tree", "--json", tmp_path / "i"
    )
    assert (answer.status, answer.err) == (0, "")
    assert "labeled: 4 images of images/ with masks of masks/." in answer.out
    assert f"Next: u2pl data check '{folder}/dataset.yaml'" in answer.out
    keys = {"dataset", "format", "conclusions", "classes", "mask_format", "ignore_index"}
    assert keys | {"sections", "made"} == set(json.loads((tmp_path / "i").read_text()))
    answer = run_u2pl("data", "check", folder, "--html", tmp_path / "page.html")
    assert answer.status == 0
    assert "<h1>my photos</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    again = run_u2pl("data", "init", folder)
    assert again.status == 1
    assert "is there already; give --overwrite" in again.err
    assert run_u2pl("data", "init", folder, "--format", "yolo", "--overwrite").status == 2


def test_page_is_written_where_there_are_errors_too(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    (tmp_path / "masks/labeled_0.png").write_bytes(b"torn")
    answer = run_u2pl("data", "check", path, "--html", tmp_path / "page.html")
    assert answer.status == 1
    assert "1 error" in (tmp_path / "page.html").read_text(encoding="utf-8")


def expect_counts(
    monkeypatch: pytest.MonkeyPatch, name: str, counts: dict[str, dict[str, int]]
) -> None:
    """Take a tiny tree's numbers for the published ones."""
    monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], counts=counts))


def test_published_set_is_prepared_checked_split_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.write_voc_with_aug(tmp_path / "source")
    expect_counts(monkeypatch, "voc", {"blender": {"labeled": 6, "val": 2}})
    (tmp_path / "1_2.txt").write_text("".join(f"{name}\n" for name in published.VOC_TRAIN))
    out, result = tmp_path / "out", tmp_path / "prepared.json"
    arguments = [
        *("voc", tmp_path / "source", "--out", out, "--variant", "blender"),
        *("--split", tmp_path / "1_2.txt", "--json", result),
    ]
    answer = run_u2pl("data", "prepare", *arguments)
    assert (answer.status, answer.err) == (0, "")
    assert "Licence: VOC and SBD: the images are from Flickr" in answer.out
    assert f"Wrote {out}/dataset.yaml: labeled 6, val 2. Next: u2pl data check" in answer.out
    assert "3 labelled, 3 unlabelled" in answer.out
    written = json.loads(result.read_text())
    assert written["sections"] == {"labeled": 6, "val": 2}
    assert {"dataset", "name", "variant", "notes", "licence", "was_there"} <= {*written}
    split = Path(written["split"]["dataset"])
    assert run_u2pl("data", "check", split).status == 0
    again = run_u2pl("data", "prepare", *arguments)
    assert again.status == 0
    assert "is there already, of an earlier call; nothing was done" in again.out
    settings = assignments(tiny_overrides(train__steps=2))
    run = tmp_path / "run"
    answer = run_u2pl("train", split, "--recipe", "demo", "--out", run, *settings)
    assert answer.status == 0, answer
    assert (run / "weights/ema.safetensors").is_file()


def test_two_published_sets_are_adapted_to_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.write_cityscapes(tmp_path / "city")
    published.write_synthia(tmp_path / "source", variant="16")
    expect_counts(monkeypatch, "cityscapes", {"": {"labeled": 3, "val": 2}})
    expect_counts(monkeypatch, "synthia", {"16": {"labeled": 3}})
    target = tmp_path / "target"
    answer = run_u2pl("data", "prepare", "cityscapes", tmp_path / "city", "--out", target)
    assert answer.status == 0, answer
    arguments = ["synthia", tmp_path / "source", "--out", tmp_path / "out"]
    answer = run_u2pl("data", "prepare", *arguments)
    assert answer.status == 2
    assert "--target cityscapes/dataset.yaml" in answer.err
    answer = run_u2pl("data", "prepare", *arguments, "--target", target / "dataset.yaml")
    assert answer.status == 0, answer
    assert "labeled 3, unlabeled 3, val 2" in answer.out
    dataset = tmp_path / "out/dataset.yaml"
    assert run_u2pl("data", "check", dataset).status == 0
    settings = assignments(tiny_overrides(train__steps=2))
    line = ("train", dataset, "--recipe", "demo", "--setting", "adapt", "--out", tmp_path / "run")
    answer = run_u2pl(*line, *settings)
    assert answer.status == 0, answer


def test_list_of_unlabelled_images_alone_is_refused(tmp_path: Path) -> None:
    answer = run_u2pl(
        "data", "prepare", "voc", tmp_path, "--out", tmp_path / "o", "--split-unlabeled", "x.txt"
    )
    assert answer.status == 2
    assert "--split-unlabeled needs --split." in answer.err
