"""What the method costs beside the network: measured as ratios, within one run."""

from u2pl.bench.suite import PARTS, bench

__all__ = ["PARTS", "bench"]
