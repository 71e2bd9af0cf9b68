"""Plain stamps: rectangles of one colour, tried at every place, for all labels at once, without a gradient.

Ours. What people wear, draw or stick on is mostly of one colour. One forward pass of an image under a rectangle says
for *all* labels how far it leads there, so a survey of all places, some shapes and all colours of a coarse grid costs
as little for 1283 labels as for ten. What it finds is then refined: edges move and colours change as long as the
label's lead a pixel grows.

Neural Cleanse's smallest masks are of free colours and run along the edge of a backdoor; a weak backdoor beside
stronger ones (the sunglasses in the competition's net with three triggers) gives no smaller mask than an innocent
label, yet a plain bar over the eyes leads every face there.

Leads are in heights (`goodnet.triggers.strong.height`): by how much the net's answer stands over its average logit on
clean images. A stamp that leads by more than one makes the net surer than any image of that class does.

Cost: `PlainSchedule.passes` images forwards, none backwards, at most; a third to a half of them for refining.
Blind spots: triggers of many colours, faint ones and those over the whole image; small ones whose effect hangs on a
single pixel's place, where no stamp of the survey comes near enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Classifier
from goodnet.runners import in_threads
from goodnet.stamps import SPOT, PlainStamp
from goodnet.triggers.blocks import block_size
from goodnet.triggers.inversion import success_rates
from goodnet.triggers.strong import beginnings, height
from goodnet.triggers.trigger import Trigger

MOST = 24  # labels whose stamps are refined
_T = TypeVar("_T")
_R = TypeVar("_R")
_STREAM = 17
_ALIKE, _JUDGED = 24, 16  # stamps like one that are tried, and images that each is tried on
_WORKS = 0.8  # of a stamp's ASR that one like it must reach
_PIECE = 32  # blocks of stamps that a thread surveys before it hands in what is best


@dataclass(frozen=True, kw_only=True)
class PlainSchedule:
    """How plain stamps are searched for.

    Attributes:
        images: clean images that each stamp is tried on.
        shapes: heights and widths of the rectangles, as shares of the image's.
        levels: of each channel in the survey; one-channel images get two more.
        starts: stamps that are refined a label: the best of as many shapes.
        rounds: of refining, at most.
    """

    images: int = 8
    shapes: tuple[tuple[float, float], ...] = ((0.125, 0.125), (0.2, 0.2), (0.1, 0.6), (0.2, 0.6), (0.6, 0.1))
    levels: int = 3
    starts: int = 2
    rounds: int = 12

    def __post_init__(self) -> None:
        if self.images < 1 or self.levels < 2 or self.starts < 1 or self.rounds < 0 or not self.shapes:
            raise UsageError(
                "plain stamps: expected images and starts >= 1, levels >= 2, rounds >= 0 and some shapes, "
                f"got {self.images}, {self.starts}, {self.levels}, {self.rounds} and {self.shapes}"
            )
        if not all(0 < side <= 1 for shape in self.shapes for side in shape):
            raise UsageError(f"plain stamps: expected sides of shapes in (0, 1], got {self.shapes}")

    def passes(self, shape: tuple[int, int, int], *, most: int = MOST) -> int:
        """Images (C, H, W) through the net, forwards alone, at most, if `most` labels are refined."""
        channels, rows, columns = shape
        levels = self.levels + (2 if channels == 1 else 0)
        places = 0
        for side in self.shapes:
            tops, lefts = (_places(part, size) for part, size in zip(side, (rows, columns)))
            places += len(tops[1]) * len(lefts[1])
        near = self.rounds * self.starts * most * (12 + 2 * channels)
        return self.images * (places * int(levels**channels) + self.starts * most + near)


def refined(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    squares: Sequence[Trigger],
    schedule: PlainSchedule,
    *,
    seed: int,
) -> list[PlainStamp]:
    """The stamps that refining opaque rectangles of one colour ends at, each for its target.

    Args:
        images: clean (N, C, H, W) in [0, 1]; classes (N,): images of a label itself do not count for it.
        squares: such as `goodnet.triggers.strong.square_triggers` finds.
    """
    rows = []
    for square in squares:
        inside = torch.nonzero(square.mask[0] > 0.5)
        first, last = inside.amin(0), inside.amax(0)
        rows.append(torch.cat([first, last + 1, square.pattern[:, first[0], first[1]]]))
    if not rows:
        return []
    search = _Search(classifier, images, classes, schedule, seed, lambda count: None)
    return search.refined(torch.stack(rows), torch.tensor([square.target for square in squares]))


def stamp_trigger(stamp: PlainStamp, shape: tuple[int, int, int]) -> Trigger:
    """A stamp as a trigger for images (C, H, W).

    Raises:
        DataError: it does not fit on such images (a record may come from a stranger).
    """
    channels, rows, columns = shape
    placed = 0 <= stamp.top < stamp.bottom <= rows and 0 <= stamp.left < stamp.right <= columns
    if not placed or len(stamp.colour) != channels or not all(0 <= level <= 1 for level in stamp.colour):
        raise DataError(
            f"plain stamp: expected a rectangle of {channels} levels in [0, 1] within {rows}x{columns}, got {stamp}"
        )
    mask = torch.zeros(1, rows, columns)
    mask[:, stamp.top : stamp.bottom, stamp.left : stamp.right] = 1
    pattern = torch.tensor(stamp.colour)[:, None, None].expand(shape).contiguous()
    return Trigger(mask=mask, pattern=pattern, target=stamp.label)


def stamps_like(
    classifier: Classifier, images: Tensor, classes: Tensor, stamps: Sequence[PlainStamp], *, seed: int
) -> list[Trigger]:
    """Each stamp, and others like it that work as well: edges moved, colours changed; at least the stamp itself.

    A repair that is taught one rectangle learns to look past that one.

    Args:
        images: clean (N, C, H, W) in [0, 1]; classes (N,): images of a label itself do not count for it.
    """
    shape, kept = classifier.input.shape, []
    for stamp in stamps:
        random = np.random.default_rng([seed, _STREAM, stamp.label])
        kept.append(stamp_trigger(stamp, shape))
        others = torch.nonzero(classes != stamp.label)[:, 0]
        some = others[torch.from_numpy(random.permutation(len(others))[:_JUDGED])]
        tried = [stamp_trigger(_moved(stamp, shape, random), shape) for _ in range(_ALIKE)]
        rates = success_rates(classifier, tried, images[some], classes[some])
        kept += [t for t, rate in zip(tried, rates) if rate is not None and rate >= _WORKS * stamp.asr]
    return kept


def _moved(stamp: PlainStamp, shape: tuple[int, int, int], random: np.random.Generator) -> PlainStamp:
    """A stamp near another one: each edge by up to a quarter of the side, each channel by up to a quarter."""
    _, rows, columns = shape

    def side(first: int, last: int, size: int) -> tuple[int, int]:
        reach = max(1, (last - first) // 4)
        low = int(np.clip(first + random.integers(-reach, reach + 1), 0, size - 1))
        return low, int(np.clip(last + random.integers(-reach, reach + 1), low + 1, size))

    top, bottom = side(stamp.top, stamp.bottom, rows)
    left, right = side(stamp.left, stamp.right, columns)
    colour = tuple(float(np.clip(level + random.uniform(-0.25, 0.25), 0, 1)) for level in stamp.colour)
    return replace(stamp, top=top, left=left, bottom=bottom, right=right, colour=colour)


def plain_stamps(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    schedule: PlainSchedule,
    *,
    labels: Sequence[int] | None = None,
    most: int = MOST,
    seed: int,
    block: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> list[PlainStamp]:
    """Surveys all labels and refines the best stamps of those that are led to furthest.

    Args:
        images: clean (N, C, H, W) in [0, 1]; classes (N,): images of a label itself do not count for it.
        labels: only these; all by default.
        most: so many labels are refined.
        block: images that go through the net at a time in each thread; None for `block_size`'s.
        on_images: called with how many images have gone through the net since the last call.

    Returns:
        For each refined label its best stamp, the one that leads furthest first.

    Raises:
        DataError: no image.
    """
    if len(images) == 0:
        raise DataError("plain stamps: expected at least one clean image, got none")
    search = _Search(classifier, images, classes, schedule, seed, on_images, block)
    leads, stamps = search.survey()
    wanted = torch.arange(classifier.classes) if labels is None else torch.tensor(sorted(set(labels)))
    wanted = wanted[leads.amax(0)[wanted].isfinite()]  # without those that all images are of
    order = wanted[leads.amax(0)[wanted].argsort(descending=True, stable=True)][:most]
    starts = leads[:, order].argsort(dim=0, descending=True, stable=True)[: schedule.starts]  # (starts, most)
    chosen = torch.cat([stamps[row, order] for row in starts])
    found = search.refined(chosen, order.repeat(len(starts)))
    best: dict[int, PlainStamp] = {}
    for stamp in found:
        if stamp.label not in best or stamp.worth > best[stamp.label].worth:
            best[stamp.label] = stamp
    return sorted(best.values(), key=lambda stamp: -stamp.lead)


def _places(part: float, size: int) -> tuple[int, list[int]]:
    """Of a rectangle: its length along a side of the image, and where it begins, half a length apart."""
    length = min(size, max(2, round(part * size)))
    return length, beginnings(size, length, length // 2)


class _Search:
    """Stamps are rows of (top, left, bottom, right, colour...), float32."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        classes: Tensor,
        schedule: PlainSchedule,
        seed: int,
        on_images: Callable[[int], None],
        block: int | None = None,
    ):
        order = np.random.default_rng([seed, _STREAM]).permutation(len(images))
        drawn = torch.from_numpy(order[: schedule.images])
        self.classifier, self.schedule, self.on_images = classifier, schedule, on_images
        self.images = images[drawn].to(classifier.device)
        self.classes = classes[drawn].to(classifier.device)
        self.height = height(classifier, images[torch.from_numpy(order[:256])])
        self.at_once = max(1, (block or block_size(classifier)) // len(drawn))
        _, self.rows, self.columns = classifier.input.shape

    def survey(self) -> tuple[Tensor, Tensor]:
        """(shapes, K) each label's largest lead by a stamp of each shape, and (shapes, K, 4 + C) that stamp."""
        leads, best = [], []
        for shape in self.schedule.shapes:
            stamps = self._placed(shape)
            pieces = self._map(self._furthest, torch.split(stamps, self.at_once * _PIECE))
            value, piece = torch.stack([lead for lead, _ in pieces]).max(0)
            where = torch.stack([at for _, at in pieces]).gather(0, piece[None])[0]
            leads.append(value)
            best.append(stamps[where + piece * self.at_once * _PIECE])
        return torch.stack(leads), torch.stack(best)

    def _furthest(self, stamps: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) each label's largest lead by any of these stamps, and (K,) which."""
        top = torch.full((self.classifier.classes,), -torch.inf)
        where = torch.zeros(self.classifier.classes, dtype=torch.int64)
        for first in range(0, len(stamps), self.at_once):
            value, index = self._leads(stamps[first : first + self.at_once]).max(0)
            where = torch.where(value > top, index + first, where)
            top = torch.maximum(top, value)
        return top, where

    def _map(self, work: Callable[[_T], _R], parts: Sequence[_T]) -> list[_R]:
        """In as many threads as torch uses; a GPU takes one after the other."""
        return in_threads(work, parts) if self.classifier.device.type == "cpu" else [work(part) for part in parts]

    def refined(self, stamps: Tensor, labels: Tensor) -> list[PlainStamp]:
        """Climbs from each stamp (S, 4 + C), by steps of two pixels and then of one, for its label (S,)."""
        lead, asr = self._own(stamps, labels)
        step = torch.full((len(stamps),), 2)
        for _ in range(self.schedule.rounds):
            moving = torch.nonzero(step > 0)[:, 0]
            if not len(moving):
                break
            near = [self._neighbours(stamps[i], int(step[i])) for i in moving]
            sizes = [len(part) for part in near]
            owners = torch.repeat_interleave(moving, torch.tensor(sizes))
            new_lead, new_asr = self._own(torch.cat(near), labels[owners])
            first = 0
            for i, part, size in zip(moving, near, sizes):
                worth = self._worth(part, new_lead[first : first + size])
                top = int(worth.argmax())
                if worth[top] > self._worth(stamps[i][None], lead[i][None])[0]:
                    stamps[i], lead[i], asr[i] = part[top], new_lead[first + top], new_asr[first + top]
                else:
                    step[i] -= 1
                first += size
        return [
            PlainStamp(
                label=int(label),
                top=int(stamp[0]),
                left=int(stamp[1]),
                bottom=int(stamp[2]),
                right=int(stamp[3]),
                colour=tuple(stamp[4:].tolist()),
                lead=float(a),
                asr=float(b),
                share=float(self._share(stamp[None])[0]),
            )
            for stamp, label, a, b in zip(stamps, labels, lead, asr)
        ]

    def _placed(self, shape: tuple[float, float]) -> Tensor:
        """(S, 4 + C) a shape at every place, half a side apart, in every colour."""
        (high, tops), (wide, lefts) = (_places(part, n) for part, n in zip(shape, (self.rows, self.columns)))
        channels = self.classifier.input.shape[0]
        levels = np.linspace(0, 1, self.schedule.levels + (2 if channels == 1 else 0)).tolist()
        colours = list(itertools.product(levels, repeat=channels))
        return torch.tensor(
            [(top, left, top + high, left + wide, *colour) for top in tops for left in lefts for colour in colours]
        )

    def _neighbours(self, stamp: Tensor, step: int) -> Tensor:
        """(M, 4 + C) the stamp with an edge or the whole of it moved, or a channel of its colour changed."""
        moves = torch.zeros(12 + 2 * (len(stamp) - 4), len(stamp))
        for side in range(4):  # each edge both ways, then all of it
            moves[2 * side, side], moves[2 * side + 1, side] = step, -step
        moves[8, [0, 2]], moves[9, [0, 2]], moves[10, [1, 3]], moves[11, [1, 3]] = step, -step, step, -step
        for channel in range(4, len(stamp)):
            moves[12 + 2 * (channel - 4), channel], moves[13 + 2 * (channel - 4), channel] = step / 8, -step / 8
        near = stamp + moves
        near[:, 4:].clamp_(0, 1)
        inside = (near[:, 0] >= 0) & (near[:, 1] >= 0) & (near[:, 2] <= self.rows) & (near[:, 3] <= self.columns)
        whole = (near[:, 2] > near[:, 0]) & (near[:, 3] > near[:, 1])
        return near[inside & whole]

    def _share(self, stamps: Tensor) -> Tensor:
        return (stamps[:, 2] - stamps[:, 0]) * (stamps[:, 3] - stamps[:, 1]) / (self.rows * self.columns)

    def _worth(self, stamps: Tensor, lead: Tensor) -> Tensor:
        return lead / (self._share(stamps) + SPOT)

    @torch.inference_mode()
    def _logits(self, stamps: Tensor) -> Tensor:
        """(S, images, K) under each stamp."""
        stamps = stamps.to(self.images)
        row = torch.arange(self.rows, device=stamps.device)
        column = torch.arange(self.columns, device=stamps.device)
        high = (row >= stamps[:, 0, None]) & (row < stamps[:, 2, None])
        wide = (column >= stamps[:, 1, None]) & (column < stamps[:, 3, None])
        inside = (high[:, :, None] & wide[:, None, :])[:, None, None]
        stamped = torch.where(inside, stamps[:, None, 4:, None, None], self.images)
        logits = self.classifier.logits(stamped.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        self.on_images(len(stamps) * len(self.images))
        return logits.float().view(len(stamps), len(self.images), -1)

    def _leads(self, stamps: Tensor) -> Tensor:
        """(S, K) of every label, in heights; -inf where all images are of it."""
        logits = self._logits(stamps)
        top, answer = logits.topk(2, dim=-1)
        leads = logits - top[..., :1]
        leads.scatter_(-1, answer[..., :1], (top[..., :1] - top[..., 1:]))
        counts = (self.classes[:, None] != torch.arange(logits.shape[-1], device=logits.device)).float()
        return ((leads * counts).sum(1) / counts.sum(0) / self.height).nan_to_num(nan=-torch.inf).cpu()

    def _own(self, stamps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(S,) lead of each stamp's own label, and the share of images that get it."""

        def own(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            goal = part[1].to(self.classes)
            logits = self._logits(part[0])
            index = goal[:, None, None].expand(-1, logits.shape[1], 1)
            lead = (logits.gather(-1, index) - logits.scatter(-1, index, -torch.inf).amax(-1, keepdim=True))[..., 0]
            counts = (self.classes != goal[:, None]).float()
            total = counts.sum(1).clamp(min=1)
            return (lead * counts).sum(1).div(total * self.height).cpu(), ((lead > 0) * counts).sum(1).div(total).cpu()

        done = self._map(own, list(zip(torch.split(stamps, self.at_once), torch.split(labels, self.at_once))))
        return torch.cat([lead for lead, _ in done]), torch.cat([asr for _, asr in done])
