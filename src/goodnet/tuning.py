"""What every repair that trains a net needs: a copy to train, its best state kept by copy, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.models.classifier import Classifier
from goodnet.record import CurvePoint, PrunedLayer
from goodnet.triggers.strong import StrongSchedule
from goodnet.triggers.trigger import Trigger

_EPOCH_IMAGES = 512
_Score = TypeVar("_Score", bound=Any)  # anything that can be compared with >=

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) in [0, 1] and their classes (N,) int64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """A repaired net and how it came to be.

    Attributes:
        classifier: the repaired copy. Either of the same classes, and a guard decides on class N, or (`refuses`) a
            GoodNet whose own output N does.
        epoch: the epoch of training that was kept; 0 for the untrained net.
        pruned: what was cut, layer by layer.
        curve: ACC on the choosing split against the number of channels pruned, past the stop too.
        strong: the BadNet's strong triggers, where the method has searched for them, so that a guard need not;
            strong_searches: how, for the repaired labels and for others.
    """

    classifier: Classifier
    epoch: int = 0
    pruned: tuple[PrunedLayer, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    strong: tuple[Trigger, ...] = ()
    strong_searches: tuple[StrongSchedule, StrongSchedule] | None = None


def accuracy(classifier: Classifier, labelled: Labelled) -> float:
    """ACC, in [0, 1]."""
    images, classes = labelled
    return float((classifier.predict(images) == classes.cpu()).double().mean())


def asr(classifier: Classifier, labelled: Labelled, triggers: Sequence[Trigger]) -> float:
    """ASR of the worst of `triggers`, in [0, 1]; images of a trigger's target are left out. 0 without any."""
    images, classes = labelled
    rates = [0.0]
    for trigger in triggers:
        attacked = images[(classes != trigger.target).to(images.device)]
        if len(attacked):
            rates.append(float((classifier.predict(trigger.apply(attacked)) == trigger.target).double().mean()))
    return max(rates)


@torch.no_grad()
def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """(N, outputs), on the net's device."""
    return torch.cat([classifier.logits(part) for part in classifier.parts(images)])


def distillation(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """How far `logits` (N, K) are from `wanted` ones, as classes' probabilities at a temperature (Hinton et al., 2015).

    High temperatures match logits and hold all classes in place, 1 matches probabilities.
    """
    given = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(given, F.softmax(wanted / temperature, 1), reduction="batchmean")


def allowed_score(scores: Tensor, max_fpr: float) -> float:
    """The smallest threshold that at most a share `max_fpr` of clean `scores` (N,) lies over."""
    allowed = int(max_fpr * len(scores) + 1e-9)
    return float(scores.sort(descending=True).values[allowed])


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a net is trained: Adam, so many epochs, so many images a step."""

    epochs: int
    learning_rate: float
    batch: int


def train_to_best(
    net: nn.Module,
    images: int,
    course: Course,
    random: np.random.Generator,
    *,
    loss_of: Callable[[npt.NDArray[np.intp]], Tensor],
    score_of: Callable[[], _Score],
    on_epoch: Callable[[int], None],
) -> tuple[_Score, int]:
    """Trains a net in place and leaves it at its best epoch; that one's score and number, 0 for the untrained net.

    Args:
        images: how many there are to train on; an epoch takes at most 512 of them.
        loss_of: of a batch of positions.
        score_of: of the net as it is, the larger the better; of equals the later counts.
    """
    best, best_score, best_epoch = snapshot(net), score_of(), 0
    with trainable(net):
        adam = torch.optim.Adam(net.parameters(), lr=course.learning_rate)
        for epoch in range(1, course.epochs + 1):
            for part in batches(images, course.batch, random):
                loss = loss_of(part)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
            score = score_of()
            if score >= best_score:
                best, best_score, best_epoch = snapshot(net), score, epoch
            on_epoch(epoch)
    net.load_state_dict(best)
    return best_score, best_epoch


class LastWithin:
    """The last state of a net in training whose ACC on the choosing split is within a limit; else the first."""

    def __init__(self, classifier: Classifier, choose: Labelled, limit: float):
        self.classifier, self.choose, self.limit = classifier, choose, limit
        self.state, self.epoch = snapshot(classifier.net), 0

    def look(self, epoch: int) -> None:
        """Keeps the net as it is now, if it is within the limit."""
        if accuracy(self.classifier, self.choose) >= self.limit:
            self.state, self.epoch = snapshot(self.classifier.net), epoch

    def restore(self) -> int:
        """Puts the kept state back; its epoch, 0 for the untrained net."""
        self.classifier.net.load_state_dict(self.state)
        return self.epoch


def batches(
    images: int, size: int, random: np.random.Generator, *, most: int = _EPOCH_IMAGES
) -> list[npt.NDArray[np.intp]]:
    """Positions of an epoch's images in a random order, `most` of them, in parts of at most `size`."""
    order = random.permutation(images)[:most]
    return np.array_split(order, math.ceil(len(order) / size))


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """The state dict by copy: what is trained on later does not change it."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


@contextmanager
def trainable(net: nn.Module) -> Iterator[torch.nn.Module]:
    """Weights take gradients inside the `with`, none after it. Eval mode throughout.

    A hundred images are too few for batch-norm statistics, and dropout would only add noise to them.
    """
    net.requires_grad_(True)
    try:
        yield net
    finally:
        net.requires_grad_(False)
        for parameter in net.parameters():
            parameter.grad = None
