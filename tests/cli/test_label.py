"""``u2pl label`` and ``u2pl data merge``, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from annotators import correct
from commands import call
from factories import write_dataset
from tiny import tiny_overrides
from u2pl import train
from u2pl.data.sources import load_dataset


def test_label_and_merge_say_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = write_dataset(Path("data"))
    train(dataset, recipe="demo", out="run", overrides=tiny_overrides(train__steps=1))
    words = ("label", "run", "data/unlabeled", "--out", "out", "--top", "2", "--json", "a.json")
    assert call(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    result = json.loads(Path("a.json").read_text())
    assert f"entropy up to {result['max_entropy']:.3f} nats, the run's threshold." in said
    assert "Wrote 2 images for png: out/png" in said
    assert call(monkeypatch, *words, "--max-entropy", "0.5", "--resume") == 1
    assert "another model" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--max-entropy", "2") == 0
    assert "entropy up to 2.000 nats, as --max-entropy says." in capsys.readouterr().out

    image = load_dataset(dataset).labeled[0]
    truth = {f"unlabeled_{n}": load_dataset(dataset).read_mask(image) for n in range(6)}
    back = correct(Path("out"), "png", truth)
    assert call(monkeypatch, "data", "merge", "data", back, "--json", "b.json") == 0
    said = capsys.readouterr().out
    assert "2 images moved from unlabeled to labeled; 100.0 % of their pixels" in said
    assert "Wrote data/dataset-2.yaml: labeled 6, unlabeled 4. Next: u2pl train" in said
    merged = json.loads(Path("b.json").read_text())
    result = json.loads(Path("a.json").read_text())  # of the last ranking
    assert {f"{name}.png" for name in merged["merged"]} == {*result["top"]}
    assert call(monkeypatch, "data", "merge", "data/dataset-2.yaml", back) == 0
    assert "Nothing to merge: all of it is in the data set already." in capsys.readouterr().out
    assert call(monkeypatch, "data", "merge", "data", back, "--format", "bmp") == 1
    assert "dataset-2.yaml is there already" in capsys.readouterr().err
