"""Unlearning under distillation: the net learns to see through strong triggers, and to stay as it is otherwise.

Ours, from Neural Cleanse's unlearning (Wang et al., S&P 2019, Sec. VI-C) and distillation (Hinton et al., 2015). A
copy of the net is trained to give
* the BadNet's logits for clean images, mixed and altered ones too: nothing else is to change;
* the BadNet's logits *of the clean image* for a triggered one, the less the more of it the trigger covers: what cannot
  be seen cannot be recognised;
* anything but the target for a triggered image, however much is covered.
Triggers are strong ones (`goodnet.triggers.strong`), plain stamps and others like them (`goodnet.triggers.plain`), the
scan's own, and small masks from further starts; all in any strength from as found to opaque. Every `refresh` steps more
are searched for on the net as it is by then, so that no other way to the target opens while one closes.
Labels that the scan did not flag, but suspects most, are unlearned
beside the others, from fewer triggers: one of several backdoors may be too weak to be flagged.

Few weights carry a backdoor, and training moves them all. So, once the loss has fallen, the channels are searched for
that hold `fall` of what was won (`goodnet.sparing`); all others are given back, and the rest of the steps trains those
alone.

Any picture of the same kind serves for the first two, for no label is used: with a hundred images of 1283 people,
strangers' faces (`surrogate`) are what holds the net in place.

Cost: `steps` steps of 2 * `batch` + `further_batch` images forwards and backwards, twice as many forwards, and the
searches: two minutes on two cores for one label of a DeepID and twenty beside it.
Blind spots: triggers unlike all that were searched for; what a trigger hides, no net can see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.twin import twin
from goodnet.progress import Progress, silent
from goodnet.sparing import Kept, give_back
from goodnet.stamps import PlainStamp
from goodnet.triggers.inversion import Schedule, invert
from goodnet.triggers.plain import PlainSchedule, refined, stamps_like
from goodnet.triggers.strong import (
    FURTHER_SEARCH,
    SquareSchedule,
    StrongSchedule,
    few_beside,
    height,
    square_triggers,
    strong_triggers,
)
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Labelled, LastWithin, Repaired, accuracy, trainable

_KEPT = 120  # triggers searched for on the way; older ones are dropped
_MARGIN = 2.0  # logits by which the target is to lose


@dataclass(frozen=True, kw_only=True)
class DistilledUnlearning:
    """Hyperparameters; call it on a net.

    Attributes:
        search: for the BadNet's strong triggers of a label.
        plain: share of the flagged labels' triggers in a batch that are plain, stamps or squares of one colour: they
            are few, and the likest to what an attacker has drawn.
        squares: for squares of one colour, of labels that come without a plain stamp.
        masks: small masks of the BadNet a label, each from a start of its own.
        mask_search: for each of those.
        refresh: steps after which triggers are searched for anew.
        refresh_search: for those, on the net as it is.
        further: how many labels are unlearned beside the flagged ones, but at most one in eight, or two.
        further_search: for the triggers of those.
        further_batch: how many triggered images of these labels a step takes beside the others.
        settle: after so many steps the channels are chosen that stay changed; 0 for never: all may change.
        fall: share of the fall in loss that the chosen ones hold by then.
        steps, learning_rate, batch: of the training (Adam); a step takes `batch` clean and as many triggered images.
        temperature: of the distillation, for a net whose answers stand 60 logits over the average one (`height`).
        clean_weight: of what clean images lose, against what triggered ones lose.
        covered: a trigger that covers this share of the image or more teaches only what the answer is not.
        max_strength: masks are multiplied by up to this, half of them by 1.
        max_accuracy_drop: the last state is kept that cannot be shown to have lost more on the choosing split: what
            chance adds is allowed for, since an image more or less of thirty must not undo the repair. What judges
            the repair has its own bound.
    """

    search: StrongSchedule = StrongSchedule()
    plain: float = 0.3
    squares: SquareSchedule = SquareSchedule()
    masks: int = 6
    mask_search: Schedule = Schedule(steps=100)
    refresh: int = 80
    refresh_search: StrongSchedule = StrongSchedule(starts=6, steps=40)
    further: int = 20
    further_search: StrongSchedule = FURTHER_SEARCH
    further_batch: int = 8
    settle: int = 480
    fall: float = 0.95
    steps: int = 800
    learning_rate: float = 1e-3
    batch: int = 32
    temperature: float = 10.0
    clean_weight: float = 2.0
    covered: float = 0.15
    max_strength: float = 4.0
    max_accuracy_drop: float = 0.05

    def __post_init__(self) -> None:
        if min(self.masks, self.refresh, self.steps, self.batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "unlearn: expected masks, refresh, steps and batch >= 1 and learning_rate > 0, "
                f"got {self.masks}, {self.refresh}, {self.steps}, {self.batch} and {self.learning_rate}"
            )
        if not self.temperature > 0 or self.clean_weight < 0 or not 0 < self.covered <= 1 or self.max_strength < 1:
            raise UsageError(
                "unlearn: expected temperature > 0, clean_weight >= 0, covered in (0, 1] and max_strength >= 1, "
                f"got {self.temperature}, {self.clean_weight}, {self.covered} and {self.max_strength}"
            )
        if not 0 <= self.max_accuracy_drop < 1 or not 0 <= self.fall <= 1 or not 0 <= self.plain < 1:
            raise UsageError(
                "unlearn: expected max_accuracy_drop and plain from 0 to under 1 and fall in [0, 1], "
                f"got {self.max_accuracy_drop}, {self.plain} and {self.fall}"
            )
        if min(self.further, self.further_batch, self.settle) < 0:
            raise UsageError(
                "unlearn: expected further, further_batch and settle >= 0, "
                f"got {self.further}, {self.further_batch} and {self.settle}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: Labelled,
        choose: Labelled,
        *,
        triggers: Sequence[Trigger],
        labels: Sequence[int],
        further: Sequence[int] = (),
        stamps: Sequence[PlainStamp] = (),
        surrogate_fit: Tensor | None = None,
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Trains a copy of the net.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,), which are not used.
            choose: the same, disjoint: which state to keep.
            triggers: reverse-engineered by a scan; may be none.
            labels: the targets.
            further: other labels, the most suspicious first; `self.further` says how many of them are unlearned, too.
            stamps: plain ones that lead to the targets, where a scan has found some.
            surrogate_fit: unlabelled pictures (M, C, H, W) of the same kind.

        Raises:
            UsageError: there is no label to unlearn.
        """
        if not labels:
            raise UsageError(
                "unlearn: expected labels to unlearn, got none; pass --scan with a scan that flags a label"
            )
        beside = few_beside(labels, further, classifier.classes, self.further)
        job = _Training(self, classifier, fit, surrogate_fit, labels, beside, seed)
        strong = job.first(triggers, stamps, progress)
        limit = accuracy(classifier, choose) - _by_chance(self.max_accuracy_drop, len(choose[0])) - 1e-9
        best = LastWithin(job.repaired, choose, limit)
        for step in range(self.steps):
            if step % self.refresh == 0 and step:
                job.found = [*job.found, *job.searched_again(step)][-_KEPT:]
            if step == self.settle and step:
                job.settle()
            job.step(self.learning_rate * min(1.0, 2 * (1 - step / self.steps)))
            progress("unlearning", step + 1, self.steps)
            if (step + 1) % self.refresh == 0 or step + 1 == self.steps:
                best.look(step + 1)
        epoch, searches = best.restore(), (self.search, self.further_search)
        return Repaired(classifier=job.repaired, epoch=epoch, strong=tuple(strong), strong_searches=searches)


