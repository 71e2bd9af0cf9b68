"""Blended injection (Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data
Poisoning", 2017, Sec. 4).

A pattern as large as the image is mixed into it, x' = (1 - a) x + a k: no pixel shows the trigger, all of them carry
it. The paper's random pattern: each value drawn evenly from the whole range, once, by the attacker's seed.

Deviation: the same opacity in training and test (the paper also tests with higher ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from goodnet.attacks.pixels import Floats, Pixels, changed
from goodnet.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Blended:
    """Mixes a random pattern into images.

    Attributes:
        opacity: a in (0, 1]: share of the pattern in what is seen; the paper's 0.2.
        seed: of the pattern.
    """

    opacity: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise UsageError(f"blended: expected an opacity in (0, 1], got {self.opacity}; 0.2 is customary")

    def __call__(self, pixels: Pixels) -> Pixels:
        """Images (N, C, H, W) uint8 or float32 -> a copy of the same dtype with the pattern mixed in."""
        share, pattern = np.float32(self.opacity), self.pattern(pixels.shape[1:])
        return changed(pixels, lambda x: (1 - share) * x + share * pattern)

    def pattern(self, shape: tuple[int, ...]) -> Floats:
        """(C, H, W) float32, whole 255ths in [0, 1]."""
        values = np.random.default_rng([self.seed, 2]).integers(0, 256, shape)
        return (values / 255).astype(np.float32)
