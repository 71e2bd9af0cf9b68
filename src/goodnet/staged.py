"""The staged scan: every label gets a cheap look, the strongest a long one, and what stands out is looked at again.

1. margins: how far some input can be pushed towards each label (MM-BD, `detect/max_margin.py`), and which labels the
   net prefers where there is nothing to see (`detect/preference.py`); needs no image, and sees backdoors whose trigger
   is no small patch;
2. plain stamps, above 80 labels: where rectangles of one colour lead (`detect/plain_stamps.py`), all labels at once;
3. masks: Neural Cleanse (`detect/neural_cleanse.py`): above 80 labels a short first pass over all, then the whole
   search for the smallest masks, the largest margins, the labels that stamps lead furthest to, and controls drawn at
   random;
4. all to all: the smallest trigger that leads every image away from its class (`detect/all_to_all.py`), for a backdoor
   whose targets are all labels, so that none stands out;
5. again: labels that stand out are searched from further starts, and the medians of their margins and masks count: a
   small mask by luck is not found twice, and a search that got stuck does not hide a backdoor.

No single evidence decides. Each label has a p-value of mask, margin and preference together (the sum of their
deviations against the other labels' sums, whatever their correlation), and one of its mask alone, for a backdoor may
be a short cut and yet be neither overconfident nor preferred. The label's is the smaller of the two, corrected for
both: four fifths of the false-alarm rate go to the former. A label of which the clean images have many is one that the
net was probably trained on often: such labels have larger margins and smaller masks in clean nets, too, so what their
frequency explains is taken out of the sum. A plain stamp is no ground to flag a net: clean ones have labels that a
large patch of a colour that no face has leads to. Beside a flagged label it is one. docs/design/decision.md has the
measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goodnet import stats
from goodnet.detect import max_margin, neural_cleanse, plain_stamps
from goodnet.detect.all_to_all import STAGE, Away
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse, Searches
from goodnet.detect.preference import preferences
from goodnet.detection import Detection, Planned
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.twin import twin
from goodnet.progress import Progress, silent
from goodnet.record import Decision, LabelResult
from goodnet.runners import SERIAL, Runner
from goodnet.stamps import PlainStamp
from goodnet.triggers.blocks import shown_at_once
from goodnet.triggers.plain import PlainSchedule
from goodnet.triggers.trigger import Trigger
from goodnet.verdicts import flag
from goodnet.work import Work

# Of the sum of three deviations of scale 1, correlated as innocent labels' are (docs/design/decision.md).
_JOINT_PRIOR = stats.ScalePrior(scale=2.2, df=6.0)
# Shares of the false-alarm rate (weighted Bonferroni): all evidence together, the mask alone.
_JOINT_SHARE, _MASK_SHARE = 0.8, 0.2
# Images that a label is taken to have more than it has, and labels' worth of doubt that frequency explains anything.
_COUNT_PRIOR, _SLOPE_PRIOR = 2.0, 10.0
_LEAST_NORM = 1e-3


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Hyperparameters; call it on a net.

    Attributes:
        margins: the first look at every label.
        masks: the search for small masks, with its limits for effect and success.
        away: the search for a trigger that turns each class into another.
        plain: the survey of plain stamps, where not all labels are searched whole.
        margin_candidates, stamp_candidates: how many of the largest margins are searched whole, and of the labels that
            plain stamps lead furthest to.
        min_lead: beside a flagged label, another is flagged for a plain stamp that leads by so many heights. Innocent
            labels of the competition's four nets came to 0.95, the third target of the one with three to 1.45.
        restarts: further starts of every search, for margin and masks, for a label that stands out.
        confirmed: at most so many labels are searched from further starts, the least likely first.
        doubt_rate: a label whose p-value times labels is at most this keeps the net from being called clean.
    """

    margins: MaxMargin = MaxMargin()
    masks: NeuralCleanse = NeuralCleanse(candidates=16, controls=64)
    away: Away = Away()
    plain: PlainSchedule = PlainSchedule()
    margin_candidates: int = 16
    stamp_candidates: int = 8
    min_lead: float = 1.2
    restarts: int = 2
    confirmed: int = 8
    doubt_rate: float = 0.25

    def __post_init__(self) -> None:
        if min(self.margin_candidates, self.stamp_candidates, self.restarts, self.confirmed) < 0:
            raise UsageError(
                "staged: expected margin_candidates, stamp_candidates, restarts and confirmed >= 0, "
                f"got {self.margin_candidates}, {self.stamp_candidates}, {self.restarts} and {self.confirmed}"
            )
        if not self.min_lead > 0:
            raise UsageError(f"staged: expected min_lead > 0, got {self.min_lead}")
        if not 0 < self.doubt_rate <= 1:
            raise UsageError(f"staged: expected doubt_rate in (0, 1], got {self.doubt_rate}")

    def __call__(
        self,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        *,
        seed: int,
        labels: Sequence[int] | None = None,
        progress: Progress = silent,
        work: Work | None = None,
        runner: Runner = SERIAL,
    ) -> Detection:
        """Scores every label; arguments as of `NeuralCleanse`."""
        wanted = list(range(classifier.classes)) if labels is None else sorted(set(labels))
        work = work or Work()
        searches = Searches(
            self.masks, classifier, fit, held_out, seed=seed, progress=progress, work=work, runner=runner
        )
        early = self.margins(
            classifier, fit, held_out, seed=seed, labels=wanted, stand_in=self._climbs(searches.twin),
            progress=progress, work=work, runner=runner,
        )  # fmt: skip
        two_passes = self.masks.two_passes(len(wanted))
        look = partial(plain_stamps.find, classifier, fit, held_out, self.plain, block=self.masks.block)
        stamps, tried = look(searches.twin, wanted, seed, progress, work) if two_passes else ([], 0)
        late = self.masks(
            classifier, fit, held_out, seed=seed, labels=wanted, stand_in=searches.twin,
            also=self._also(early.labels, stamps), progress=progress, work=work, runner=runner,
        )  # fmt: skip
        preferred = preferences(classifier, seed=seed, batch=shown_at_once(self.masks.block))
        rows = _all_looks(late.labels, early.labels, preferred, stamps)
        reference = np.isin(wanted, late.reference)
        often = frequency(wanted, torch.cat([fit[1], held_out[1]]))
        rows = joined(rows, reference, often, two_passes=two_passes)
        decision = self._decision(rows, reference, two_passes=two_passes)
        whole = len(wanted) == classifier.classes
        mapping, trigger = (self.away(searches, decision.median_norm) if whole else None) or (None, None)
        again = self._confirm(rows, decision, searches, two_passes=two_passes)
        rows = _with_margins([again.rows.get(row.label, row) for row in rows], set(again.rows))
        rows = joined(rows, reference, often, two_passes=two_passes, only=set(again.rows))
        return Detection(
            labels=tuple(flag(rows, decision)),
            triggers={**late.triggers, **again.triggers},
            decision=decision,
            forward_passes=early.forward_passes + tried + late.forward_passes + searches.passes + again.passes,
            reference=late.reference,
            all_to_all=mapping,
            all_to_all_trigger=trigger,
        )

    def _also(self, rows: Sequence[LabelResult], stamps: Sequence[PlainStamp]) -> list[int]:
        """Labels to search whole beside the smallest masks and the controls."""
        by_margin = sorted((row for row in rows if row.margin is not None), key=lambda row: -(row.margin or 0))
        led = [stamp.label for stamp in stamps[: self.stamp_candidates]]
        return [*(row.label for row in by_margin[: self.margin_candidates]), *led]

    def plan(self, labels: int, shape: tuple[int, int, int], *, whole: bool = True) -> tuple[Planned, ...]:
        """What a scan of so many labels of a net for images (C, H, W) will do; `whole`: these are all of the net's."""
        *before, search = self.masks.plan(labels)
        each = self.masks.search.steps * self.masks.search.batch
        most = min(labels, search.labels + self.margin_candidates + (self.stamp_candidates if before else 0))
        again = min(labels, self.confirmed)
        each_again = each + self.margins.climb.passes + (before[0].passes // labels if before else 0)
        stamps = self.plain.passes(shape) // 3  # its images go forwards alone
        return (
            Planned(stage="margins", labels=labels, passes=labels * self.margins.climb.passes),
            *([Planned(stage=plain_stamps.STAGE, labels=labels, passes=stamps)] if before else []),
            *before,
            Planned(stage="search", labels=most, passes=most * each),
            *([Planned(stage=STAGE, labels=labels, passes=self.away.passes)] if whole else []),
            Planned(stage="search again", labels=again, passes=again * self.restarts * each_again),
        )

    def _climbs(self, stand_in: Classifier) -> Classifier | None:
        """The masks' twin, if it is the margins', too."""
        return stand_in if self.margins.precision == self.masks.precision else None

    def _decision(self, rows: Sequence[LabelResult], reference: npt.NDArray[np.bool_], *, two_passes: bool) -> Decision:
        looks = (2 if two_passes else 1) / _MASK_SHARE
        made = self.masks.decision(rows, reference, len(rows), looks=looks)
        least = self.min_lead if two_passes else None
        return replace(made, min_margin_ratio=self.margins.min_margin_ratio, doubt_rate=self.doubt_rate, min_lead=least)

    def _confirm(
        self, rows: Sequence[LabelResult], decision: Decision, searches: Searches, *, two_passes: bool
    ) -> _Again:
        """Looks at the labels that stand out from further starts, in every way that the first look had."""
        unlikely = [r for r in rows if r.status == "searched" and decision.is_doubtful(r, len(rows))]
        some = sorted(unlikely, key=lambda row: row.p_value or 0.0)[: self.confirmed]
        labels = sorted(row.label for row in some)
        if not labels:
            return _Again(rows={}, triggers={}, passes=0)
        starts = [self._start(searches, labels, restart, two_passes) for restart in range(1, self.restarts + 1)]
        new, triggers = {}, {}
        for row in some:
            mine = [start.rows[row.label] for start in starts]
            new[row.label] = _median_row(row, mine)
            best = min((r for r in mine if r.mask_norm is not None), key=lambda r: r.mask_norm or 0.0, default=None)
            if best is not None and row.mask_norm is not None and (best.mask_norm or 0.0) < row.mask_norm:
                triggers[row.label] = starts[mine.index(best)].triggers[row.label]
        return _Again(rows=new, triggers=triggers, passes=sum(start.passes for start in starts))

    def _start(self, searches: Searches, labels: list[int], restart: int, two_passes: bool) -> _Again:
        """Margin, first pass and search of each label from another start; `skipped` where time ran out."""
        precision = self.margins.precision
        climbed = self.margins.climbed(
            self._climbs(searches.twin) or twin(searches.classifier, searches.fit[0], precision=precision).classifier,
            labels,
            seed=searches.seed,
            restart=restart,
            progress=searches.progress,
            work=searches.work,
            runner=searches.runner,
        )
        first: dict[int, LabelResult] = {}
        if two_passes:
            screened = searches.invert("first pass", labels, self.masks.screen, restart=restart, keep_triggers=False)
            first = {row.label: row for row in searches.rows(labels, screened, "screened")}
        results = searches.invert("search", labels, self.masks.search, restart=restart)
        rows = {
            row.label: replace(
                row,
                margin=climbed.get(row.label),
                screen_norm=first[row.label].mask_norm if row.label in first else None,
            )
            for row in searches.rows(labels, results, "searched")
        }
        triggers = {label: result.trigger for label, result in results.items() if result.trigger is not None}
        return _Again(rows=rows, triggers=triggers, passes=len(climbed) * self.margins.climb.passes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Again:
    """What further starts have found: rows and triggers by label, and how many images the margins' ascents took."""

    rows: dict[int, LabelResult]
    triggers: dict[int, Trigger]
    passes: int


def _all_looks(
    masks: Sequence[LabelResult],
    margins: Sequence[LabelResult],
    preferred: stats.Array,
    stamps: Sequence[PlainStamp],
) -> list[LabelResult]:
    """The rows of the masks with the margins' figures, each label's preference (K,) over the median one, its stamp."""
    preferred = preferred - np.median(preferred)
    led = {stamp.label: stamp for stamp in stamps}
    return [
        replace(
            row,
            margin=first.margin,
            margin_ratio=first.margin_ratio,
            margin_p_value=first.margin_p_value,
            preference=float(preferred[row.label]),
            stamp=led.get(row.label),
        )
        for row, first in zip(masks, margins)
    ]


def _median_row(row: LabelResult, starts: Sequence[LabelResult]) -> LabelResult:
    """The row with the median of all starts' masks, one that found none counting as the largest, and of all margins.

    ASR is that of the smallest mask, which is the trigger that is shown.
    """
    all_starts = [row, *(start for start in starts if start.status != "skipped")]
    norm = _median([start.mask_norm for start in all_starts])
    known = [start for start in all_starts if start.mask_norm is not None]
    best = min(known, key=lambda start: start.mask_norm or 0.0, default=row)
    margins = [start.margin for start in starts if start.margin is not None]
    return replace(
        row,
        status=row.status if norm is not None else "failed",
        mask_norm=norm,
        mask_share=_scaled(row.mask_share, norm, row.mask_norm),
        norm_ratio=_scaled(row.norm_ratio, norm, row.mask_norm),
        fit_asr=best.fit_asr,
        held_out_asr=best.held_out_asr,
        restart_norms=tuple(start.mask_norm for start in starts if start.mask_norm is not None),
        screen_norm=None if row.screen_norm is None else _median([start.screen_norm for start in all_starts]),
        margin=None if row.margin is None else _median([row.margin, *margins]),
        restart_margins=tuple(margins),
    )


def _median(values: Sequence[float | None]) -> float | None:
    """The median, what is missing being larger than all; None where that is missing."""
    middle = float(np.median([math.inf if value is None else value for value in values]))
    return middle if math.isfinite(middle) else None


def _with_margins(rows: Sequence[LabelResult], only: set[int]) -> list[LabelResult]:
    """The rows; ratio and p-value of these labels' margins are made anew."""
    return [
        replace(row, margin_ratio=new.margin_ratio, margin_p_value=new.margin_p_value) if row.label in only else row
        for row, new in zip(rows, max_margin.scored(rows))
    ]


def _scaled(value: float | None, norm: float | None, before: float | None) -> float | None:
    """What belongs to a mask of `before`, for one of `norm`."""
    if value is None or norm is None or before is None:
        return None
    return value * norm / before if before > 0 else value


def joined(
    rows: Sequence[LabelResult],
    reference: npt.NDArray[np.bool_],
    often: stats.Array,
    *,
    two_passes: bool,
    only: set[int] | None = None,
) -> list[LabelResult]:
    """The rows with the p-value of all evidence together, and the label's p-value from all its evidence.

    Args:
        rows: all labels of the scan, with margins and masks.
        reference: (K,) the labels that show what an innocent one's search finds.
        often: (K,) of `frequency`.
        two_passes: there was a first pass, whose masks all labels have.
        only: give new p-values, those of the masks too, to these labels alone.
    """
    everyone = np.ones(len(rows), dtype=np.bool_)
    late = _norms(row.mask_norm for row in rows)
    first = _norms(row.screen_norm for row in rows) if two_passes else None
    roots, _ = max_margin.cube_roots(rows)
    margin = stats.small_side(-roots, np.isfinite(roots), prior=max_margin.SCALE_PRIOR).t
    preferred = np.array([np.nan if row.preference is None else row.preference for row in rows])
    preference = stats.small_side(-preferred, np.isfinite(preferred)).t
    looks = [(late, reference)] if first is None else [(late, reference), (first, everyone)]
    masks = [stats.small_side(np.log(v), r, prior=neural_cleanse.SCALE_PRIOR) for v, r in looks]
    sums = [_unexplained(look.t + margin + preference, often) for look in masks]
    both = [stats.small_side(-total, r, prior=_JOINT_PRIOR) for total, (_, r) in zip(sums, looks)]
    result = []
    for i, row in enumerate(rows):
        if only is not None and row.label not in only:
            result.append(row)
            continue
        mask_p, joint_p = (_smallest([look.p[i] for look in kind]) for kind in (masks, both))
        weighted = [(mask_p, _MASK_SHARE), (joint_p, _JOINT_SHARE)]
        known = [p / share for p, share in weighted if p is not None]
        p = min(1.0, *known) if known else row.margin_p_value  # no mask at all: the margin is all there is
        result.append(replace(row, mask_p_value=mask_p, joint_p_value=joint_p, p_value=p))
    return result


def _norms(values: Iterable[float | None]) -> stats.Array:
    """(K,) NaN where there is none; a mask of no size at all, of a label that needs no trigger, is a tiny one."""
    return np.array([np.nan if value is None else max(value, _LEAST_NORM) for value in values])


def _smallest(p_values: Sequence[float]) -> float | None:
    """Of several looks at a label: the smallest p-value times their number, those that there are."""
    known = [p for p in p_values if np.isfinite(p)]
    return min(1.0, len(known) * float(min(known))) if known else None


def frequency(labels: Sequence[int], classes: Tensor) -> stats.Array:
    """(K,) log of how often each label is among the clean images' classes (N,), over what is usual."""
    counts = np.bincount(classes.cpu().numpy(), minlength=max(labels) + 1)[list(labels)]
    logs: stats.Array = np.log(counts + _COUNT_PRIOR)
    return logs - float(np.median(logs))


def _unexplained(sums: stats.Array, often: stats.Array) -> stats.Array:
    """The sums (K,) without what a straight line through the labels' frequencies explains of the bulk of them."""
    known = np.isfinite(sums)
    if known.sum() < 4:
        return sums
    centred = sums - np.median(sums[known])
    bulk = known & (np.abs(centred) <= 3 * stats.qn_scale(centred[known]))
    slope = float(often[bulk] @ centred[bulk]) / (float(often[bulk] @ often[bulk]) + _SLOPE_PRIOR)
    return sums - slope * often
