"""Bad input, case by case: each ends in a result or in one sentence, and soon."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, TypeVar

import numpy as np

from u2pl import cli
from u2pl.errors import UserError

T = TypeVar("T")

SOAK = bool(os.environ.get("U2PL_SOAK"))
"""The long form: more cases, and of hypothesis's draws new ones each time."""

SECONDS = 60
"""One case may take so long on a busy machine; more is a hang."""

TRIED: Counter[str] = Counter()
"""Inputs tried in this process, by kind."""


def rounds(short: int, *, long: int) -> int:
    """How many random cases to make: ``short`` within `make test`, ``long`` in `make soak`."""
    return long if SOAK else short


class HangError(Exception):
    """A case took longer than :data:`SECONDS`."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise :class:`HangError` after :data:`SECONDS`, where there are such signals."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise HangError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault_of_sentence(error: UserError) -> str | None:
    """What is wrong with what a user would read; None where nothing is."""
    text = str(error)
    if not text.isprintable():
        return f"not one printable line: {text!r}"
    if "Traceback" in text or not text.strip():
        return f"no sentence: {text!r}"
    if len(text) > 8000:
        return f"a sentence of {len(text)} characters"
    if error.exit_code not in (1, 2):
        return f"exit status {error.exit_code}"
    return None


class Trials:
    """Counts cases of one kind and keeps those that crashed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.crashes: list[str] = []
        self.refused = 0

    def attempt(self, case: str, call: Callable[[], T]) -> T | None:
        """Return what the call gives, or None where it refuses its input in one sentence."""
        TRIED[self.kind] += 1
        try:
            with time_limit():
                return call()
        except UserError as error:
            self.refused += 1
            if fault := fault_of_sentence(error):
                self.crashes.append(f"{case}: {fault}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.crashes.append(
                f"{case}: {type(error).__name__}: {str(error)[:200]} "
                f"({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
            )
        return None

    def expect(self, case: str, claim: bool, otherwise: str) -> None:
        """Note a case whose result breaks a promise."""
        if not claim:
            self.crashes.append(f"{case}: {otherwise}")


@contextmanager
def trials(kind: str) -> Iterator[Trials]:
    """Cases of a kind; those that crashed fail the test together, at the end."""
    group = Trials(kind)
    yield group
    assert not group.crashes, f"{len(group.crashes)} crashes:\n" + "\n".join(group.crashes)


class Spoken(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str


def run_u2pl(*arguments: object) -> Spoken:
    """Run the command line in this process, as the installed script does."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["u2pl", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return Spoken(status, out.getvalue(), err.getvalue())


def attempt_command(group: Trials, case: str, *arguments: object) -> Spoken | None:
    """Run a command; its answer must be clean text, and a failure one line."""
    answer = group.attempt(case, lambda: run_u2pl(*arguments))
    if answer is None:
        group.expect(case, bool(group.crashes), "the command let UserError through")
        return None
    group.expect(case, answer.status in (0, 1, 2), f"exit status {answer.status}")
    for text in (answer.out, answer.err):
        dirty = [line for line in text.split("\n") if not line.isprintable()]
        group.expect(case, not dirty, f"unprintable output {dirty[:1]!r}")
        group.expect(case, "Traceback" not in text, "a traceback")
    if answer.status == 1 and answer.err:
        is_line = answer.err.startswith("Error: ") and answer.err.count("\n") == 1
        group.expect(case, is_line, f"more than one line: {answer.err[:300]!r}")
    if answer.status == 1 and not answer.err:
        group.expect(case, "error: " in answer.out, "it failed without a word")
    return answer


def mutations(
    content: bytes, *, count: int, seed: int, header: int = 64
) -> Iterator[tuple[str, bytes]]:
    """Yield damaged copies of a file, by name.

    Cut at ``count`` lengths, and as many times with bits flipped, with a run of zeros or noise,
    with a piece moved or taken out. Half of the damage hits the first ``header`` bytes.
    """
    rng, size = np.random.default_rng(seed), len(content)
    for length in np.unique(np.linspace(0, size - 1, count, dtype=int)).tolist():
        yield f"cut at {length}", content[:length]
    for turn in range(count):
        end = min(header, size) if turn % 2 else size
        data = bytearray(content)
        for place in rng.integers(0, end, rng.integers(1, 9)):
            data[place] ^= 1 << int(rng.integers(8))
        yield f"bits flipped, {turn}", bytes(data)
    for turn in range(count):
        end = min(header, size) if turn % 2 else size
        start = int(rng.integers(0, end))
        stop = min(size, start + int(rng.integers(1, 40)))
        fill = rng.bytes(stop - start) if turn % 3 else bytes(stop - start)
        yield f"{stop - start} bytes at {start} replaced", content[:start] + fill + content[stop:]
        yield f"{stop - start} bytes at {start} left out", content[:start] + content[stop:]
