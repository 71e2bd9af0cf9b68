"""Neural Cleanse's pruning: cut the neurons that the reversed trigger excites and clean images do not.

Wang et al., "Neural Cleanse", IEEE S&P 2019, Sec. VI-B (patching by neuron pruning). Idea: rank neurons by how much
more the reversed trigger excites them than clean images do, cut the highest first, and stop when the net no longer
answers to the trigger. The paper prunes the second-last layer, and the last convolution where that works better.
Cost: a pass over the fitting images and one a trigger for the ranking; then, a neuron, one over the choosing images
and their triggered copies.
Blind spots: the true trigger can excite other neurons than the reversed one (the paper's own finding for Trojan nets).
Neurons that clean images need too cannot go.

Deviations: (1) which cut is kept is decided on a choosing split: the smallest ASR of the reversed triggers among those
whose ACC has not fallen by more than `max_accuracy_drop`; of equals, the one that cuts least. (2) Layers go one after
another, the second-last first; the accuracy limit is one for all. (3) With several triggers a neuron's rank is its
largest difference over the triggers, in standard deviations over clean images. (4) The neurons of the second-last
layer are cut at the input of the last one, which is the same for any activation function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.record import CurvePoint, PrunedLayer
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Labelled, Repaired, accuracy, asr


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Hyperparameters; call it on a net.

    Attributes:
        layers: to prune, in this order; None for the second-last layer and the last convolution. The name of the
            net's last linear layer stands for the neurons in front of it.
        max_accuracy_drop: ACC on the choosing split may fall by at most this.
        max_share: of a layer's neurons that may go.
    """

    layers: tuple[str, ...] | None = None
    max_accuracy_drop: float = 0.05
    max_share: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or not 0 < self.max_share < 1:
            raise UsageError(
                "nc-prune: expected max_accuracy_drop in [0, 1) and max_share in (0, 1), "
                f"got {self.max_accuracy_drop} and {self.max_share}"
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
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,): which neurons the triggers excite.
            choose: the same, disjoint: how far to prune.
            triggers: reverse-engineered by a scan.
            seed: not used; nothing here is random.

        Raises:
            UsageError: there is no trigger, or no such layer.
        """
        if not triggers:
            raise UsageError(
                "nc-prune: expected triggers to prune by, got none; pass --scan with one that flags a label"
            )
        repaired = surgery.clone(classifier)
        limit = accuracy(repaired, choose) - self.max_accuracy_drop - 1e-9
        curve: list[CurvePoint] = []
        pruned = []
        for place in self._places(repaired, choose[0][:1]):
            order = _ranking(repaired, place, fit, triggers)
            points = self._curve(repaired, place, order, choose, triggers, progress)
            cut = order[: _best(points, limit)]
            place.cut(repaired, cut)
            pruned.append(PrunedLayer(layer=place.layer, channels=tuple(cut), side=place.side))
            curve += points
        return Repaired(classifier=repaired, pruned=tuple(pruned), curve=tuple(curve))

    def _places(self, classifier: Classifier, image: Tensor) -> list[_Place]:
        output = surgery.output_layer(classifier)
        last = surgery.last_convolution(classifier.net)
        usual = (output,) if last is None else (output, last)
        return [
            _Place(layer=layer, side="input")
            if layer == output
            else _Place(layer=layer, side="output", norm=surgery.following_batch_norm(classifier, layer, image))
            for layer in self.layers or usual
        ]

    def _curve(
        self,
        classifier: Classifier,
        place: _Place,
        order: Sequence[int],
        choose: Labelled,
        triggers: Sequence[Trigger],
        progress: Progress,
    ) -> list[CurvePoint]:
        """ACC and ASR on the choosing split while neuron after neuron goes from a copy."""
        trial = surgery.clone(classifier)
        steps = min(len(order), round(self.max_share * place.width(classifier)))
        points = []
        for count in range(steps + 1):
            place.cut(trial, order[count - 1 : count] if count else [])
            points.append(
                CurvePoint(
                    layer=place.layer, pruned=count, acc=accuracy(trial, choose), asr=asr(trial, choose, triggers)
                )
            )
            progress(f"pruning {place.layer}", count + 1, steps + 1)
        return points


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where neurons are cut: the channels of a layer (with the batch norm behind it), or what the last layer sees."""

    layer: str
    side: str
    norm: str | None = None

    def cut(self, classifier: Classifier, channels: Sequence[int]) -> None:
        if self.side == "input":
            surgery.zero_inputs(classifier.net, self.layer, channels)
        else:
            surgery.zero_channels(classifier.net, self.layer, channels, batch_norm=self.norm)

    def width(self, classifier: Classifier) -> int:
        shape = surgery.resolve_layer(classifier.net, self.layer).get_parameter("weight").shape
        return int(shape[1 if self.side == "input" else 0])

    @torch.no_grad()
    def activation(self, classifier: Classifier, images: Tensor) -> Tensor:
        """(N, neurons): max(0, output), mean over positions; on the CPU."""
        if self.side == "input":
            return surgery.features(classifier, self.layer, images).clamp_min(0)
        rows = []
        with surgery.record_output(classifier.net, self.norm or self.layer) as recorded:
            for part in classifier.parts(images):
                classifier.logits(part)
                positive = recorded.pop().clamp_min(0)
                rows.append(positive.flatten(2).mean(2) if positive.ndim > 2 else positive)
        return torch.cat(rows).cpu()


def _best(points: Sequence[CurvePoint], limit: float) -> int:
    """How many neurons go: the lowest ASR within the limit, and of equals the fewest."""
    start = points[0]
    allowed = [point for point in points if point.acc >= limit] or [start]
    return min(allowed, key=lambda point: (point.asr or 0.0, point.pruned)).pruned


def _ranking(classifier: Classifier, place: _Place, fit: Labelled, triggers: Sequence[Trigger]) -> list[int]:
    """Neurons that some trigger excites more than clean images do, the most excited first."""
    images, classes = fit
    clean = place.activation(classifier, images)
    mean, std = clean.mean(0), clean.std(0, correction=0)
    scale = std + 0.1 * std.mean() + 1e-6  # a neuron that clean images leave asleep is not infinitely far
    shifts = [
        (place.activation(classifier, trigger.apply(images[classes != trigger.target])).mean(0) - mean) / scale
        for trigger in triggers
    ]
    excited = torch.stack(shifts).amax(0)
    return [int(neuron) for neuron in excited.argsort(descending=True, stable=True) if excited[neuron] > 0]
