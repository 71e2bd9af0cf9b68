"""Which labels plain stamps lead to: one look at all of them, as a stage of the staged scan.

Idea: `goodnet.triggers.plain`, ours. Cost: some ten thousand stamps on a few images each, forwards alone, however many
labels there are.
Blind spots: triggers of many colours, and those without a place. A stamp says nothing by itself: in nets without a
backdoor, too, there are labels that a large patch of a colour which no image has leads to (the cyan bar of
`clean_weights` by 0.95 heights). So it chooses labels to be searched whole, and decides only beside a flagged label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from torch import Tensor

from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.stamps import PlainStamp
from goodnet.triggers.inversion import success_rates
from goodnet.triggers.plain import PlainSchedule, plain_stamps, stamp_trigger
from goodnet.work import OutOfTime, Work

STAGE = "plain stamps"


def find(
    classifier: Classifier,
    fit: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    schedule: PlainSchedule,
    stand_in: Classifier,
    labels: Sequence[int],
    seed: int,
    progress: Progress = silent,
    work: Work | None = None,
    *,
    block: int | None = None,
) -> tuple[list[PlainStamp], int]:
    """The labels' stamps, the one that leads furthest first, none where time runs out; and how many images it took,
    counted as going forwards and back like all others, of which one forwards is a third.

    Args:
        fit: images (N, C, H, W) in [0, 1] and classes (N,) to search on; held_out: the same, for the stamps' `asr`.
        stand_in: the net's twin, which is searched.
        labels: only these.
        block: images at a time, as of `NeuralCleanse`.
    """
    total = schedule.passes(classifier.input.shape)
    work, lock, taken = work or Work(), Lock(), 0

    def moved(images: int) -> None:
        nonlocal taken
        work.check()
        with lock:
            taken += images
            progress(STAGE, min(taken, total), total)

    try:
        found = plain_stamps(stand_in, *fit, schedule, labels=labels, seed=seed, block=block, on_images=moved)
    except OutOfTime:
        return [], taken // 3
    progress(STAGE, total, total)
    triggers = [stamp_trigger(stamp, classifier.input.shape) for stamp in found]
    rates = success_rates(classifier, triggers, *held_out, block=block)
    known = [stamp if rate is None else replace(stamp, asr=rate) for stamp, rate in zip(found, rates)]
    return known, taken // 3
