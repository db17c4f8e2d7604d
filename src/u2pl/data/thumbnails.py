"""Small pictures that stand inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 320
"""Pixels of a thumbnail's long side."""

_QUALITY = 80  # of its JPEG


def small(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image [H, W, 3] no larger than a thumbnail."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def small_mask(labels: npt.NDArray[np.int64], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return class ids [H, W] brought to a (height, width) without mixing them."""
    picture = Image.fromarray(labels.astype(np.int32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST))


def data_url(image: npt.NDArray[np.uint8]) -> str:
    """Return an image [H, W, 3] as the text of a JPEG that a page holds."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
