"""The result of a benchmark as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def page(result: dict[str, Any]) -> str:
    """Write ratios, phases and memory of :func:`u2pl.bench.bench` as tables."""
    machine, versions = result["machine"], result["versions"]
    lines = [
        "# `u2pl bench`",
        "",
        f"Device: {result['device']}; {machine['cpu_count']} cores, {result['threads']} threads. "
        f"torch {versions['torch']}, u2pl {versions['u2pl']}, Python {versions['python']}, "
        f"commit {result['commit'] or 'unknown'}. "
        f"Medians of {result['repetitions']} turns after one that does not count.",
        "",
        *_table(
            ("Ratio", "Median", "Least and largest turn"),
            (
                (f"`{name}`", number(value), _spread(result["spread"].get(name)))
                for name, value in result["ratios"].items()
            ),
        ),
    ]
    if result["host_syncs_per_step"] is not None:
        lines += ["", f"Host synchronisations a step: {result['host_syncs_per_step']}."]
        lines += ["", f"Whole step: {result['step']}.", ""]
        times = result["seconds"]["step"]
        lines += _table(
            ("Work", "Milliseconds"),
            ((name, number(1000 * seconds)) for name, seconds in times.items()),
        )
    busy = [
        (f"{name}: {kind}", number(found["kernels"]), number(found["busy_milliseconds"]))
        for name, kinds in result["gpu"].items()
        for kind, found in kinds.items()
        if found is not None
    ]
    if busy:
        lines += ["", "## The GPU computes", ""]
        lines += _table(("Work", "Kernels", "Milliseconds of all kernels"), busy)
    for name, phases in result["phases"].items():
        seconds = result["seconds"][name]
        both, held = ("method", "loops"), result["phase_memory"][name]
        rows: list[tuple[str, ...]] = [
            (
                phase,
                *(number(phases[work].get(phase)) for work in both),
                *(_mebibytes(held[work].get(phase)) for work in both),
            )
            for phase in phases["loops"]
        ]
        for kind in ("wall", "cpu"):
            times = (number(1000 * seconds[work][kind]) for work in both)
            rows.append((f"all, {kind} time", *times, "–", "–"))
        if "recorded" in seconds:
            recorded = number(1000 * seconds["recorded"]["wall"])
            rows.append(("all, as one CUDA graph", recorded, "–", "–", "–"))
        lines += [
            "",
            f"## {name}, time and memory by phase",
            "",
            "Milliseconds, and the most MiB of tensors that are held in a phase beyond features, "
            "queues and prototypes; those of an earlier phase are among them while they are there.",
            "",
        ]
        lines += _table(("Phase", "u2pl, ms", "Loops, ms", "u2pl, MiB", "Loops, MiB"), rows)
    for name, found in result["input"].items():
        lines += ["", f"## Input, {name}", "", *_input(found)]
    if result["memory"]:
        lines += ["", "## Memory, MiB", ""]
        sizes = [
            (f"{name}: {kind.removesuffix('_bytes').replace('_', ' ')}", number(value / 2**20))
            for name, kinds in result["memory"].items()
            for kind, value in kinds.items()
        ]
        lines += _table(("What", "MiB"), sizes)
    return "\n".join(lines) + "\n"


def _input(found: dict[str, Any]) -> list[str]:
    """The loader's rate, the step's, and where an image's time goes."""
    rates = found["images_per_second"]
    lines = [
        f"The loader with {found['workers']} processes gives {number(rates['loader'])} images a "
        f"second, a step takes {number(rates['step'])} ({found['step']}).",
        "",
    ]
    rows = [(phase, number(value)) for phase, value in found["milliseconds"].items()]
    rows.append(("all", number(sum(found["milliseconds"].values()))))
    return lines + _table(("An image, in one process", "Milliseconds"), rows)


def number(value: float | None) -> str:
    """Three digits, or a dash for what was not measured.

    >>> number(0.01234), number(1234.5), number(None)
    ('0.0123', '1234', '–')
    """
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _mebibytes(size: int | None) -> str:
    return number(None if size is None else size / 2**20)


def _spread(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
