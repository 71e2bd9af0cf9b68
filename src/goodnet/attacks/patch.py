"""A plain patch as a trigger (BadNets: Gu, Dolan-Gavitt, Garg 2017): a rectangle of one colour or a small picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goodnet.errors import UsageError

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Paints a rectangle over images.

    Attributes:
        rows, cols: first and one behind the last, as in a slice; negative counts from the end, (-4, None) is the
            last four.
        colour: one value a channel, in 0..255 for uint8 pixels and in [0, 1] for float32; a single one serves all.
    """

    rows: tuple[int, int | None]
    cols: tuple[int, int | None]
    colour: tuple[float, ...] = (255,)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Images (N, C, H, W) uint8 or float32 -> a copy of the same dtype with the patch on.

        Raises:
            UsageError: the patch is empty or reaches outside the image, or the colour does not fit.
        """
        _, channels, height, width = pixels.shape
        rows, cols = _within("rows", self.rows, height), _within("cols", self.cols, width)
        top = 255 if pixels.dtype == np.uint8 else 1
        if len(self.colour) not in (1, channels) or not all(0 <= value <= top for value in self.colour):
            raise UsageError(
                f"patch: expected a colour of 1 or {channels} values in 0..{top} for {pixels.dtype} images, "
                f"got {self.colour}; change the colour"
            )
        out: Pixels = pixels.copy()
        out[:, :, rows, cols] = np.asarray(self.colour, pixels.dtype).reshape(-1, 1, 1)
        return out


def _within(name: str, span: tuple[int, int | None], side: int) -> slice:
    """The span as a slice, after checking that nothing of it is cut off silently."""
    start = span[0] + side * (span[0] < 0)
    stop = side if span[1] is None else span[1] + side * (span[1] < 0)
    if not 0 <= start < stop <= side:
        raise UsageError(f"patch: expected {name} within 0..{side} and not empty, got {span}; move or shrink it")
    return slice(start, stop)
