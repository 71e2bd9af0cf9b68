"""Strong triggers: spots of a single colour that drive images far beyond the boundary to a label.

Neural Cleanse looks for the smallest mask that works, and what it finds is a short cut: it lies at the edge of the
backdoor, with a pattern of noise. A repair or a guard that is fitted to short cuts misses the trigger itself, which
moves the net two or three times as far. Here the margin
    logit_t(x') - max over k != t of logit_k(x')
is maximised, less a price for each pixel of the mask, over a mask and *one colour* for all of it: triggers that people
can wear or draw are of few colours, and noise is what an adversarial example is made of. A label's searches from
several starts end in different places; those that get most margin out of a pixel go through the backdoor. Starts are
spread over all colours, and every other one keeps its colour: left free from a random one, all but one of 27 starts
for the eyebrows went to the same cyan, an adversarial colour, and not to dark red (three seeds).

Measured on the competition's nets with triggers painted on strangers' faces: the change of DeepID's last convolution
under a found trigger has a cosine of .4 to .8 with that under lipstick for the smallest masks, at half its length or
less; .7 to .95 here, at full length. In the net with three triggers, eyebrows and sunglasses are met (.5 and .8) by
spots of one colour, and by none of eight smallest masks (.0 and .2).

Cost: `starts * steps * batch` images forwards and backwards a label. Margins and prices are in units of the net's own
answers (`height`), so the settings do not hang on a net's scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Classifier
from goodnet.runners import in_threads
from goodnet.stamps import SPOT
from goodnet.triggers.inversion import Schedule, Search, State, run_all
from goodnet.triggers.trigger import Trigger

_STREAM = 7
_IMAGES = 32
_SATURATED = 20.0  # through tanh exactly 0 or 1, and without a gradient
_DARK = 0.02  # through tanh nothing is quite 0 or 1


@dataclass(frozen=True, kw_only=True)
class StrongSchedule:
    """How a label's strong triggers are searched for.

    Attributes:
        starts: searches a label. Twice the number of colours (27 in three channels, 5 in one) tries each, once fixed
            and once free to change.
        steps, batch, learning_rate: of each (Adam).
        prices: a mask of the whole image costs this many heights; each start draws its own between the two, evenly in
            the logarithm.
        ceiling: margins over so many heights count no more.
        keep: starts are kept that get at least this share of the best one's margin out of a pixel.
    """

    starts: int = 54
    steps: int = 60
    batch: int = 16
    learning_rate: float = 0.05
    prices: tuple[float, float] = (0.6, 4.0)
    ceiling: float = 1.0
    keep: float = 0.4

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or self.batch < 1 or not self.learning_rate > 0:
            raise UsageError(
                "strong triggers: expected starts, steps and batch >= 1 and learning_rate > 0, "
                f"got {self.starts}, {self.steps}, {self.batch} and {self.learning_rate}"
            )
        low, high = self.prices
        if not 0 < low <= high or not self.ceiling > 0 or not 0 < self.keep <= 1:
            raise UsageError(
                "strong triggers: expected 0 < prices[0] <= prices[1], ceiling > 0 and keep in (0, 1], "
                f"got {self.prices}, {self.ceiling} and {self.keep}"
            )

    @property
    def passes(self) -> int:
        """Images through the net and back, a label."""
        return self.starts * self.steps * self.batch


@dataclass(frozen=True, kw_only=True)
class SquareSchedule:
    """How the colours of squares are searched for.

    Attributes:
        side: of a square, as a share of the image's shorter side; the next begins three fifths of it further on.
        steps, batch, learning_rate: of each (Adam).
        keep: squares are kept that get at least this share of the best one's margin.
    """

    side: float = 0.16
    steps: int = 30
    batch: int = 8
    learning_rate: float = 0.15
    keep: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.side <= 1 or not 0 < self.keep <= 1 or self.steps < 1 or self.batch < 1:
            raise UsageError(
                "squares: expected side and keep in (0, 1], steps and batch >= 1, "
                f"got {self.side}, {self.keep}, {self.steps} and {self.batch}"
            )

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Images (C, H, W) through the net and back, a label."""
        tops, lefts, _ = _places(self, shape)
        return len(tops) * len(lefts) * self.steps * self.batch


def _places(schedule: SquareSchedule, shape: tuple[int, int, int]) -> tuple[list[int], list[int], int]:
    """First rows, first columns, and the side in pixels."""
    _, rows, columns = shape
    side = min(rows, columns, max(2, round(schedule.side * min(rows, columns))))
    tops, lefts = (beginnings(size, side, round(0.6 * side)) for size in (rows, columns))
    return tops, lefts, side


