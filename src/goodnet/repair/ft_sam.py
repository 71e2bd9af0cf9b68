"""FT-SAM: fine-tune on clean images towards a flat minimum, where neurons that a backdoor has made large lose weight.

Zhu, Wei, Shen, Fan, Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023,
Sec. 3. Idea: plain fine-tuning hardly moves the large weights that carry a backdoor. Sharpness-aware minimisation
takes the gradient at w + e, where e with |T^-1 e| <= rho raises the loss most, and T = diag(|w|) lets large weights be
moved most: e = rho T^2 g / |T g| (Foret et al. 2021 with Kwon et al. 2021's scaling).
Cost: two passes forwards and backwards for each step. Blind spots: clean images alone steer it; with a hundred
images of 1283 people, cross entropy forgets those who are not among them before the backdoor goes.

As in the authors' code: SGD at 0.01 with momentum 0.9 and weight decay 1e-4, 100 epochs.
Deviations: (1) The rate is constant, not by cosine. (2) No augmentation. (3) Batch norm stays in eval mode. (4) The
last epoch is kept whose ACC on the choosing split is within the limit; the paper keeps the last. (5) One rho for all
data.
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
from goodnet.tuning import Labelled, LastWithin, Repaired, accuracy, batches, trainable

_EPOCH_IMAGES = 2048


@dataclass(frozen=True, kw_only=True)
class SharpnessAware:
    """Hyperparameters; call it on a net.

    Attributes:
        max_accuracy_drop: an epoch counts only if ACC on the choosing split has fallen by at most this.
        rho: radius of the perturbation, in units of the weights' own size (authors' code: 2 on CIFAR-10, 8 on GTSRB).
        epochs, learning_rate, momentum, decay, batch: of the training (SGD); an epoch takes at most 2,048 images.
    """

    max_accuracy_drop: float = 0.05
    rho: float = 2.0
    epochs: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.9
    decay: float = 1e-4
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or not 0 < self.rho < math.inf:
            raise UsageError(
                f"ft-sam: expected max_accuracy_drop in [0, 1) and rho > 0, got {self.max_accuracy_drop} and {self.rho}"
            )
        if self.epochs < 1 or self.batch < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "ft-sam: expected epochs >= 1, batch >= 1 and learning_rate > 0, "
                f"got {self.epochs}, {self.batch} and {self.learning_rate}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: Labelled,
        choose: Labelled,
        *,
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Trains a copy of the net.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,).
            choose: the same, disjoint: which epoch to keep.
        """
        repaired = surgery.clone(classifier)
        images, classes = (part.to(repaired.device) for part in fit)
        random = np.random.default_rng([seed, 17])
        best = LastWithin(repaired, choose, accuracy(classifier, choose) - self.max_accuracy_drop - 1e-9)
        with trainable(repaired.net):
            weights = list(repaired.net.parameters())
            sgd = torch.optim.SGD(weights, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.decay)
            for epoch in range(1, self.epochs + 1):
                for part in batches(len(images), self.batch, random, most=_EPOCH_IMAGES):
                    index = torch.from_numpy(part).to(images.device)
                    self._step(repaired, weights, sgd, images[index], classes[index])
                best.look(epoch)
                progress("fine-tuning", epoch, self.epochs)
        return Repaired(classifier=repaired, epoch=best.restore())

    def _step(
        self, net: Classifier, weights: Sequence[Tensor], sgd: torch.optim.Optimizer, x: Tensor, y: Tensor
    ) -> None:
        """One step of SGD with the gradient at the perturbed weights."""
        gradient = torch.autograd.grad(F.cross_entropy(net.logits(x), y), weights)
        moved = perturbation(weights, gradient, self.rho)
        with torch.no_grad():
            for weight, move in zip(weights, moved):
                weight.add_(move)
        sgd.zero_grad()
        F.cross_entropy(net.logits(x), y).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight, move in zip(weights, moved):
                weight.sub_(move)
        sgd.step()


@torch.no_grad()
def perturbation(weights: Sequence[Tensor], gradient: Sequence[Tensor], rho: float) -> list[Tensor]:
    """What raises the loss most, to first order, among all e with |e / |w|| <= rho: rho w^2 g / |w g|."""
    size = torch.sqrt(sum(((w * g) ** 2).sum() for w, g in zip(weights, gradient)) + torch.tensor(1e-24))
    return [rho * w * w * g / size for w, g in zip(weights, gradient)]
