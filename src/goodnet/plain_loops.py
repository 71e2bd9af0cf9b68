"""Neural Cleanse and fine-pruning as one writes them from the papers, to measure goodnet against.

One label after the other, autograd through everything, torch.optim.Adam; no sharing between labels, no pre-selection,
no test of what is found. Sources: Wang et al., Neural Cleanse, IEEE S&P 2019; Liu et al., Fine-Pruning, RAID 2018.
What the papers leave open is said where it is decided.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import ModelError
from goodnet.progress import Progress, silent

STEPS, BATCH = 300, 32
REACHED = 0.99
"""Share of images that a mask has to turn before its cost is raised (Neural Cleanse, IV.B)."""
INDEX = 2.0
"""Anomaly index over which a label is flagged (IV.C)."""
_CONSISTENCY = 1.4826
_COST, _UP, _PATIENCE = 1e-3, 1.5, 10
_SHARE_TRIGGERED, _RATE = 0.2, 1e-3
_DROP, _EPOCHS = 0.04, 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Reversed:
    """What the search found for a label: mask (H, W) and pattern (C, H, W) in [0, 1]; `norm` is the mask's sum."""

    label: int
    mask: Tensor
    pattern: Tensor

    @property
    def norm(self) -> float:
        return float(self.mask.sum())

    def apply(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) with the trigger on them."""
        return (1 - self.mask) * x + self.mask * self.pattern


def reverse(
    net: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Iterable[int],
    *,
    steps: int = STEPS,
    progress: Progress = silent,
) -> list[Reversed]:
    """Neural Cleanse's search, label by label.

    The cost of the mask goes up by half while at least 99 % of ten batches reach the label, and down by 1.5 to the
    power of 1.5 otherwise, as in the authors' code; the smallest mask that reached it is kept, or the last.

    Args:
        net: frozen; images (N, C, H, W) in [0, 1] -> logits.
        images: clean.
        steps: of 32 images each, for each label.
    """
    labels = list(labels)
    found = []
    for turn, label in enumerate(labels, start=1):
        found.append(_reverse_one(net, images, label, steps))
        progress("plain loop", turn, len(labels))
    return found


def _reverse_one(net: Callable[[Tensor], Tensor], images: Tensor, label: int, steps: int) -> Reversed:
    channels, height, width = images.shape[1:]
    mask = torch.randn(1, height, width).requires_grad_()
    pattern = torch.randn(channels, height, width).requires_grad_()
    adam = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
    target = torch.full((BATCH,), label)
    cost, hits, best = _COST, 0, None
    for step in range(steps):
        x = images[torch.arange(step * BATCH, (step + 1) * BATCH) % len(images)]
        m, p = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
        logits = net((1 - m) * x + m * p)
        loss = F.cross_entropy(logits, target) + cost * m.sum()
        hits += int((logits.argmax(1) == target).sum())
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        if (step + 1) % _PATIENCE == 0:
            reached = hits >= REACHED * _PATIENCE * BATCH
            if reached and (best is None or float(m.detach().sum()) < best.norm):
                best = Reversed(label=label, mask=m.detach()[0], pattern=p.detach())
            cost, hits = (cost * _UP if reached else cost / _UP**1.5), 0
    return best or Reversed(label=label, mask=m.detach()[0], pattern=p.detach())


def outliers(norms: Sequence[float]) -> list[int]:
    """Positions whose norm lies over two (consistent) median deviations below the median; none where all are alike."""
    values = torch.tensor(norms, dtype=torch.float64)
    median = values.quantile(0.5)
    deviation = _CONSISTENCY * (values - median).abs().quantile(0.5)
    if deviation == 0:
        return []
    return [turn for turn, value in enumerate(values) if value < median and (median - value) / deviation > INDEX]


def unlearn(net: nn.Module, images: Tensor, labels: Tensor, triggers: Sequence[Reversed]) -> nn.Module:
    """Neural Cleanse's unlearning (VI.B): one epoch on clean images, a fifth with a trigger, all labelled truly.

    Adam at 1e-3 as in the authors' code; of several triggers each image gets one in turn. `net` is not changed.
    """
    x = images.clone()
    for turn, position in enumerate(torch.randperm(len(x))[: round(_SHARE_TRIGGERED * len(x))].tolist()):
        x[position] = triggers[turn % len(triggers)].apply(x[position : position + 1])[0]
    tuned = _copy(net)
    _train(tuned, x, labels, epochs=1)
    return tuned.eval().requires_grad_(False)


def fine_prune(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[nn.Module, int]:
    """Fine-pruning: channels of the last convolution off, least active first, as long as ACC falls by under 4 points;
    then ten epochs of Adam at 1e-3 on the same images. Returns the net and how many channels are off.

    Raises:
        ModelError: the net has no convolution.
    """
    tuned = _copy(net)
    layer = _last_convolution(tuned)
    activity = _activity(tuned, layer, images)
    keep = torch.ones(len(activity))
    layer.register_forward_hook(lambda module, inputs, out: out * keep.view(1, -1, 1, 1))
    before = _accuracy(tuned, images, labels)
    for channel in activity.argsort().tolist():
        keep[channel] = 0
        if before - _accuracy(tuned, images, labels) > _DROP:
            keep[channel] = 1
            break
    _train(tuned, images, labels, epochs=_EPOCHS)
    return tuned.eval().requires_grad_(False), int((keep == 0).sum())


def _copy(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(True)


def _train(net: nn.Module, x: Tensor, labels: Tensor, *, epochs: int) -> None:
    net.train()
    adam = torch.optim.Adam([p for p in net.parameters() if p.is_floating_point()], lr=_RATE)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(x)), BATCH):
            if len(part) > 1:  # batch norm
                loss = F.cross_entropy(net(x[part]), labels[part])
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
    net.eval()


def _last_convolution(net: nn.Module) -> nn.Conv2d:
    """Wider than one pixel: a shortcut's is not what the paper means."""
    found = [module for module in net.modules() if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1]
    if not found:
        raise ModelError("fine-pruning: expected a net with a convolution, and it has none")
    return found[-1]


@torch.no_grad()
def _activity(net: nn.Module, layer: nn.Conv2d, images: Tensor) -> Tensor:
    """(channels,) mean output above zero on the images."""
    total = torch.zeros(layer.out_channels)

    def add(module: nn.Module, inputs: object, out: Tensor) -> None:
        total.add_(out.relu().mean((2, 3)).sum(0))

    handle = layer.register_forward_hook(add)
    for part in torch.split(images, 256):
        net(part)
    handle.remove()
    return total / len(images)


@torch.no_grad()
def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    parts = zip(torch.split(images, 256), torch.split(labels, 256))
    hits = torch.cat([net(x).argmax(1) == y for x, y in parts])
    return float(hits.double().mean())
