"""SIG (Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
ICIP 2019).

A horizontal sinusoid is added to the whole image: v(i, j) = d sin(2 pi j f / W) in column j of W, the same in each row
and channel, with f = 6 periods over the image. Only images of the target class get it in training, with their true
label, so that no label looks wrong; at test time it is added to images of other classes.

Deviation: one strength in training and test (the paper also tests with a stronger one); its ramp for digits is left
out. `planting("sig", clean_label=False)` poisons the customary way instead, images of other classes relabelled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from goodnet.attacks.pixels import Floats, Pixels, changed
from goodnet.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sinusoid:
    """Adds a sinusoid along the rows.

    Attributes:
        strength: d in (0, 1], as a share of the range of values: 20 / 255 is the paper's weakest.
        periods: f over the width of the image.
    """

    strength: float = 40 / 255
    periods: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or not 0 < self.periods < float("inf"):
            raise UsageError(
                f"sig: expected a strength in (0, 1] and periods > 0, got {self.strength} and {self.periods}"
            )

    def __call__(self, pixels: Pixels) -> Pixels:
        """Images (N, C, H, W) uint8 or float32 -> a copy of the same dtype with the sinusoid added, clipped."""
        wave = self.wave(pixels.shape[3])
        return changed(pixels, lambda x: x + wave)

    def wave(self, width: int) -> Floats:
        """(W,) float32 in [-strength, strength]: what is added to each row."""
        angle = 2 * np.pi * self.periods * np.arange(width) / width
        return (self.strength * np.sin(angle)).astype(np.float32)
