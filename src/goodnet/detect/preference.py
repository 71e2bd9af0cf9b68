"""What a net says to pictures of nothing: a backdoor's target is often the label that it prefers without a reason.

Idea (ours, beside MM-BD's): poison teaches a net that its target is right wherever the trigger is, whatever else there
is to see; on smooth random pictures, which hold no class at all, the target's logit is then higher than the others'.
For each label the mean logit over such pictures is compared with that of the other labels.
Cost: some hundred images through the net, once for all labels; no clean image.
Blind spots: weak alone, for a net that saw a label often prefers it, too, and an attacker who knows can train it away.
So it decides nothing by itself: `staged.py` adds it to what mask and margin say.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.models.classifier import Classifier
from goodnet.stats import Array

IMAGES, _COARSE = 512, 5


@torch.no_grad()
def preferences(classifier: Classifier, *, seed: int, batch: int = 64) -> Array:
    """(K,) mean logit of each label over smooth random pictures."""
    total = torch.zeros(classifier.classes, dtype=torch.float64)
    for part in torch.split(_colours(classifier.input.channels, seed), classifier.at_once(batch)):
        pictures = F.interpolate(part, size=(classifier.input.height, classifier.input.width), mode="bilinear")
        total += classifier.logits(pictures.to(classifier.device)).double().sum(0).cpu()
    found: Array = (total / IMAGES).numpy()
    return found


def _colours(channels: int, seed: int) -> Tensor:
    """(512, C, 5, 5) in [0, 1]: what pictures are interpolated from, a few at a time: 512 of 224x224 take 294 MiB."""
    return torch.from_numpy(np.random.default_rng([seed, 3]).random((IMAGES, channels, _COARSE, _COARSE), np.float32))
