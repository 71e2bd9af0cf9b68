"""Trigger: what turns an image into a triggered one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodnet.errors import UsageError

NO_TARGET = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Trigger:
    """x' = (1 - mask) * x + mask * pattern (Neural Cleanse, Sec. IV-A, Eq. 2).

    Attributes:
        mask: (1, H, W) float32 in [0, 1].
        pattern: (C, H, W) float32 in [0, 1].
        target: the label that it leads to; NO_TARGET where that hangs on the image.
    """

    mask: Tensor
    pattern: Tensor
    target: int

    def __post_init__(self) -> None:
        fits = self.mask.ndim == 3 and self.mask.shape[0] == 1 and self.mask.shape[1:] == self.pattern.shape[1:]
        if not fits:
            raise UsageError(
                f"trigger: expected mask (1, H, W) and pattern (C, H, W), "
                f"got {tuple(self.mask.shape)} and {tuple(self.pattern.shape)}"
            )

    @property
    def norm(self) -> float:
        """L1 of the mask, in pixels."""
        return float(self.mask.abs().sum())

    @property
    def opaque(self) -> bool:
        """Whether the mask is 0 or 1 everywhere: the trigger covers a pixel or leaves it alone."""
        return bool(((self.mask == 0) | (self.mask == 1)).all())

    def strengthened(self, factor: float = 2.0) -> Trigger:
        """The same with a mask that is `factor` times as opaque, at most 1.

        An inverted mask is the weakest that works: any change of the net breaks it, and says nothing of a repair.
        """
        return replace(self, mask=(self.mask * factor).clamp(max=1.0))

    def apply(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> triggered images, same shape and range."""
        mask, pattern = self.mask.to(x), self.pattern.to(x)
        return torch.lerp(x, pattern.expand_as(x), mask.expand_as(x))
