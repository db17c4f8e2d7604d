"""Settings under which a step takes other ways."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "warm-up": {"train__supervised_steps": 2},
    "sgd": {"optimizer__name": "sgd"},
    "clipped": {"optimizer__max_grad_norm": 1.0},
    "parts": {"train__accumulation": 2},
    "ohem": {"train__ohem": True},
    "thresholds of classes": {"method__partition_by": "class"},
    "cutout": {"method__mixing": "cutout"},
    "classmix": {"method__mixing": "classmix"},
    "two domains": {
        "method__mixing": "classmix_labeled",
        "method__pixel_weighting": "confident_share",
        "train__separate_statistics": True,
    },
    "no contrast": {"method__contrastive_weight": 0.0},
    "refined": {"method__refine_iterations": 2, "method__refine_dilations": (1, 3)},
    "context": {"data__context": 8},
    "bfloat16 queues": {"method__queue_dtype": "bfloat16"},
}
