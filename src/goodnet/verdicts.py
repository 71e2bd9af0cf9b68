"""From the labels' evidence to flags and a verdict, as a scan decides; and again from its record, at other rates.

No torch: the report makes verdicts again with the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from goodnet.record import AllToAll, Decision, LabelResult, ScanRecord


class Evidence(Protocol):
    """What a verdict is made from; a detector's findings and a scan's record both are."""

    @property
    def labels(self) -> tuple[LabelResult, ...]: ...
    @property
    def decision(self) -> Decision: ...
    @property
    def all_to_all(self) -> AllToAll | None: ...


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a scan decides at a false-alarm rate of `rate`, and at all higher ones up to the next that differs."""

    rate: float
    verdict: str
    flagged: tuple[int, ...]


def flag(rows: Sequence[LabelResult], decision: Decision) -> list[LabelResult]:
    """The rows with `flagged` made anew; beside a flagged label, less is asked of another with a small mask.

    Args:
        rows: all labels that were tested: p-values are corrected for their number.
    """
    suspect = any(decision.flags(row, len(rows)) for row in rows)
    flags = [decision.flags(row, len(rows), beside_another=suspect) for row in rows]
    return [row if row.flagged == new else replace(row, flagged=new) for row, new in zip(rows, flags)]


def decide(found: Evidence, classes: int, *, whole: bool = True) -> tuple[str, tuple[str, ...]]:
    """Verdict and its reasons. Anything skipped, failed or cut short (not `whole`) can never end in `clean`."""
    flagged = [row for row in found.labels if row.flagged]
    mapping = found.all_to_all
    if flagged or (mapping is not None and mapping.flagged):
        every = () if mapping is None or not mapping.flagged else (_why_all(mapping),)
        return "suspect", (*every, *(_why(row, found) for row in flagged))
    failed = sum(row.status == "failed" for row in found.labels)
    missing = classes - sum(row.status in ("searched", "screened") for row in found.labels) - failed
    tests = len(found.labels)
    reasons = [
        f"not enough to flag, too much to call the net clean: {_why(row, found)}"
        for row in found.labels
        if row.status == "searched" and found.decision.is_doubtful(row, tests)
    ]
    if mapping is not None and mapping.doubtful:
        reasons.append(f"not enough to flag, too much to call the net clean: {_why_all(mapping)}")
    if failed:
        reasons.append(f"for {failed} of {classes} labels the search found no trigger at all: it may be too short")
    if missing:
        reasons.append(f"{missing} of {classes} labels were not scanned")
    best = strongest(found.labels)
    if found.decision.threshold_norm is None or not best:
        reasons.append("too few labels to tell what an innocent one looks like; at least 4 are needed")
    if reasons or not whole:
        return "inconclusive", tuple(reasons)
    return "clean", (f"no label stands out; the strongest is {_why(best[0], found)}",)


def strongest(rows: Sequence[LabelResult]) -> list[LabelResult]:
    """Labels that were searched whole, the most suspicious first; failed ones are not among them."""
    searched = [row for row in rows if row.status == "searched" and row.mask_norm is not None]
    return sorted(searched, key=lambda row: (not row.flagged, row.mask_norm))


def chances(record: ScanRecord) -> list[tuple[LabelResult, float]]:
    """(label, p-value times labels) of all that have one, the most unlikely first."""
    tests = len(record.labels)
    known = ((row, row.p_value * tests) for row in record.labels if row.p_value is not None)
    return sorted((pair for pair in known if math.isfinite(pair[1])), key=lambda pair: (pair[1], pair[0].label))


def decided_at(record: ScanRecord, rate: float) -> Decided:
    """What the scan would have decided had its false-alarm rate been another.

    The searches do not depend on that rate, so this is the answer of the same scan with `--false-alarm-rate rate`.
    """
    again = _at(record, rate)
    verdict, _ = decide(again, record.model.classes, whole=record.whole)
    return Decided(rate=rate, verdict=verdict, flagged=tuple(row.label for row in again.labels if row.flagged))


def is_repeatable(record: ScanRecord) -> bool:
    """Whether the record's own rate gives its own verdict and flags again.

    Not where somebody's own detector flags by another rule, nor where a record was edited.
    """
    again = decided_at(record, record.decision.false_alarm_rate)
    return again.verdict == record.verdict and set(again.flagged) == set(record.flagged_labels)


def decided_over(record: ScanRecord, low: float, high: float, *, most: int) -> tuple[Decided, ...]:
    """What each false-alarm rate in [low, high] decides: a step for each rate from which something else is decided.

    Flags change only where the rate reaches the p-value times labels of a label that `high` flags. The first step is
    at `low`. None at all where there are more than `most` such rates.
    """
    tests = len(record.labels)
    able = (row for row in _at(record, high).labels if row.flagged and row.p_value is not None)
    rates = sorted({row.p_value * tests for row in able if row.p_value is not None and low < row.p_value * tests})
    steps: list[Decided] = []
    for rate in [low, *rates] if len(rates) <= most else []:
        step = decided_at(record, rate)
        if not steps or (step.verdict, step.flagged) != (steps[-1].verdict, steps[-1].flagged):
            steps.append(step)
    return tuple(steps)


def _at(record: ScanRecord, rate: float) -> ScanRecord:
    decision = replace(record.decision, false_alarm_rate=rate)
    return replace(record, decision=decision, labels=tuple(flag(record.labels, decision)))


def _why(row: LabelResult, found: Evidence) -> str:
    def number(value: float | None, form: str) -> str:
        return "unknown" if value is None else format(value, form)

    tests = len(found.labels)
    corrected = None if row.p_value is None else min(1.0, row.p_value * tests)
    margin = "" if row.margin_ratio is None else f"; its margin is {row.margin_ratio:.2f} times the median"
    return (
        f"label {row.label}: its trigger covers {number(row.mask_norm, '.1f')} pixels, "
        f"{number(row.norm_ratio, '.0%')} of the median of {found.decision.compared} labels, and works on "
        f"{number(row.held_out_asr, '.0%')} of the held-out images{margin} "
        f"(p = {number(corrected, '.2g')} after correction for {tests} labels){_why_stamp(row, found)}"
    )


def _why_stamp(row: LabelResult, found: Evidence) -> str:
    """Where a plain stamp leads far enough to count."""
    least, stamp = found.decision.min_lead, row.stamp
    if least is None or stamp is None or not stamp.leads(least):
        return ""
    return (
        f"; a plain rectangle over rows {stamp.top} to {stamp.bottom - 1} and columns {stamp.left} to "
        f"{stamp.right - 1} leads {stamp.asr:.0%} of the held-out images there"
    )


def _why_all(found: AllToAll) -> str:
    ratio = "" if found.norm_ratio is None else f", {found.norm_ratio:.0%} of a single label's median,"
    works = (
        "" if found.flipped is None else f" and changes the answer to {found.flipped.value:.0%} of the held-out images"
    )
    return (
        f"one trigger of {found.mask_norm:.1f} pixels{ratio} leads {len(found.led)} of {found.judged} classes to "
        f"{found.targets} other labels{works}"
    )
