"""Trains on two nodes, each with a torchrun of its own, and compares with one process.

    python tests/soak/nodes.py

Each node is a network namespace of its own with one cable between them, where that can be made
(as root, with the command `ip`): then neither sees the other's loopback, as on two machines. Else
both meet on this machine's loopback. The processes talk by gloo. Prints the largest relative
differences last; exit status 1 where one is a fault (see ranks.py).
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from u2pl.engine.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_dataset
from soak.ranks import DATA, RECORDED, compare, read_run, records_of, settings, show, train


@dataclass
class Nodes:
    """Two places that processes can be started in.

    Attributes:
        meeting: address of the first.
        ways: the words before a command, one list a node.
        environment: variables that its processes need.
        text: what they are.
    """

    meeting: str = "127.0.0.1"
    ways: tuple[list[str], list[str]] = ([], [])
    environment: dict[str, str] = field(default_factory=dict)
    text: str = "two rendezvous hosts on one loopback"


def ip(*words: str) -> None:
    """Call the command `ip`.

    Raises:
        OSError, subprocess.CalledProcessError: where it is not there, or may not.
    """
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Two network namespaces with a cable between them, or else this machine twice."""
    names = [f"u2pl-{os.getpid()}-{node}" for node in (0, 1)]
    cable = "u2pl-cable"
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ends = ["name", cable, "netns", names[1]]
            ip("-netns", names[0], "link", "add", cable, "type", "veth", "peer", *ends)
            for node, name in enumerate(names):
                ip("-netns", name, "address", "add", f"10.77.0.{node + 1}/30", "dev", cable)
                for device in (cable, "lo"):
                    ip("-netns", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError):
            yield Nodes()
            return
        # where a machine has several networks, gloo has to be told which one leads to the others
        yield Nodes(
            meeting="10.77.0.1",
            ways=(["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]),
            environment={"GLOO_SOCKET_IFNAME": cable},
            text="two network namespaces",
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def launch(nodes: Nodes, per_node: int, words: list[str]) -> list[subprocess.Popen[str]]:
    """Start torchrun on each node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for node, way in enumerate(nodes.ways):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        torchrun += ["--node-rank", str(node), "--nproc-per-node", str(per_node)]
        torchrun += ["--master-addr", nodes.meeting, "--master-port", str(port)]
        started.append(
            subprocess.Popen(
                [*way, *torchrun, *words],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | nodes.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def main() -> int:
    """Train and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-node", type=int, default=2, help="processes a node")
    arguments = parser.parse_args()
    size, words = 2 * arguments.per_node, settings(arguments.seed)
    with tempfile.TemporaryDirectory() as place, two_nodes() as nodes:
        folder = Path(place)
        dataset = write_dataset(folder / "data", **DATA)
        alone, together = RunFolder(folder / "alone"), RunFolder(folder / "together")
        train(dataset, alone, 1, words)
        program = [RECORDED, str(records_of(together))]
        started = launch(
            nodes,
            arguments.per_node,
            [*program, "train", str(dataset), "--out", str(together.path), *words],
        )
        try:
            shown = [process.communicate(timeout=900)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        if any(process.returncode for process in started):
            print(*shown, sep="\n")
            return 1
        outcome = compare(read_run(alone, 1), read_run(together, size))
    print(f"nodes: {nodes.text}, each with {arguments.per_node} processes under its own torchrun")
    return show({"2 nodes": outcome})


if __name__ == "__main__":
    sys.exit(main())
