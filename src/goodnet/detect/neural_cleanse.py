"""Neural Cleanse: a backdoor's target is the label that the smallest trigger reaches.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019.
Idea: for every label, find the smallest mask and a pattern that send any clean image there (Sec. IV-A, Eq. 2, 3);
a backdoor is a shortcut, so its label's mask is far smaller than the others'; call what is an outlier on the small
side (Sec. IV-B, IV-C, anomaly index).
Cost: steps x batch images through the net and back, a label. Above `candidates + controls` labels the paper's
low-cost form (Sec. V-D: the candidates stand out after a few steps): a short pass over all labels, then the whole
search for the smallest and for `controls` labels drawn at random, which show what an innocent label's mask is. Either
pass may show a target: a label's p-value is twice the smaller of both.
Blind spots: triggers that are not one fixed mask and pattern (moving, warped, input-dependent), triggers whose mask
is as large as an innocent label's (whole-image blends; of several triggers, the weaker ones), and nets where every
label is a target, so that none stands out.

Deviations from the paper and the authors' code:
* the weight of the norm adapts every step on that step's batch, not every pass over the data; λ starts at 0;
* images of the target label do not count for that label, in search and in ASR;
* anomaly index > 2 flags nearly every clean net of 1283 labels. We keep the index as the score, and flag a label
  only if (a) its log mask norm is an outlier by a p-value that knows the number of labels and how many reference
  labels made the null, (b) its norm is at most `max_norm_ratio` of their median, and (c) its trigger works on
  images that it was not fitted on. Ten labels can hardly give a p-value of 0.001, so a mask of at most 1 % of the
  image, which no innocent label of our clean nets had, counts as evidence of its own and eases (a) to
  `small_mask_rate`. Beside a flagged label, (a) is eased to the rate of doubt: the net is not clean any more, and may
  have several targets. docs/design/decision.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from goodnet import stats
from goodnet.detection import Detection, both_passes, candidates_and_controls, counter
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.record import Decision, LabelResult
from goodnet.triggers.inversion import Inverted, Schedule, invert, success_rates

# How the log mask norms of innocent labels scatter in a net of which nothing is known yet: measured on clean nets of
# our own training (`python -m bench null-scale`, docs/design/decision.md). Ten labels alone would not show it.
SCALE_PRIOR = stats.ScalePrior(scale=0.5, df=7.0)


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse:
    """Hyperparameters; call it on a net.

    Attributes:
        search: schedule of the whole search.
        screen: schedule of the first pass over all labels.
        candidates: how many of the smallest masks of the first pass are searched whole.
        controls: how many labels, drawn at random, are searched whole as the null.
        exhaustive: search every label whole, however many there are.
        false_alarm_rate: chance that a clean net's null alone flags some label (p-value times number of labels).
        max_norm_ratio: a flagged label's mask norm over the reference's median is at most this.
        min_held_out_asr: a flagged label's trigger must reach this on images that it was not fitted on. The smallest
            mask out of many steps is a lucky one, so this is under the ASR that the search asks for.
        small_mask_share, small_mask_rate: a mask of at most this share of the image is evidence of its own; then a
            p-value times labels of at most this rate is enough.
        block: images a forward pass and thread (memory bound); None for what suits the device.
    """

    search: Schedule = Schedule(steps=160, batch=16)
    screen: Schedule = Schedule(steps=40, batch=8)
    candidates: int = 32
    controls: int = 128
    exhaustive: bool = False
    false_alarm_rate: float = 0.01
    max_norm_ratio: float = 0.5
    min_held_out_asr: float = 0.6
    small_mask_share: float = 0.01
    small_mask_rate: float = 0.1
    block: int | None = None

    def __post_init__(self) -> None:
        for name in ("false_alarm_rate", "max_norm_ratio", "min_held_out_asr", "small_mask_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"neural-cleanse: expected {name} in (0, 1], got {getattr(self, name)}")
        if self.candidates < 1 or self.controls < 8 or (self.block or 1) < 1:
            raise UsageError(
                "neural-cleanse: expected candidates >= 1, controls >= 8 and block >= 1, "
                f"got {self.candidates}, {self.controls} and {self.block}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        *,
        seed: int,
        labels: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> Detection:
        """Scores every label.

        Args:
            fit: images (N, C, H, W) in [0, 1] and their classes (N,): the triggers are fitted on these.
            held_out: the same, disjoint: the ASR that counts is measured on these.
            labels: only these labels; all of the net's by default.
        """
        wanted = list(range(classifier.classes)) if labels is None else sorted(set(labels))
        found = _Found(
            classifier=classifier, fit=fit, held_out=held_out, seed=seed, block=self.block, progress=progress
        )
        whole = np.ones(len(wanted), dtype=np.bool_)
        reference = whole
        screened: list[Inverted] | None = None
        if not self.exhaustive and len(wanted) > self.candidates + self.controls:
            screened = found.invert("first pass", wanted, self.screen)
            norms = np.array([r.trigger.norm if r.success else np.inf for r in screened])
            whole, reference = candidates_and_controls(norms, self.candidates, self.controls, seed=seed)
        some = [label for label, chosen in zip(wanted, whole) if chosen]
        searched = found.invert("search", some, self.search)
        rows = found.rows(searched, "searched")
        triggers = {label: r.trigger for label, r in zip(some, searched)}
        rows = _scored(rows, reference[whole])
        if screened is not None:
            first = found.rows(screened, "screened")
            rows = both_passes(rows, _scored(first, np.ones(len(first), dtype=np.bool_)))
        decision = self._decision(rows, reference[whole], len(wanted), two_passes=screened is not None)
        suspect = any(decision.flags(row, len(wanted)) for row in rows)
        rows = [replace(row, flagged=decision.flags(row, len(wanted), beside_another=suspect)) for row in rows]
        return Detection(
            labels=tuple(sorted(rows, key=lambda row: row.label)),
            triggers=triggers,
            decision=decision,
            forward_passes=found.passes,
        )

    def _decision(
        self, rows: list[LabelResult], reference: npt.NDArray[np.bool_], tests: int, *, two_passes: bool
    ) -> Decision:
        compared = np.array(
            [row.mask_norm for row, chosen in zip(rows, reference) if chosen and row.mask_norm], dtype=np.float64
        )
        threshold = None
        if len(compared) >= 4:
            p_value = self.false_alarm_rate / tests / (2 if two_passes else 1)
            threshold = float(np.exp(stats.small_side_threshold(np.log(compared), p_value, prior=SCALE_PRIOR)))
        return Decision(
            false_alarm_rate=self.false_alarm_rate,
            compared=len(compared),
            median_norm=float(np.median(compared)) if len(compared) else None,
            mad=stats.mad(compared) if len(compared) else None,
            threshold_norm=threshold,
            max_norm_ratio=self.max_norm_ratio,
            min_held_out_asr=self.min_held_out_asr,
            small_mask_share=self.small_mask_share,
            small_mask_rate=self.small_mask_rate,
        )


class _Found:
    """The net and the images of one scan, counting what goes through the net."""

    def __init__(
        self,
        *,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        seed: int,
        block: int | None,
        progress: Progress,
    ):
        self.classifier, self.seed, self.block = classifier, seed, block
        self.fit, self.held_out, self.progress = fit, held_out, progress
        self.passes = 0

    def invert(self, stage: str, labels: list[int], schedule: Schedule) -> list[Inverted]:
        steps = len(labels) * schedule.steps
        self.passes += steps * schedule.batch
        count = counter(self.progress, stage, steps)
        return invert(self.classifier, *self.fit, labels, schedule, seed=self.seed, block=self.block, on_steps=count)

    def rows(self, results: Sequence[Inverted], status: str) -> list[LabelResult]:
        """One row a result, with its ASR on images that it was not fitted on, and, if searched whole, on the others."""
        held_out_asr = self._success("judging", results, self.held_out)
        whole = status == "searched"
        fit_asr = self._success("fit ASR", results, self.fit) if whole else [None] * len(results)
        return [
            LabelResult(
                label=result.trigger.target,
                status=status if result.success else "failed",
                mask_norm=result.trigger.norm if result.success else None,
                mask_share=result.trigger.norm / result.trigger.mask.numel() if result.success else None,
                fit_asr=on_fit,
                held_out_asr=on_others,
            )
            for result, on_fit, on_others in zip(results, fit_asr, held_out_asr)
        ]

    def _success(self, stage: str, results: Sequence[Inverted], images: tuple[Tensor, Tensor]) -> list[float | None]:
        self.passes += len(results) * len(images[0])
        triggers = [result.trigger for result in results]
        return success_rates(self.classifier, triggers, *images, on_done=counter(self.progress, stage, len(results)))


def _scored(rows: list[LabelResult], reference: npt.NDArray[np.bool_]) -> list[LabelResult]:
    """Rows with anomaly index, p-value and norm ratio, from the norms of the reference rows."""
    norms = np.array([np.nan if row.mask_norm is None else row.mask_norm for row in rows])
    used = norms[reference & np.isfinite(norms)]
    if len(used) == 0:
        return rows
    index = stats.anomaly_index(norms, used)
    with np.errstate(divide="ignore"):
        p_values = stats.small_side_p_values(np.log(norms), reference, prior=SCALE_PRIOR)
    ratios = norms / np.median(used)

    def value(x: np.float64) -> float | None:
        return float(x) if np.isfinite(x) else None

    return [
        replace(row, score=value(index[i]), p_value=value(p_values[i]), norm_ratio=value(ratios[i]))
        for i, row in enumerate(rows)
    ]
