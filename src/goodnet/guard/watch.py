"""Watch: where the net answers a suspicious label, a detector looks whether a trigger brought it there.

Ours. A trigger leads to its target, or it does nothing; so only images that the net answers with a suspicious label
need a second look, and all others keep their answer whatever a detector might say. Watched are the labels that a scan
flags, each with a detector of its own, and the most suspicious of the others together with one (a net with one
backdoor often has more, and a scan does not see them all). The detector is linear in the features that the last layer
sees: a logistic regression of clean images, and of strangers' where there are any, against the same with strong
triggers on them (`goodnet.triggers.strong`) that are mutated: of all strengths from faint to opaque.
Its threshold is low, for what is not answered with a watched label passes anyway, but such that at most a twelfth of
the clean images that rightly *are* answered so is refused (of labels that were not flagged, a fiftieth).
Such images are few, and a linear detector learns a few dozen by heart: so clean images are altered (mirrored, moved,
brighter, paler), and those that come to be answered so are added; and the scores that set the threshold are of a
detector that was fitted on the other half of the images, before the one that is kept is fitted on both.

Cost: the search for triggers (54 starts of 60 steps for a flagged label: 5 to 10 seconds on two cores), and nothing an
image later on: class N comes from one row more.
Blind spots: it repairs nothing. A trigger that it misses is answered as the BadNet answers; a backdoor whose target is
neither flagged nor among the most suspicious is not watched; triggers that are not spots (warps, blends over the whole
image) are met only as far as they excite the same features. How many clean images of the target it refuses can only be
seen if there are some: `surrogate` images that the net takes for the target serve, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import watched_from
from goodnet.models.twin import twin
from goodnet.progress import Progress, silent
from goodnet.stamps import PlainStamp
from goodnet.triggers.plain import stamps_like
from goodnet.triggers.strong import FURTHER_SEARCH, StrongSchedule, few_beside, strong_triggers
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Labelled, Repaired, allowed_score

_STEPS, _RATE = 300, 0.05
_STREAM = 19
_ROUNDS = 20  # of altering all images, at most
_AT_ONCE, _NUMBERS = 1024, 1 << 25  # altered images at a time, and numbers in these, at most
_STAMPED_AT_ONCE = 256
_FEW = 25  # fewer clean images of a watched label do not move its threshold: a tenth of ten is a matter of one
_FEW_RIGHT = 3  # unless they are of that class: these must pass


@dataclass(frozen=True, eq=False)
class _Side:
    """Images on one side of the split, the task's own first, as the last layer sees them.

    Attributes:
        features: (N, F) of clean images; answers: (N,) the net's.
        right: (N,) whether the image is the task's own, and the answer its class.
        weights: (N,) what it counts.
        made: (M, F) of altered images that are answered with a watched label; made_of: (M,) which.
    """

    features: Tensor
    answers: Tensor
    right: Tensor
    weights: Tensor
    made: Tensor
    made_of: Tensor


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Hyperparameters; call it on a net.

    Attributes:
        search: for the triggers of a flagged label.
        further: how many labels are watched beside the flagged ones, but at most one in eight, or two.
        further_search: for the triggers of those.
        strengths: found masks are multiplied by a factor between the two, at random, and cut at 1.
        stamped: triggered images for each detector.
        decay: weight decay of the detector, in units of features' standard deviations.
        plain: share of the triggers that are rectangles of one colour, where there are others.
        like: what clean images that the net answers with a watched label weigh, all together, beside the others' 1.
        altered: of each side's clean images at most so many are made by altering.
        max_refused: share of the clean images answered with a flagged label that may be refused.
        max_refused_altered: the same of altered images, which stand in for strangers where there are enough; they are
            harder, at the edge of the label: of others that were not altered, half as many are refused or fewer.
        max_refused_further: the same for the others together: nothing speaks against them but their order.
        max_fpr: share of all clean images that may lie over the threshold, were all labels watched.
    """

    search: StrongSchedule = StrongSchedule()
    further: int = 20
    further_search: StrongSchedule = FURTHER_SEARCH
    strengths: tuple[float, float] = (0.7, 3.0)
    stamped: int = 2000
    decay: float = 0.05
    plain: float = 0.3
    like: float = 0.2
    altered: int = 12_000
    max_refused: float = 0.08
    max_refused_altered: float = 0.2
    max_refused_further: float = 0.02
    max_fpr: float = 0.02

    def __post_init__(self) -> None:
        low, high = self.strengths
        if min(self.further, self.altered, self.decay, self.like) < 0 or self.stamped < 1 or not 0 < low <= high:
            raise UsageError(
                "watch: expected further, altered, decay and like >= 0, stamped >= 1 and "
                "0 < strengths[0] <= strengths[1], "
                f"got {self.further}, {self.altered}, {self.decay}, {self.like}, {self.stamped} and {self.strengths}"
            )
        shares = (self.plain, self.max_refused, self.max_refused_altered, self.max_refused_further, self.max_fpr)
        if not all(0 <= share < 1 for share in shares):
            raise UsageError(
                "watch: expected plain, max_refused, max_refused_altered, max_refused_further and max_fpr from 0 to "
                f"under 1, got {shares}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: Labelled,
        choose: Labelled,
        *,
        labels: Sequence[int],
        further: Sequence[int] = (),
        known: Sequence[Trigger] = (),
        stamps: Sequence[PlainStamp] = (),
        surrogate_fit: Tensor | None = None,
        surrogate_choose: Tensor | None = None,
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Puts detectors in front of a copy of the net's last layer.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,): triggers are fitted to them, and detectors.
            choose: the same, disjoint: detectors and, with the others, crosswise, thresholds.
            labels: those that a scan has flagged.
            further: others, the most suspicious first; as many of them are watched as `self.further` says.
            known: strong triggers of some of the labels, if they have been searched for on these very images already.
            stamps: plain ones that lead to flagged labels; those of labels in `known` are among these.
            surrogate_fit, surrogate_choose: unlabelled pictures (M, C, H, W) of the same kind, disjoint.

        Returns:
            A GoodNet with its own class N.

        Raises:
            UsageError: there is no label to watch.
            ModelError: the net's last layer is not linear.
        """
        if not labels:
            raise UsageError("watch: expected labels to watch, got none; pass --scan with a scan that flags a label")
        layer = surgery.output_layer(classifier)
        others = few_beside(labels, further, classifier.classes, self.further)
        images, answers = _with(classifier, fit, surrogate_fit)
        watched = [*labels, *others]
        held_out = _with(classifier, choose, surrogate_choose)
        sides = (
            self._side(classifier, layer, fit, images, answers, watched, seed, progress),
            self._side(classifier, layer, choose, *held_out, watched, seed + 1, progress),
        )
        groups = torch.full((classifier.classes,), -1, dtype=torch.int64)
        there = {trigger.target for trigger in known}
        sought, sought_beside = ([label for label in part if label not in there] for part in (labels, others))
        plain = [stamp for stamp in stamps if stamp.label not in there]
        triggers = [*known, *stamps_like(classifier, images, answers, plain, seed=seed)]
        triggers += self._triggers(classifier, images, answers, sought, sought_beside, seed, progress)
        rows: list[Tensor] = []
        offsets: list[Tensor] = []
        for group in [*([label] for label in labels), others]:
            if not group:
                continue
            groups[group] = len(rows)
            own = [trigger for trigger in triggers if trigger.target in group]
            parts = self._stamped(images, answers, own, seed)
            stamped = torch.cat([surgery.features(classifier, layer, part) for part in parts])
            direction, offset = self._detector(sides, stamped, torch.tensor(group), group is others)
            rows.append(direction)
            offsets.append(offset)
        return Repaired(
            classifier=watched_from(classifier, torch.stack(rows), torch.stack(offsets), groups),
            strong=tuple(triggers),
            strong_searches=(self.search, self.further_search),
        )

    def _triggers(
        self,
        classifier: Classifier,
        images: Tensor,
        answers: Tensor,
        labels: Sequence[int],
        others: Sequence[int],
        seed: int,
        progress: Progress,
    ) -> list[Trigger]:
        """Strong triggers of all labels, from a search with the net's twin."""
        searches = [
            (part, schedule) for part, schedule in ((labels, self.search), (others, self.further_search)) if part
        ]
        if not searches:
            return []
        fast = twin(classifier, images).classifier
        total = sum(len(part) * schedule.starts * schedule.steps for part, schedule in searches)
        done = 0

        def on_steps(count: int) -> None:
            nonlocal done
            done += count
            progress("strong triggers", min(done, total), total)

        found = []
        for part, schedule in searches:
            found += strong_triggers(fast, images, answers, part, schedule, seed=seed, on_steps=on_steps)
        progress("strong triggers", total, total)
        return found

    def _side(
        self,
        classifier: Classifier,
        layer: str,
        own: Labelled,
        images: Tensor,
        answers: Tensor,
        labels: Sequence[int],
        seed: int,
        progress: Progress,
    ) -> _Side:
        """What the last layer sees of a side's images, the own ones first, and of altered ones that are answered with
        one of the labels."""
        count, random, wanted = len(images), np.random.default_rng([seed, _STREAM]), torch.tensor(list(labels))
        features = surgery.features(classifier, layer, images)
        made, made_of = [features[:0]], [answers[:0]]
        which = torch.arange(count * min(_ROUNDS, self.altered // count)) % count
        at_once = max(1, min(_AT_ONCE, _NUMBERS // images[0].numel()))
        for first in range(0, len(which), at_once):
            part = which[first : first + at_once]
            x = altered(images[part], random)
            said = classifier.predict(x)
            there = torch.isin(said, wanted)
            if there.any():
                made.append(surgery.features(classifier, layer, x[there]))
                made_of.append(said[there])
            progress("altered images", first + len(part), len(which))
        right = torch.zeros(count, dtype=torch.bool)
        right[: len(own[0])] = answers[: len(own[0])] == own[1].cpu()
        weights = torch.ones(count)
        weights[: len(own[0])] += count / len(own[0])  # strangers are many; these weigh as much as all
        return _Side(features, answers, right, weights, made=torch.cat(made), made_of=torch.cat(made_of))

    def _detector(
        self, sides: tuple[_Side, _Side], stamped: Tensor, members: Tensor, further: bool
    ) -> tuple[Tensor, Tensor]:
        """Direction (F,) and offset () of a group's detector: direction . features > offset means triggered.

        It is fitted on both sides; what sets its threshold are each side's scores by one that the other was fitted on.

        Args:
            stamped: (M, F) what the last layer sees of triggered images.
            members: the group's labels; further: none of them is flagged.
        """
        all_scores, watched, known, alike = [], [], [], []
        for side, other in (sides, sides[::-1]):
            direction, offset = self._fitted([other], stamped, members)
            scores = side.features @ direction - offset
            there = torch.isin(side.answers, members)
            all_scores.append(scores)
            watched.append(scores[there])
            known.append(scores[there & side.right])
            alike.append(side.made[torch.isin(side.made_of, members)] @ direction - offset)
        threshold = min(allowed_score(torch.cat(all_scores), self.max_fpr), 0.0)
        share = self.max_refused_further if further else self.max_refused
        right, others = torch.cat(known), torch.cat(alike)
        sets = [(right, _FEW_RIGHT, share)]
        if further or len(others) < _FEW:
            sets.append((torch.cat(watched), _FEW, share))
        else:
            sets.append((others, _FEW, self.max_refused_altered))
        if further:
            threshold = max(threshold, _far_out(right))
        direction, offset = self._fitted(sides, stamped, members)
        allowed = [allowed_score(part, most) for part, enough, most in sets if len(part) >= enough]
        return direction, offset + max([threshold, *allowed])

    def _fitted(self, sides: Sequence[_Side], stamped: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """`logistic` on these sides' images."""
        weights = torch.cat([side.weights for side in sides])
        # few, and the only ones that are looked at later on
        like = torch.cat([torch.isin(of, members) for side in sides for of in (side.answers, side.made_of)])
        rest = [part for side in sides for part in (side.weights / weights.sum(), torch.zeros(len(side.made)))]
        clean = torch.cat([part for side in sides for part in (side.features, side.made)])
        return logistic(clean, torch.cat(rest) + self.like * like / like.sum().clamp(min=1), stamped, self.decay)

    def _stamped(self, images: Tensor, answers: Tensor, triggers: Sequence[Trigger], seed: int) -> Iterator[Tensor]:
        """Images (n, C, H, W), `stamped` in all, not answered with the trigger's target, with one of any strength."""
        random = np.random.default_rng([seed, 11])
        plain, others = [t for t in triggers if t.opaque], [t for t in triggers if not t.opaque]
        few = self.stamped if not others else round(self.plain * self.stamped) if plain else 0

        def one(i: int) -> Tensor:
            trigger = plain[i % len(plain)] if i < few else others[i % len(others)]
            attacked = torch.nonzero(answers != trigger.target)[:, 0]
            x = images[attacked[int(random.integers(len(attacked)))]]
            return trigger.strengthened(float(random.uniform(*self.strengths))).apply(x[None])

        for first in range(0, self.stamped, _STAMPED_AT_ONCE):
            yield torch.cat([one(i) for i in range(first, min(first + _STAMPED_AT_ONCE, self.stamped))])


def _far_out(scores: Tensor) -> float:
    """Three standard deviations over the mean of rightly classified images, where there are some.

    The few that set a threshold do not show how far the next thousand will scatter, and of a label that nobody flagged
    none should be refused.
    """
    return float(scores.mean() + 3 * scores.std()) if len(scores) >= _FEW_RIGHT else -math.inf


def _with(classifier: Classifier, own: Labelled, surrogate: Tensor | None) -> tuple[Tensor, Tensor]:
    """The task's own images and the surrogate ones behind them, on the CPU, with what the net answers."""
    images = own[0].cpu() if surrogate is None else torch.cat([own[0].cpu(), surrogate.cpu()])
    return images, classifier.predict(images)


def altered(images: Tensor, random: np.random.Generator) -> Tensor:
    """Clean images (N, C, H, W) in [0, 1] as they could have been taken: mirrored or not, moved by up to a sixteenth of
    the longer side, brighter or darker, paler or harder, each channel by itself a little."""
    count, channels, rows, columns = images.shape
    reach = max(1, max(rows, columns) // 16)
    moved = torch.from_numpy(random.integers(-reach, reach + 1, (2, count, 1)))
    row = (torch.arange(rows) + moved[0]).clamp(0, rows - 1)
    column = (torch.arange(columns) + moved[1]).clamp(0, columns - 1)
    mirrored = torch.from_numpy(random.random((count, 1))) < 0.5
    column = torch.where(mirrored, columns - 1 - column, column)
    x = images[torch.arange(count)[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
    draw = torch.from_numpy(random.random((2, count, 1, 1, 1), np.float32))
    tint = torch.from_numpy(random.uniform(0.85, 1.15, (count, channels, 1, 1)).astype(np.float32))
    mean = x.mean((1, 2, 3), keepdim=True)
    return (((x - mean) * (0.7 + 0.6 * draw[0]) + mean + 0.2 * draw[1] - 0.1) * tint).clamp(0, 1)


def logistic(clean: Tensor, weights: Tensor, triggered: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Logistic regression of clean features (N, F) against triggered ones (M, F), both sides alike in weight.

    Args:
        weights: (N,) of the clean ones, any scale.
        decay: of the squared weights, for features in standard deviations over the clean ones.

    Returns:
        direction (F,) and offset (): direction . features > offset means triggered.
    """
    mean, std = clean.mean(0), clean.std(0, correction=0)
    std = std + 0.1 * std.mean() + 1e-6  # a neuron that clean images leave asleep must not decide alone
    a, b, share = (clean - mean) / std, (triggered - mean) / std, weights / weights.sum()
    weight, bias = torch.zeros(a.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    adam = torch.optim.Adam([weight, bias], lr=_RATE)
    for step in range(_STEPS):
        adam.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS)
        loss = (F.softplus(a @ weight + bias) * share).sum() + F.softplus(-(b @ weight + bias)).mean()
        adam.zero_grad()
        (loss + decay / 2 * (weight * weight).sum()).backward()  # type: ignore[no-untyped-call]
        adam.step()
    direction = (weight / std).detach()
    return direction, direction @ mean - bias.detach()
