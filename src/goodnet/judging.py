"""What a GoodNet is judged by: limits, triggers that no method was fitted on, and a new search on the repaired net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.data.images import Images
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.record import LabelResult, Measured
from goodnet.triggers.inversion import Schedule, invert, success_rates
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Labelled

# As for a scan's flag: half the median, and most images that it was not fitted on.
_STILL_SMALL, _STILL_WORKS = 0.5, 0.6
# Searches of their own, so that no judge's start is a method's; a scan's is the seed itself.
_JUDGE, _AGAIN = 101, 102


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a GoodNet must keep to, on the judging split, to be accepted. All are shares.

    Attributes:
        max_accuracy_drop: ACC may fall by at most this; what class N takes from clean images counts as fallen.
        max_asr: each trigger may still reach its target on at most this share.
        min_detection: and must be sent to class N at least this often.
    """

    max_accuracy_drop: float = 0.05
    max_asr: float = 0.10
    min_detection: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected a share from 0 to 1, got {value}")


def held_out_triggers(
    bad: Classifier, labels: Sequence[int], fit: Labelled, schedule: Schedule, *, seed: int
) -> list[Trigger]:
    """Triggers of the BadNet from a search of its own, to judge a repair by: no method is given them."""
    if not labels:
        return []
    return [result.trigger for result in invert(bad, *fit, labels, schedule, seed=seed + _JUDGE)]


def search_again(
    repaired: Classifier,
    labels: Sequence[int],
    schedule: Schedule,
    median_norm: float | None,
    fit: Labelled,
    judge: Labelled,
    *,
    seed: int,
) -> tuple[LabelResult, ...]:
    """Inverts the flagged labels on the repaired net: what a trigger costs now, over the median of innocent labels.

    Of a net with a class N of its own, the trigger has to get past that too.
    """
    if not labels or median_norm is None:
        return ()
    results = invert(repaired, *fit, labels, schedule, seed=seed + _AGAIN)
    rates = success_rates(repaired, [result.trigger for result in results], *judge)
    return tuple(
        LabelResult(
            label=label,
            status="searched" if result.success else "failed",
            mask_norm=result.trigger.norm if result.success else None,
            norm_ratio=result.trigger.norm / median_norm if result.success else None,
            held_out_asr=rate,
        )
        for label, result, rate in zip(labels, results, rates)
    )


def triggered(trigger: Trigger, judge: Images, classes: Tensor, *, name: str) -> Images:
    """The judging images that are not of the target, with the trigger on them, twice as strong as it was found."""
    attacked = (classes != trigger.target).numpy()
    pixels = trigger.strengthened().apply(judge.take(attacked).tensor()).contiguous().numpy()
    targets = torch.full((len(pixels),), trigger.target, dtype=torch.int64).numpy()
    return Images(pixels=pixels, labels=targets, true_labels=classes.numpy()[attacked], name=name)


def judge_repair(
    before: Measured, after: Measured, again: Sequence[LabelResult], limits: Limits
) -> tuple[bool | None, tuple[str, ...]]:
    """Whether the limits are kept, with a reason for each that is not; None where nothing shows the backdoor."""
    reasons = []
    if before.acc is not None and after.acc is not None:
        drop = before.acc.value - after.acc.value
        if drop > limits.max_accuracy_drop + 1e-9:
            reasons.append(
                f"ACC falls from {before.acc.value:.1%} to {after.acc.value:.1%}, by more than "
                f"{limits.max_accuracy_drop:.1%} (--max-accuracy-drop)"
            )
    for figures in after.poisoned:
        if figures.asr is not None and figures.asr.value > limits.max_asr:
            reasons.append(
                f"{figures.name}: ASR is still {figures.asr.value:.1%}, over {limits.max_asr:.1%} (--max-asr)"
            )
        if figures.detection is not None and figures.detection.value < limits.min_detection:
            reasons.append(
                f"{figures.name}: only {figures.detection.value:.1%} are sent to class N, under "
                f"{limits.min_detection:.1%} (--min-detection)"
            )
    reasons += [
        f"label {row.label}: a new search on the repaired net finds a trigger of {row.mask_norm:.0f} pixels, "
        f"{row.norm_ratio:.0%} of what an innocent label needs: the backdoor is still there"
        for row in again
        if _is_still_there(row)
    ]
    if reasons:
        return False, tuple(reasons)
    unknown = []
    if after.acc is None:
        unknown.append("ACC was not judged: the clean images have no labels")
    if not after.poisoned:
        unknown.append(
            "the backdoor was not judged: no trigger was given (--scan with a scan that flags a label, --triggers, or "
            "--poisoned)"
        )
    if unknown:
        return None, tuple(unknown)
    return True, (
        "all limits are kept on the judging split, with the triggers that were found; the attacker's own may differ, "
        "so evaluate on triggered images where there are any",
    )


def _is_still_there(row: LabelResult) -> bool:
    small = row.norm_ratio is not None and row.norm_ratio <= _STILL_SMALL
    return small and row.held_out_asr is not None and row.held_out_asr >= _STILL_WORKS
