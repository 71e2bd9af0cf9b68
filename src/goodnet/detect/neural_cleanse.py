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
  images that it was not fitted on. Ten labels can hardly give a p-value of 0.001, so a mask of at most half a
  percent of the image counts as evidence of its own and eases (a) to `small_mask_rate`. docs/design/decision.md has
  the measurements;
* the first pass takes more steps of fewer images: unfinished masks all look alike, and say little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goodnet import stats
from goodnet.detection import Detection, Planned, both_passes, candidates_and_controls, counter
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.twin import PRECISIONS, twin
from goodnet.progress import Progress, silent
from goodnet.record import Decision, LabelResult
from goodnet.runners import SERIAL, Runner
from goodnet.triggers.blocks import shown_at_once
from goodnet.triggers.inversion import Inverted, Schedule, invert, success_rates
from goodnet.triggers.trigger import Trigger
from goodnet.verdicts import flag
from goodnet.work import OutOfTime, Result, Work

# How the log mask norms of innocent labels scatter in a net of which nothing is known yet: measured on clean nets of
# our own training (docs/design/decision.md). Ten labels alone would not show it.
SCALE_PRIOR = stats.ScalePrior(scale=0.35, df=5.0)
# Between the seeds of one label's starts; a scan's own seed is small.
_RESTART = 1_000_003


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
        precision: `auto`, `float32` or `bfloat16` for the net in the search (`models/twin.py`); triggers are judged on
            the net itself.
        block: images a forward pass and thread (memory bound); None for what suits the device.
    """

    search: Schedule = Schedule(steps=160, batch=16)
    screen: Schedule = Schedule(steps=40, batch=4)
    candidates: int = 32
    controls: int = 128
    exhaustive: bool = False
    false_alarm_rate: float = 0.01
    max_norm_ratio: float = 0.5
    min_held_out_asr: float = 0.6
    small_mask_share: float = 0.005
    small_mask_rate: float = 0.1
    precision: str = "auto"
    block: int | None = None

    def __post_init__(self) -> None:
        for name in ("false_alarm_rate", "max_norm_ratio", "min_held_out_asr", "small_mask_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"neural-cleanse: expected {name} in (0, 1], got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"neural-cleanse: expected precision of {', '.join(PRECISIONS)}, got {self.precision!r}")
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
        also: Sequence[int] = (),
        stand_in: Classifier | None = None,
        progress: Progress = silent,
        work: Work | None = None,
        runner: Runner = SERIAL,
    ) -> Detection:
        """Scores every label.

        Args:
            fit: images (N, C, H, W) in [0, 1] and their classes (N,): the triggers are fitted on these.
            held_out: the same, disjoint: the ASR that counts is measured on these.
            labels: only these labels; all of the net's by default.
            also: labels to search whole whatever the first pass finds.
            stand_in: the net's twin; made here by default.
            work: what an earlier run has done already, and how much time there is.
            runner: who computes the blocks of labels.
        """
        wanted = list(range(classifier.classes)) if labels is None else sorted(set(labels))
        work = work or Work()
        found = Searches(
            self, classifier, fit, held_out, seed=seed, stand_in=stand_in, progress=progress, work=work, runner=runner
        )
        first, whole, reference = self._first_pass(found, wanted, also, seed)
        some = [label for label, chosen in zip(wanted, whole) if chosen]
        searched = found.invert("search", some, self.search)
        rows = found.rows(some, searched, "searched")
        rows = scored(rows, reference[whole])
        if first is not None:
            rows = both_passes(rows, scored(first, np.ones(len(first), dtype=np.bool_)))
        rows = [replace(row, mask_p_value=row.p_value) for row in rows]
        decision = self.decision(rows, reference[whole], len(wanted), looks=1 if first is None else 2)
        return Detection(
            labels=tuple(sorted(flag(rows, decision), key=lambda row: row.label)),
            triggers={label: result.trigger for label, result in searched.items() if result.trigger is not None},
            decision=decision,
            forward_passes=found.passes,
            reference=tuple(label for label, chosen in zip(wanted, reference) if chosen),
        )

    def plan(self, labels: int) -> tuple[Planned, ...]:
        """What a scan of so many labels will do."""
        if not self.two_passes(labels):
            return (Planned(stage="search", labels=labels, passes=labels * self.search.steps * self.search.batch),)
        most = min(labels, self.candidates + self.controls)
        return (
            Planned(stage="first pass", labels=labels, passes=labels * self.screen.steps * self.screen.batch),
            Planned(stage="search", labels=most, passes=most * self.search.steps * self.search.batch),
        )

    def two_passes(self, labels: int) -> bool:
        """Whether a scan of so many labels starts with a short pass over all."""
        return not self.exhaustive and labels > self.candidates + self.controls

    def _first_pass(
        self, found: Searches, wanted: list[int], also: Sequence[int], seed: int
    ) -> tuple[list[LabelResult] | None, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The first pass's rows, (K,) which labels to search whole, (K,) which of them are the reference."""
        whole = np.ones(len(wanted), dtype=np.bool_)
        if not self.two_passes(len(wanted)):
            return None, whole, whole
        screened = found.invert("first pass", wanted, self.screen, keep_triggers=False)
        rows = found.rows(wanted, screened, "screened")
        if len(screened) < len(wanted):  # out of time: without all labels there are no candidates
            return rows, ~whole, ~whole
        norms = np.array([np.inf if row.mask_norm is None else row.mask_norm for row in rows])
        chosen, reference = candidates_and_controls(norms, self.candidates, self.controls, seed=seed)
        return rows, chosen | np.isin(wanted, list(also)), reference

    def decision(
        self, rows: Sequence[LabelResult], reference: npt.NDArray[np.bool_], tests: int, *, looks: float
    ) -> Decision:
        """What labels are flagged by, given the searched rows, (len(rows),) which of them are the reference, how many
        labels were tested and how many p-values of each label its own was the smallest of."""
        compared = np.array(
            [row.mask_norm for row, chosen in zip(rows, reference) if chosen and row.mask_norm], dtype=np.float64
        )
        threshold = None
        if len(compared) >= 4:
            p_value = self.false_alarm_rate / tests / looks
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """What is kept of a label's search: its mask's L1 norm, whether it succeeded, and the trigger unless left out."""

    norm: float
    success: bool
    trigger: Trigger | None


