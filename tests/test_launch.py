from __future__ import annotations

import pytest

from u2pl.engine.world import ALONE, World
from u2pl.errors import UserError
from u2pl.launch import first_host, world_of

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


def test_torchrun_says_rank_size_and_device() -> None:
    environment = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
    assert world_of(environment) == World(rank=2, size=4, device=0)


def test_srun_says_them_too_and_all_processes_meet_at_one_place() -> None:
    world = world_of(SLURM)
    assert (world.rank, world.size, world.device) == (5, 8, 1)
    assert world.address == "tcp://gpu03:28638"
    assert world_of(SLURM | {"SLURM_PROCID": "0"}).address == world.address
    assert world_of(SLURM | {"SLURM_STEP_ID": "1"}).address != world.address


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a"},
        {key: value for key, value in SLURM.items() if "STEP" not in key},  # the batch shell
    ],
)
def test_one_process_is_alone(environment: dict[str, str]) -> None:
    assert world_of(environment) == ALONE


def test_torchrun_wins_inside_a_slurm_job() -> None:
    environment = SLURM | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert world_of(environment).size == 2


@pytest.mark.parametrize(
    ("rank", "size", "text"),
    [("x", "2", "Expected whole numbers"), ("2", "2", "say process 2 of 2"), ("-1", "2", "-1 of")],
)
def test_variables_that_cannot_be_are_told(rank: str, size: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        world_of({"RANK": rank, "WORLD_SIZE": size})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a", "a"), ("a,b", "a"), ("n[1,3]", "n1"), ("n[007-010]", "n007"), ("x,n[1-2]", "x")],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host
