"""Processes of u2pl on this machine: several of a training, as torchrun starts them, or one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tiny import assignments, tiny_overrides

Processes = list["subprocess.Popen[str]"]

# a small learning rate: with a large one BatchNorm of few values makes ten times as much of a
# rounding difference in each step, until it decides a pixel, and two runs part
SETTINGS = tiny_overrides(
    train__steps=8,
    train__supervised_steps=3,
    train__eval_every=8,
    data__batch_labeled=4,
    data__batch_unlabeled=4,
    model__dropout=0.0,
    optimizer__name="sgd",
    optimizer__lr=1e-5,
)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[str]]:
    """``u2pl`` with these words in a process of its own, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "u2pl.cli", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def start(
    dataset: Path,
    out: Path,
    size: int,
    *,
    settings: list[str] | None = None,
    program: Sequence[str] = ("-m", "u2pl.cli"),
) -> Processes:
    """Start ``u2pl train`` as torchrun would, without its agent.

    Args:
        dataset: what it reads.
        out: what it writes.
        size: processes.
        settings: the words behind; None for :data:`SETTINGS`.
        program: what Python runs in place of ``u2pl``.
    """
    port = free_port()
    words = ["--recipe", "demo", *assignments(SETTINGS)] if settings is None else settings
    processes = []
    for rank in range(size):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if size > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command = [sys.executable, *program, "train", str(dataset), "--out", str(out)]
        processes.append(
            subprocess.Popen(
                [*command, *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes: Processes, *, seconds: float = 120) -> list[tuple[int, str, str]]:
    """Wait for them; return the exit status and what each has shown."""
    try:
        shown = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, shown, strict=True)]
