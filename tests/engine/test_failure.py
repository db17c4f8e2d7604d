from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from factories import write_dataset
from tiny import tiny_config
from u2pl.data.loaders import training_batches
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.failure import replay
from u2pl.engine.loop import fit
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError

# the first update makes weights of 1e30, the second step is not finite
CONFIG = tiny_config(optimizer__name="sgd", optimizer__lr=1e30)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def failed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a failed run left."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    with pytest.raises(UserError, match="At step 2"):
        fit(CONFIG, dataset, RunFolder(folder))
    return folder / "failure" / "step-2.pt"


def test_replay_names_the_images_and_what_is_in_them(failed: Path, dataset: Dataset) -> None:
    found = replay(failed)
    assert (found["step"], found["checkpoint_step"]) == (2, 0)
    assert found["values"]
    assert not any(math.isfinite(value) for value in found["values"].values())
    labeled, unlabeled = found["images"][:2], found["images"][2:]
    assert {row["file"] for row in labeled} <= {str(s.image) for s in dataset.labeled}
    assert {row["file"] for row in unlabeled} <= {str(s.image) for s in dataset.unlabeled}
    assert len(unlabeled) == 2
    for row in found["images"]:
        assert row["finite"]
        assert 0 <= row["low"] <= row["high"] <= 1
    assert all(set(row["labels"]) <= {0, 1, 2, 255} for row in labeled)


def test_replay_with_sound_weights_is_finite(failed: Path) -> None:
    """The images are not to blame here: with the run's first weights nothing overflows."""
    found = replay(failed)
    assert found["layer"] is None
    assert all(abs(value) < 1e6 for value in found["now"].values())


def test_replay_names_the_first_layer_that_is_not_finite(failed: Path) -> None:
    content = torch.load(failed, weights_only=True)
    content["failure"]["labeled"]["images"][0] = torch.inf
    spoiled = failed.with_name("step-7.pt")
    torch.save(content, spoiled)
    found = replay(spoiled)
    assert found["layer"].startswith("encoder.stages.0")
    assert not found["images"][0]["finite"]


def test_batch_kept_is_the_batch_of_the_step(failed: Path, dataset: Dataset) -> None:
    content = torch.load(failed, weights_only=True)["failure"]
    batches = training_batches(
        dataset, CONFIG.data, seed=0, start_step=1, stop_step=2, with_unlabeled=True
    )
    batch = next(batches)
    assert batch.unlabeled is not None
    assert torch.equal(content["labeled"]["images"], batch.labeled.images)
    assert torch.equal(content["unlabeled"]["strong"][0], batch.unlabeled.strong[0])


def test_context_is_kept_and_replayed(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.with_overrides({"data.context": 8})
    with pytest.raises(UserError, match="At step 2"):
        fit(config, dataset, RunFolder(tmp_path / "a"))
    failure = tmp_path / "a" / "failure" / "step-2.pt"
    content = torch.load(failure, weights_only=True)["failure"]
    assert content["unlabeled"]["context"].shape[-1] == content["unlabeled"]["weak"].shape[-1] + 16
    assert replay(failure)["step"] == 2


def test_other_files_are_no_failures(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"student": {}}, path)
    with pytest.raises(UserError, match="is not a checkpoint of u2pl"):
        replay(path)
    with pytest.raises(UserError, match="There is no checkpoint"):
        replay(tmp_path / "none.pt")
