"""A table of trainings: methods, shares of labels and seeds, each cell trained once."""

from u2pl.sweep.run import Chosen, look_at_sweep, run_sweep
from u2pl.sweep.workers import Watcher

__all__ = ["Chosen", "Watcher", "look_at_sweep", "run_sweep"]
