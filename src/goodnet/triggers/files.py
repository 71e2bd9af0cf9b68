"""Triggers on disk: one npz with float32 masks and patterns, which is the truth; pictures are made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from goodnet.data.npz import open_npz
from goodnet.errors import DataError, GoodnetError
from goodnet.outputs import replacing
from goodnet.triggers.trigger import Trigger

_KEYS = ("labels", "masks", "patterns", "flagged")
_MAX_BYTES = 1 << 30


def write_triggers(path: Path, triggers: Sequence[Trigger], *, flagged: Sequence[int] | None = None) -> None:
    """Writes to a temporary name and renames. `flagged`: the labels that a scan flagged; None for all of them."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            labels=np.array([trigger.target for trigger in triggers], dtype=np.int64),
            masks=np.stack([trigger.mask.numpy() for trigger in triggers]),
            patterns=np.stack([trigger.pattern.numpy() for trigger in triggers]),
            flagged=np.array([flagged is None or trigger.target in flagged for trigger in triggers], dtype=np.bool_),
        )


def write_pictures(folder: Path, triggers: Sequence[Trigger]) -> None:
    """`label-0007-mask.png` and `label-0007-pattern.png` of each, to look at; further ones of a label are numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: Counter[int] = Counter()
    for trigger in triggers:
        seen[trigger.target] += 1
        turn = f"-{seen[trigger.target]}" if seen[trigger.target] > 1 else ""
        for kind, pixels in (("mask", trigger.mask), ("pattern", visible_pattern(trigger))):
            write_png(folder / f"label-{trigger.target:04d}{turn}-{kind}.png", pixels)


def visible_pattern(trigger: Trigger) -> torch.Tensor:
    """(C, H, W) the pattern where the mask lets it through, on mid grey."""
    return torch.lerp(torch.full_like(trigger.pattern, 0.5), trigger.pattern, trigger.mask.expand_as(trigger.pattern))


def write_png(path: Path, pixels: torch.Tensor) -> None:
    """(C, H, W) in [0, 1], C 1 or 3, as 8 bits: a picture, from which no figure is ever computed."""
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    with replacing(path) as part:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(part, "PNG")


def read_triggers(path: Path, *, flagged_only: bool = False) -> tuple[Trigger, ...]:
    """Reads what `write_triggers` wrote: all of it, or what was flagged.

    Raises:
        DataError: not there, not such a file, or values that are no triggers.
    """
    try:
        with open_npz(path, max_bytes=_MAX_BYTES) as store:
            labels, masks, patterns, flagged = (store.read(key) for key in _KEYS)
    except GoodnetError as error:
        raise DataError(f"expected triggers as a scan writes them ({', '.join(_KEYS)}): {error}") from error
    fits = (
        labels.ndim == 1
        and labels.dtype.kind in "iu"
        and (flagged.dtype, flagged.shape) == (np.dtype(np.bool_), labels.shape)
        and masks.ndim == 4
        and masks.shape[:2] == (len(labels), 1)
        and patterns.ndim == 4
        and patterns.shape == (len(labels), patterns.shape[1], *masks.shape[2:])
        and all(a.dtype == np.float32 and bool(((a >= 0) & (a <= 1)).all()) for a in (masks, patterns))
    )
    if not fits:
        raise DataError(
            f"{path}: expected float32 masks (n, 1, H, W) and patterns (n, C, H, W) in [0, 1], "
            f"got {masks.shape} and {patterns.shape} for labels {labels.shape}"
        )
    return tuple(
        Trigger(mask=torch.from_numpy(mask), pattern=torch.from_numpy(pattern), target=int(label))
        for label, mask, pattern, keep in zip(labels, masks, patterns, flagged)
        if keep or not flagged_only
    )
