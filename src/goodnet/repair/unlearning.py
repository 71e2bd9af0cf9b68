"""Unlearning: train the net to answer right although the reversed trigger is there.

Wang et al., "Neural Cleanse", IEEE S&P 2019, Sec. VI-C (mitigation by unlearning). Idea: the trigger that the scan
found moves the net much as the true one does; stamp it on a share of clean images, keep their true labels, fine-tune.
Cost: `epochs` passes of training over the clean images, and one pass over the choosing split after each.
Blind spots: what the reversed trigger does not excite stays; classes of which there is no clean image drift, so with
few images the accuracy limit stops it early.

Deviations: the paper tunes one epoch on 10 % of the training data; a defender has a hundred images, so there are more
epochs, and the one that is kept is the one with the lowest ASR of the reversed triggers on the choosing split among
those whose ACC there has not fallen by more than the limit (ties: higher ACC, then later). Batch-norm statistics and
dropout stay in eval mode. Several triggers share the stamped images evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Labelled, Repaired, accuracy, snapshot, trainable


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """Hyperparameters; call it on a net.

    Attributes:
        max_accuracy_drop: an epoch counts only if ACC on the choosing split has fallen by at most this.
        share: of each batch that is stamped (paper: 0.2).
        epochs, learning_rate, batch: of the training (Adam).
    """

    max_accuracy_drop: float = 0.05
    share: float = 0.2
    epochs: int = 30
    learning_rate: float = 1e-3
    batch: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or not 0 < self.share <= 1:
            raise UsageError(
                "nc-unlearn: expected max_accuracy_drop in [0, 1) and share in (0, 1], "
                f"got {self.max_accuracy_drop} and {self.share}"
            )
        if self.epochs < 1 or self.batch < 1 or self.learning_rate <= 0:
            raise UsageError(
                "nc-unlearn: expected epochs >= 1, batch >= 1 and learning_rate > 0, "
                f"got {self.epochs}, {self.batch} and {self.learning_rate}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: Labelled,
        choose: Labelled,
        *,
        triggers: Sequence[Trigger],
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Repairs a copy of the net.

        Args:
            fit: clean images and classes to train on.
            choose: the same, disjoint: which epoch to keep.
            triggers: reverse-engineered by a scan.

        Raises:
            UsageError: there is no trigger to unlearn.
        """
        if not triggers:
            raise UsageError(
                "nc-unlearn: expected triggers to unlearn, got none; pass --scan with a scan that flags a label"
            )
        repaired = surgery.clone(classifier)
        net, random = repaired.net, np.random.default_rng([seed, 3])
        images, classes = (part.to(repaired.device) for part in fit)
        limit = accuracy(repaired, choose) - self.max_accuracy_drop - 1e-9
        best, best_score, best_epoch = snapshot(net), self._score(repaired, choose, triggers, limit), 0
        with trainable(net):
            adam = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            for epoch in range(1, self.epochs + 1):
                for part in np.array_split(random.permutation(len(images)), math.ceil(len(images) / self.batch)):
                    index = torch.from_numpy(part).to(repaired.device)
                    stamped = self._stamp(images[index], triggers, random)
                    loss = F.cross_entropy(repaired.logits(stamped), classes[index])
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()
                score = self._score(repaired, choose, triggers, limit)
                if score >= best_score:
                    best, best_score, best_epoch = snapshot(net), score, epoch
                progress("unlearning", epoch, self.epochs)
        net.load_state_dict(best)
        return Repaired(classifier=repaired, epoch=best_epoch)

    def _stamp(self, images: Tensor, triggers: Sequence[Trigger], random: np.random.Generator) -> Tensor:
        """The batch, with one of the triggers on a share of it."""
        images = images.clone()
        chosen = random.permutation(len(images))[: max(1, round(self.share * len(images)))]
        for i, trigger in enumerate(triggers):
            mine = torch.from_numpy(chosen[i :: len(triggers)])
            images[mine] = trigger.apply(images[mine])
        return images

    def _score(
        self, repaired: Classifier, choose: Labelled, triggers: Sequence[Trigger], limit: float
    ) -> tuple[bool, float, float]:
        """Larger is better: within the limit or not, then minus the worst trigger's ASR, then ACC."""
        images, classes = choose
        acc = accuracy(repaired, choose)
        rates = [0.0]
        for trigger in triggers:
            attacked = images[(classes != trigger.target).to(images.device)]
            if len(attacked):
                rates.append(float((repaired.predict(trigger.apply(attacked)) == trigger.target).double().mean()))
        return acc >= limit, -max(rates), acc
