"""What detectors share: what they hand back, so that a scan reads them alike, and how they go over many labels.

Where there are too many labels to search each whole, a short first pass goes over all; then the candidates (the
smallest of that pass) are searched whole, with controls drawn at random, which show what an innocent label is like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from threading import Lock
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress
from goodnet.record import AllToAll, Decision, LabelResult
from goodnet.triggers.trigger import Trigger
from goodnet.work import Work

STATUSES = ("searched", "screened", "failed", "skipped")
_PLAIN = (bool, int, float, str, tuple, type(None))


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


class OwnDetector(Protocol):
    """What `goodnet.scan.scan` takes as `method` beside goodnet's own.

    A dataclass whose fields, each with a default, are its hyperparameters (the record holds them), and whose call is
    the search. A clean verdict takes labels that were searched whole and a decision with a `threshold_norm`.

    Attributes:
        name: for the record and the report; not one of goodnet's own.
        tested: what a clean verdict speaks for, a line each; the report lists it.
        not_tested: its blind spots, a line each.
    """

    name: ClassVar[str]
    tested: ClassVar[tuple[str, ...]]
    not_tested: ClassVar[tuple[str, ...]]

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
        """Searches for a backdoor.

        Args:
            classifier: the net; not to be changed.
            fit: images (N, C, H, W) in [0, 1] and their classes (N,), to fit triggers on.
            held_out: the same, to measure ASR on, and for nothing else.
            seed: all randomness comes from it.
            labels: only these; None for all.
            progress: to be told how far it is.
            work: `check` raises OutOfTime once the user's time limit is over; the rows of labels that were not looked
                at are then `skipped`. What `add` is given comes back by `done` when a killed scan is started again.

        Returns:
            A row for each label of `labels`, and the trigger of each that has a mask norm.
        """
        ...


def check_own(method: OwnDetector, taken: Sequence[str]) -> None:
    """Raises UsageError where somebody's own detector lacks what a record needs, or has one of the names `taken`."""
    wanted = "expected a detector (a dataclass with defaults, name, tested, not_tested and a call)"
    if not is_dataclass(method) or isinstance(method, type):
        raise UsageError(f"method: {wanted}, got {method!r}")
    lacks = [name for name in ("name", "tested", "not_tested", "__call__") if not hasattr(method, name)]
    lacks += [f"a default of {f.name}" for f in fields(method) if f.default is MISSING and f.default_factory is MISSING]
    if lacks:
        raise UsageError(f"method: {wanted}, got {type(method).__name__} without {', '.join(lacks)}")
    if method.name in taken:
        raise UsageError(f"method: expected a name of its own, got {method.name!r}, which is one of goodnet's")


def check_found(detection: Detection, labels: Sequence[int], name: str) -> None:
    """Raises UsageError where a detector of somebody's own gives rows that a verdict must not be made from."""
    got = [row.label for row in detection.labels]
    if sorted(got) != sorted(set(labels)):
        raise UsageError(f"{name}: expected one row for each of {len(set(labels))} labels, got {len(got)}: {got[:10]}")
    for row in detection.labels:
        if row.status not in STATUSES:
            raise UsageError(f"{name}: label {row.label}: expected status {', '.join(STATUSES)}, got {row.status!r}")
        odd = [f.name for f in fields(row) if not isinstance(getattr(row, f.name), _PLAIN)]
        if odd:  # numpy's own numbers and booleans among them: the record is JSON
            raise UsageError(
                f"{name}: label {row.label}: expected Python's own numbers, got others in {', '.join(odd)}"
            )
        if row.status == "searched" and (row.mask_norm is None or row.label not in detection.triggers):
            raise UsageError(f"{name}: label {row.label}: expected a mask norm and a trigger, as it was searched")
    if detection.decision.threshold_norm is not None and not any(row.status == "searched" for row in detection.labels):
        raise UsageError(f"{name}: expected a label that was searched whole beside a threshold_norm, got none")


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
