"""MM-BD: a backdoor's target is the label that some input reaches by the largest margin.

Wang et al., "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a Maximum
Margin Statistic", IEEE S&P 2024. Idea: training on poison makes a net overly sure of its target, so for that label
some image in [0, 1] has a far larger margin over all other labels than for an innocent one, whatever the trigger looks
like, a patch, a blend or a warp; no clean image is needed to find it.
Cost: starts x steps images through the net and back, a label: a tenth of Neural Cleanse's search.
Blind spots: nets in which most labels are targets; attackers who train against overconfidence; it shows no trigger.

Deviations from the paper:
* the null is not a Gamma fitted to all labels but the largest, but a normal one for the cube roots (of a Gamma they are
  near normal: Wilson and Hilferty, PNAS 1931), with a scale that half of the labels cannot spoil, several targets among
  them;
* p-values are corrected for the number of labels, and the margin over the median's is asked as an effect;
* fewer starts and steps, see `triggers/margin.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from goodnet import stats
from goodnet.detection import Detection, counter
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.twin import PRECISIONS, twin
from goodnet.progress import Progress, silent
from goodnet.record import Decision, LabelResult
from goodnet.runners import SERIAL, Runner
from goodnet.triggers.blocks import shown_at_once
from goodnet.triggers.margin import MarginSchedule, margins
from goodnet.verdicts import flag
from goodnet.work import OutOfTime, Work

# How the cube roots of innocent labels' margins, over that of their median, scatter in a net of which nothing is known
# yet: measured on the pool's clean nets for setting (docs/design/decision.md).
SCALE_PRIOR = stats.ScalePrior(scale=0.075, df=6.0)
_STAGE = "margins"


@dataclass(frozen=True, kw_only=True)
class MaxMargin:
    """Hyperparameters; call it on a net.

    Attributes:
        climb: schedule of the ascent.
        false_alarm_rate: chance that a clean net's null alone flags some label (p-value times number of labels).
        min_margin_ratio: a flagged label's margin over the median is at least this.
        precision: `auto`, `float32` or `bfloat16` for the net in the ascent (`models/twin.py`).
        block: images a forward pass and thread (memory bound); None for what suits the device.
    """

    climb: MarginSchedule = MarginSchedule()
    false_alarm_rate: float = 0.01
    min_margin_ratio: float = 1.5
    precision: str = "auto"
    block: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate <= 1 or self.min_margin_ratio < 1:
            raise UsageError(
                "max-margin: expected false_alarm_rate in (0, 1] and min_margin_ratio >= 1, "
                f"got {self.false_alarm_rate} and {self.min_margin_ratio}"
            )
        if self.precision not in PRECISIONS or (self.block or 1) < 1:
            raise UsageError(
                f"max-margin: expected precision of {', '.join(PRECISIONS)} and block >= 1, "
                f"got {self.precision!r} and {self.block}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        *,
        seed: int,
        labels: Sequence[int] | None = None,
        stand_in: Classifier | None = None,
        progress: Progress = silent,
        work: Work | None = None,
        runner: Runner = SERIAL,
    ) -> Detection:
        """Scores every label. `fit` and `held_out` are not looked at but to compare the twin with the net.

        `stand_in` is the net's twin; made here by default.
        """
        wanted = list(range(classifier.classes)) if labels is None else sorted(set(labels))
        work = work or Work()
        stand_in = (
            stand_in or twin(classifier, fit[0], precision=self.precision, batch=shown_at_once(self.block)).classifier
        )
        found = self.climbed(stand_in, wanted, seed=seed, progress=progress, work=work, runner=runner)
        rows = scored([LabelResult(label=label, status="screened", margin=found[label]) if label in found else
                       LabelResult(label=label, status="skipped") for label in wanted])  # fmt: skip
        rows = [replace(row, p_value=row.margin_p_value) for row in rows]
        decision = Decision(
            false_alarm_rate=self.false_alarm_rate,
            compared=len(found),
            median_norm=None,
            mad=None,
            threshold_norm=None,
            min_margin_ratio=self.min_margin_ratio,
        )
        return Detection(
            labels=tuple(flag(rows, decision)),
            triggers={},
            decision=decision,
            forward_passes=len(found) * self.climb.passes,
        )

    def climbed(
        self,
        stand_in: Classifier,
        labels: Sequence[int],
        *,
        seed: int,
        restart: int = 0,
        progress: Progress = silent,
        work: Work,
        runner: Runner = SERIAL,
    ) -> dict[int, float]:
        """Each label's largest margin; fewer than `labels` where time ran out.

        Args:
            stand_in: the net's twin.
            restart: other random images to start from, for each label, under another name of the stage.
            work: what is done is taken from here and added to it.
            runner: who computes the blocks of labels.
        """
        stage = f"{_STAGE}, start {restart + 1}" if restart else _STAGE
        left = [label for label in labels if label not in work.done(stage)]
        tell = counter(progress, stage, len(labels) * self.climb.steps)
        tell((len(labels) - len(left)) * self.climb.steps)

        def step(moved: int) -> None:
            tell(moved)
            work.check()

        with suppress(OutOfTime):
            margins(
                stand_in,
                left,
                self.climb,
                seed=seed,
                restart=restart,
                block=self.block,
                on_steps=step,
                on_result=lambda label, margin: work.add(stage, label, {"margin": np.array(margin)}),
                runner=runner,
            )
        done = work.done(stage)
        return {label: float(done[label]["margin"]) for label in labels if label in done}


def scored(rows: Sequence[LabelResult]) -> list[LabelResult]:
    """The rows with their margins' ratio to the median, score and p-value, each label against all others."""
    roots, median = cube_roots(rows)
    tested = stats.small_side(-roots, np.isfinite(roots), prior=SCALE_PRIOR)

    def value(x: float) -> float | None:
        return float(x) if np.isfinite(x) else None

    return [
        row if row.margin is None else replace(
            row,
            margin_ratio=value(row.margin / median) if median > 0 else None,
            score=value(tested.t[i]),
            margin_p_value=value(tested.p[i]),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def cube_roots(rows: Sequence[LabelResult]) -> tuple[stats.Array, float]:
    """(K,) cube roots of the margins over their median, NaN where there is none; and the median itself."""
    values = np.array([np.nan if row.margin is None else row.margin for row in rows])
    known = values[np.isfinite(values)]
    median = float(np.median(known)) if len(known) else float("nan")
    # a label that no input reaches has a negative margin, and one that is never unusual
    return np.cbrt(values / median if median > 0 else np.full(len(values), np.nan)), median
