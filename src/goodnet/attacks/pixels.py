"""Changing pixels in either dtype: the maths is done once, on floats in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]
_CHUNK = 1024


def changed(pixels: Pixels, change: Callable[[Floats], npt.NDArray[np.floating[Any]]]) -> Pixels:
    """Images (N, C, H, W) uint8 or float32 -> new ones of the same dtype, `change`d, clipped, rounded to the nearest.

    Args:
        pixels: not changed.
        change: float32 (n, C, H, W) in [0, 1] that it may write to -> the same shape, in any range; it is called
            with some images at a time, in their order.
    """
    out: Pixels = np.empty_like(pixels)
    for start in range(0, len(pixels), _CHUNK):
        part = pixels[start : start + _CHUNK]
        if part.dtype == np.uint8:
            floats = np.clip(change(part.astype(np.float32) / np.float32(255)), 0, 1)
            out[start : start + _CHUNK] = np.floor(floats * 255 + 0.5)
        else:
            out[start : start + _CHUNK] = np.clip(change(part.astype(np.float32)), 0, 1)
    return out
