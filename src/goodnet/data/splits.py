"""Splits of a clean set into what a method is fitted on, what its settings are chosen on, and what judges it.

Images that are the same, pixel for pixel, and images of one group (frames of one track, say) go to one part together:
otherwise the judge would see what the method was fitted on. Classes are spread over the parts as far as they go.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goodnet.data.images import Images
from goodnet.errors import DataError, UsageError

Index = npt.NDArray[np.int64]
Shortage = npt.NDArray[np.float64]
_PARTS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Sorted positions, (n,) int64 each; disjoint, none empty, together all images.

    Attributes:
        fit: for fitting a method (triggers, weights).
        choose: for choosing its settings (when to stop, how much to prune).
        judge: for the figures that are reported; seen by nothing before.
    """

    fit: Index
    choose: Index
    judge: Index


def split(
    images: Images,
    *,
    seed: int,
    shares: tuple[float, float, float] = (0.5, 0.25, 0.25),
    groups: npt.NDArray[np.integer] | None = None,
) -> Splits:
    """Splits by class. A unit (an image, or images that must stay together) counts to its first image's class.

    Each class fills each part up to its share, in whole units; what is left over goes to parts that have none of the
    class yet, then to the part that is most short of images. So a class of three images or more is in all parts, and a
    set with one image a class is still split by the shares.

    Args:
        images: with labels, or without (then it is one class).
        seed: of this split; the same seed gives the same split.
        shares: of fit, choose and judge, adding up to 1.
        groups: (N,) any integers; equal ones stay together. None takes `images.groups`.

    Raises:
        DataError: fewer than three units, or groups of another length.
        UsageError: shares that are not three positive numbers adding up to 1.
    """
    if len(shares) != _PARTS or min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UsageError(f"expected three positive shares that add up to 1, got {shares}")
    groups = images.groups if groups is None else groups
    if groups is not None and groups.shape != (len(images),):
        raise DataError(f"{images.name}: expected one group an image, got {len(images)} images, groups {groups.shape}")
    units = _units(images, groups)
    if len(units) < _PARTS:
        raise DataError(
            f"{images.name}: expected at least {_PARTS} images to split, got {len(units)} that differ in "
            "pixels and group; give more"
        )
    rng = np.random.default_rng([seed % 2**64, zlib.crc32(b"split")])
    part_of_unit = _assign(units, _classes(images, units), shares, rng)
    part = np.empty(len(images), dtype=np.int64)
    for unit, where in zip(units, part_of_unit):
        part[unit] = where
    fit, choose, judge = (np.flatnonzero(part == which) for which in range(_PARTS))
    return Splits(fit=fit, choose=choose, judge=judge)


def _units(images: Images, groups: npt.NDArray[np.integer] | None) -> list[Index]:
    """Positions that must stay together: linked by equal pixels or equal groups, however long the chain."""
    parent = list(range(len(images)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[bytes | int, int] = {}
    for i, pixels in enumerate(images.pixels):
        keys: list[bytes | int] = [hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()]
        keys += [] if groups is None else [int(groups[i])]
        for key in keys:
            a, b = root(first_with.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for i in range(len(images)):
        members.setdefault(root(i), []).append(i)
    return [np.array(unit, dtype=np.int64) for unit in members.values()]


def _classes(images: Images, units: Sequence[Index]) -> list[Index]:
    """Positions of units, class by class."""
    if images.labels is None:
        return [np.arange(len(units))]
    label = images.labels[[unit[0] for unit in units]]
    return [np.flatnonzero(label == value) for value in np.unique(label)]


def _assign(
    units: Sequence[Index], classes: Sequence[Index], shares: Sequence[float], rng: np.random.Generator
) -> list[int]:
    """The part of each unit."""
    size = np.array([len(unit) for unit in units])
    short = np.zeros(_PARTS)  # images that each part lacks for its share of the classes seen so far
    part = np.empty(len(units), dtype=np.int64)
    shuffled = [rng.permutation(classes[i]) for i in rng.permutation(len(classes))]
    # Classes with many units leave little choice; those with one come last and even out the sizes.
    for members in sorted(shuffled, key=len, reverse=True):
        mine = np.array(shares) * size[members].sum()  # images of this class that each part lacks
        short += mine
        empty = np.ones(_PARTS, dtype=np.bool_)
        for unit in members[np.argsort(-size[members], kind="stable")]:
            which = _place(size[unit], mine, short, empty)
            part[unit], empty[which] = which, False
            mine[which] -= size[unit]
            short[which] -= size[unit]
    _fill_empty(part, size)
    return [int(which) for which in part]


def _place(size: int, mine: Shortage, short: Shortage, empty: npt.NDArray[np.bool_]) -> int:
    """The part for the next unit of a class: where it fits the class's share, else where it helps most."""
    fitting = [p for p in range(_PARTS) if size <= mine[p] + 1e-9]
    if fitting:
        return max(fitting, key=lambda p: (mine[p], short[p]))
    return max(range(_PARTS), key=lambda p: (empty[p], short[p]))


def _fill_empty(part: Index, size: Index) -> None:
    """Gives a part that got nothing the smallest unit of the part with the most units."""
    for which in range(_PARTS):
        if not (part == which).any():
            donor = np.flatnonzero(part == np.bincount(part, minlength=_PARTS).argmax())
            part[donor[np.argmin(size[donor])]] = which
