"""Combined: what the detector of a watched label refuses, and beyond that what BadNet and repaired twin dispute most.

Ours. `Watch` sees only what is answered with a suspicious label, `Disagreement` whatever the repair has moved. Together
they keep to one share of clean images: detectors that refuse more are held to it, and what they leave goes to
disagreement, whose threshold is the smallest that stays within it, for the task's own images and for strangers, each.
Cost: that of `Watch` with a repaired twin, two passes an image; the third decision is free.
Blind spots: a trigger that neither a detector nor the repair has met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goodnet.class_n import over
from goodnet.errors import UsageError
from goodnet.guard.disagreement import disagreement
from goodnet.guard.watch import Watch
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import WatchHead
from goodnet.models.goodnet_make import seconded_from
from goodnet.tuning import allowed_score, logits_of


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Makes the GoodNet.

    Attributes:
        watch: the detectors.
        max_fpr: share of each set of clean images that may be refused by both together, 0 to under 1.
    """

    watch: Watch = Watch()
    max_fpr: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_fpr < 1:
            raise UsageError(f"--max-fpr: expected a share from 0 to under 1, got {self.max_fpr}")

    def __call__(self, bad: Classifier, good: Classifier, watched: Classifier, sets: Sequence[Tensor]) -> Classifier:
        """A GoodNet of the watched BadNet and its repaired twin.

        Args:
            watched: `bad`, as `self.watch` has made it.
            sets: clean images (N, C, H, W) in [0, 1] each that nothing was fitted on: the threshold.
        """
        watched = self._held(watched, sets)
        threshold = max(self._threshold(bad, good, watched, images) for images in sets)
        return seconded_from(watched, good, threshold=threshold)

    def _held(self, watched: Classifier, sets: Sequence[Tensor]) -> Classifier:
        """The watched net; where its detectors refuse more than is allowed, all their thresholds rise by as much."""
        shift = max(allowed_score(over(logits_of(watched, images)), self.max_fpr) for images in sets)
        if shift <= 0:
            return watched
        held = surgery.clone(watched)
        head = held.net.get_submodule(str(watched.recipe.options["layer"]))
        assert isinstance(head, WatchHead)
        head.offsets += shift + 1e-5 * abs(shift)
        return held

    def _threshold(self, bad: Classifier, good: Classifier, watched: Classifier, images: Tensor) -> float:
        refused = (watched.predict(images) == watched.classes).numpy()
        scores = np.where(refused, np.inf, disagreement(bad, good, images))
        return max(0.0, allowed_score(torch.from_numpy(scores), self.max_fpr))
