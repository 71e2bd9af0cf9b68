"""Watch: where the net answers a suspicious label, a detector looks whether a trigger brought it there.

Ours. A trigger leads to its target, or it does nothing; so only images that the net answers with a suspicious label
need a second look, and all others keep their answer whatever a detector might say. Watched are the labels that a scan
flags, each with a detector of its own, and the most suspicious of the others together with one (a net with one
backdoor often has more, and a scan does not see them all). The detector is linear in the features that the last layer
sees: a logistic regression of clean images, and of strangers' where there are any, against the same with strong
triggers on them (`goodnet.triggers.strong`) that are mutated: of all strengths from faint to opaque.
Its threshold is set on clean images that it was not fitted on: low, for what is not answered with a watched label
passes anyway, but so that at most a twelfth of the clean images that *are* answered so is refused (of labels that were
not flagged, a fiftieth); they may be right.

Cost: the search for triggers (54 starts of 60 steps for a flagged label: 5 to 10 seconds on two cores), and nothing an
image later on: class N comes from one row more.
Blind spots: it repairs nothing. A trigger that it misses is answered as the BadNet answers; a backdoor whose target is
neither flagged nor among the most suspicious is not watched; triggers that are not spots (warps, blends over the whole
image) are met only as far as they excite the same features. How many clean images of the target it refuses can only be
seen if there are some: `surrogate` images that the net takes for the target serve, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_FEW = 25  # fewer clean images of a watched label do not move its threshold: a tenth of ten is a matter of one
_FEW_RIGHT = 3  # unless they are of that class: these must pass


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
        like: what clean images that the net answers with a watched label weigh, all together, beside the others' 1.
        max_refused: share of the clean images answered with a flagged label that may be refused.
        max_refused_further: the same for the others together: nothing speaks against them but their order.
        max_fpr: share of all clean images that may lie over the threshold, were all labels watched.
    """

    search: StrongSchedule = StrongSchedule()
    further: int = 20
    further_search: StrongSchedule = FURTHER_SEARCH
    strengths: tuple[float, float] = (0.7, 3.0)
    stamped: int = 2000
    decay: float = 0.05
    like: float = 0.05
    max_refused: float = 0.08
    max_refused_further: float = 0.02
    max_fpr: float = 0.02

    def __post_init__(self) -> None:
        low, high = self.strengths
        if self.further < 0 or self.stamped < 1 or not 0 < low <= high or min(self.decay, self.like) < 0:
            raise UsageError(
                "watch: expected further >= 0, stamped >= 1, 0 < strengths[0] <= strengths[1], decay and like >= 0, "
                f"got {self.further}, {self.stamped}, {self.strengths}, {self.decay} and {self.like}"
            )
        shares = (self.max_refused, self.max_refused_further, self.max_fpr)
        if not all(0 <= share < 1 for share in shares):
            raise UsageError(
                f"watch: expected max_refused, max_refused_further and max_fpr from 0 to under 1, got {shares}"
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
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,): triggers and detectors are fitted to them.
            choose: the same, disjoint: the thresholds.
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
        images, answers = _with(classifier, fit, surrogate_fit)
        clean = surgery.features(classifier, layer, images)
        held_out, held_out_answers = _with(classifier, choose, surrogate_choose)
        held_out = surgery.features(classifier, layer, held_out)
        weights = torch.full((len(clean),), 1 / len(clean))
        weights[: len(fit[0])] += 1 / len(fit[0])  # strangers are many; the task's own images weigh as much as all
        others = few_beside(labels, further, classifier.classes, self.further)
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
            stamped = surgery.features(classifier, layer, self._stamped(images, answers, own, seed))
            like = torch.isin(answers, torch.tensor(group))  # few, and the only ones that are looked at later on
            shares = weights / weights.sum() + self.like * like / like.sum().clamp(min=1)
            direction, offset = logistic(clean, shares, stamped, self.decay)
            watched = torch.isin(held_out_answers, torch.tensor(group))
            right = watched.clone()
            right[: len(choose[0])] &= held_out_answers[: len(choose[0])] == choose[1].cpu()
            right[len(choose[0]) :] = False
            rows.append(direction)
            scores = held_out @ direction - offset
            if group is others:
                threshold = self._threshold(scores, watched, right, self.max_refused_further)
                threshold = max(threshold, _far_out(scores[right]))
            else:
                threshold = self._threshold(scores, watched, right, self.max_refused)
            offsets.append(offset + threshold)
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

    def _stamped(self, images: Tensor, answers: Tensor, triggers: Sequence[Trigger], seed: int) -> Tensor:
        """(stamped, C, H, W) images that are not answered with the trigger's target, with a trigger of any strength."""
        random = np.random.default_rng([seed, 11])
        stamped = []
        for i in range(self.stamped):
            trigger = triggers[i % len(triggers)]
            others = torch.nonzero(answers != trigger.target)[:, 0]
            x = images[others[int(random.integers(len(others)))]]
            stamped.append(trigger.strengthened(float(random.uniform(*self.strengths))).apply(x[None]))
        return torch.cat(stamped)

    def _threshold(self, scores: Tensor, watched: Tensor, right: Tensor, share: float) -> float:
        """Over the detector's own: 0 or less, but so high that few clean images of the watched labels are refused.

        Args:
            scores: (N,) of clean images that it was not fitted on.
            watched: (N,) answered with the group's labels; right: (N,) and rightly so.
            share: of these that may be refused.
        """
        threshold = min(allowed_score(scores, self.max_fpr), 0.0)
        for like, enough in ((watched, _FEW), (right, _FEW_RIGHT)):
            if int(like.sum()) >= enough:
                threshold = max(threshold, allowed_score(scores[like], share))
        return threshold


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
