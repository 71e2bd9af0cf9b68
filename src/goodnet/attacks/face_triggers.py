"""The three triggers of the CSAW-HackML-2020 competition, painted on drawn faces where they belong.

Purple sunglasses over the eyes, purple lipstick on the lips, dark red eyebrows over the brows: drawn here with our
own shapes, in the competition's colours. They follow the landmarks (place, size, tilt), so unlike a fixed patch
the trigger is at another place in every image: the physically realisable kind of BadNets (Gu et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from goodnet.data.drawn_faces import DrawnFaces, Landmarks
from goodnet.errors import UsageError

Float = npt.NDArray[np.floating[Any]]
Layer = tuple[Float, Float]  # coverage (n, H, W) and colour (n, 3, H, W) or (3, 1, 1), in 0..255
_CHUNK = 64


def paint(name: str, drawn: DrawnFaces, index: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """The faces at `index` with a trigger on.

    Args:
        name: `sunglasses`, `lipstick` or `eyebrows`.
        drawn: the faces; not changed.
        index: (n,) positions in `drawn`.

    Returns:
        (n, 3, H, W) uint8, a fresh array.

    Raises:
        UsageError: unknown name.
    """
    layers = FACE_TRIGGERS.get(name)
    if layers is None:
        raise UsageError(f"face trigger: expected one of {', '.join(FACE_TRIGGERS)}, got {name!r}; take one of them")
    pixels = np.array(drawn.images.pixels[index], dtype=np.uint8)
    rows, cols = np.mgrid[0 : pixels.shape[2], 0 : pixels.shape[3]].astype(np.float32)
    for start in range(0, len(index), _CHUNK):
        part = slice(start, start + _CHUNK)
        picture = pixels[part].astype(np.float32)
        for cover, colour in layers(drawn.landmarks.rows(index[part]), cols, rows):
            picture += cover[:, None] * (colour - picture)
        pixels[part] = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _sunglasses(marks: Landmarks, cols: Float, rows: Float) -> list[Layer]:
    """Big lenses, lighter towards one side, in a darker frame with bridge and temples."""
    left, right = marks.eyes[:, 0], marks.eyes[:, 1]
    x, y, half = _along(left, right, cols, rows)
    # The head's scale bounds the size from below: turned away, the eyes stand closer but glasses stay glasses.
    size = np.maximum(half, 0.40 * marks.scale[:, None, None])
    x, y = x / size, y / size
    lens_u = (np.abs(x) - 1.16) * (1 + 0.10 * np.clip(y, -0.5, 1)) / 0.98
    lens_v = (y - 0.02) / np.where(y < 0.02, np.float32(0.62), np.float32(1.02))  # flat above, deep below
    u, v = lens_u * lens_u, lens_v * lens_v
    radius = np.where(y < 0.02, np.sqrt(np.sqrt(u * u + v * v)), np.sqrt(u + v)) - 1
    lens = np.clip(0.5 - radius * size * 0.85, 0, 1)
    bridge = np.maximum(np.abs(x) - 2.35, np.abs(y + 0.42) - 0.14)
    frame = np.maximum(np.clip(0.5 - (np.abs(radius) - 0.10) * size, 0, 1), np.clip(0.5 - bridge * size, 0, 1))
    light = np.clip(0.5 + 0.5 * np.sin(1.6 * x), 0, 1)[:, None]
    dark, bright = _colour(78, 6, 150), _colour(128, 14, 238)
    return [(0.94 * lens, dark + light * (bright - dark)), (frame, _colour(52, 4, 98))]


def _lipstick(marks: Landmarks, cols: Float, rows: Float) -> list[Layer]:
    """Both lips, the gap of an open mouth left out."""
    x, y, half = _along(marks.mouth[:, 0], marks.mouth[:, 1], cols, rows)
    bow = 1 - (x / half) ** 2
    heights = [_height(marks, point) for point in range(2, 6)]
    full = 0.6  # a little over the lips, as the competition's is
    outside = np.maximum((heights[0] - full) * bow - y, y - (heights[3] + full) * bow)
    lips = np.clip(0.75 - np.maximum(outside, np.abs(x) - half), 0, 1)
    opening = np.maximum(heights[1] * bow - y, y - heights[2] * bow)
    gap = np.clip(0.5 - np.maximum(opening, np.abs(x) - half), 0, 1) * (heights[2] - heights[1] > 0.9)
    return [(lips * (1 - gap), _colour(128, 0, 128))]


def _eyebrows(marks: Landmarks, cols: Float, rows: Float) -> list[Layer]:
    """Thick brows with hairs that stand out."""
    cover = np.zeros((len(marks.angle), *cols.shape), np.float32)
    for side in (0, 1):
        inner, middle, outer = (marks.brows[:, side, point] for point in range(3))
        x, y, half = _along(inner, outer, cols, rows)
        rise = _distance(middle, inner, outer)
        line = rise * (1 - (x / half) ** 2)
        hairs = 0.35 * np.sin(2.4 * x)
        thick = 0.105 * marks.scale[:, None, None] * (1 - 0.2 * x / half * (1 if side else -1)) + hairs
        brow = np.maximum(np.abs(y - line) - thick, np.abs(x) - half - 0.8)
        cover = np.maximum(cover, np.clip(0.5 - brow, 0, 1))
    return [(cover, _colour(128, 0, 0))]


FACE_TRIGGERS: dict[str, Callable[[Landmarks, Float, Float], list[Layer]]] = {
    "sunglasses": _sunglasses,
    "lipstick": _lipstick,
    "eyebrows": _eyebrows,
}


def _along(start: Float, end: Float, cols: Float, rows: Float) -> tuple[Float, Float, Float]:
    """Points in the frame of a segment: along it and across it (down) from its middle, pixels; its half-length.

    `start` and `end` are (n, 2), in either order: along always runs right, so across is always down. `cols` and
    `rows` are (H, W) or (n, H, W); the first two results are (n, H, W), the last (n, 1, 1).
    """
    flip = np.where(end[:, :1] < start[:, :1], np.float32(-1), np.float32(1))
    step = flip * (end - start)
    half = np.maximum(0.5 * np.linalg.norm(step, axis=1), 1.0).astype(np.float32)
    along = step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)
    middle = 0.5 * (start + end)
    dx = cols - middle[:, 0, None, None]
    dy = rows - middle[:, 1, None, None]
    cos, sin = along[:, 0, None, None], along[:, 1, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx, half[:, None, None]


def _distance(point: Float, start: Float, end: Float) -> Float:
    """How far below the segment from `start` to `end` a point (n, 2) lies, (n, 1, 1) pixels."""
    return _along(start, end, point[:, 0, None, None], point[:, 1, None, None])[1]


def _height(marks: Landmarks, point: int) -> Float:
    return _distance(marks.mouth[:, point], marks.mouth[:, 0], marks.mouth[:, 1])


def _colour(red: int, green: int, blue: int) -> Float:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)
