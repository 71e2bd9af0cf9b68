"""From arrays as a stranger stored them to the columns of Images: one place for what is accepted and what is not.

Pixels: (N, C, H, W) or (N, H, W, C) with C = 1 or 3. The channel axis is the one of length 1 or 3; where both axes
could be it, axis 1 is (the order that the CSAW-HackML competition uses). Integers always mean 0..255. Floats mean
what `data_range` says; without it they must lie in [0, 1]. Whole-numbered floats in 0..255 become the uint8 that
they are, so that the same pixels hash alike in whatever dtype they were stored.

Labels: whole numbers (N,), (N, 1), or one-hot rows (N, K).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from goodnet.data.images import Images
from goodnet.errors import DataError, UnsafeFileError, UsageError

Array = npt.NDArray[Any]
MAX_INFLATION = 1032  # of deflate, from RFC 1951: 258 bytes out of two bits

DATA_RANGES = ("0..1", "0..255")
IMAGE_KEYS = ("data", "images", "x", "jpeg")
LABEL_KEYS = ("label", "labels", "y")
GROUP_KEYS = ("track", "group", "groups")
MAX_BYTES = 4 * 2**30


class Store(Protocol):
    """An open file of named arrays. `shape` takes no memory; `read` is bounded and runs nothing from the file."""

    def names(self) -> Sequence[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str) -> Array: ...


def images_from(store: Store, *, where: str, name: str, classes: int | None, data_range: str | None) -> Images:
    """All of a store's images and labels, checked. Labels are read first: they are cheap, and often what is wrong.

    Args:
        store: the open file.
        where: the file, for messages.
        name: goes into Images.name.
        classes: number of classes; labels at or above it are refused. None: not checked.
        data_range: what float pixels mean: `0..1` or `0..255`.

    Raises:
        DataError: a key missing or double, or any rule of this module broken.
        UsageError: an unknown data_range.
    """
    image_key = find_key(store, IMAGE_KEYS, where)
    if image_key is None:
        raise DataError(
            f"{where}: expected images under one of {_listed(IMAGE_KEYS)}; it holds {_listed(store.names())}; "
            "is it the net, not the data?"
        )
    shape = store.shape(image_key)
    n = shape[0] if shape else 0
    label_key = find_key(store, LABEL_KEYS, where)
    columns = {
        "labels": read_labels(store, label_key, n=n, classes=classes, where=where),
        "true_labels": read_labels(store, "true_label", n=n, classes=classes, where=where),
    }
    present = read_labels(store, "trigger_present", n=n, classes=2, where=where)
    pixels = to_pixels(store.read(image_key), where=f"{where}: {image_key}", data_range=data_range)
    present_mask = None if present is None else present.astype(np.bool_)
    return Images(pixels=pixels, trigger_present=present_mask, name=name, **columns)


def find_key(store: Store, accepted: Sequence[str], where: str) -> str | None:
    """The one key of the store that is among `accepted`, or None. Two of them are an error: which one is meant?"""
    found = [key for key in accepted if key in store.names()]
    if len(found) > 1:
        raise DataError(
            f"{where}: expected one of {_listed(accepted)}, got {_listed(found)}; leave only one in the file"
        )
    return found[0] if found else None


def read_labels(
    store: Store, key: str | None, *, n: int, classes: int | None, where: str
) -> npt.NDArray[np.int64] | None:
    """The column `key` as n labels; None where the store has no such key."""
    if key is None or key not in store.names():
        return None
    shape = store.shape(key)
    if not shape or shape[0] != n:
        raise DataError(f"{where}: expected one {key} an image, got {n} images and {key} of shape {shape}")
    return to_labels(store.read(key), where=f"{where}: {key}", classes=classes)


def to_labels(raw: Array, *, where: str, classes: int | None) -> npt.NDArray[np.int64]:
    """Raw labels -> (N,) int64 in 0..classes-1.

    Raises:
        DataError: not numbers, not whole, negative, at or above `classes`, or rows that are not one-hot.
    """
    if raw.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected whole numbers, got dtype {raw.dtype}")
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim == 2:
        raw = _from_one_hot(raw, where)
    if raw.ndim != 1:
        raise DataError(f"{where}: expected labels (N,) or one-hot rows (N, K), got shape {raw.shape}")
    if raw.dtype.kind == "f" and not (np.isfinite(raw).all() and (raw == np.floor(raw)).all()):
        raise DataError(f"{where}: expected whole numbers, got values such as {_first_bad(raw, raw != np.floor(raw))}")
    if len(raw) and raw.min() < 0:
        raise DataError(f"{where}: expected labels from 0 up, got {raw.min()}")
    limit = np.iinfo(np.int64).max if classes is None else classes
    if len(raw) and raw.max().item() >= limit:  # as Python compares, for float16 holds no int64
        raise DataError(
            f"{where}: expected labels below {limit}, the number of classes, got {raw.max()}; "
            "are these the net's own classes?"
        )
    return raw.astype(np.int64)


def to_pixels(raw: Array, *, where: str, data_range: str | None = None) -> npt.NDArray[Any]:
    """Raw pixels -> (N, C, H, W), uint8 in 0..255 or float32 in [0, 1].

    Raises:
        DataError: not numbers, not four axes, no channel axis, empty, NaN or infinite, or out of the range.
        UsageError: an unknown data_range.
    """
    if data_range is not None and data_range not in DATA_RANGES:
        raise UsageError(f"expected a data range of {' or '.join(DATA_RANGES)}, got {data_range!r}")
    if raw.dtype.kind not in "iuf":
        raise DataError(f"{where}: expected uint8 or float pixels, got dtype {raw.dtype}")
    if raw.ndim != 4:
        raise DataError(f"{where}: expected images (N, C, H, W), got shape {raw.shape}; grayscale needs an axis of 1")
    if raw.size == 0:
        raise DataError(f"{where}: expected at least one image, got shape {raw.shape}")
    raw = _channels_first(raw, where)
    if raw.dtype.kind == "f":
        return _from_floats(raw, where, data_range)
    if raw.dtype != np.uint8 and (raw.min() < 0 or raw.max() > 255):
        raise DataError(f"{where}: expected integers in 0..255, got {raw.min()}..{raw.max()} ({raw.dtype})")
    return np.ascontiguousarray(raw, dtype=np.uint8)


def check_bytes(size: int, max_bytes: int, where: str) -> None:
    """Refuses what would take more memory than allowed, before it is taken.

    Raises:
        UnsafeFileError: `size` over `max_bytes`.
    """
    if size > max_bytes:
        raise UnsafeFileError(
            f"{where}: declares {size / 2**20:,.0f} MiB, over the limit of {max_bytes / 2**20:,.0f} MiB; "
            "give fewer images"
        )


def _channels_first(raw: Array, where: str) -> Array:
    if raw.shape[1] in (1, 3):
        return raw
    if raw.shape[3] in (1, 3):
        return np.moveaxis(raw, 3, 1)
    raise DataError(f"{where}: expected 1 or 3 channels, as (N, C, H, W) or (N, H, W, C), got shape {raw.shape}")


def _from_floats(raw: Array, where: str, data_range: str | None) -> npt.NDArray[Any]:
    low, high = float(raw.min()), float(raw.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{where}: expected finite pixels, got NaN or infinite values")
    top = 255.0 if data_range == "0..255" else 1.0
    if low < 0 or high > top:
        advice = "images from before normalisation" if low < 0 or high > 255 or data_range else "--data-range 0..255"
        expected = f"pixels in 0..{top:g}" + ("" if data_range else " (no data range was stated)")
        raise DataError(f"{where}: expected {expected}, got {low:g}..{high:g}; give {advice}")
    if data_range != "0..255":
        return np.ascontiguousarray(raw, dtype=np.float32)
    if (raw == np.floor(raw)).all():
        return np.ascontiguousarray(raw, dtype=np.uint8)
    scaled: npt.NDArray[np.float32] = np.ascontiguousarray(raw, dtype=np.float32) / np.float32(255)
    return scaled


def _from_one_hot(raw: Array, where: str) -> npt.NDArray[np.int64]:
    if not (((raw == 0) | (raw == 1)).all() and (raw.sum(axis=1) == 1).all()):
        raise DataError(f"{where}: expected labels (N,) or one-hot rows, got shape {raw.shape} with rows that are not")
    return np.asarray(raw.argmax(axis=1), dtype=np.int64)


def _first_bad(raw: Array, bad: Array) -> str:
    return f"{raw[bad | ~np.isfinite(raw)][0]:g}"


def _listed(keys: Sequence[str], most: int = 8) -> str:
    # repr: a key from a stranger may hold line ends or terminal codes.
    shown = ", ".join(repr(key) for key in list(keys)[:most])
    return shown + (", ..." if len(keys) > most else "") if shown else "nothing"