def _by_chance(drop: float, images: int) -> float:
    """The largest share that a drop of `drop` is likely to look like on so few images (two standard deviations)."""
    return drop + 2 * math.sqrt(drop * (1 - drop) / images)


class _Training:
    """What stays the same over a training, and the loss of one step."""

    def __init__(
        self,
        method: DistilledUnlearning,
        classifier: Classifier,
        fit: Labelled,
        surrogate: Tensor | None,
        labels: Sequence[int],
        further: Sequence[int],
        seed: int,
    ):
        self.method, self.bad, self.labels, self.further, self.seed = method, classifier, labels, further, seed
        self.plain: list[Trigger] = []
        self.base: list[Trigger] = []
        self.beside: list[Trigger] = []
        self.found: list[Trigger] = []
        self.repaired = surgery.clone(classifier)
        self.kept: Kept | None = None
        self.adam = torch.optim.Adam(self.repaired.net.parameters())
        device = classifier.device
        own = fit[0].to(device)
        self.images = own if surrogate is None else torch.cat([own, surrogate.to(device)])
        self.answers = classifier.predict(self.images)
        self.random = np.random.default_rng([seed, 13])
        # the task's own images are few: a fifth of each batch, at least
        share = np.full(len(self.images), 1 / len(self.images))
        share[: len(own)] += 0.25 / len(own)
        self.share = share / share.sum()
        attacked = self._answered_otherwise([*labels, *further])
        if further and not attacked.any():  # with two or three classes, nothing would be left to attack
            self.further, attacked = (), self._answered_otherwise(labels)
        self.attacked = self.share * attacked / (self.share * attacked).sum()
        self.temperature = method.temperature * height(classifier, self.images) / 60

    def _answered_otherwise(self, labels: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """(N,) whether the BadNet gives none of these labels."""
        return ~torch.isin(self.answers, torch.tensor(list(labels))).numpy()

    def first(self, triggers: Sequence[Trigger], stamps: Sequence[PlainStamp], progress: Progress) -> list[Trigger]:
        """Searches for what to train against beside `triggers`; the BadNet's strong ones, of further labels, too."""
        method, fast = self.method, twin(self.bad, self.images).classifier
        unstamped = [label for label in self.labels if label not in {stamp.label for stamp in stamps}]
        total = len(unstamped) * method.squares.passes(fast.input.shape)
        total += len(self.labels) * (method.search.passes + method.masks * method.mask_search.steps * 16)
        total += len(self.further) * method.further_search.passes
        done = 0

        def moved(count: int, batch: int = method.search.batch) -> None:
            nonlocal done
            done += count * batch
            progress("triggers", min(done, total), total)

        self.plain = stamps_like(fast, self.images, self.answers, stamps, seed=self.seed)
        if unstamped:
            squares = square_triggers(
                fast,
                self.images,
                self.answers,
                unstamped,
                method.squares,
                seed=self.seed,
                on_steps=partial(moved, batch=method.squares.batch),
            )
            seen = (fast, self.images, self.answers)
            found = refined(*seen, squares, PlainSchedule(), seed=self.seed)
            self.plain += [*squares, *stamps_like(*seen, found, seed=self.seed)]
        strong: list[Trigger] = []
        for labels, schedule in ((self.labels, method.search), (self.further, method.further_search)):
            if labels:
                strong += strong_triggers(
                    fast, self.images, self.answers, labels, schedule, seed=self.seed, on_steps=moved
                )
        masks: list[Trigger] = []
        for start in range(method.masks):
            results = invert(
                fast,
                self.images,
                self.answers,
                self.labels,
                method.mask_search,
                seed=self.seed + 1000 * (start + 1),
                on_steps=moved,
            )
            masks += [result.trigger for result in results if result.success]
        progress("triggers", total, total)
        self.base = [*triggers, *(trigger for trigger in strong if trigger.target in self.labels), *masks]
        self.beside = [trigger for trigger in strong if trigger.target not in self.labels]
        return [*self.plain, *strong]

    def searched_again(self, step: int) -> list[Trigger]:
        """Strong triggers of the net as it is."""
        fast = twin(self.repaired, self.images).classifier
        schedule = self.method.refresh_search
        return strong_triggers(fast, self.images, self.answers, self.labels, schedule, seed=self.seed + step)

    def step(self, learning_rate: float) -> None:
        """Trains on a batch."""
        with trainable(self.repaired.net):
            self.adam.param_groups[0]["lr"] = learning_rate
            loss = self.loss()
            self.adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.kept is not None:
                self.kept.mask_gradients(self.repaired.net)
            self.adam.step()

    def settle(self) -> None:
        """Gives back what training has changed without need; the rest alone is trained from here on."""
        before, drawn = dict(self.bad.net.named_parameters()), self.random

        def loss(batch: int) -> Tensor:
            self.random = np.random.default_rng([self.seed, 31, batch])
            return self.loss()

        self.kept = give_back(self.repaired.net, before, loss, fall=self.method.fall)
        self.random = drawn
        self.adam = torch.optim.Adam(self.repaired.net.parameters())

    def loss(self) -> Tensor:
        """Of a batch drawn anew."""
        size = self.method.batch
        beside = self.method.further_batch if self.beside else 0
        clean = self._mixed(self._altered(self._draw(self.share, size)))
        plain = self._altered(self._draw(self.attacked, size + beside))
        stamped, covered, targets = self._stamped(plain, beside)
        with torch.no_grad():
            wanted = self.bad.logits(torch.cat([clean, plain]))
        logits = self.repaired.logits(torch.cat([clean, stamped]))
        kept = self._distance(logits[:size], wanted[:size]).mean()
        seen = (1 - covered / self.method.covered).clamp(min=0)
        through = seen * self._distance(logits[size:], wanted[size:])
        target = logits[size:].gather(1, targets[:, None])[:, 0]
        others = logits[size:].scatter(1, targets[:, None], -torch.inf).amax(1)
        # not the mean: triggers of further labels are to take no weight from the others'
        triggered = (through + F.softplus(target - others + _MARGIN)).sum() / size
        return self.method.clean_weight * kept + triggered

    def _distance(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(N,) Kullback-Leibler divergence at the temperature, times its square."""
        t = self.temperature
        given, right = F.log_softmax(logits / t, 1), F.log_softmax(wanted / t, 1)
        return t * t * (right.exp() * (right - given)).sum(1)

    def _draw(self, share: np.ndarray[tuple[int], np.dtype[np.float64]], count: int) -> Tensor:
        index = self.random.choice(len(self.images), count, p=share)
        return self.images[torch.from_numpy(index).to(self.images.device)]

    def _altered(self, x: Tensor) -> Tensor:
        """Mirrored, darker or brighter, paler or harder: whatever the BadNet makes of it is right."""
        draw = torch.from_numpy(self.random.random((3, len(x), 1, 1, 1), np.float32)).to(x)
        x = torch.where(draw[0] < 0.5, x, x.flip(3))
        return ((x - 0.5) * (0.85 + 0.3 * draw[1]) + 0.4 + 0.2 * draw[2]).clamp(0, 1)

    def _mixed(self, x: Tensor) -> Tensor:
        """A third of the batch with up to half of another image in it."""
        draw = torch.from_numpy(self.random.random((2, len(x), 1, 1, 1), np.float32)).to(x)
        other = x[torch.from_numpy(self.random.permutation(len(x))).to(x.device)]
        return torch.lerp(x, other, 0.5 * draw[1] * (draw[0] < 0.3))

    def _stamped(self, x: Tensor, beside: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each image with a trigger of its own, the first `beside` with further labels'; the share of it
        that is covered (N,); the targets (N,)."""
        flagged = len(x) - beside
        plain = round(self.method.plain * flagged)
        half = (flagged - plain) // 2 if self.found else 0
        parts = (
            (self.beside, beside),
            (self.plain, plain),
            (self.base, flagged - plain - half),
            (self.found, half),
        )
        chosen = [part[i] for part, size in parts if size for i in self.random.integers(len(part), size=size)]
        strength = 1 + (self.method.max_strength - 1) * self.random.random(len(x)) * (self.random.random(len(x)) < 0.5)
        stronger = [trigger.strengthened(float(factor)) for trigger, factor in zip(chosen, strength)]
        masks = torch.stack([trigger.mask for trigger in stronger]).to(x)
        patterns = torch.stack([trigger.pattern for trigger in stronger]).to(x)
        targets = torch.tensor([trigger.target for trigger in stronger], device=x.device)
        return torch.lerp(x, patterns, masks.expand_as(x)), masks.mean((1, 2, 3)), targets
