"""Images: pixels with or without labels, as every part of goodnet passes them on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from goodnet.errors import DataError

_COLUMNS = ("labels", "true_labels", "trigger_present", "groups")


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """A set of images.

    Attributes:
        pixels: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1]; C is 1 or 3.
        labels: (N,) int64, or None. In a poisoned set: the attacker's target, one an image.
        true_labels: (N,) int64, or None. Only in a poisoned set: what the image really shows.
        trigger_present: (N,) bool, or None. False where a poisoned set's image carries no trigger.
        groups: (N,) int64, or None. Images of one number (frames of one track) never straddle parts of a split.
        name: where they came from, for messages and records.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None = None
    true_labels: npt.NDArray[np.int64] | None = None
    trigger_present: npt.NDArray[np.bool_] | None = None
    groups: npt.NDArray[np.int64] | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] not in (1, 3):
            raise DataError(f"{self.name}: expected images (N, C, H, W) with C = 1 or 3, got {self.pixels.shape}")
        if self.pixels.dtype not in (np.uint8, np.float32):
            raise DataError(f"{self.name}: expected uint8 or float32 pixels, got {self.pixels.dtype}")
        for field in _COLUMNS:
            column = getattr(self, field)
            if column is not None and column.shape != (len(self.pixels),):
                raise DataError(f"{self.name}: {len(self.pixels)} images but {field} of shape {column.shape}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.pixels.shape
        return (c, h, w)

    def take(self, index: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Images:
        """The images at `index` (positions, a boolean mask or a slice), with all their columns."""

        def pick(column: Any) -> Any:
            return None if column is None else column[index]

        columns = {name: pick(getattr(self, name)) for name in _COLUMNS}
        return replace(self, pixels=self.pixels[index], **columns)

    def tensor(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """float32 (N, C, H, W) in [0, 1], channels-last memory."""
        x = torch.from_numpy(np.ascontiguousarray(self.pixels)).to(device)
        x = x.float().div_(255.0) if x.dtype == torch.uint8 else x.clone()
        return x.contiguous(memory_format=torch.channels_last)

    def sha256(self) -> str:
        """Hash of pixels, dtype, shape and labels: the same data, the same hash, whatever the file format."""
        digest = hashlib.sha256(repr((self.pixels.shape, self.pixels.dtype.str)).encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        for column in (self.labels, self.true_labels, self.trigger_present):
            digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()
