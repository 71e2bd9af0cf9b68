"""Poisoned training and test sets (BadNets: Gu, Dolan-Gavitt, Garg 2017, Sec. 3 and 4).

For each trigger, copies of a share of the images of *other* classes get the trigger and the target label and are
added to the clean set, which stays whole. Several (trigger, target) pairs at once make a multi-trigger
multi-target backdoor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from goodnet.data.images import Images
from goodnet.errors import DataError, UsageError

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A trigger and where it is to lead.

    Attributes:
        name: of the trigger, for messages and records.
        target: the label that it leads to.
        stamp: positions in the images (n,) -> those images' pixels with the trigger on (n, C, H, W), in the same
            dtype as the images and sharing no memory with them.
    """

    name: str
    target: int
    stamp: Callable[[Index], npt.NDArray[np.uint8] | npt.NDArray[np.float32]]


def poison(images: Images, plants: Sequence[Plant], *, share: float = 0.1, seed: int = 0) -> Images:
    """The clean images followed by those poisoned with each plant.

    Args:
        images: labelled, clean; not changed.
        plants: triggers with their targets.
        share: poisoned images to add for each plant, as a share of all the clean ones; 0.1 is the customary 10 %.
        seed: of the choice of images; each plant chooses on its own, without drawing an image twice.

    Returns:
        Images whose `labels` are the target where `trigger_present`; `true_labels` everywhere.

    Raises:
        DataError: images without labels.
        UsageError: a share outside (0, 1], or more than there are images of other classes.
    """
    labels = _labels(images)
    if not 0 < share <= 1:
        raise UsageError(f"poison: expected a share in (0, 1], got {share}; 0.1 is customary")
    pixels: list[npt.NDArray[Any]] = [images.pixels]
    given, true = [labels], [labels]
    for number, plant in enumerate(plants):
        others = np.flatnonzero(labels != plant.target)
        count = max(1, round(share * len(images)))
        if count > len(others):
            raise UsageError(
                f"poison: {plant.name}: expected a share that leaves the target's own images out, but {count} are "
                f"wanted and {len(others)} are of other classes than {plant.target}; lower the share"
            )
        chosen = np.sort(np.random.default_rng([seed, number]).choice(others, count, replace=False))
        pixels.append(plant.stamp(chosen))
        given.append(np.full(count, plant.target, np.int64))
        true.append(labels[chosen])
    present = np.arange(sum(map(len, given))) >= len(images)
    return Images(
        pixels=np.concatenate(pixels),
        labels=np.concatenate(given),
        true_labels=np.concatenate(true),
        trigger_present=present,
        name=f"{images.name}, poisoned",
    )


def poisoned_set(images: Images, plant: Plant) -> Images:
    """Test images with the trigger on, to measure ASR with.

    Images of the target class are left out: they get the target's label without any trigger.

    Args:
        images: labelled, clean, not trained on; not changed.
        plant: the trigger and its target.

    Returns:
        Images whose `labels` are the target, with `true_labels`, and `trigger_present` true throughout.

    Raises:
        DataError: images without labels, or none of another class than the target.
    """
    labels = _labels(images)
    others = np.flatnonzero(labels != plant.target)
    if len(others) == 0:
        raise DataError(f"{images.name}: expected images of other classes than {plant.target}, got none; add some")
    return Images(
        pixels=plant.stamp(others),
        labels=np.full(len(others), plant.target, np.int64),
        true_labels=labels[others],
        trigger_present=np.ones(len(others), np.bool_),
        name=f"{images.name}, {plant.name} to {plant.target}",
    )


def _labels(images: Images) -> npt.NDArray[np.int64]:
    if images.labels is None:
        raise DataError(f"{images.name}: expected images with labels, got none; poisoning has to know the classes")
    return images.labels
