"""What detectors share: what they hand back, so that a scan reads them alike, and how they go over many labels.

Where there are too many labels to search each whole, a short first pass goes over all; then the candidates (the
smallest of that pass) are searched whole, with controls drawn at random, which show what an innocent label is like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from goodnet.progress import Progress
from goodnet.record import AllToAll, Decision, LabelResult
from goodnet.triggers.trigger import Trigger


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """What a detector found: one row a label, the triggers of the labels that were searched whole.

    `reference` are the labels that were searched whole to show what an innocent one is like; all, where all were.
    `all_to_all` with its trigger (whose target is NO_TARGET): where the detector looks for backdoors of that shape.
    """

    labels: tuple[LabelResult, ...]
    triggers: Mapping[int, Trigger]
    decision: Decision
    forward_passes: int
    reference: tuple[int, ...] = ()
    all_to_all: AllToAll | None = None
    all_to_all_trigger: Trigger | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A stage that is still to come: how many labels at most, and images through the net and back."""

    stage: str
    labels: int
    passes: int


def candidates_and_controls(
    sizes: npt.NDArray[np.float64], candidates: int, controls: int, *, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(K,) which labels to search whole, and which of them are controls.

    Args:
        sizes: (K,) of the first pass; inf for a label whose search failed there.
    """
    drawn = np.zeros(len(sizes), dtype=np.bool_)
    drawn[np.random.default_rng([seed, len(sizes)]).choice(len(sizes), controls, replace=False)] = True
    chosen = drawn.copy()
    chosen[np.argsort(sizes, kind="stable")[:candidates]] = True
    return chosen, drawn


def both_passes(searched: Sequence[LabelResult], first_pass: Sequence[LabelResult]) -> list[LabelResult]:
    """The searched rows and, for the other labels, the first pass's, which were scored among all labels.

    The first pass compares a label with all others, the search with the controls: either may show it, so a searched
    label's p-value is twice the smaller of both (Bonferroni for two, whatever their dependence).
    """
    first = {row.label: row for row in first_pass}
    rows = []
    for row in searched:
        early = first.pop(row.label)
        if row.status == "skipped":
            first[row.label] = early
            continue
        known = [p for p in (row.p_value, early.p_value) if p is not None]
        joined = min(1.0, 2 * min(known)) if known else None
        rows.append(replace(row, p_value=joined, screen_norm=early.mask_norm))
    # a first pass that found no mask says only that the label is not among the smallest
    left = [
        r
        if r.status == "skipped"
        else replace(r, status="screened", screen_norm=r.mask_norm, mask_norm=None, mask_share=None)
        for r in first.values()
    ]
    return rows + left


def counter(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """Adds up what threads have done and tells the user."""
    done, lock = 0, Lock()

    def count(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            progress(stage, done, total)

    return count
