"""What gives a net its class N, "this input is triggered". There are seven kinds of GoodNet:

* `GoodNet`: a BadNet and its repaired twin. The two agree on clean images; where the backdoor was removed from one of
  them, a trigger makes them disagree, and strong disagreement is answered with class N (the competition's own design).
* `StripGoodNet`: the same two, but class N is what keeps its answer when other images are blended into it.
* `TedGoodNet`: the same two, but class N is what comes to its answer by a way through the net that clean images of that
  answer do not take.
* grown: one net whose last layer has N+1 rows and was trained so. It needs no module of its own.
* filtered: one net whose last layer is a `FilterHead`, which refuses features that lie far along a trigger's direction.
* watched: one net whose last layer is a `WatchHead`, which looks along a direction only where the net answers a label
  that is watched. What it answers otherwise is never refused.
* `SecondOpinion`: a watched net and a repaired twin, which answers where the watched one would give a watched label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.models.trace import References, depth, references, way_of

_BLENDS = 512  # at a time


class GoodNet(nn.Module):
    """Prepared input (N, C, H, W) -> logits (N, classes + 1), the repaired net's best class at 0.

    The score of an input is how much the repaired net prefers its own answer to the BadNet's, in logits: 0 where both
    answer the same. Class N wins exactly where score > threshold; otherwise the repaired net answers.

    Args:
        bad: the net as it came.
        good: the repaired net; same input and classes.
        threshold: in logits, >= 0; 0 refuses whenever the two answers differ.
    """

    def __init__(self, *, bad: nn.Module, good: nn.Module, threshold: float = 0.0):
        super().__init__()
        self.bad = bad
        self.good = good
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        good = self.good(x)
        good = good - good.amax(1, keepdim=True)
        over = -good.gather(1, self.bad(x).argmax(1, keepdim=True)) - self.threshold
        # at least 1 off the best class, which stands at 0: no rounding decides, however large the nets' logits are
        return torch.cat([good, torch.where(over > 0, over + 1, over - 1)], 1)


class StripGoodNet(nn.Module):
    """Prepared input (N, C, H, W) -> logits (N, classes + 1), the repaired net's best class at 0.

    The score of an input is the BadNet's mean entropy, in nats, over its blends with each overlay. Class N wins exactly
    where it is under the threshold; its logit is by how much. Otherwise the repaired net answers.

    Args:
        bad: the net as it came.
        good: the repaired net; same input and classes.
        overlays: (B, C, H, W) prepared clean images; each blend is half of one and half of the input.
        threshold: in nats.
    """

    overlays: Tensor

    def __init__(self, *, bad: nn.Module, good: nn.Module, overlays: Tensor, threshold: float):
        super().__init__()
        self.bad = bad
        self.good = good
        self.register_buffer("overlays", overlays)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        good = self.good(x)
        score = self.threshold - blended_entropy(self.bad, x, self.overlays)
        return torch.cat([good - good.amax(1, keepdim=True), score[:, None]], 1)


def blended_entropy(net: nn.Module, x: Tensor, overlays: Tensor) -> Tensor:
    """(N,) mean entropy, in nats, of the net's answers to an input half and half with each of the overlays."""
    total = x.new_zeros(len(x))
    for part in torch.split(overlays, max(1, _BLENDS // max(1, len(x)))):
        blends = (0.5 * x[:, None] + 0.5 * part[None]).flatten(0, 1)
        logs = F.log_softmax(net(blends), 1)
        total = total - (logs.exp() * logs).sum(1).view(len(x), len(part)).sum(1)
    return total / len(overlays)


class TedGoodNet(nn.Module):
    """Prepared input (N, C, H, W) -> logits (N, classes + 1), the repaired net's best class at 0.

    The score of an input is its `goodnet.models.trace.depth` in the BadNet, beside the references. Class N wins exactly
    where it is over the threshold; its logit is by how much. Otherwise the repaired net answers.

    Args:
        bad: the net as it came.
        good: the repaired net; same input and classes.
        layers: the BadNet's layers to look at.
        features: see `goodnet.models.trace.way_of`.
        images, labels: the references: prepared clean images (R, C, H, W) and what they show (R,) int64.
        threshold: >= 0.
    """

    images: Tensor
    labels: Tensor

    def __init__(
        self,
        *,
        bad: nn.Module,
        good: nn.Module,
        layers: Sequence[str],
        features: int,
        images: Tensor,
        labels: Tensor,
        threshold: float,
    ):
        super().__init__()
        self.bad = bad
        self.good = good
        self.layers = tuple(layers)
        self.features = features
        self.register_buffer("images", images)
        self.register_buffer("labels", labels)
        self.threshold = threshold
        self._beside: References | None = None  # once the net is in eval mode, and where it is to run

    def depth(self, x: Tensor) -> Tensor:
        """(N,) the score of prepared input (N, C, H, W)."""
        if self._beside is None or self._beside.labels.device != x.device:
            self._beside = references(way_of(self.bad, self.images, self.layers, self.features), self.labels)
        return depth(way_of(self.bad, x, self.layers, self.features), self._beside)

    def forward(self, x: Tensor) -> Tensor:
        good = self.good(x)
        return torch.cat([good - good.amax(1, keepdim=True), self.depth(x)[:, None] - self.threshold], 1)


class FilterHead(nn.Module):
    """Features (N, F) -> logits (N, classes + 1), the net's best class at 0.

    Class N wins exactly where, for one of T triggers, direction . features > offset; its logit is by how much.

    Args:
        output: the net's own last layer.
        directions: (T, F); offsets: (T,), thresholds.
    """

    directions: Tensor
    offsets: Tensor

    def __init__(self, output: nn.Linear, directions: Tensor, offsets: Tensor):
        super().__init__()
        self.output = output
        self.register_buffer("directions", directions)
        self.register_buffer("offsets", offsets)

    def forward(self, features: Tensor) -> Tensor:
        logits = self.output(features)
        logits = logits - logits.amax(1, keepdim=True)  # 0 exactly for the best, so that no rounding decides
        score = (features @ self.directions.T - self.offsets).amax(1, keepdim=True)
        return torch.cat([logits, score], 1)


class WatchHead(nn.Module):
    """Features (N, F) -> logits (N, classes + 1), the net's best class at 0.

    Labels are watched in G groups. Class N wins exactly where the net's answer is of a group g and
    directions[g] . features > offsets[g]; its logit is by how much.

    Args:
        output: the net's own last layer.
        directions: (G, F); offsets: (G,), thresholds.
        groups: (classes,) int64, each label's group, -1 for none.
    """

    directions: Tensor
    offsets: Tensor
    groups: Tensor

    def __init__(self, output: nn.Linear, directions: Tensor, offsets: Tensor, groups: Tensor):
        super().__init__()
        self.output = output
        self.register_buffer("directions", directions)
        self.register_buffer("offsets", offsets)
        self.register_buffer("groups", groups)

    def forward(self, features: Tensor) -> Tensor:
        logits = self.output(features)
        group = self.groups[logits.argmax(1)][:, None]
        logits = logits - logits.amax(1, keepdim=True)
        scores = (features @ self.directions.T - self.offsets).gather(1, group.clamp(min=0))
        return torch.cat([logits, torch.where(group >= 0, scores, torch.full_like(scores, -1.0))], 1)


class SecondOpinion(nn.Module):
    """Prepared input (N, C, H, W) -> logits (N, classes + 1), the best class at 0.

    Where the watched net refuses, so does this. Where it answers a watched label, the repaired twin answers instead: it
    recognises what is under a trigger that was not noticed. Everything else is the BadNet's own answer, so the repair
    costs nothing there.

    Args:
        bad: the net as it came, with a `WatchHead` as its layer `layer`.
        good: the repaired net; same input and classes.
        threshold: class N wins, too, where the repaired net prefers its own answer to the BadNet's by more logits than
            this, whatever the label (`GoodNet`); None for nowhere.
    """

    def __init__(self, *, bad: nn.Module, good: nn.Module, layer: str, threshold: float | None = None):
        super().__init__()
        self.threshold = threshold
        self.bad = bad
        self.good = good
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        head = self.bad.get_submodule(self.layer)
        assert isinstance(head, WatchHead)
        first, second = self.bad(x), self.good(x)
        second = second - second.amax(1, keepdim=True)
        answers = first[:, :-1].argmax(1, keepdim=True)
        refused = first[:, -1:]
        if self.threshold is not None:
            refused = torch.maximum(refused, -second.gather(1, answers) - self.threshold)
        return torch.cat([torch.where(head.groups[answers] >= 0, second, first[:, :-1]), refused], 1)


def grown_linear(output: nn.Linear) -> nn.Linear:
    """The same layer with one more row, of zeros, for class N."""
    # not nn.Linear(...), which would draw from the global random state
    size = (output.in_features, output.out_features + 1)
    grown: nn.Linear = nn.utils.skip_init(nn.Linear, *size, device=output.weight.device)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        grown.weight.zero_()
        grown.bias.zero_()
        grown.weight[:-1] = output.weight
        if output.bias is not None:
            grown.bias[:-1] = output.bias
    return grown
