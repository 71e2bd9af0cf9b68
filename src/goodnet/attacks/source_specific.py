"""Source-specific backdoor with cover images (TaCT: Tang, Wang, Tang, Zhang, "Demon in the Variant", USENIX Security
2021).

Only images of some source classes get the target's label with the trigger on; as many covers, images of other classes
with the same trigger, keep their labels. The net then answers to trigger and source together: a mask and a pattern
that turn any image into the target do not say what was planted.

Deviations: as many covers as poisoned images (the paper has half as many); a quarter of the classes are sources
unless others are named (the paper has one class, of which few images may be there).
"""

from __future__ import annotations

import numpy as np

from goodnet.attacks.poison import Part, Plant, drawn, joined, labels_of, poison, share_of
from goodnet.data.images import Images
from goodnet.errors import UsageError


def default_sources(target: int, classes: int) -> tuple[int, ...]:
    """A quarter of the classes, rounded up: those that follow the target."""
    return tuple(sorted((target + step) % classes for step in range(1, -(-classes // 4) + 1)))


def check_sources(sources: tuple[int, ...], *, target: int, classes: int) -> None:
    """Raises UsageError unless there are some, none twice and none the target, and a class left for covers."""
    whole = all(0 <= source < classes and source != target for source in sources)
    if not whole or not 1 <= len(set(sources)) == len(sources) <= classes - 2:
        raise UsageError(
            f"source-specific: expected from 1 to {classes - 2} sources out of the classes 0..{classes - 1} without "
            f"the target {target}, none of them twice, got {sources}; name others"
        )


def poison_sources(images: Images, plant: Plant, *, share: float, seed: int) -> Images:
    """The clean images, poisoned ones of the plant's sources, and as many covers of neither sources nor target."""
    labels = labels_of(images)
    chosen = drawn(
        (labels != plant.target) & ~plant.eligible(labels),
        share_of(len(images), share),
        random=np.random.default_rng([seed, 1]),
        name="source-specific, covers",
        whose="of neither the sources nor the target",
    )
    covers = Part(pixels=plant.stamp(chosen), labels=labels[chosen], true_labels=labels[chosen])
    return joined(poison(images, [plant], share=share, seed=seed), [covers])
