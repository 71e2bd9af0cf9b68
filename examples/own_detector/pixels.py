"""A detector of your own: how few pixels, chosen by one gradient, lead the images to a label.

Idea: for each label, rank the pixels by the mean gradient of its logit over the others' (at images half drowned in
noise, for what is dark everywhere may have none), set the first k of them to black or white, whichever helps, and take
the smallest k that leads 95 % of the images there. A backdoor's target that
a few pixels reach stands out among the labels, as in Neural Cleanse, of which this is the poor relation.
Cost: one pass back and about ten forward a label. Blind spots: all triggers but small, fixed patches; nets whose
gradients say little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from goodnet import stats
from goodnet.detection import Detection
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress
from goodnet.record import Decision, LabelResult
from goodnet.triggers.trigger import Trigger
from goodnet.verdicts import flag
from goodnet.work import OutOfTime, Work


@dataclass(frozen=True, kw_only=True)
class FewPixels:
    """Hyperparameters; call it on a net, or give it to `goodnet.scan.scan`.

    Attributes:
        asr: share of the images that the pixels must lead to the label.
        images: that many are searched on.
        false_alarm_rate: chance that a clean net's labels alone have one flagged.
    """

    name: ClassVar[str] = "few-pixels"
    tested: ClassVar[tuple[str, ...]] = ("for each label, how few black or white pixels lead any image to it",)
    not_tested: ClassVar[tuple[str, ...]] = ("every trigger that is not a small, fixed patch",)

    asr: float = 0.95
    images: int = 64
    false_alarm_rate: float = 0.01

    def __call__(
        self,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        *,
        seed: int,
        labels: Sequence[int] | None,
        progress: Progress,
        work: Work,
    ) -> Detection:
        """Searches each label; the noise comes from seed and label."""
        wanted = list(range(classifier.classes)) if labels is None else sorted(set(labels))
        rows, triggers, passes = [], {}, 0
        for done, label in enumerate(wanted):
            progress("few pixels", done, len(wanted))
            try:
                work.check()
            except OutOfTime:
                rows += [LabelResult(label=left, status="skipped") for left in wanted[done:]]
                break
            trigger, cost = self.search(classifier, of_others(fit, label)[: self.images], label, seed)
            passes += cost
            if trigger is None:
                rows.append(LabelResult(label=label, status="failed"))
            else:
                triggers[label] = trigger
                rows.append(measured(classifier, trigger, of_others(held_out, label)))
        decision, rows = decided(rows, self.false_alarm_rate)
        return Detection(labels=tuple(rows), triggers=triggers, decision=decision, forward_passes=passes)

    def search(self, classifier: Classifier, images: Tensor, label: int, seed: int) -> tuple[Trigger | None, int]:
        """The trigger of fewest pixels (None where all pixels are not enough), and how many images were passed."""
        noise = np.random.default_rng([seed, label]).random(images.shape, dtype=np.float32)
        x = ((images + torch.from_numpy(noise)) / 2).requires_grad_()
        logits = classifier.logits(x)
        others = logits.index_fill(1, torch.tensor(label), -torch.inf).logsumexp(1)
        (gradient,) = torch.autograd.grad((logits[:, label] - others).sum(), x)
        slope = gradient.mean(0)  # (C, H, W)
        pattern = (slope > 0).float()
        order = slope.abs().sum(0).flatten().argsort(descending=True, stable=True)
        passes, low, high, best = len(images), 0, len(order), None
        while low < high:  # the smallest k that works, as if more pixels never hurt
            k = (low + high) // 2 if best is not None else high
            mask = torch.zeros(len(order)).index_fill(0, order[:k], 1.0).view(1, *pattern.shape[1:])
            trigger = Trigger(mask=mask, pattern=pattern, target=label)
            passes += len(images)
            if asr(classifier, trigger, images) >= self.asr:
                best, high = trigger, k
            elif best is None:
                return None, passes
            else:
                low = k + 1
        return best, passes


def of_others(images: tuple[Tensor, Tensor], label: int) -> Tensor:
    """The images that do not show the label already."""
    return images[0][images[1] != label]


def asr(classifier: Classifier, trigger: Trigger, images: Tensor) -> float:
    """Share of the images that the trigger leads to its target."""
    return float((classifier.predict(trigger.apply(images)) == trigger.target).double().mean())


def measured(classifier: Classifier, trigger: Trigger, images: Tensor) -> LabelResult:
    """The label's row: its mask, and the trigger's ASR on images that it was not fitted on."""
    share = trigger.norm / trigger.mask.numel()
    return LabelResult(
        label=trigger.target,
        status="searched",
        mask_norm=trigger.norm,
        mask_share=share,
        held_out_asr=asr(classifier, trigger, images),
    )


def decided(rows: Sequence[LabelResult], false_alarm_rate: float) -> tuple[Decision, list[LabelResult]]:
    """goodnet's own rule for masks: an outlier among all labels' log norms, small, and working on held-out images."""
    norms = np.array([np.nan if row.mask_norm is None else row.mask_norm for row in rows])
    known = norms[np.isfinite(norms)]
    enough = len(known) >= 4
    logs, prior = np.log(norms), stats.ScalePrior(scale=0.35, df=5.0)
    tested = stats.small_side(logs, np.isfinite(logs), prior=prior)
    rate = false_alarm_rate / len(rows)
    decision = Decision(
        false_alarm_rate=false_alarm_rate,
        compared=len(known),
        median_norm=float(np.median(known)) if enough else None,
        mad=float(np.median(np.abs(known - np.median(known)))) if enough else None,
        threshold_norm=float(np.exp(stats.small_side_threshold(np.log(known), rate, prior=prior))) if enough else None,
        max_norm_ratio=0.5,
        min_held_out_asr=0.6,
    )
    if decision.median_norm is None:
        return decision, list(rows)
    scored = [
        row if row.mask_norm is None else replace(
            row,
            score=float(t),
            p_value=float(p),
            mask_p_value=float(p),
            norm_ratio=row.mask_norm / decision.median_norm,
        )
        for row, t, p in zip(rows, tested.t, tested.p)
    ]  # fmt: skip
    return decision, flag(scored, decision)
