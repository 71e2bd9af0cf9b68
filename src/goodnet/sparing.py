"""Which channels a repair has to change: what the others have become is given back.

Training moves every weight a little, though few of them carry a backdoor. Each channel's share of what training has won
is the integral of the loss's gradient along the straight way from the net before to the net after, times the channel's
own way (integrated gradients: Sundararajan et al., ICML 2017, applied to weights; the shares add up to the whole fall).
The channels with the largest shares are kept, as few as hold a stated part of the fall; bisection finds how many.

A channel is a row of every tensor of its module: the weights to one output and its bias, or a batch norm's scale and
shift of one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from goodnet.layers import ChangedLayer
from goodnet.models.classifier import Classifier
from goodnet.tuning import trainable

_POINTS = 16  # of the integral
_BATCHES = 4  # that losses are compared on
_FINEST = 200  # the bisection stops at a 200th of all channels


def give_back(net: nn.Module, before: Mapping[str, Tensor], loss: Callable[[int], Tensor], *, fall: float) -> Kept:
    """Puts the channels that matter least back to what they were, in place.

    Args:
        net: after some training.
        before: its parameters before, by name.
        loss: of the batch of a number; 0 to 15 are for the gradients, others for comparing.
        fall: share of the fall in loss that is to be held, in [0, 1].
    """
    return _Search(net, before, loss)(fall)


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The channels that stay changed: by parameter, 1 for each weight of theirs and 0 for each of the others'."""

    masks: dict[str, Tensor]

    def mask_gradients(self, net: nn.Module) -> None:
        """Leaves gradients to the weights that may change alone."""
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= self.masks[name]


class _Search:
    def __init__(self, net: nn.Module, before: Mapping[str, Tensor], loss: Callable[[int], Tensor]):
        self.net, self.before, self.loss = net, before, loss
        self.after = {name: value.detach().clone() for name, value in net.named_parameters()}
        self.groups: dict[tuple[str, int], list[str]] = {}
        for name, value in self.after.items():
            self.groups.setdefault((name.rpartition(".")[0], _rows(value)), []).append(name)

    def __call__(self, fall: float) -> Kept:
        order = self._shares().argsort()  # a loss that falls has a negative share
        start, end = self._at(order, 0), self._at(order, len(order))
        bound = start - fall * (start - end)
        few, many = 0, len(order)
        while many - few > max(1, len(order) // _FINEST):
            middle = (few + many) // 2
            few, many = (few, middle) if self._at(order, middle) <= bound else (middle, many)
        masks = self._masks(order, many)
        self._put(masks)
        return Kept(masks=masks)

    def _shares(self) -> Tensor:
        """(all channels,) each one's share of the fall, below 0 for those that lower the loss."""
        shares = {group: torch.zeros(group[1]) for group in self.groups}
        parameters = dict(self.net.named_parameters())
        with trainable(self.net):
            for point in range(_POINTS):
                there = torch.tensor((point + 0.5) / _POINTS)
                self._put({name: there.to(value) for name, value in self.after.items()})
                gradients = torch.autograd.grad(self.loss(point), list(parameters.values()), allow_unused=True)
                slopes = dict(zip(parameters, gradients))
                for group, names in self.groups.items():
                    for name in names:
                        slope = slopes[name]
                        if slope is not None:
                            moved = slope * (self.after[name] - self.before[name])
                            shares[group] += moved.reshape(group[1], -1).sum(1).cpu() / _POINTS
        return torch.cat(list(shares.values()))

    @torch.no_grad()
    def _at(self, order: Tensor, count: int) -> float:
        """The loss with the first `count` channels alone changed."""
        self._put(self._masks(order, count))
        return float(np.mean([float(self.loss(_POINTS + batch)) for batch in range(_BATCHES)]))

    def _masks(self, order: Tensor, count: int) -> dict[str, Tensor]:
        chosen = torch.zeros(len(order))
        chosen[order[:count]] = 1
        parts = torch.split(chosen, [rows for _, rows in self.groups])
        masks = {}
        for part, names in zip(parts, self.groups.values()):
            for name in names:
                value = self.after[name]
                shape = (-1, *[1] * (value.ndim - 1)) if value.ndim else ()
                masks[name] = part.view(shape).expand_as(value).to(value)
        return masks

    @torch.no_grad()
    def _put(self, shares: Mapping[str, Tensor]) -> None:
        """Sets each weight at a share of its way; exactly to one of its ends for 0 and 1."""
        for name, parameter in self.net.named_parameters():
            before, after, share = self.before[name], self.after[name], shares[name]
            between = torch.lerp(before, after, share.expand_as(before))
            parameter.copy_(torch.where(share == 0, before, torch.where(share == 1, after, between)))


def _rows(value: Tensor) -> int:
    return int(value.shape[0]) if value.ndim else 1


def changed_layers(before: Classifier, after: Classifier) -> tuple[ChangedLayer, ...]:
    """Where two nets of the same modules differ: how many channels and weights of each; () where modules differ."""
    old, new = dict(before.net.named_parameters()), dict(after.net.named_parameters())
    if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
        return ()
    layers: dict[str, list[Tensor]] = {}
    for name, value in old.items():
        differs = (value != new[name]).reshape(_rows(value), -1).cpu()
        layers.setdefault(name.rpartition(".")[0], []).append(differs)
    return tuple(
        ChangedLayer(
            layer=layer or "the net",
            channels=_any_rows(parts),
            of_channels=max(len(part) for part in parts),
            weights=sum(int(part.sum()) for part in parts),
            of_weights=sum(part.numel() for part in parts),
        )
        for layer, parts in layers.items()
    )


def _any_rows(parts: list[Tensor]) -> int:
    most = max(len(part) for part in parts)
    rows = torch.zeros(most, dtype=torch.bool)
    for part in parts:
        rows[: len(part)] |= part.any(1)
    return int(rows.sum())
