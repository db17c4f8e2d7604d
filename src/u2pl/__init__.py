"""Label-efficient semantic segmentation in which every pixel trains the model.

>>> import u2pl
>>> run = u2pl.train("dataset.yaml", recipe="camvid", out="runs/a", seed=0)  # doctest: +SKIP
>>> model = u2pl.load("runs/a")  # doctest: +SKIP
>>> mask, entropy, reliable = model.predict("street.jpg")  # doctest: +SKIP
"""

from u2pl import _torchvision as _torchvision  # first: it makes torchvision importable everywhere
from u2pl import contrast, losses, mixing, partition
from u2pl.api import (
    compare,
    evaluate,
    export,
    load,
    make_config,
    make_report,
    open_app,
    predict,
    train,
)
from u2pl.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "compare",
    "contrast",
    "evaluate",
    "export",
    "load",
    "losses",
    "make_config",
    "make_report",
    "mixing",
    "open_app",
    "partition",
    "predict",
    "train",
]