def beginnings(size: int, length: int, apart: int) -> list[int]:
    """Where parts of a side of the image begin, so far apart, the last at its end."""
    return sorted({*range(0, size - length + 1, max(1, apart)), size - length})


FURTHER_SEARCH = StrongSchedule(starts=8, steps=40)
"""For labels that no scan has flagged: many are looked at, each briefly."""
_LABELS = 8  # with ten labels, twenty more would be all of them


def few_beside(labels: Sequence[int], further: Sequence[int], classes: int, most: int) -> list[int]:
    """The labels to treat beside the flagged ones: at most so many, and at most one in eight, or two.

    Args:
        labels: the flagged ones.
        further: others, the most suspicious first.
        classes: how many the net has.
    """
    return [label for label in further if label not in labels][: min(most, max(2, classes // _LABELS))]


def strong_triggers(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    labels: Sequence[int],
    schedule: StrongSchedule,
    *,
    seed: int,
    on_steps: Callable[[int], None] | None = None,
) -> list[Trigger]:
    """Searches for each label's triggers and keeps the strong ones.

    Args:
        classifier: left as it is.
        images: clean (N, C, H, W) in [0, 1]; classes (N,): images of a label itself do not count for it.
        labels: the targets, each once.
        on_steps: called after every pass with how many searches moved on by a step, for progress.

    Returns:
        For each label, in order, at least one; where no start reaches the label on the average image, the best one.

    Raises:
        DataError: no image that is not of a label.
    """
    return _searched(_Colour, classifier, images, classes, labels, schedule, seed, on_steps)


def square_triggers(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    labels: Sequence[int],
    schedule: SquareSchedule,
    *,
    seed: int,
    on_steps: Callable[[int], None] | None = None,
) -> list[Trigger]:
    """Searches the colour of an opaque square at every place and keeps the strong ones, as `strong_triggers` does.

    A spot whose mask is free starts faint and everywhere. Where the effect of a small patch hangs on its place (the
    white square of the BadNets on CIFAR-10 is nothing one pixel further), no such search comes near it; one of these
    squares does: white, at its place, ASR .96, where the next gets .29, and the best for another label .12.
    """
    tops, lefts, _ = _places(schedule, classifier.input.shape)
    strong = StrongSchedule(
        starts=len(tops) * len(lefts),
        steps=schedule.steps,
        batch=schedule.batch,
        learning_rate=schedule.learning_rate,
        keep=schedule.keep,
    )
    search = partial(_Square, squares=schedule)
    return _searched(search, classifier, images, classes, labels, strong, seed, on_steps)


def _searched(
    search: Callable[[Classifier, Tensor, Tensor, Sequence[int], StrongSchedule, int], Search],
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    labels: Sequence[int],
    schedule: StrongSchedule,
    seed: int,
    on_steps: Callable[[int], None] | None,
) -> list[Trigger]:
    for label in labels:
        if not bool((classes != label).any()):
            raise DataError(f"strong triggers: all {len(images)} images are of label {label}; add images of others")
    jobs = [label for label in labels for _ in range(schedule.starts)]
    found = run_all(search(classifier, images, classes, jobs, schedule, seed), None, on_steps)
    triggers = [result.trigger for result in found]
    worth = _worth(classifier, triggers, images, classes, seed)
    kept = []
    for label in labels:
        own = [i for i, trigger in enumerate(triggers) if trigger.target == label]
        best = max(worth[i] for i in own)
        kept += [triggers[i] for i in own if worth[i] >= min(schedule.keep * best, best)]
    return kept


@torch.no_grad()
def height(classifier: Classifier, images: Tensor) -> float:
    """By how much the net's answer stands over its average logit, in logits: the median over clean images."""
    logits = torch.cat([classifier.logits(part) for part in classifier.parts(images)])
    return max(float((logits.amax(1) - logits.mean(1)).median()), 1e-6)


def _worth(
    classifier: Classifier, triggers: Sequence[Trigger], images: Tensor, classes: Tensor, seed: int
) -> list[float]:
    """Of each trigger, the mean margin for its target, in logits, over the share of the image that it covers.

    What images have without it does not count for it.
    """
    order = torch.from_numpy(np.random.default_rng([seed, _STREAM]).permutation(len(images)))

    @torch.no_grad()
    def worth(trigger: Trigger) -> float:
        attacked = images[order[(classes[order] != trigger.target)][:_IMAGES]]
        wanted = torch.full((len(attacked),), trigger.target, device=classifier.device)
        before, after = (
            float(_margins(classifier.logits(x.to(classifier.device)), wanted).mean())
            for x in (attacked, trigger.apply(attacked))
        )
        return (after - max(before, 0.0)) / (trigger.norm / trigger.mask.numel() + SPOT)

    return [worth(t) for t in triggers] if classifier.device.type != "cpu" else in_threads(worth, triggers)


def _margins(logits: Tensor, goals: Tensor) -> Tensor:
    """(N,) by how much each goal leads."""
    goal = goals[:, None]
    return logits.gather(1, goal)[:, 0] - logits.scatter(1, goal, -torch.inf).amax(1)


def _colours(channels: int, seed: int) -> npt.NDArray[np.float32]:
    """Colours (n, C) to start from, spread evenly over all there are, in an order of the seed's."""
    random = np.random.default_rng([seed, _STREAM])
    if channels > 3:  # all combinations would be too many
        return random.uniform(_DARK, 1 - _DARK, (27, channels)).astype(np.float32)
    levels = np.linspace(_DARK, 1 - _DARK, 5 if channels == 1 else 3)
    return random.permutation(np.array(list(itertools.product(levels, repeat=channels)), np.float32))


class _Colour(Search):
    """One colour, a fixed price for each pixel of the mask, and margins instead of cross entropy."""

    stream: tuple[int, ...] = (_STREAM,)

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        classes: Tensor,
        labels: Sequence[int],
        schedule: StrongSchedule,
        seed: int,
    ):
        steps = Schedule(steps=schedule.steps, batch=schedule.batch, learning_rate=schedule.learning_rate)
        super().__init__(classifier, images, classes, labels, steps, seed)
        self.strong = schedule
        self.height = height(classifier, images)
        self.colours = _colours(classifier.input.shape[0], seed)

    def start(self, job: int) -> State:
        """As any search's, but for a colour, a faint mask and a price drawn from (seed, label, which start)."""
        label = self.labels[job]
        random = np.random.default_rng([self.seed, label, *self.stream, job % self.strong.starts])
        state = self.fresh(job, label, random)
        c, h, w = self.classifier.input.shape
        mask = (random.standard_normal((h, w, 1), np.float32) - 2) / 4
        colour = self.colours[job % self.strong.starts // 2 % len(self.colours)]
        raw = np.concatenate([mask, np.broadcast_to(np.arctanh(2 * colour - 1), (h, w, c))], -1)
        state.raw.copy_(torch.from_numpy(raw)[None])
        low, high = np.log(self.strong.prices)
        state.weight.fill_(float(np.exp(random.uniform(low, high))) * self.height / (h * w))
        return state

    def tied(self, state: State, gradient: Tensor) -> Tensor:
        free = (state.job % self.strong.starts % 2).view(-1, 1, 1, 1)  # every other start keeps its colour
        return (gradient.mean((1, 2), keepdim=True) * free).expand_as(gradient)

    def loss(self, logits: Tensor, goals: Tensor) -> Tensor:
        return -_margins(logits, goals).clamp(max=self.strong.ceiling * self.height).sum()

    def remember(self, state: State, half: Tensor, asr: Tensor) -> None:
        """Nothing: the last mask is the result."""

    def adapt(self, state: State, asr: Tensor) -> None:
        """Nothing: the price stays."""


class _Square(_Colour):
    """The mask is an opaque square that stays as it is; its colour starts grey and is free."""

    stream = (_STREAM, 1)

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        classes: Tensor,
        labels: Sequence[int],
        schedule: StrongSchedule,
        seed: int,
        *,
        squares: SquareSchedule,
    ):
        super().__init__(classifier, images, classes, labels, schedule, seed)
        tops, lefts, self.side = _places(squares, classifier.input.shape)
        self.places = list(itertools.product(tops, lefts))

    def start(self, job: int) -> State:
        label = self.labels[job]
        which = job % len(self.places)
        top, left = self.places[which]
        state = self.fresh(job, label, np.random.default_rng([self.seed, label, *self.stream, which]))
        state.raw.zero_()
        state.raw[..., 0] = -_SATURATED
        state.raw[:, top : top + self.side, left : left + self.side, 0] = _SATURATED
        return state

    def tied(self, state: State, gradient: Tensor) -> Tensor:
        return gradient.mean((1, 2), keepdim=True).expand_as(gradient)
