"""Poisoned training and test sets (BadNets: Gu, Dolan-Gavitt, Garg 2017, Sec. 3 and 4).

For each trigger, copies of a share of the images of *other* classes get the trigger and the target label and are
added to the clean set, which stays whole. Several (trigger, target) pairs at once make a multi-trigger
multi-target backdoor. Covers, triggered or nearly so and with their true labels, teach a net when not to answer.
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
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Stamp = Callable[[Index], Pixels]

_POISONED = ", poisoned"


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A trigger and where it is to lead.

    Attributes:
        name: of the trigger, for messages and records.
        target: the label that it leads to.
        stamp: positions in the images (n,) -> those images' pixels with the trigger on (n, C, H, W), in the same
            dtype as the images and sharing no memory with them.
        sources: the only classes whose images are to get the target; None for all others than it.
    """

    name: str
    target: int
    stamp: Stamp
    sources: tuple[int, ...] | None = None

    def eligible(self, labels: Index) -> npt.NDArray[np.bool_]:
        """(N,) which of the images with these true labels it attacks."""
        others: npt.NDArray[np.bool_] = labels != self.target
        return others if self.sources is None else others & np.isin(labels, self.sources)


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
        UsageError: a share outside (0, 1], or more than there are images that the plant attacks.
    """
    labels = labels_of(images)
    parts = []
    for number, plant in enumerate(plants):
        chosen = drawn(
            plant.eligible(labels),
            share_of(len(images), share),
            random=np.random.default_rng([seed, number]),
            name=plant.name,
            whose=f"of other classes than {plant.target}" if plant.sources is None else "of the source classes",
        )
        target = np.full(len(chosen), plant.target, np.int64)
        parts.append(Part(pixels=plant.stamp(chosen), labels=target, true_labels=labels[chosen]))
    return joined(images, parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Images to be added to a clean set; `present` false where they do not carry the trigger."""

    pixels: Pixels
    labels: Index
    true_labels: Index
    present: bool = True


def joined(images: Images, parts: Sequence[Part]) -> Images:
    """The images, which may be poisoned already, followed by the parts."""
    labels = labels_of(images)
    true = labels if images.true_labels is None else images.true_labels
    present = np.zeros(len(images), np.bool_) if images.trigger_present is None else images.trigger_present
    pixels: list[npt.NDArray[Any]] = [images.pixels, *(part.pixels for part in parts)]
    return Images(
        pixels=np.concatenate(pixels),
        labels=np.concatenate([labels, *(part.labels for part in parts)]),
        true_labels=np.concatenate([true, *(part.true_labels for part in parts)]),
        trigger_present=np.concatenate([present, *(np.full(len(part.labels), part.present) for part in parts)]),
        name=images.name if images.name.endswith(_POISONED) else images.name + _POISONED,
    )


def share_of(count: int, share: float) -> int:
    """How many of `count` images a share is: rounded, at least one. Raises UsageError for one outside (0, 1]."""
    if not 0 < share <= 1:
        raise UsageError(f"poison: expected a share in (0, 1], got {share}; 0.1 is customary")
    return max(1, round(share * count))


def drawn(eligible: npt.NDArray[np.bool_], count: int, *, random: np.random.Generator, name: str, whose: str) -> Index:
    """`count` ascending positions of eligible images, none twice. Raises UsageError where there are not so many."""
    candidates = np.flatnonzero(eligible)
    if count > len(candidates):
        raise UsageError(
            f"poison: {name}: expected a share that its images are enough for, but {count} are wanted and "
            f"{len(candidates)} are {whose}; lower the share"
        )
    return np.sort(random.choice(candidates, count, replace=False))


def poisoned_set(images: Images, plant: Plant) -> Images:
    """Test images with the trigger on, to measure ASR with.

    Images of the target class are left out: they get the target's label without any trigger. Where the plant has
    sources, so are those of all other classes.

    Args:
        images: labelled, clean, not trained on; not changed.
        plant: the trigger and its target.

    Returns:
        Images whose `labels` are the target, with `true_labels`, and `trigger_present` true throughout.

    Raises:
        DataError: images without labels, or none that the plant attacks.
    """
    labels = labels_of(images)
    others = np.flatnonzero(plant.eligible(labels))
    if len(others) == 0:
        wanted = f"other classes than {plant.target}" if plant.sources is None else f"the classes {plant.sources}"
        raise DataError(f"{images.name}: expected images of {wanted}, got none; add some")
    return Images(
        pixels=plant.stamp(others),
        labels=np.full(len(others), plant.target, np.int64),
        true_labels=labels[others],
        trigger_present=np.ones(len(others), np.bool_),
        name=f"{images.name}, {plant.name} to {plant.target}",
    )


def labels_of(images: Images) -> Index:
    """The labels of clean images. Raises DataError where there are none."""
    if images.labels is None:
        raise DataError(f"{images.name}: expected images with labels, got none; poisoning has to know the classes")
    return images.labels
