"""Disagreement: what the BadNet and its repaired twin answer differently is refused.

The CSAW-HackML-2020 competition's design of a GoodNet. Idea: both nets know the clean classes, only one still has the
backdoor; a trigger moves one and not the other. Cost: two forward passes an image. Blind spots: a trigger that the
repair left working is answered by both alike; an image that the repair unlearned is refused though clean.
Ours: the score is how far apart they are, in logits, so that a threshold can be chosen on clean data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import goodnet_from


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Makes the GoodNet.

    Attributes:
        max_fpr: None refuses every disagreement; otherwise the threshold is the smallest that refuses at most this
            share of the choosing images.
    """

    max_fpr: float | None = None

    def __post_init__(self) -> None:
        if self.max_fpr is not None and not 0 <= self.max_fpr < 1:
            raise UsageError(f"--max-fpr: expected a share from 0 to under 1, got {self.max_fpr}")

    def __call__(self, bad: Classifier, good: Classifier, choose: Tensor) -> Classifier:
        """A GoodNet of the two; `choose` (N, C, H, W) in [0, 1] are clean images that neither was fitted on."""
        if self.max_fpr is None:
            return goodnet_from(bad, good)
        scores = np.sort(disagreement(bad, good, choose))[::-1]
        allowed = int(self.max_fpr * len(scores) + 1e-9)  # 0.29 * 100 is less than 29 by a rounding
        threshold = float(scores[allowed]) if allowed < len(scores) else 0.0
        return goodnet_from(bad, good, threshold=max(threshold, 0.0))


@torch.no_grad()
def disagreement(bad: Classifier, good: Classifier, images: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) by how many logits the repaired net prefers its own answer to the BadNet's; 0 where they agree."""
    scores = []
    for part in bad.parts(images):
        logits = good.logits(part.to(good.device))
        theirs = bad.logits(part).argmax(1, keepdim=True)
        scores.append((logits.amax(1) - logits.gather(1, theirs)[:, 0]).cpu())
    return torch.cat(scores).double().numpy()
