"""I-BAU: unlearn the universal perturbation that harms most, by a hypergradient that knows how it would answer.

Zeng, Chen, Park, Mao, Jin, Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, Sec. 3 and
Alg. 1. Idea: min over weights of max over one perturbation d, |d| <= C, of the loss on clean images plus d. With d*(w)
the inner maximum, the outer gradient is dL/dw + (d d*/dw)^T dL/dd; the second term comes from the fixed point of the
inner step, P(d, w) = d - a dl/dd: v <- (dP/dd)^T v + dL/dd, `terms` times, then (dP/dw)^T v.
Cost: each round a pass over the clean images for d and, for each batch, `terms` + 2 double backward passes.
Blind spots: triggers that are not one additive pattern for all images; with few images of many classes, accuracy.

As in the authors' code: the inner loss is -cross entropy to the net's own answers + 0.001 |d|^2, found by SGD at rate
10 from 0 and then cut to norm 10; P's step is 0.1; the outer loss has d on a share of the images, labelled right.
Deviations: (1) that share is a tenth, not a hundredth, which of a batch of 32 would be none. (2) Adam at 1e-3
throughout, as the authors on CIFAR-10 (on GTSRB 1e-4, which does nothing to our net of signs). (3) Batch norm stays in
eval mode. (4) The last round is kept whose ACC on the choosing split is within the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

_ROUND_IMAGES = 1024
_INNER_RATE, _INNER_STEP, _INNER_DECAY = 10.0, 0.1, 1e-3


@dataclass(frozen=True, kw_only=True)
class AdversarialUnlearning:
    """Hyperparameters; call it on a net.

    Attributes:
        max_accuracy_drop: a round counts only if ACC on the choosing split has fallen by at most this.
        rounds: of inner maximisation and outer steps; a round takes at most 1,024 images.
        norm: largest L2 norm of the perturbation, in units of [0, 1] images.
        terms: of the fixed-point iteration (authors: 5).
        share: of each batch that is perturbed.
        learning_rate, batch: of the outer steps (Adam).
    """

    max_accuracy_drop: float = 0.05
    rounds: int = 6
    norm: float = 10.0
    terms: int = 5
    share: float = 0.1
    learning_rate: float = 1e-3
    batch: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or not 0 < self.share <= 1 or not 0 < self.norm < math.inf:
            raise UsageError(
                "i-bau: expected max_accuracy_drop in [0, 1), share in (0, 1] and norm > 0, "
                f"got {self.max_accuracy_drop}, {self.share} and {self.norm}"
            )
        if min(self.rounds, self.terms, self.batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "i-bau: expected rounds, terms and batch >= 1 and learning_rate > 0, "
                f"got {self.rounds}, {self.terms}, {self.batch} and {self.learning_rate}"
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
            choose: the same, disjoint: which round to keep.
        """
        repaired = surgery.clone(classifier)
        images, classes = (part.to(repaired.device) for part in fit)
        random = np.random.default_rng([seed, 19])
        best = LastWithin(repaired, choose, accuracy(classifier, choose) - self.max_accuracy_drop - 1e-9)
        with trainable(repaired.net):
            weights = list(repaired.net.parameters())
            adam = torch.optim.Adam(weights, lr=self.learning_rate)
            for turn in range(1, self.rounds + 1):
                drawn = batches(len(images), self.batch, random, most=_ROUND_IMAGES)
                parts = [torch.from_numpy(part) for part in drawn]
                pert = self._perturbation(repaired, [images[part] for part in parts])
                for part in parts:
                    self._step(repaired, weights, adam, pert, images[part], classes[part], random)
                best.look(turn)
                progress("adversarial unlearning", turn, self.rounds)
        return Repaired(classifier=repaired, epoch=best.restore())

    def _perturbation(self, net: Classifier, batches: Sequence[Tensor]) -> Tensor:
        """(1, C, H, W) the inner maximum: one SGD step a batch, from 0, then cut to the norm."""
        pert = torch.zeros_like(batches[0][:1])
        for x in batches:
            free = pert.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_inner(net, free, x), free)
            pert = pert - _INNER_RATE * gradient
        return (pert * min(1.0, self.norm / max(float(pert.norm()), 1e-12))).detach()

    def _step(
        self,
        net: Classifier,
        weights: Sequence[Tensor],
        adam: torch.optim.Optimizer,
        pert: Tensor,
        x: Tensor,
        y: Tensor,
        random: np.random.Generator,
    ) -> None:
        chosen = torch.zeros(len(x), 1, 1, 1, device=x.device)
        chosen[torch.from_numpy(random.permutation(len(x))[: max(1, round(self.share * len(x)))])] = 1
        gradient = hypergradient(
            lambda d: _inner(net, d, x),
            lambda d: F.cross_entropy(net.logits(x + chosen * d), y),
            pert,
            weights,
            self.terms,
            _INNER_STEP,
        )
        for weight, value in zip(weights, gradient):
            weight.grad = value
        adam.step()


def _inner(net: Classifier, pert: Tensor, x: Tensor) -> Tensor:
    """What the perturbation minimises: minus the loss to the net's answers without it, and its own size."""
    with torch.no_grad():
        own = net.logits(x).argmax(1)
    return -F.cross_entropy(net.logits(x + pert), own) + _INNER_DECAY * (pert * pert).sum()


def hypergradient(
    inner: Callable[[Tensor], Tensor],
    outer: Callable[[Tensor], Tensor],
    pert: Tensor,
    weights: Sequence[Tensor],
    terms: int,
    step: float,
) -> list[Tensor]:
    """Gradient of outer(d*(w), w) to the weights, where d* minimises inner(d, w), by fixed-point iteration.

    Args:
        inner, outer: losses of a perturbation, at the weights as they are; both take gradients to the weights.
        pert: (1, C, H, W) where the inner search has ended.
        terms: of the series (I - J)^-1 = sum of J^k, J the derivative of d - step * d inner/dd by d.
    """
    free = pert.detach().requires_grad_()
    by_pert, *direct = torch.autograd.grad(outer(free), [free, *weights], allow_unused=True)
    moved = free - step * torch.autograd.grad(inner(free), free, create_graph=True)[0]
    v = torch.zeros_like(by_pert)
    for _ in range(terms):
        (back,) = torch.autograd.grad(moved, free, v, retain_graph=True)
        v = back + by_pert
    through = torch.autograd.grad(moved, list(weights), v, allow_unused=True)
    zero = [torch.zeros_like(weight) for weight in weights]
    return [
        (z if a is None else a.detach()) + (z if b is None else b.detach()) for a, b, z in zip(direct, through, zero)
    ]
