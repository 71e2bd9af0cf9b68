"""What every repair that trains a net needs: a copy to train, its best state kept by copy, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goodnet.models.classifier import Classifier
from goodnet.record import CurvePoint, PrunedLayer
from goodnet.triggers.trigger import Trigger

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
    """

    classifier: Classifier
    epoch: int = 0
    pruned: tuple[PrunedLayer, ...] = ()
    curve: tuple[CurvePoint, ...] = ()


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
