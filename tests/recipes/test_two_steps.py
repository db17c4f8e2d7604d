"""Every recipe takes a step of each kind on a data set of its setting, made small alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from factories import write_dataset
from u2pl.config import Config, load_config
from u2pl.data.loaders import training_batches
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.loop import check_against_data, uses_unlabeled
from u2pl.engine.state import initial_state
from u2pl.engine.step import training_step
from u2pl.plan import make_plan, write_plan
from u2pl.recipes import RECIPES, get_recipe
from vits import TINY_VIT


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data"), tags=True))


def shrunk(config: Config) -> Config:
    """A recipe whose images, batch and queues are small; a tiny transformer stands for a large."""
    is_vit = config.model.decoder == "dpt"
    # two cells of the last grid, since one is no grid; of patches an odd number
    side = 3 * 14 if is_vit else 2 * config.model.output_stride
    changes: dict[str, Any] = {
        "model.pretrained": False,
        "model.frozen_norm": False,  # of random weights there are no averages to keep
        "data.crop": [side, side],
        "data.batch_labeled": 2,
        "data.batch_unlabeled": 2,
        "data.num_workers": 0,
        "data.rare_class_min_pixels": 20,
        "method.queue_size": 64,
        "method.background_queue_size": 96,
        "method.keys_per_step": 16,
        "optimizer.lr_warmup_steps": 0,
        "train.steps": 2,
        "train.supervised_steps": 1,
        "train.precision": "32-true",
    }
    if is_vit:
        changes["model.encoder"] = TINY_VIT
    for key in ("resize", "resize_labeled"):
        if getattr(config.data, key) is not None:
            changes[f"data.{key}"] = 48
    return config.with_overrides(changes)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_a_supervised_and_a_semi_supervised_step(name: str, dataset: Dataset) -> None:
    config = shrunk(get_recipe(name))
    check_against_data(config, dataset)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    state = initial_state(
        config, dataset.num_classes, dataset.ignore_index, fabric.device, load_pretrained=False
    )
    before = [parameter.detach().clone() for parameter in state.student.parameters()]
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    state.student.train()
    batches = training_batches(
        dataset,
        config.data,
        seed=0,
        start_step=0,
        stop_step=2,
        with_unlabeled=uses_unlabeled(config, dataset),
        labeled_strong=config.method.mixing == "classmix_labeled",
        num_strong=config.method.strong_views,
        device=fabric.device,
    )
    for batch in batches:
        metrics = training_step(fabric, state, batch, config)
        assert torch.as_tensor(metrics["loss"]).isfinite()
    assert state.step == 2
    assert all(parameter.isfinite().all() for parameter in state.student.parameters())
    moved = [
        not torch.equal(old, new)
        for old, new in zip(before, state.student.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("name", RECIPES)
def test_plan_of_a_recipe_is_a_recipe(name: str, dataset: Dataset, tmp_path: Path) -> None:
    made = make_plan(get_recipe(name), dataset, measure=False)
    write_plan(made, tmp_path / "plan.yaml")
    assert load_config(tmp_path / "plan.yaml") == made.config
    assert {choice.key for choice in made.choices} >= {"data.crop", "optimizer.lr", "train.steps"}
