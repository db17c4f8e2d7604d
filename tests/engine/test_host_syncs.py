"""A training step never asks the device for a value: no waiting, logging included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tiny import IGNORE, NUM_CLASSES, tiny_batch, tiny_config, tiny_state
from u2pl.bench.host_syncs import HostSyncs
from u2pl.engine.guard import FirstFailure
from u2pl.engine.state import initial_state
from u2pl.engine.step import training_step
from variants import VARIANTS
from waiting import waiting_is_an_error


@pytest.mark.parametrize("name", VARIANTS)
def test_step_reads_no_value_and_no_size_from_the_device(name: str) -> None:
    config = tiny_config(**VARIANTS[name])
    fabric, state = tiny_state(config)
    failure = FirstFailure(fabric.device)
    batches = [tiny_batch(seed=seed, context=config.data.context) for seed in range(2)]
    with HostSyncs() as syncs:
        for batch in batches:
            values = training_step(fabric, state, batch, config)
            failure.look(state.step, values)
    assert dict(syncs.found) == {}


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: x[x.argmax()]),
        ("_local_scalar_dense", lambda x: bool(x.any())),
        ("nonzero", lambda x: x.nonzero()),
        ("index", lambda x: x[x > 1]),
        ("masked_select", lambda x: x.masked_select(x > 1)),
    ],
)
def test_each_way_of_waiting_is_noticed(name: str, work: Any) -> None:
    with HostSyncs() as syncs:
        work(torch.arange(4))
    assert syncs.found[name] == 1


def test_index_by_numbers_waits_for_nothing() -> None:
    with HostSyncs() as syncs:
        values = torch.arange(4)[torch.tensor([2, 0])]
        values[torch.tensor([1])] = 5
    assert dict(syncs.found) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_gpu_finds_no_synchronisation_in_a_step(name: str) -> None:
    config = tiny_config(**VARIANTS[name])
    fabric = Fabric(accelerator="cuda", devices=1, precision="32-true")
    state = initial_state(config, NUM_CLASSES, IGNORE, fabric.device)
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    failure = FirstFailure(fabric.device)
    given = {"context": config.data.context}
    batches = [tiny_batch(seed=seed, **given).to(fabric.device) for seed in range(3)]
    training_step(fabric, state, batches[0], config)  # kernels are loaded and tuned
    with waiting_is_an_error():
        for batch in batches[1:]:
            failure.look(state.step, training_step(fabric, state, batch, config))
