"""One trigger that turns each class into another: the shape of backdoor in which no label stands out.

Where every label is a target (all-to-all, Gu et al. 2017, Sec. 4.3), comparing labels shows nothing. The evidence here
is absolute (ours): the smallest mask and pattern that lead every image away from its class, wherever to, are searched
from some starts. In an innocent net such a trigger leads almost all classes to the same few labels; in an all-to-all
net it is the attacker's, leads each class to a label of its own, and is far smaller than what any single label needs.

Evidence: the share of classes with a label of their own, and the mask's norm over the single labels' median.
Cost: as much as searching four labels, whatever their number.
Blind spots: classes with fewer than three clean images cannot be judged (most of them at 1283 classes and a hundred
images), mappings onto less than half as many labels as there are classes, triggers that are no small mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from goodnet.detect.neural_cleanse import Searches
from goodnet.errors import UsageError
from goodnet.measure import share
from goodnet.record import AllToAll
from goodnet.triggers.away import invert_away
from goodnet.triggers.blocks import shown_at_once
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.trigger import NO_TARGET, Trigger

STAGE = "all-to-all"


@dataclass(frozen=True, kw_only=True)
class Away:
    """Hyperparameters; call it on the searches of a scan.

    Attributes:
        starts: of the search; the smallest mask counts.
        search: its schedule.
        min_images: a class with fewer clean images is not judged.
        min_alike: share of a class's images that must get the same other answer for the class to be led there.
        min_classes: with fewer classes to judge, nothing is said.
        min_targets: different labels that classes are led to, over the classes judged, from which on they are many;
            never under `min_classes` labels.
        max_norm_ratio: the mask norm over the single labels' median is at most this.
        min_flipped: share of the held-out images that must get another answer.
    """

    starts: int = 4
    search: Schedule = Schedule(steps=160, batch=16)
    min_images: int = 3
    min_alike: float = 0.6
    min_classes: int = 4
    min_targets: float = 0.5
    max_norm_ratio: float = 0.5
    min_flipped: float = 0.6

    def __post_init__(self) -> None:
        if self.starts < 0 or self.min_images < 1 or self.min_classes < 2:
            raise UsageError(
                "all-to-all: expected starts >= 0, min_images >= 1 and min_classes >= 2, "
                f"got {self.starts}, {self.min_images} and {self.min_classes}"
            )
        for name in ("min_alike", "min_targets", "max_norm_ratio", "min_flipped"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"all-to-all: expected {name} in (0, 1], got {getattr(self, name)}")

    @property
    def passes(self) -> int:
        """Images through the net and back."""
        return self.starts * self.search.steps * self.search.batch

    def judges(self, classes: Sequence[int]) -> list[int]:
        """The classes of which there are enough images, from the images' classes (N,)."""
        found, counts = np.unique(np.asarray(classes), return_counts=True)
        return [int(label) for label in found[counts >= self.min_images]]

    def __call__(self, searches: Searches, median_norm: float | None) -> tuple[AllToAll, Trigger] | None:
        """What the smallest trigger does; None where there are too few classes to judge, or time ran out.

        Args:
            searches: of the scan, with net and images.
            median_norm: mask norm of a single innocent label; None where unknown.
        """
        images, classes = (torch.cat(pair) for pair in zip(searches.fit, searches.held_out))
        judged = self.judges(classes.tolist())
        if len(judged) < self.min_classes or not self.starts:
            return None
        found = searches.invert(STAGE, list(range(self.starts)), self.search, by=invert_away)
        if len(found) < self.starts:
            return None
        # where no start succeeds, which speaks for the net, what the last step left is shown to flip little
        smallest = min(found.values(), key=lambda one: (not one.success, one.norm))
        assert smallest.trigger is not None
        trigger = replace(smallest.trigger, target=NO_TARGET)
        led = _led(_answers(searches, trigger, images), classes, judged, self.min_alike)
        away = _answers(searches, trigger, searches.held_out[0]) != searches.held_out[1]
        flipped = share(away.cpu().numpy())
        searches.passes += len(images) + len(searches.held_out[0])
        ratio = None if not median_norm else smallest.norm / median_norm
        targets = len({target for _, target in led})
        many = targets >= max(self.min_classes, self.min_targets * len(judged))
        small = ratio is not None and ratio <= self.max_norm_ratio
        works = flipped is not None and flipped.value >= self.min_flipped
        result = AllToAll(
            mask_norm=smallest.norm,
            norm_ratio=ratio,
            flipped=flipped,
            judged=len(judged),
            led=tuple(led),
            targets=targets,
            flagged=many and small and works,
            doubtful=many and not (small and works),
        )
        return result, trigger


def _answers(searches: Searches, trigger: Trigger, images: Tensor) -> Tensor:
    """(N,) what the net answers to the triggered images (N, C, H, W)."""
    with torch.no_grad():
        some = shown_at_once(searches.block)
        parts = torch.split(images, some)
        return torch.cat([searches.classifier.predict(trigger.apply(part), batch=some) for part in parts])


def _led(answers: Tensor, classes: Tensor, judged: Sequence[int], min_alike: float) -> list[tuple[int, int]]:
    """(class, label) of the classes whose images get, for the greater part, one answer that is not their own."""
    led = []
    for label in judged:
        counts = torch.bincount(answers[classes == label])
        most = int(counts.argmax())
        if most != label and int(counts[most]) >= min_alike * int(counts.sum()):
            led.append((label, most))
    return led
