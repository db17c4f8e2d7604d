"""Says at the very end how many inputs were tried, by kind."""

from __future__ import annotations

import time

import pytest

from fuzz.trial import SOAK, TRIED

_STARTED = time.perf_counter()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the figures last; processes of pytest-xdist have none to print to."""
    if not TRIED or hasattr(config, "workerinput"):
        return
    form = "long form" if SOAK else "short form"
    print(f"\nInputs tried ({form}): {sum(TRIED.values()):,}")
    for kind, count in sorted(TRIED.items()):
        print(f"  {kind}: {count:,}")
    print(f"  seconds: {time.perf_counter() - _STARTED:.0f}, {time.process_time():.0f} of one core")
