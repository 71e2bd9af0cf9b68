"""TED: what comes to its answer by another way through the net than clean images of that answer do is refused.

Mo et al., "Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics" (TED), S&P 2024, and Le et
al., "TED++: Submanifold-Aware Backdoor Detection via Layerwise Tubular-Neighbourhood Screening", 2025; written from
their abstracts and the second's code. Idea: a triggered image starts among images of its own class and ends among those
of the target. At each layer clean images, the references, are ordered by how near they are; how many lie nearer than
the first of the answered class is the layer's rank. TED++: if even that one is further away than its class is thick
there, the rank is the last.

Cost: two forward passes, and at each layer the distances to the references: five of the net's own passes on small CNNs.
Blind spots: an image of the target's own class, or one like it, with a trigger; clean-label attacks; answers of which
there are fewer than three references, which all pass: with a hundred images of 1283 people nothing can be judged.
Deviations: (1) The score is the mean over layers of log(1 + rank); the papers fit a PCA detector to the ranks. (2) What
each convolution and linear layer is given counts, and what it gives, whatever the activation. (3) Maps are averaged
down to about `features` numbers: full ones take hundreds of megabytes. (4) Outside of its class is what no
reference of it has within its own radius, not only the nearest; counts are smoothed, so that no rounding decides. (5)
The threshold is the choosing images' own quantile. (6) What is not refused is answered by the repaired net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import ted_from
from goodnet.models.trace import FEWEST, MOST
from goodnet.tuning import Labelled, allowed_score, logits_of


@dataclass(frozen=True, kw_only=True)
class Ted:
    """Makes the GoodNet.

    Attributes:
        references: at most so many clean images are compared with, of those that the nets were fitted on.
        features: numbers that a map is averaged down to, at most, but for one a channel.
        max_fpr: share of the choosing images that may be refused, 0 to under 1.
    """

    references: int = 300
    features: int = 1024
    max_fpr: float = 0.02

    def __post_init__(self) -> None:
        if not 2 * FEWEST <= self.references <= MOST or self.features < 1:
            raise UsageError(
                f"ted: expected references from {2 * FEWEST} to {MOST} and features >= 1, got {self.references} and "
                f"{self.features}"
            )
        if not 0 <= self.max_fpr < 1:
            raise UsageError(f"--max-fpr: expected a share from 0 to under 1, got {self.max_fpr}")

    def __call__(self, bad: Classifier, good: Classifier, fit: Labelled, choose: torch.Tensor) -> Classifier:
        """A GoodNet of the two.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,): those answered rightly are references.
            choose: the same, disjoint, without classes: the threshold.

        Raises:
            UsageError: fewer than two classes have three references, so that nothing could be told apart.
        """
        images, classes = fit
        right = torch.nonzero(logits_of(bad, images).argmax(1).cpu() == classes.cpu())[: self.references, 0]
        images, classes = images[right.to(images.device)], classes.cpu()[right]
        if int((torch.bincount(classes, minlength=2) >= FEWEST).sum()) < 2:
            raise UsageError(
                f"ted: expected {FEWEST} clean images, rightly answered, of at least two classes to compare with, got "
                f"{len(classes)} of {len(set(classes.tolist()))}"
            )
        net = ted_from(bad, good, images, classes, features=self.features, threshold=0.0)
        threshold = allowed_score(logits_of(net, choose)[:, -1], self.max_fpr)
        return ted_from(bad, good, images, classes, features=self.features, threshold=max(threshold, 0.0))
