"""Named methods: what each changes in the numbers of any recipe, so that all share one step.

Each is a set of settings over U2PL+, which is what the step does without any. Nothing here touches
the network, the optimiser or the length of a run.
"""

from __future__ import annotations

from typing import Any

from u2pl.errors import UserError, nearest_name
from u2pl.recipes.adapt import DACS

_PLAIN: dict[str, Any] = {
    "method.contrastive_weight": 0.0,
    "method.denoise_temperature": None,
    "method.refine_iterations": 0,
    "method.symmetric_weight": 0.0,
}
"""Neither contrast nor what U2PL+ adds to pseudo-labels."""

_EVERY_PIXEL: dict[str, Any] = {
    **_PLAIN,
    "method.initial_unreliable_fraction": 0.0,
    "method.pixel_weighting": "confident_share",
}

_CONFIDENT: dict[str, Any] = {
    **_PLAIN,
    "method.pseudo_threshold": 0.95,
    "method.unsupervised_scaling": "share",
    "method.initial_unreliable_fraction": 0.0,
}

METHODS: dict[str, dict[str, Any]] = {
    # each pixel has a pseudo-label, which weighs as much as the teacher is confident
    "mean-teacher": {**_EVERY_PIXEL, "method.mixing": "none"},
    # CutMix-Seg (arXiv 1906.01916), with the teacher's classes for its probabilities [R]
    "cutmix": {**_EVERY_PIXEL, "method.mixing": "cutmix"},
    # arXiv 2001.07685 on pixels as UniMatch's authors have it: the student is its own teacher
    "fixmatch": {**_CONFIDENT, "method.ema_decay": 0.0},
    # arXiv 2208.09910
    "unimatch": {
        **_CONFIDENT,
        "method.ema_decay": 0.0,
        "method.strong_views": 2,
        "method.feature_dropout": "stream",
        "method.feature_dropout_rate": 0.5,
    },
    # arXiv 2410.10777
    "unimatch-v2": {
        **_CONFIDENT,
        "method.ema_decay": 0.996,
        "method.strong_views": 2,
        "method.feature_dropout": "complementary",
        "method.feature_dropout_rate": 0.5,
    },
    # arXiv 2212.04976 without the labelled images in its CutMix
    "augseg": {**_CONFIDENT, "method.mixing": "cutmix", "data.intensities": 3},
    # arXiv 2007.08702; its labelled images are pasted onto the others
    "dacs": {**DACS, "method.denoise_temperature": None, "method.mixing": "classmix_labeled"},
    # no_contrast of the tables: pseudo-labels as U2PL+ has them, and nothing else
    "no-contrast": {"method.contrastive_weight": 0.0},
    # arXiv 2203.03884, without what the later paper adds
    "u2pl": {
        "method.prototype_momentum": 0.0,
        "method.denoise_temperature": None,
        "method.refine_iterations": 0,
        "method.symmetric_weight": 0.0,
    },
    # arXiv 2306.02314
    "u2pl-plus": {},
    # ours: CutMix's pseudo-labels on every pixel; unreliable ones are negatives all the same
    "cutmix-u2pl-plus": {
        "method.pixel_weighting": "confident_share",
        "method.unsupervised_scaling": "even",
        "method.pseudo_threshold": 1e-6,  # less than the most likely class of any pixel has
        "method.symmetric_weight": 0.0,
    },
}
"""By the name that ``train --method`` takes."""


def get_method(name: str) -> dict[str, Any]:
    """Return a method's settings by dotted key.

    Raises:
        UserError: (exit status 2) for a name that no method has.
    """
    if name not in METHODS:
        raise UserError(
            f"There is no method '{name}'.{nearest_name(name, METHODS)} "
            f"Methods: {', '.join(METHODS)}.",
            exit_code=2,
        )
    return METHODS[name]
