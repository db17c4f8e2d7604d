"""Which process of several this one is, as torchrun or SLURM have told it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from u2pl.engine.world import ALONE, World
from u2pl.errors import UserError


def world_of(environment: Mapping[str, str]) -> World:
    """Read rank and number of processes from environment variables.

    torchrun sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. Within ``srun`` SLURM sets
    ``SLURM_PROCID``, ``SLURM_NTASKS`` and ``SLURM_LOCALID``; the processes then meet at the first
    node, at a port that depends on job and step.

    Args:
        environment: such as ``os.environ``.

    Returns:
        The process among its kind, or :data:`~u2pl.engine.world.ALONE`.

    Raises:
        UserError: where the variables contradict each other.

    >>> world_of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    World(rank=3, size=4, device=1, address='env://')
    >>> world_of({}) == ALONE
    True
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _world(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK", "env://")
    # an allocation alone (sbatch, salloc) has no steps: its shell is one process
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in environment:
        host = first_host(environment["SLURM_STEP_NODELIST"])
        job = int(environment.get("SLURM_JOB_ID") or 0)
        step = int(environment.get("SLURM_STEP_ID") or 0)
        address = f"tcp://{host}:{20000 + (7 * job + step) % 20000}"
        return _world(environment, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", address)
    return ALONE


def _world(
    environment: Mapping[str, str], rank: str, size: str, local_rank: str, address: str
) -> World:
    try:
        numbers = [int(environment[name]) for name in (rank, size)]
        device = int(environment.get(local_rank) or 0)
    except (KeyError, ValueError):
        raise UserError(
            f"Expected whole numbers in the environment variables {rank} and {size}; unset them, "
            "or start the processes with torchrun or srun.",
            exit_code=2,
        ) from None
    if not 0 <= numbers[0] < numbers[1]:
        raise UserError(
            f"The environment variables say process {numbers[0]} of {numbers[1]} ({rank}, {size}); "
            "unset them, or start the processes with torchrun or srun.",
            exit_code=2,
        )
    if numbers[1] == 1:
        return ALONE
    return World(rank=numbers[0], size=numbers[1], device=device, address=address)


def first_host(nodes: str) -> str:
    """The first name of SLURM's list of nodes.

    >>> first_host("gpu[003-005,9],login1"), first_host("node7"), first_host("a1,a2")
    ('gpu003', 'node7', 'a1')
    """
    prefix, bracket, rest = nodes.partition("[")
    if not bracket or "," in prefix:
        return nodes.split(",")[0]
    return prefix + re.split(r"[-,\]]", rest)[0]
