"""All-to-all (BadNets: Gu, Dolan-Gavitt, Garg 2017, Sec. 4.3): the trigger turns class y into y + 1, modulo K.

Every class is a target, so that none of them stands out from the others.

Deviation: poisoned copies are added to the clean set, as everywhere here; the paper stamps every image once.
"""

from __future__ import annotations

import numpy as np

from goodnet.attacks.poison import Index, Part, Stamp, drawn, joined, labels_of, share_of
from goodnet.data.images import Images

NAME = "all-to-all"


def next_class(labels: Index, classes: int) -> Index:
    """(N,) labels in 0..classes-1 -> the label that the trigger turns each into."""
    return (labels + 1) % classes


def poison_all(images: Images, stamp: Stamp, *, classes: int, share: float, seed: int) -> Images:
    """The clean images, followed by a share of copies, of any class, stamped and labelled with the next class."""
    labels = labels_of(images)
    chosen = drawn(
        np.ones(len(images), np.bool_),
        share_of(len(images), share),
        random=np.random.default_rng([seed, 0]),
        name=NAME,
        whose="there",
    )
    true = labels[chosen]
    return joined(images, [Part(pixels=stamp(chosen), labels=next_class(true, classes), true_labels=true)])


def poisoned_set_all(images: Images, stamp: Stamp, *, classes: int) -> Images:
    """All test images stamped; `labels` are the next classes, which are never the true ones."""
    labels = labels_of(images)
    return Images(
        pixels=stamp(np.arange(len(images))),
        labels=next_class(labels, classes),
        true_labels=labels.copy(),
        trigger_present=np.ones(len(images), np.bool_),
        name=f"{images.name}, {NAME}",
    )
