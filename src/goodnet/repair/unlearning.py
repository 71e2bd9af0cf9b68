"""Unlearning: train the net to answer right although the reversed trigger is there.

Wang et al., "Neural Cleanse", IEEE S&P 2019, Sec. VI-C (mitigation by unlearning). Idea: the trigger that the scan
found moves the net much as the true one does; stamp it on a share of clean images, keep their labels, fine-tune.
Cost: `epochs` passes of training over (at most 512 of) the clean images, and one pass over the choosing split each.
Blind spots: what the reversed trigger does not excite stays. The net learns to ignore the trigger, not to see through
it: what the trigger hides, it cannot recognise.

Deviations: (1) the paper trains on true labels. With a hundred images of 1283 people that forgets those who are not
among them, so a stamped image is to get the BadNet's own logits for the clean one: distillation (Hinton et al., 2015)
at a high temperature, which holds all classes in place. On the competition's sunglasses net, 57 images: ASR of the
strengthened trigger 100 % to 7 % at no loss of ACC on the judging split; on labels it was 97 % when ACC reached the
limit. It needs no labels. `teach="labels"` is the paper's own: cross entropy to the true labels, or, where the images
have none, to the net's answers. (2) The paper tunes one epoch on 10 % of the training data; here the epoch is kept
that has the lowest ASR of the reversed triggers on the choosing split among those whose ACC there has not fallen by
more than the limit (ties: higher ACC, then later). (3) Batch-norm statistics and dropout stay in eval mode. (4)
Several triggers share the stamped images evenly. (5) A reversed mask is the weakest that works; stamps are up to four
times as strong, for the net must not learn to look past faint triggers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Course, Labelled, Repaired, accuracy, asr, distillation, logits_of, train_to_best


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """Hyperparameters; call it on a net.

    Attributes:
        max_accuracy_drop: an epoch counts only if ACC on the choosing split has fallen by at most this.
        share: of each batch that is stamped (paper: 0.2).
        max_strength: stamped masks are multiplied by 1 to this, at random, and cut at 1.
        teach: what a stamped image is to get: the BadNet's `logits` for the clean one, or its class (`labels`; paper).
        temperature: of the distillation; high ones match logits, 1 matches probabilities.
        epochs, learning_rate, batch: of the training (Adam).
    """

    max_accuracy_drop: float = 0.05
    share: float = 0.3
    max_strength: float = 4.0
    teach: str = "logits"
    temperature: float = 10.0
    epochs: int = 100
    learning_rate: float = 3e-4
    batch: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or not 0 < self.share <= 1:
            raise UsageError(
                "nc-unlearn: expected max_accuracy_drop in [0, 1) and share in (0, 1], "
                f"got {self.max_accuracy_drop} and {self.share}"
            )
        if not 1 <= self.max_strength < math.inf:
            raise UsageError(f"nc-unlearn: expected max_strength >= 1, got {self.max_strength}")
        if self.teach not in ("logits", "labels"):
            raise UsageError(f"nc-unlearn: expected teach to be logits or labels, got {self.teach!r}")
        if self.epochs < 1 or self.batch < 1 or not 0 < self.learning_rate < math.inf or self.temperature < 1:
            raise UsageError(
                "nc-unlearn: expected epochs >= 1, batch >= 1, learning_rate > 0 and temperature >= 1, "
                f"got {self.epochs}, {self.batch}, {self.learning_rate} and {self.temperature}"
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
            fit: clean images (N, C, H, W) in [0, 1] to train on, and classes (N,), used where `teach` is `labels`.
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
        random = np.random.default_rng([seed, 3])
        images, classes = (part.to(repaired.device) for part in fit)
        wanted = logits_of(classifier, images)
        limit = accuracy(repaired, choose) - self.max_accuracy_drop - 1e-9

        def loss_of(part: npt.NDArray[np.intp]) -> Tensor:
            index = torch.from_numpy(part).to(repaired.device)
            logits = repaired.logits(self._stamp(images[index], triggers, random))
            if self.teach == "labels":
                return F.cross_entropy(logits, classes[index])
            return distillation(logits, wanted[index], self.temperature)

        _, epoch = train_to_best(
            repaired.net,
            len(images),
            Course(epochs=self.epochs, learning_rate=self.learning_rate, batch=self.batch),
            random,
            loss_of=loss_of,
            score_of=lambda: _score(repaired, choose, triggers, limit),
            on_epoch=lambda done: progress("unlearning", done, self.epochs),
        )
        return Repaired(classifier=repaired, epoch=epoch)

    def _stamp(self, images: Tensor, triggers: Sequence[Trigger], random: np.random.Generator) -> Tensor:
        """The batch, with one of the triggers on a share of it, each time 1 to `max_strength` times as strong."""
        images = images.clone()
        chosen = random.permutation(len(images))[: max(1, round(self.share * len(images)))]
        for i, position in enumerate(chosen):
            trigger = triggers[i % len(triggers)].strengthened(random.uniform(1, self.max_strength))
            images[position] = trigger.apply(images[position][None])[0]
        return images


def _score(
    repaired: Classifier, choose: Labelled, triggers: Sequence[Trigger], limit: float
) -> tuple[bool, float, float]:
    """Larger is better: within the limit or not, then minus the worst trigger's ASR, then ACC."""
    acc = accuracy(repaired, choose)
    return acc >= limit, -asr(repaired, choose, triggers), acc
