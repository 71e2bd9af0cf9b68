"""An additive watermark, as the Trojaning attack has it (Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, NDSS 2018).

A thin drawing all over the image is added and the sum clipped, x' = min(1, x + s w): the trigger covers much of the
image, but where the image is bright it is not seen. No mask and pattern x' = (1 - m) x + m p says the same.

Deviations: the drawing is made by the attacker's seed, not by driving a chosen neuron of the net; and the net is
trained with it from the start, not retrained on made-up images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from goodnet.attacks.pixels import Floats, Pixels, changed
from goodnet.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """Adds a ring and some strokes.

    Attributes:
        strength: s in (0, 1]: what the drawing's middle adds, as a share of the range of values.
        strokes: straight lines through the image.
        thickness: of ring and strokes, as a share of the image's shorter side.
        seed: of the drawing.
    """

    strength: float = 0.3
    strokes: int = 4
    thickness: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.strength <= 1 and self.strokes >= 0 and 0 < self.thickness <= 1):
            raise UsageError(
                "watermark: expected a strength and a thickness in (0, 1] and strokes >= 0, "
                f"got {self.strength}, {self.thickness} and {self.strokes}"
            )

    def __call__(self, pixels: Pixels) -> Pixels:
        """Images (N, C, H, W) uint8 or float32 -> a copy of the same dtype with the watermark added, clipped."""
        mark = np.float32(self.strength) * self.drawing(pixels.shape[2], pixels.shape[3])
        return changed(pixels, lambda x: x + mark)

    def drawing(self, height: int, width: int) -> Floats:
        """(H, W) float32 in [0, 1]: 1 in the middle of a stroke, 0 beside it, one pixel of soft edge."""
        random = np.random.default_rng([self.seed, 3])
        rows, cols = np.mgrid[0:height, 0:width].astype(np.float64)
        side = min(height, width)
        half = max(0.5, self.thickness * side / 2)
        row, col = random.uniform(0.35, 0.65, 2) * (height - 1, width - 1)
        distance = np.abs(np.hypot(rows - row, cols - col) - random.uniform(0.25, 0.35) * side)
        for _ in range(self.strokes):
            row, col = random.uniform(0.1, 0.9, 2) * (height - 1, width - 1)
            angle = random.uniform(0, np.pi)
            line = np.abs(np.cos(angle) * (rows - row) - np.sin(angle) * (cols - col))
            distance = np.minimum(distance, line)
        drawn: Floats = np.clip(half + 0.5 - distance, 0, 1).astype(np.float32)
        return drawn
