"""The loader's rate and where an image's time goes, of sizes that take a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from factories import write_dataset
from tiny import tiny_config
from u2pl import bench
from u2pl.bench import inputs
from u2pl.bench.inputs import PHASES, Loading, Source, as_jpeg, loader_processes, paint, sources
from u2pl.bench.page import page
from u2pl.config import save_config
from u2pl.data.loaders import default_workers
from u2pl.data.sources import load_dataset
from u2pl.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What of a run folder the loader needs."""
    data = write_dataset(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "dataset.yaml").write_text(f"root: {tmp_path}\n{data.read_text()}")
    save_config(tiny_config(), folder / "config.yaml")
    return folder


def test_bench_compares_a_runs_loader_with_its_step(run: Path) -> None:
    result = bench.bench(parts=["input"], repetitions=1, device="cpu", run=run)
    assert result["ratios"]["input_vs_step"] > 0
    found = result["input"]["run"]
    assert min(found["images_per_second"].values()) > 0
    assert (found["workers"], found["step"][:5]) == (0, "small")
    text = page(json.loads(json.dumps(result)))
    assert "## Input, run" in text
    assert "| decode images |" in text


def test_run_of_a_pretrained_network_needs_no_weights_to_be_timed(run: Path) -> None:
    kind = {"encoder": "test_efficientnet", "weights": "/gone.safetensors", "frozen_norm": True}
    changes = {f"model__{key}": value for key, value in kind.items()}
    save_config(tiny_config(model__pretrained=True, **changes), run / "config.yaml")
    with sources(run, CPU, {"data.num_workers": 1}) as (source,):
        model = source.config.model
    assert (model.pretrained, model.weights, model.frozen_norm) == (False, None, False)
    assert (model.encoder, source.config.data.num_workers) == ("test_efficientnet", 1)


def test_painted_images_come_as_jpeg_and_as_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PAINTED_SIZE", (48, 64))
    with sources(None, CPU, {}) as found:
        assert [source.name for source in found] == ["jpeg", "png"]
        for source, kind in zip(found, ("JPEG", "PNG"), strict=True):
            for sample in (*source.dataset.labeled, *source.dataset.unlabeled):
                with Image.open(sample.image) as image:
                    assert (image.format, image.size) == (kind, (64, 48))
        assert len(found[0].dataset.labeled) == len(found[1].dataset.labeled) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_every_phase_takes_some_of_an_images_time(tmp_path: Path, workers: int) -> None:
    path = as_jpeg(paint(tmp_path / "png", size=(48, 64)), tmp_path / "jpeg")
    source = Source("jpeg", load_dataset(path), tiny_config(data__cache="none"))
    loading = Loading(source, CPU, workers=workers, num_batches=2)
    assert loading.images_per_batch == 4
    assert loading.run() > 0
    found = loading.phases()
    assert set(found) == {*PHASES, "cache", "collate", "other"}
    assert min(found.values()) > 0


@pytest.mark.parametrize(("given", "expected"), [(3, 3), (None, default_workers())])
def test_processes_are_those_of_the_run(given: Any, expected: int) -> None:
    assert loader_processes(tiny_config(data__num_workers=given)) == expected


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run: expected .*config\.yaml"):
        bench.bench(parts=["input"], repetitions=1, device="cpu", run=tmp_path)
