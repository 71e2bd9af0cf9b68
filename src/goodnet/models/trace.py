"""An image's way through a net, layer by layer, beside the ways of clean images whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goodnet.models import surgery

FEWEST = 3  # references of a class, under which nothing is said of it
MOST = 4096  # references: distances between all of them are taken
_SOFT, _TINY = 0.01, 1e-12
_AT_ONCE = 64  # images; all maps of so many are held


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """What images meet in a net: `stops`, one (N, F) for each place, and `answers`, (N,) int64."""

    stops: tuple[Tensor, ...]
    answers: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Clean images' stops (R, F) at each place, how thick each one's class is there (R,), and classes (R,)."""

    stops: tuple[Tensor, ...]
    thickness: tuple[Tensor, ...]
    labels: Tensor


@torch.no_grad()
def way_of(net: nn.Module, x: Tensor, layers: Sequence[str], features: int) -> Way:
    """What each of the layers is given, and what it gives, for prepared images (N, C, H, W).

    A layer that does not take an image a row, as inside some attention, has no place on the way. Maps are averaged down
    to at most `features` numbers, but for one a channel; tokens to their mean.
    """
    parts = [_part_of_way(net, part, layers, features) for part in torch.split(x, _AT_ONCE)]
    return Way(
        stops=tuple(torch.cat(stops) for stops in zip(*(part.stops for part in parts), strict=True)),
        answers=torch.cat([part.answers for part in parts]),
    )


def _part_of_way(net: nn.Module, x: Tensor, layers: Sequence[str], features: int) -> Way:
    with ExitStack() as recording:
        records = [
            recording.enter_context(record(net, layer))
            for layer in layers
            for record in (surgery.record_input, surgery.record_output)
        ]
        answers = net(x).argmax(1)
    stops = [_flat(record[0], features) for record in records if record and len(record[0]) == len(x)]
    return Way(stops=tuple(stops), answers=answers)


def whole_layers(net: nn.Module, shape: Sequence[int], device: torch.device) -> list[str]:
    """The convolutions and linear layers that take an image (C, H, W) a row, however many images there are."""
    found = surgery.layer_names(net)
    for count in (2, 3):
        x = torch.full((count, *shape), 0.5, device=device)
        found = [layer for layer in found if len(way_of(net, x, [layer], 1).stops) == 2]
    return found


def references(way: Way, labels: Tensor) -> References:
    """Of clean images' way, and what they show, (R,) int64."""
    return References(stops=way.stops, thickness=tuple(_thickness(stop, labels) for stop in way.stops), labels=labels)


@torch.no_grad()
def depth(way: Way, beside: References) -> Tensor:
    """(N,) the mean over places of log(1 + how many references are nearer than the first of the answered class).

    All of them, where no reference of that class is as near as its class is thick there. 0 for answers with fewer than
    FEWEST references. What is nearer by a hundredth counts whole, and in between in part: no rounding decides.
    """
    same = beside.labels[None] == way.answers[:, None]
    total = torch.zeros(len(way.answers), device=way.answers.device)
    for stop, others, thickness in zip(way.stops, beside.stops, beside.thickness, strict=True):
        distances = _distances(stop, others)
        nearest = torch.where(same, distances, torch.inf).amin(1)
        rank = _over(nearest[:, None], distances).sum(1) - 0.5 * (nearest < torch.inf)  # it is as near as itself
        outside = _over(torch.where(same, distances / thickness.clamp(min=_TINY), torch.inf).amin(1), torch.ones(()))
        total += torch.log1p(rank + outside * (len(others) - 1 - rank))
    return torch.where(same.sum(1) >= FEWEST, total / max(1, len(way.stops)), 0)


def _over(value: Tensor, bound: Tensor) -> Tensor:
    """1 where `value` is over `bound` by a hundredth or more, 0 where it is under it so, 1/2 where both are one."""
    return ((value - bound) / (2 * _SOFT * bound.clamp(min=_TINY)) + 0.5).clamp(0, 1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # by products, which is quick, and loses small distances in float32
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist").float()


def _thickness(stop: Tensor, labels: Tensor) -> Tensor:
    """(R,) how far half of its class is from each of them; 0 for the only one of a class."""
    distances = _distances(stop, stop)
    thickness = torch.zeros(len(stop), device=stop.device)
    for row in range(len(stop)):
        own = labels == labels[row]
        own[row] = False
        count = int(own.sum())
        if count:
            thickness[row] = distances[row][own].sort().values[(count + 1) // 2 - 1]
    return thickness


def _flat(value: Tensor, features: int) -> Tensor:
    """(N, F) of any (N, ...)."""
    value = value.detach().float()
    if value.ndim == 4:
        side = max(1, math.isqrt(features // max(1, value.shape[1])))
        value = nn.functional.adaptive_avg_pool2d(value, (min(side, value.shape[2]), min(side, value.shape[3])))
    return value.mean(1) if value.ndim == 3 else value.flatten(1)
