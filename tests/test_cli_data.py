"""``u2pl data init``, ``check`` and ``split``, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factories import write_dataset
from fuzz.trial import run_u2pl
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
