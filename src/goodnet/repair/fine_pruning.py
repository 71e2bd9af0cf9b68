"""Fine-pruning: cut the channels that clean images leave asleep, then tune what is left on clean images.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018.
Idea: a backdoor lives in neurons that clean images do not use (Sec. 3.1, pruning); what pruning leaves of it, and
an attacker who made it share neurons with clean images, is undone by fine-tuning (Sec. 3.3).
Cost: one pass over the clean images, then one over the choosing split a pruned channel, then `epochs` of training.
Blind spots: backdoors in channels that clean images need too. With few images a class, tuning costs accuracy on
people it does not see; then the untuned net wins on the choosing split and nothing more is removed.

Deviations: the activation of a channel is max(0, output of the layer, or of the batch norm right behind it), mean over
images and positions, which is the paper's for ReLU nets; channels are cut one by one and measured on a choosing split,
never on a test set; batch-norm statistics and dropout stay in eval mode, for a hundred images are too few for them;
the state that is kept is the best on the choosing split, by copy, ties going to the later epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.record import CurvePoint
from goodnet.tuning import Repaired, accuracy, snapshot, trainable


@dataclass(frozen=True, kw_only=True)
class FinePruning:
    """Hyperparameters; call it on a net.

    Attributes:
        layer: the layer whose channels are cut; None for the last convolution (DeepID: conv_3, see `default_layer`).
        max_accuracy_drop: pruning stops before ACC on the choosing split falls by more than this (paper: 0.04).
        epochs, learning_rate, batch: of the tuning (Adam); 0 epochs prunes only.
    """

    layer: str | None = None
    max_accuracy_drop: float = 0.04
    epochs: int = 10
    learning_rate: float = 1e-4
    batch: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1:
            raise UsageError(f"fine-pruning: expected max_accuracy_drop in [0, 1), got {self.max_accuracy_drop}")
        if self.epochs < 0 or self.batch < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "fine-pruning: expected epochs >= 0, batch >= 1 and learning_rate > 0, "
                f"got {self.epochs}, {self.batch} and {self.learning_rate}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        choose: tuple[Tensor, Tensor],
        *,
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Repairs a copy of the net.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,): activations and tuning.
            choose: the same, disjoint: how far to prune, which epoch to keep.
        """
        layer = self.layer or default_layer(classifier.net)
        surgery.resolve_layer(classifier.net, layer)
        repaired = surgery.clone(classifier)
        norm = surgery.following_batch_norm(repaired, layer, fit[0][:1].to(repaired.device))
        activation = mean_activation(repaired, norm or layer, fit[0])
        order = np.argsort(activation, kind="stable")
        curve, cut = self._prune(repaired, layer, norm, order, choose, progress)
        channels = [int(channel) for channel in order[:cut]]
        surgery.zero_channels(repaired.net, layer, channels, batch_norm=norm)
        tuned = self._tune(repaired, layer, norm, channels, fit, choose, seed, progress) if self.epochs else 0
        return Repaired(classifier=repaired, epoch=tuned, channels=tuple(channels), curve=tuple(curve))

    def _prune(
        self,
        repaired: Classifier,
        layer: str,
        norm: str | None,
        order: npt.NDArray[np.intp],
        choose: tuple[Tensor, Tensor],
        progress: Progress,
    ) -> tuple[list[CurvePoint], int]:
        """The whole curve, and how many channels can go; `repaired` is left as it was."""
        trial = surgery.clone(repaired)
        start = accuracy(trial, choose)
        curve, cut, falling = [CurvePoint(pruned=0, acc=start)], 0, False
        for count, channel in enumerate(order[:-1], start=1):
            surgery.zero_channels(trial.net, layer, [int(channel)], batch_norm=norm)
            acc = accuracy(trial, choose)
            curve.append(CurvePoint(pruned=count, acc=acc))
            falling = falling or acc < start - self.max_accuracy_drop - 1e-9
            cut = cut if falling else count
            progress("pruning", count, len(order) - 1)
        return curve, cut

    def _tune(
        self,
        repaired: Classifier,
        layer: str,
        norm: str | None,
        channels: list[int],
        fit: tuple[Tensor, Tensor],
        choose: tuple[Tensor, Tensor],
        seed: int,
        progress: Progress,
    ) -> int:
        """Tunes `repaired` in place and leaves it at its best epoch, whose number is returned (0: untuned)."""
        net, random = repaired.net, np.random.default_rng([seed, 1])
        images, classes = (part.to(repaired.device) for part in fit)
        best, best_acc, best_epoch = snapshot(net), accuracy(repaired, choose), 0
        with trainable(net):
            adam = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            for epoch in range(1, self.epochs + 1):
                for part in np.array_split(random.permutation(len(images)), math.ceil(len(images) / self.batch)):
                    index = torch.from_numpy(part).to(repaired.device)
                    loss = F.cross_entropy(repaired.logits(images[index]), classes[index])
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()
                    surgery.zero_channels(net, layer, channels, batch_norm=norm)
                acc = accuracy(repaired, choose)
                if acc >= best_acc:
                    best, best_acc, best_epoch = snapshot(net), acc, epoch
                progress("tuning", epoch, self.epochs)
        net.load_state_dict(best)
        return best_epoch


def default_layer(net: nn.Module) -> str:
    """The last convolution in the order of the net's modules; DeepID's is conv_3, as in the competition.

    DeepID's conv_4 sees only part of what the dense layers see: conv_3 feeds both branches, so nothing of a backdoor
    gets past it.
    """
    names: list[str] = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise ModelError("fine-pruning: this net has no convolution; name a linear layer to prune with --layer")
    if {"conv_3", "conv_4", "fc_1", "fc_2"} <= {name for name, _ in net.named_modules()}:
        return "conv_3"
    return names[-1]


@torch.no_grad()
def mean_activation(classifier: Classifier, layer: str, images: Tensor) -> npt.NDArray[np.float64]:
    """(channels,) mean of max(0, output) of a layer over images and positions."""
    total: Tensor | None = None
    with surgery.record_output(classifier.net, layer) as recorded:
        for part in torch.split(images, 256):
            classifier.logits(part.to(classifier.device))
            positive = recorded[-1].clamp_min(0).double()
            rest = [axis for axis in range(positive.ndim) if axis != 1]
            positive = positive.sum(0) if not rest[1:] else positive.mean(rest[1:]).sum(0)
            total = positive if total is None else total + positive
            recorded.clear()
    if total is None:
        raise UsageError("fine-pruning: expected at least one clean image, got none")
    return (total / len(images)).cpu().numpy()
