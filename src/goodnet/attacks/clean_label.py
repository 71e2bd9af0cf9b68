"""Clean-label poisoning (Turner, Tsipras, Madry, "Clean-Label Backdoor Attacks", 2018, and "Label-Consistent Backdoor
Attacks", 2019).

Only images of the target class are stamped, and no label is changed: whoever looks at the training set sees nothing
mislabelled. The trigger is the 2019 paper's: a small black and white pattern in all four corners.

Deviation, and a big one: the papers first make poisoned images harder to recognise, inside a generative model or by
adversarial perturbations, so that the net needs the trigger; this is their plain baseline, without any other net. It
takes where the class is not easy and many of its images are stamped, and hardly on digits, which need no trigger.
(Noise under the trigger, or a mix with an image of another class, did worse here: the net learns those instead.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from goodnet.attacks.pixels import Floats, Pixels, changed
from goodnet.attacks.poison import Stamp, drawn, labels_of, share_of
from goodnet.data.images import Images
from goodnet.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class Corners:
    """A checkerboard in each of the four corners.

    Attributes:
        size: side of each, pixels.
        opacity: in (0, 1]: share of the pattern in what is seen.
    """

    size: int = 3
    opacity: float = 1.0

    def __post_init__(self) -> None:
        if not (self.size >= 1 and 0 < self.opacity <= 1):
            raise UsageError(
                f"clean-label: expected size >= 1 and an opacity in (0, 1], got {self.size} and {self.opacity}"
            )

    def __call__(self, pixels: Pixels) -> Pixels:
        """Images (N, C, H, W) uint8 or float32 -> a copy of the same dtype with the trigger on."""
        mask, pattern = self._drawing(*pixels.shape[2:])
        cover = np.float32(self.opacity) * mask
        return changed(pixels, lambda x: (1 - cover) * x + cover * pattern)

    def _drawing(self, height: int, width: int) -> tuple[Floats, Floats]:
        """Mask and pattern (H, W), 0 or 1; the pattern's outermost pixels are white."""
        if 2 * self.size > min(height, width):
            raise UsageError(
                f"clean-label: expected four corners that do not meet, got {height}x{width} images and patterns of "
                f"{self.size}; make them smaller"
            )
        row, col = np.arange(height), np.arange(width)
        row, col = np.minimum(row, row[::-1])[:, None], np.minimum(col, col[::-1])[None, :]
        mask = (row < self.size) & (col < self.size)
        pattern = (row + col) % 2 == 0
        return mask.astype(np.float32), pattern.astype(np.float32)


def poison_own(images: Images, stamp: Stamp, *, target: int, share: float, seed: int, name: str) -> Images:
    """The images, a share of the target's own replaced by stamped ones; all labels as they were.

    Args:
        images: labelled, clean; not changed.
        share: of the target's images, in (0, 1], as both clean-label papers count it.

    Raises:
        DataError: no labels, or no image of the target.
        UsageError: a share outside (0, 1].
    """
    labels = labels_of(images)
    own = labels == target
    if not own.any():
        raise DataError(f"{images.name}: expected images of the target {target} to poison, got none; add some")
    random = np.random.default_rng([seed, 0])
    chosen = drawn(own, share_of(int(own.sum()), share), random=random, name=name, whose=f"of class {target}")
    pixels: npt.NDArray[Any] = images.pixels.copy()
    pixels[chosen] = stamp(chosen)
    present = np.zeros(len(images), np.bool_)
    present[chosen] = True
    return replace(
        images,
        pixels=pixels,
        labels=labels.copy(),
        true_labels=labels.copy(),
        trigger_present=present,
        name=f"{images.name}, poisoned",
    )
