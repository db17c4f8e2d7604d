"""Runs the long forms one after the other, and prints the figures of all of them last.

    python tests/soak              # as `make soak` does: about ten minutes of two cores
    python tests/soak --small      # the same parts with small numbers, to see that they work

A part that fails does not keep the others from running; exit status 1 where one has failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """One of the long forms.

    Attributes:
        name: what it is about.
        words: that Python runs.
        figures: how the first line of its figures begins; they go on to the end of its output.
        environment: variables that it needs.
    """

    name: str
    words: tuple[str, ...]
    figures: str
    environment: tuple[tuple[str, str], ...] = ()


def parts(*, small: bool) -> list[Part]:
    """All of the long forms."""
    kills, per_node = ("2", "1") if small else ("20", "2")
    one_thread = (("OMP_NUM_THREADS", "1"),)
    fuzz = ("-m", "pytest", str(HERE.parent / "fuzz"), "-q", "-p", "no:cacheprovider")
    return [
        Part("ranks", (str(HERE / "ranks.py"),), "compared with"),
        Part("nodes", (str(HERE / "nodes.py"), "--per-node", per_node), "nodes: "),
        Part("kills", (str(HERE / "kills.py"), "--kills", kills), "kills: "),
        Part(
            "bad input", fuzz, "Inputs tried", one_thread + (() if small else (("U2PL_SOAK", "1"),))
        ),
    ]


def run(part: Part) -> tuple[int, list[str]]:
    """Run a part and pass on what it prints; return its exit status and its figures."""
    process = subprocess.Popen(
        [sys.executable, *part.words],
        env=os.environ | dict(part.environment),
        stdout=subprocess.PIPE,
        text=True,
    )
    found: list[str] = []
    with process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if found or line.startswith(part.figures):
                found.append(line.rstrip("\n"))
    return process.returncode, found


def main() -> int:
    """Run all parts; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small numbers")
    found = {}
    for part in parts(small=parser.parse_args().small):
        print(f"== {part.name}", flush=True)
        found[part.name] = run(part)
    print("\n== figures")
    for name, (status, lines) in found.items():
        print(f"{name}: {'passed' if status == 0 else f'FAILED with status {status}'}")
        for line in lines:
            print(f"  {line}")
    return 1 if any(status for status, _ in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