def _kept(result: Inverted, keep_trigger: bool) -> Result:
    kept = {"norm": np.array(result.trigger.norm), "success": np.array(result.success)}
    if keep_trigger:
        kept |= {"mask": result.trigger.mask.numpy(), "pattern": result.trigger.pattern.numpy()}
    return kept


def _searched(label: int, kept: Result) -> Searched:
    trigger = None
    if "mask" in kept:
        mask, pattern = (torch.from_numpy(np.array(kept[name], dtype=np.float32)) for name in ("mask", "pattern"))
        trigger = Trigger(mask=mask, pattern=pattern, target=label)
    return Searched(norm=float(kept["norm"]), success=bool(kept["success"]), trigger=trigger)


class Searches:
    """The net and images of one scan: searches that go on where an earlier run stopped, and judging what they find."""

    def __init__(
        self,
        method: NeuralCleanse,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        *,
        seed: int,
        stand_in: Classifier | None = None,
        progress: Progress,
        work: Work,
        runner: Runner = SERIAL,
    ):
        self.classifier, self.seed, self.block = classifier, seed, method.block
        self.fit, self.held_out, self.progress, self.work, self.runner = fit, held_out, progress, work, runner
        self.twin = (
            stand_in
            or twin(classifier, fit[0], precision=method.precision, batch=shown_at_once(method.block)).classifier
        )
        self.passes = 0

    def invert(
        self,
        stage: str,
        labels: list[int],
        schedule: Schedule,
        *,
        restart: int = 0,
        keep_triggers: bool = True,
        by: Callable[..., object] = invert,
    ) -> dict[int, Searched]:
        """Each label's result; fewer than `labels` where time ran out.

        Args:
            restart: another start and other batches for each label, under another name of the stage.
            keep_triggers: False keeps norms alone on disk: the first pass's masks are of no further use.
            by: `invert`, or `invert_away` with the numbers of starts for labels.
        """
        stage = f"{stage}, start {restart + 1}" if restart else stage
        left = [label for label in labels if label not in self.work.done(stage)]
        count = counter(self.progress, stage, len(labels) * schedule.steps)
        count((len(labels) - len(left)) * schedule.steps)

        def step(moved: int) -> None:
            count(moved)
            self.work.check()

        with suppress(OutOfTime):
            by(
                self.twin,
                *self.fit,
                left,
                schedule,
                seed=self.seed + restart * _RESTART,
                block=self.block,
                on_steps=step,
                on_result=lambda result: self.work.add(stage, result.trigger.target, _kept(result, keep_triggers)),
                runner=self.runner,
            )
        done = self.work.done(stage)
        self.passes += sum(label in done for label in labels) * schedule.steps * schedule.batch
        return {label: _searched(label, done[label]) for label in labels if label in done}

    def rows(self, labels: Sequence[int], results: Mapping[int, Searched], status: str) -> list[LabelResult]:
        """One row a label; those searched whole with their ASR on the images of the search and on others."""
        whole = status == "searched"
        triggers = [result.trigger for result in results.values() if result.trigger is not None] if whole else []
        pixels = self.classifier.input.height * self.classifier.input.width
        held_out_asr = dict(zip(results, self._success("judging", triggers, self.held_out)))
        fit_asr = dict(zip(results, self._success("fit ASR", triggers, self.fit)))
        rows = []
        for label in labels:
            result = results.get(label)
            if result is None:
                rows.append(LabelResult(label=label, status="skipped"))
                continue
            rows.append(
                LabelResult(
                    label=label,
                    status=status if result.success else "failed",
                    mask_norm=result.norm if result.success else None,
                    mask_share=result.norm / pixels if result.success else None,
                    fit_asr=fit_asr.get(label),
                    held_out_asr=held_out_asr.get(label),
                )
            )
        return rows

    def _success(self, stage: str, triggers: Sequence[Trigger], images: tuple[Tensor, Tensor]) -> list[float | None]:
        self.passes += len(triggers) * len(images[0])
        count = counter(self.progress, stage, len(triggers))
        return success_rates(self.classifier, triggers, *images, block=self.block, on_done=count, runner=self.runner)


def scored(rows: list[LabelResult], reference: npt.NDArray[np.bool_]) -> list[LabelResult]:
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
