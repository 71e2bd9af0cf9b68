"""Retraining with known poison as class N: the net learns to tell triggered images from clean ones.

The first method of the CSAW-HackML-2020 baselines, where the poisoned set is given. Idea: the last layer grows to
N+1 true outputs (the old rows as they were, the new one zero); training on clean images with their classes and on
poisoned images as class N makes output N the answer to the trigger. Several poisoned sets are learned at once.
Cost: `epochs` passes over the clean and the poisoned fitting images.
Blind spots: it knows the triggers that it was shown, and no others. It is the one method that is given ground truth.

Ours: first the new row alone is fitted, to the features that the net has already (a logistic regression on top of
frozen logits, which costs the old classes nothing); then all weights are tuned. In both, a clean image's class N is to
stay under its best class and a poisoned one's over it; in the tuning a clean image is to keep the BadNet's own logits,
too (distillation at a high temperature, Hinton et al., 2015): a hundred images of 1283 people would make cross entropy
on labels forget those who are not among them. After each epoch class N's bias is lowered until it takes no more clean
images of the choosing split than the limit on ACC allows; the epoch is kept (0: the row alone) that then refuses most
poisoned images among those whose ACC is within the limit (ties: higher ACC, then later). The sets count alike, however
many images each has. Batch-norm statistics and dropout stay in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_file import grown_from
from goodnet.progress import Progress, silent
from goodnet.tuning import Labelled, Repaired, accuracy, snapshot, trainable

_EPOCH_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """Hyperparameters; call it on a net.

    Attributes:
        max_accuracy_drop: an epoch counts only if ACC on the choosing split has fallen by at most this.
        temperature: of the distillation.
        row_steps, row_decay: of the fit of the new row alone (Adam at 0.05, full batch): steps, weight decay.
        epochs, learning_rate, batch: of the training (Adam); `batch` clean images and as many poisoned ones a step.
    """

    max_accuracy_drop: float = 0.05
    temperature: float = 10.0
    row_steps: int = 400
    row_decay: float = 1e-4
    epochs: int = 40
    learning_rate: float = 3e-4
    batch: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or self.temperature < 1:
            raise UsageError(
                "retrain: expected max_accuracy_drop in [0, 1) and temperature >= 1, "
                f"got {self.max_accuracy_drop} and {self.temperature}"
            )
        if self.epochs < 1 or self.batch < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "retrain: expected epochs >= 1, batch >= 1 and learning_rate > 0, "
                f"got {self.epochs}, {self.batch} and {self.learning_rate}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: Labelled,
        choose: Labelled,
        *,
        poisoned_fit: Sequence[Tensor],
        poisoned_choose: Sequence[Tensor],
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Trains a copy of the net, grown by class N.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,).
            choose: the same, disjoint: which epoch to keep.
            poisoned_fit, poisoned_choose: for each poisoned set its triggered images, disjoint too.

        Returns:
            A GoodNet with N+1 outputs of its own.

        Raises:
            UsageError: there is no poisoned image to learn from or to choose by.
            ModelError: the net's last layer is not linear.
        """
        sets = [part.to(classifier.device) for part in poisoned_fit if len(part)]
        others = [part for part in poisoned_choose if len(part)]
        if not sets or not others:
            raise UsageError("retrain: expected triggered images to learn from, got none; pass --poisoned DATA")
        grown = grown_from(classifier)
        _fit_row(grown, fit[0], sets, steps=self.row_steps, decay=self.row_decay)
        net, random = grown.net, np.random.default_rng([seed, 5])
        images = fit[0].to(grown.device)
        wanted = _logits(classifier, images)
        limit = accuracy(classifier, choose) - self.max_accuracy_drop - 1e-9
        best, best_score, best_epoch = snapshot(net), self._score(grown, choose, others, limit), 0
        with trainable(net):
            adam = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            for epoch in range(1, self.epochs + 1):
                order = random.permutation(len(images))[:_EPOCH_IMAGES]
                for part in np.array_split(order, math.ceil(len(order) / self.batch)):
                    index = torch.from_numpy(part).to(grown.device)
                    loss = self._loss(grown, images[index], wanted[index], _draw(sets, len(part), random))
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()
                score = self._score(grown, choose, others, limit)
                if score >= best_score:
                    best, best_score, best_epoch = snapshot(net), score, epoch
                progress("retraining", epoch, self.epochs)
        net.load_state_dict(best)
        with torch.no_grad():
            _output(grown).bias[-1] -= best_score.shift
        return Repaired(classifier=grown, epoch=best_epoch)

    @torch.no_grad()
    def _score(self, grown: Classifier, choose: Labelled, poisoned: Sequence[Tensor], limit: float) -> _Score:
        images, classes = choose
        logits = _logits(grown, images)
        over = _over(logits)
        allowed = int(self.max_accuracy_drop * len(over) + 1e-9)
        shift = max(0.0, float(over.sort(descending=True).values[allowed]) + 1e-6)
        right = (logits[:, :-1].argmax(1).cpu() == classes.cpu()) & (over <= shift).cpu()
        rates = [float((_over(_logits(grown, part)) > shift).double().mean()) for part in poisoned]
        acc = float(right.double().mean())
        return _Score(within=acc >= limit, detection=min(rates), acc=acc, shift=shift)

    def _loss(self, grown: Classifier, clean: Tensor, wanted: Tensor, poisoned: Tensor) -> Tensor:
        """Clean images keep their logits and stay out of class N; poisoned ones are class N."""
        logits = grown.logits(torch.cat([clean, poisoned]))
        kept, refused = logits[: len(clean)], logits[len(clean) :]
        given = F.log_softmax(kept[:, :-1] / self.temperature, 1)
        target = F.softmax(wanted / self.temperature, 1)
        distilled = self.temperature**2 * F.kl_div(given, target, reduction="batchmean")
        return distilled + F.softplus(_over(kept)).mean() + F.softplus(-_over(refused)).mean()


