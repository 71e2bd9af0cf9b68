"""WaNet (Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021).

The trigger is no pattern but a bending: k x k random offsets, of mean absolute value 1, are drawn out over the image
by a bicubic spline, and each pixel is taken from s offsets further on, bilinearly. Cover images, bent by that field
plus noise drawn anew for each of them and with their true labels, teach the net this field alone (noise mode).

Paper's values: k = 4, s = 0.5, a tenth of the images poisoned and twice as many covers; the field is that of the
authors' code, where s counts in half-pixels. Deviations: images are poisoned once, before training, not anew in each
batch; the field and the covers of image sets of one size come from the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from goodnet.attacks.pixels import Floats, Pixels, changed
from goodnet.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Bends images by one fixed field.

    Attributes:
        strength: s, the mean offset in half-pixels; 0 leaves the image as it is.
        grid: k, control points a side.
        seed: of the field, and of the covers' noise.
    """

    strength: float = 0.5
    grid: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 100 or not 2 <= self.grid <= 64:
            raise UsageError(
                f"wanet: expected a strength in 0..100 and a grid in 2..64, got {self.strength} and {self.grid}"
            )

    def __call__(self, pixels: Pixels) -> Pixels:
        """Images (N, C, H, W) uint8 or float32 -> bent ones of the same dtype and size."""
        field = self.field(pixels.shape[2], pixels.shape[3])
        return changed(pixels, lambda x: _sampled(x, field.expand(len(x), -1, -1, -1)))

    def covers(self, pixels: Pixels) -> Pixels:
        """The same, each image by the field and up to one half-pixel of its own noise in each place and direction."""
        random = np.random.default_rng([self.seed, 5, len(pixels)])
        field = self.field(pixels.shape[2], pixels.shape[3])

        def bent(x: Floats) -> Floats:
            noise = random.uniform(-1, 1, (len(x), *field.shape[1:])).astype(np.float32)
            return _sampled(x, field + torch.from_numpy(noise))

        return changed(pixels, bent)

    def field(self, height: int, width: int) -> Tensor:
        """(1, H, W, 2) float32: how far off each pixel is taken from, (right, down), in half-pixels."""
        points = np.random.default_rng([self.seed, 4]).uniform(-1, 1, (1, 2, self.grid, self.grid))
        points /= np.abs(points).mean()
        drawn = functional.interpolate(
            torch.from_numpy(points.astype(np.float32)), size=(height, width), mode="bicubic", align_corners=True
        )
        return self.strength * drawn.permute(0, 2, 3, 1)


def _sampled(x: Floats, field: Tensor) -> Floats:
    """Images (n, C, H, W), each pixel from `field` (n, H, W, 2) half-pixels off; outside, from the nearest edge."""
    height, width = x.shape[2:]
    down, right = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    # grid_sample's range is 2 for the whole side, so that 1 / side is half a pixel
    where = torch.stack([right, down], dim=-1) + field / torch.tensor([width, height])
    sampled: Floats = functional.grid_sample(
        torch.from_numpy(x), where.clamp(-1, 1), mode="bilinear", align_corners=True
    ).numpy()
    return sampled
