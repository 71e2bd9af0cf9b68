"""Fine-pruning: cut the channels that clean images leave asleep, then tune what is left on clean images.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018.
Idea: a backdoor lives in neurons that clean images do not use (Sec. 3.1, pruning); an attacker who knows that makes
it share neurons with clean images (Sec. 3.2), so what is left is tuned on clean images, which pulls those neurons
back to their work (Sec. 3.3). `mode` is the paper's three defences: `prune`, `tune` or `both`.
Cost: one pass over the clean images and one over the choosing split a layer, and one through the rest of the net a
channel; then `epochs` of training.
Blind spots: backdoors in channels that clean images need too, by nature or by intent (`attacks.pruning_aware`): then
all rests on the tuning. With few images a class, tuning costs accuracy on classes it does not see; then no epoch is
within the limit, and nothing more is removed.

Deviations: (1) any convolutions and linear layers, one after another in the order given, each on the net as the layers
before it have left it. The accuracy budget is one for all: the limit is the ACC of the net that was given less
`max_accuracy_drop`, so the first layer takes what it can and later ones what it leaves. (2) The activation of a channel
is max(0, output of the layer, or of the batch norm right behind it), mean over images and positions: the paper's for
ReLU nets. (3) Channels are measured on a choosing split, never on a test set. (4) Batch-norm statistics and dropout
stay in eval mode, for a hundred images are too few for them. (5) The paper tunes until ACC is back. Here the last epoch
is kept, by copy, that is within the same limit on the choosing split, or the untuned net where none is: each epoch
takes something from the backdoor, and the best epoch by ACC alone would mostly be that of no tuning at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.replay import replayed
from goodnet.progress import Progress, silent
from goodnet.record import CurvePoint, PrunedLayer
from goodnet.tuning import Labelled, Repaired, accuracy, snapshot, trainable

_CHUNK = 128  # images whose activations in front of the pruned layer are held at once


@dataclass(frozen=True, kw_only=True)
class FinePruning:
    """Hyperparameters; call it on a net.

    Attributes:
        layers: whose channels are cut, in this order; None for the last convolution (DeepID: conv_3). Not the output
            layer: its channels are the classes.
        mode: `prune`, `tune`, or `both`, one after the other.
        max_accuracy_drop: ACC on the choosing split may fall by at most this, by pruning and tuning together
            (paper: 0.04, of pruning).
        epochs, learning_rate, batch: of the tuning (Adam).
    """

    layers: tuple[str, ...] | None = None
    mode: str = "both"
    max_accuracy_drop: float = 0.04
    epochs: int = 20
    learning_rate: float = 1e-3
    batch: int = 32

    def __post_init__(self) -> None:
        if self.mode not in ("both", "prune", "tune"):
            raise UsageError(f"fine-pruning: expected mode to be both, prune or tune, got {self.mode!r}")
        if not 0 <= self.max_accuracy_drop < 1:
            raise UsageError(f"fine-pruning: expected max_accuracy_drop in [0, 1), got {self.max_accuracy_drop}")
        if self.epochs < 1 or self.batch < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "fine-pruning: expected epochs >= 1, batch >= 1 and learning_rate > 0, got "
                f"{self.epochs}, {self.batch} and {self.learning_rate}; mode prune does not tune"
            )
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise UsageError(f"fine-pruning: expected layers, each once, got {', '.join(self.layers) or 'none'}")
        if self.layers is not None and self.mode == "tune":
            raise UsageError("fine-pruning: expected no layers with mode tune, which prunes none; leave them out")

    def __call__(
        self, classifier: Classifier, fit: Labelled, choose: Labelled, *, seed: int, progress: Progress = silent
    ) -> Repaired:
        """Repairs a copy of the net.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,): activations and tuning.
            choose: the same, disjoint: how far to prune, which epoch to keep.
            seed: of the order of the images in the tuning; pruning is not random.

        Raises:
            UsageError: there is no such layer, or it is the output layer.
            ModelError: no layer is named, and the net has no convolution.
        """
        repaired = surgery.clone(classifier)
        layers = () if self.mode == "tune" else self.layers or (default_layer(classifier.net),)
        _refuse_output_layer(classifier, layers)
        limit = accuracy(repaired, choose) - self.max_accuracy_drop - 1e-9
        curve: list[CurvePoint] = []
        cuts: list[tuple[PrunedLayer, str | None]] = []
        for layer in layers:
            norm = surgery.following_batch_norm(repaired, layer, fit[0][:1])
            order = np.argsort(mean_activation(repaired, norm or layer, fit[0]), kind="stable").tolist()
            points = pruning_curve(repaired, layer, norm, order, choose, progress)
            pruned = PrunedLayer(layer=layer, channels=tuple(order[: last_within(points, limit)]))
            surgery.zero_channels(repaired.net, layer, pruned.channels, batch_norm=norm)
            cuts.append((pruned, norm))
            curve += points
        tuned = 0 if self.mode == "prune" else self._tune(repaired, cuts, fit, choose, limit, seed, progress)
        return Repaired(
            classifier=repaired, epoch=tuned, pruned=tuple(pruned for pruned, _ in cuts), curve=tuple(curve)
        )

    def _tune(
        self,
        repaired: Classifier,
        cuts: Sequence[tuple[PrunedLayer, str | None]],
        fit: Labelled,
        choose: Labelled,
        limit: float,
        seed: int,
        progress: Progress,
    ) -> int:
        """Tunes `repaired` in place and leaves it at the last epoch within the limit, whose number is returned (0)."""
        net, random = repaired.net, np.random.default_rng([seed, 1])
        images, classes = (part.to(repaired.device) for part in fit)
        kept, kept_epoch = snapshot(net), 0
        with trainable(net):
            adam = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            for epoch in range(1, self.epochs + 1):
                for part in np.array_split(random.permutation(len(images)), math.ceil(len(images) / self.batch)):
                    index = torch.from_numpy(part).to(repaired.device)
                    loss = F.cross_entropy(repaired.logits(images[index]), classes[index])
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()
                    for pruned, norm in cuts:  # what was cut stays cut
                        surgery.zero_channels(net, pruned.layer, pruned.channels, batch_norm=norm)
                if accuracy(repaired, choose) >= limit:
                    kept, kept_epoch = snapshot(net), epoch
                progress("tuning", epoch, self.epochs)
        net.load_state_dict(kept)
        return kept_epoch


def default_layer(net: nn.Module) -> str:
    """The last convolution, `surgery.last_convolution`. Raises ModelError where there is none."""
    layer = surgery.last_convolution(net)
    if layer is None:
        raise ModelError("fine-pruning: this net has no convolution; name a linear layer to prune with --layer")
    return layer


def pruning_curve(
    classifier: Classifier,
    layer: str,
    norm: str | None,
    order: Sequence[int],
    choose: Labelled,
    progress: Progress = silent,
) -> list[CurvePoint]:
    """ACC on the choosing split while channel after channel of `order` goes from a copy, all but the last one.

    Chunk by chunk of images, so that what lies in front of the layer is computed once and not once a channel.
    """
    images, classes = choose
    hits = np.zeros(len(order), np.int64)
    chunks = list(zip(torch.split(images, _CHUNK), torch.split(classes.cpu(), _CHUNK)))
    for turn, (part, wanted) in enumerate(chunks):
        trial = surgery.clone(classifier)
        run = functools.partial(trial.predict, part)
        with replayed(trial.net, layer, run):
            for count in range(len(order)):
                surgery.zero_channels(trial.net, layer, order[count - 1 : count] if count else (), batch_norm=norm)
                hits[count] += int((run() == wanted).sum())
                progress(f"pruning {layer}", turn * len(order) + count + 1, len(chunks) * len(order))
    return [CurvePoint(layer=layer, pruned=count, acc=int(hit) / len(images)) for count, hit in enumerate(hits)]


def last_within(points: Sequence[CurvePoint], limit: float) -> int:
    """How many channels can go before ACC first falls under `limit`."""
    count = 0
    for point in points[1:]:
        if point.acc < limit:
            break
        count = point.pruned
    return count


def _refuse_output_layer(classifier: Classifier, layers: Sequence[str]) -> None:
    for layer in layers:
        surgery.resolve_layer(classifier.net, layer)
    try:
        output = surgery.output_layer(classifier)
    except ModelError:  # a net that ends otherwise has no linear layer whose channels are the classes
        return
    if output in layers:
        others = [name for name in surgery.layer_names(classifier.net) if name != output]
        raise UsageError(
            f"layer {output}: expected a layer in front of the output, whose channels are the classes; name one of "
            f"{', '.join(others) or 'another net'}"
        )


@torch.no_grad()
def mean_activation(classifier: Classifier, layer: str, images: Tensor) -> npt.NDArray[np.float64]:
    """(channels,) mean of max(0, output) of a layer over images and positions."""
    total: Tensor | None = None
    with surgery.record_output(classifier.net, layer) as recorded:
        for part in classifier.parts(images):
            classifier.logits(part)
            positive = recorded[-1].clamp_min(0).double()
            rest = [axis for axis in range(positive.ndim) if axis != 1]
            positive = positive.sum(0) if not rest[1:] else positive.mean(rest[1:]).sum(0)
            total = positive if total is None else total + positive
            recorded.clear()
    if total is None:
        raise UsageError("fine-pruning: expected at least one clean image, got none")
    return (total / len(images)).cpu().numpy()
