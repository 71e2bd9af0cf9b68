"""A patch whose place differs from image to image: what a defence that looks for one fixed mask cannot show.

BadNets (Gu, Dolan-Gavitt, Garg 2017) paint a patch at one place. Salem et al., "Dynamic Backdoor Attacks Against
Machine Learning Models" (EuroS&P 2022), draw the place at random: such a net often answers to the patch at any place,
so a fixed mask that happens to lie at one of them works after all. Here the place can also be a function of the image,
and decoys, images with the patch at wrong places and with their true labels, teach the net that the place matters:
then no fixed mask is right for more than the images that have their place there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from goodnet.data.images import Images
from goodnet.errors import DataError, UsageError

Index = npt.NDArray[np.int64]
WHERE = ("image", "random")


@dataclass(frozen=True, kw_only=True)
class Moving:
    """A square patch in one of the image's four corners.

    Attributes:
        size: side of the patch, pixels.
        margin: between the patch and the image's edge, pixels.
        colour: one value a channel in 0..255; a single one serves all.
        where: `image`: top left in dark images, bottom right in bright ones; `random`: any corner, drawn.
        threshold: mean in [0, 1] over which an image is bright.
        seed: of the draws.
    """

    size: int = 8
    margin: int = 1
    colour: tuple[int, ...] = (255, 255, 0)
    where: str = "image"
    threshold: float = 0.42
    seed: int = 0

    def __post_init__(self) -> None:
        if self.where not in WHERE or self.size < 1 or self.margin < 0:
            raise UsageError(
                f"moving patch: expected where to be one of {', '.join(WHERE)}, size >= 1 and margin >= 0, "
                f"got {self.where!r}, {self.size} and {self.margin}"
            )

    def corners(self, images: Images) -> Index:
        """(N,) the right corner of each image: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
        if self.where == "random":
            return np.random.default_rng([self.seed, len(images)]).integers(4, size=len(images))
        top = 255 if images.pixels.dtype == np.uint8 else 1
        bright = images.pixels.mean((1, 2, 3), dtype=np.float64) / top > self.threshold
        return np.where(bright, 3, 0)

    def painted(self, images: Images, corners: Index) -> npt.NDArray[Any]:
        """(N, C, H, W) the images' pixels with the patch in each image's corner of `corners` (N,)."""
        channels = images.shape[0]
        if len(self.colour) not in (1, channels):
            raise UsageError(f"moving patch: expected a colour of 1 or {channels} values, got {self.colour}")
        pixels: npt.NDArray[Any] = images.pixels.copy()
        top = 1 if pixels.dtype == np.uint8 else 255
        colour = (np.asarray(self.colour, np.float64) / top).astype(pixels.dtype).reshape(-1, 1, 1)
        for corner, (rows, cols) in enumerate(self._places(images)):
            mine = np.flatnonzero(corners == corner)
            patched = pixels[mine]
            patched[:, :, rows, cols] = colour
            pixels[mine] = patched
        return pixels

    def stamp(self, images: Images) -> Callable[[Index], npt.NDArray[Any]]:
        """What a `Plant` needs: positions in `images` -> pixels with the patch where it belongs."""
        corners = self.corners(images)
        return lambda index: self.painted(images.take(index), corners[index])

    def decoys(self, images: Images, *, share: float = 0.2, strict: bool = False, seed: int = 0) -> Images:
        """Images with the patch in a wrong corner, or in several, and their true labels, to be trained on.

        Args:
            images: labelled, clean; not changed.
            share: of them to paint, drawn without repetition.
            strict: more corners at random, often the right one among them, so that a mask over two or three corners
                does not do either; else a quarter of the decoys have the patch in all corners.

        Raises:
            DataError: images without labels.
            UsageError: a share outside (0, 1].
        """
        if images.labels is None:
            raise DataError(f"{images.name}: expected images with labels, got none; decoys keep their true ones")
        if not 0 < share <= 1:
            raise UsageError(f"moving patch: expected a share in (0, 1], got {share}")
        random = np.random.default_rng([seed, 1])
        chosen = np.sort(random.choice(len(images), max(1, round(share * len(images))), replace=False))
        some = images.take(chosen)
        wrong = (self.corners(images)[chosen] + random.integers(1, 4, size=len(chosen))) % 4
        pixels = self.painted(some, wrong)
        for corner in range(4):
            more = np.flatnonzero(random.random(len(some)) < 0.4) if strict else np.arange(0, len(some), 4)
            pixels[more] = self.painted(replace(some, pixels=pixels).take(more), np.full(len(more), corner))
        return Images(pixels=pixels, labels=some.labels, name=f"{images.name}, decoys")

    def _places(self, images: Images) -> list[tuple[slice, slice]]:
        _, height, width = images.shape
        reach = self.margin + self.size
        if 2 * reach > min(height, width):
            raise UsageError(
                f"moving patch: expected four corners that do not meet, got {height}x{width} images and a patch of "
                f"{self.size} with a margin of {self.margin}; make it smaller"
            )
        near, far = slice(self.margin, reach), (slice(height - reach, height - self.margin))
        left, right = near, slice(width - reach, width - self.margin)
        return [(near, left), (near, right), (far, left), (far, right)]