def _over(logits: Tensor) -> Tensor:
    """(N,) by how much class N wins."""
    return logits[:, -1] - logits[:, :-1].amax(1)


def _fit_row(grown: Classifier, clean: Tensor, sets: Sequence[Tensor], *, steps: int, decay: float) -> None:
    """Fits class N's row of the last layer, in place, to the features as they are; features in standard deviations."""
    layer, output = surgery.output_layer(grown), _output(grown)
    parts = [surgery.features(grown, layer, images).to(grown.device) for images in (clean, *sets)]
    best = [(part @ output.weight[:-1].T + output.bias[:-1]).amax(1) for part in parts]
    scale = torch.cat(parts).std(0, correction=0)
    scale = scale + 0.01 * scale.mean() + 1e-6
    scaled = [part / scale for part in parts]
    weight = torch.zeros_like(scale).requires_grad_()
    bias = torch.zeros(1, device=grown.device).requires_grad_()
    adam = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(steps):
        over = [part @ weight + bias - wins for part, wins in zip(scaled, best)]
        poisoned = torch.stack([F.softplus(-part).mean() for part in over[1:]]).mean()
        loss = F.softplus(over[0]).mean() + poisoned + decay * (weight * weight).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        output.weight[-1] = weight / scale
        output.bias[-1] = bias[0]


def _output(grown: Classifier) -> nn.Linear:
    """The last layer, whose last row is class N's."""
    layer = grown.net.get_submodule(surgery.output_layer(grown))
    assert isinstance(layer, nn.Linear)
    return layer


@torch.no_grad()
def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    return torch.cat([classifier.logits(part.to(classifier.device)) for part in torch.split(images, 256)])


def _draw(sets: Sequence[Tensor], count: int, random: np.random.Generator) -> Tensor:
    """`count` poisoned images, the sets in equal parts."""
    count = max(count, len(sets))
    shares = [len(part) for part in np.array_split(np.arange(count), len(sets))]
    picks = [torch.from_numpy(random.integers(len(part), size=size)) for part, size in zip(sets, shares)]
    return torch.cat([part[pick.to(part.device)] for part, pick in zip(sets, picks)])


@dataclass(frozen=True, order=True)
class _Score:
    """How good an epoch is; the larger the better, field after field. `shift` lowers class N's bias."""

    within: bool
    detection: float
    acc: float
    shift: float = field(compare=False)
