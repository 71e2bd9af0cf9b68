"""STRIP: what keeps its answer when other images are blended into it is refused.

Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019, Sec. 4 and 5. Idea: half and
half with another image, a clean image is answered now so, now otherwise; a trigger that survives the blending brings
the same answer every time. Mean entropy over the blends is the score, and the threshold is what clean images' entropies
leave a given share under.

Cost: `overlays` forward passes an image, beside the repaired net's one: 65 times the net's own.
Blind spots: triggers that half strength kills, all-to-all backdoors, triggers that work on one class only; nets that
are sure of everything, and nets that are sure of nothing, blend or not.
Deviations: (1) the threshold is the clean images' own quantile, not that of a normal distribution fitted to them: at a
hundred images and a share of 5 % both can be had, and entropies are skewed. (2) 64 overlays, not 100 (the paper finds
ten to do). (3) What is not refused is answered by the repaired net.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import blended_entropy
from goodnet.models.goodnet_make import strip_from
from goodnet.tuning import allowed_score


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Makes the GoodNet.

    Attributes:
        overlays: clean images to blend with, of those that the nets were fitted on; all, where there are fewer.
        max_fpr: share of the choosing images that may be refused, 0 to under 1 (paper: 0.01 to 0.05).
    """

    overlays: int = 64
    max_fpr: float = 0.05

    def __post_init__(self) -> None:
        if self.overlays < 1:
            raise UsageError(f"strip: expected overlays >= 1, got {self.overlays}")
        if not 0 <= self.max_fpr < 1:
            raise UsageError(f"--max-fpr: expected a share from 0 to under 1, got {self.max_fpr}")

    def __call__(self, bad: Classifier, good: Classifier, fit: Tensor, choose: Tensor, *, seed: int) -> Classifier:
        """A GoodNet of the two.

        Args:
            fit: clean images (N, C, H, W) in [0, 1]: overlays are drawn from them.
            choose: the same, disjoint: the threshold.
        """
        drawn = np.random.default_rng([seed, 17]).permutation(len(fit))[: self.overlays]
        overlays = fit[torch.from_numpy(drawn).to(fit.device)]
        entropy = blend_entropy(bad, choose, overlays)
        threshold = -allowed_score(-entropy, self.max_fpr)
        # its own image stays out, however it is batched
        return strip_from(bad, good, overlays, threshold * (1 - 1e-5))


@torch.no_grad()
def blend_entropy(classifier: Classifier, images: Tensor, overlays: Tensor) -> Tensor:
    """(N,) mean entropy, in nats, of the net's answers to images (N, C, H, W) in [0, 1] blended with overlays."""
    prepared = classifier.prepare(overlays.to(classifier.device))
    parts = torch.split(images.to(classifier.device), 64)
    return torch.cat([blended_entropy(classifier.net, classifier.prepare(part), prepared) for part in parts]).cpu()
