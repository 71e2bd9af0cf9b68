"""GangSweep: a net is trained to make a trigger for each image and label; a backdoor's are small and carry over.

Zhu, Ning, Wang, Wang, Xie: "GangSweep: Sweep out Neural Backdoors by GAN", ACM Multimedia 2020. Its full text could not
be obtained. The paper's, from its abstract: a generator makes the perturbation masks that send images to a label; the
masks of a backdoor are persistent, with a low shifting variance and a large shifting distance in feature space; no
training data are needed to find them; and the net is purified by label correction and fine-tuning. All else here is
ours: the generator and its objective (`goodnet.triggers.generator`), one generator for all labels, and the decision.

Idea: a trigger that moves from image to image has no one mask, but a generator that looks at the image can paint it
where it belongs. An innocent label is reached too, by a small change made for that one image; put on another image the
change does nothing, where a backdoor's trigger still works.
Cost: turns x batch images a label through the generator, the net, and back; with many labels a short pass over all,
then a training for the candidates (smallest of the first pass) and for controls drawn at random.
Blind spots: triggers as large as an innocent label's change (whole-image blends, warps); nets where most labels are
targets; several triggers in one net, of which the weaker ones lie among innocent labels; triggers that work at one
place and only if they are nowhere else, to which no slope leads; one or two dozen images, too few for a generator that
carries over to others. On the competition's sunglasses net the target ranks first, but not far enough to be flagged:
so any unflagged label of at most `max_norm_ratio` makes a scan inconclusive, and few nets are called clean.

A label is flagged if all of this holds:
(a) it is an outlier on the small side by one of three: its mask norm (pixels, mean over held-out images); its mask norm
    over its transfer ASR (the trigger made for one held-out image, put on the next), small if the trigger is small and
    persists; its shift distance. Its p-value is three times the smallest of the three (Bonferroni), of logarithms, as
    Neural Cleanse's, and knows the number of labels (docs/design/decision.md);
(b) its mask norm is at most `max_norm_ratio` of the reference's median;
(c) its triggers work on held-out images.
Shift distance: length of the mean shift of the features that the last layer sees, in units of their spread over clean
images. The paper says that a backdoor's is large. Here it is small: a mask that is made as small as it can be takes the
features just over the border, and a short cut's border is near (docs/methods/gangsweep.md has the figures). Shift
variance, which the paper says is low, is recorded, but told targets from other labels on none of our nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goodnet import stats
from goodnet.detection import Detection, Planned, both_passes, candidates_and_controls, counter
from goodnet.errors import ModelError, UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.record import Decision, LabelResult
from goodnet.runners import in_threads
from goodnet.triggers.generator import GeneratedTriggers, GeneratorSchedule, train_generator
from goodnet.verdicts import flag

# How logarithms of innocent labels' norms (and sizes), and of shift distances, scatter in a net of which nothing is
# known yet: set by hand from clean nets of our own, whose scatter docs/methods/gangsweep.md gives.
SCALE_PRIOR = stats.ScalePrior(scale=0.5, df=7.0)
DISTANCE_PRIOR = stats.ScalePrior(scale=0.3, df=7.0)
# A trigger that carried over to none of n images is not infinitely large: half an image is what n images can tell.
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class GangSweep:
    """Hyperparameters; call it on a net.

    Attributes:
        search: schedule of the whole training.
        screen: schedule of the first pass over all labels.
        candidates: how many labels of the first pass, the smallest, are trained whole.
        controls: how many labels, drawn at random, are trained whole as the null.
        exhaustive: train for every label whole, however many there are.
        false_alarm_rate: chance that a clean net's null alone flags some label (p-value times number of labels).
        max_norm_ratio: a flagged label's mask norm over the reference's median is at most this.
        min_held_out_asr: a flagged label's triggers must reach this on images that the generator did not see.
    """

    search: GeneratorSchedule = GeneratorSchedule(turns=96)
    screen: GeneratorSchedule = GeneratorSchedule(turns=12, batch=6, even_steps=3, even_images=12)
    candidates: int = 32
    controls: int = 96
    exhaustive: bool = False
    false_alarm_rate: float = 0.01
    max_norm_ratio: float = 0.5
    min_held_out_asr: float = 0.6

    def __post_init__(self) -> None:
        for name in ("false_alarm_rate", "max_norm_ratio", "min_held_out_asr"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"gangsweep: expected {name} in (0, 1], got {getattr(self, name)}")
        if self.candidates < 1 or self.controls < 8:
            raise UsageError(
                f"gangsweep: expected candidates >= 1 and controls >= 8, got {self.candidates} and {self.controls}"
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
            fit: images (N, C, H, W) in [0, 1] and their classes (N,): the generator is trained on these.
            held_out: the same, disjoint: size, ASR, transfer and shifts are measured on these.
            labels: only these labels; all of the net's by default.
        """
        wanted = list(range(classifier.classes)) if labels is None else sorted(set(labels))
        run = _Run(classifier=classifier, fit=fit, held_out=held_out, seed=seed, progress=progress)
        screened: list[LabelResult] | None = None
        generated: GeneratedTriggers | None = None
        some, reference = wanted, np.ones(len(wanted), dtype=np.bool_)
        if self.two_passes(len(wanted)):
            generated = run.train("first pass", wanted, self.screen, None)
            screened = run.rows(generated, whole=False)
            sizes = np.nan_to_num(_norms(screened), nan=np.inf)
            chosen, drawn = candidates_and_controls(sizes, self.candidates, self.controls, seed=seed)
            some, reference = [label for label, c in zip(wanted, chosen) if c], drawn[chosen]
        generated = run.train("training", some, self.search, generated)
        rows = _scored(run.rows(generated, whole=True), reference)
        if screened is not None:
            rows = both_passes(rows, _scored(screened, np.ones(len(screened), dtype=np.bool_)))
        decision = self._decision(rows[: len(some)], reference, len(wanted), two_passes=screened is not None)
        return Detection(
            labels=tuple(sorted(flag(rows, decision), key=lambda row: row.label)),
            triggers={label: generated.trigger(label) for label in some},
            decision=decision,
            forward_passes=run.passes,
        )

    def plan(self, labels: int) -> tuple[Planned, ...]:
        """What a scan of so many labels will do."""

        def planned(stage: str, count: int, schedule: GeneratorSchedule) -> Planned:
            even = (schedule.even_steps + 1) * schedule.even_images
            return Planned(stage=stage, labels=count, passes=count * (schedule.turns * schedule.batch + even))

        if not self.two_passes(labels):
            return (planned("training", labels, self.search),)
        most = min(labels, self.candidates + self.controls)
        return planned("first pass", labels, self.screen), planned("training", most, self.search)

    def two_passes(self, labels: int) -> bool:
        """Whether a scan of so many labels starts with a short pass over all."""
        return not self.exhaustive and labels > self.candidates + self.controls

    def _decision(
        self, rows: list[LabelResult], reference: npt.NDArray[np.bool_], tests: int, *, two_passes: bool
    ) -> Decision:
        norms = _norms(rows)
        compared = norms[reference & np.isfinite(norms)]
        threshold = None
        if len(compared) >= 4:
            p_value = self.false_alarm_rate / tests / (6 if two_passes else 3)
            threshold = float(np.exp(stats.small_side_threshold(np.log(compared), p_value, prior=SCALE_PRIOR)))
        return Decision(
            false_alarm_rate=self.false_alarm_rate,
            compared=len(compared),
            median_norm=float(np.median(compared)) if len(compared) else None,
            mad=stats.mad(compared) if len(compared) else None,
            threshold_norm=threshold,
            max_norm_ratio=self.max_norm_ratio,
            min_held_out_asr=self.min_held_out_asr,
            # a generated mask is innocently tiny more often than a fixed one: no evidence of its own
            small_mask_share=0.0,
            small_mask_rate=0.0,
            further_rate=0.0,
            # it ranks known targets first without flagging them: no net is cleared in which a label is so small
            doubt_rate=float(tests),
        )


class _Run:
    """The net and the images of one scan, counting what goes through the net."""

    def __init__(
        self,
        *,
        classifier: Classifier,
        fit: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        seed: int,
        progress: Progress,
    ):
        self.classifier, self.fit, self.seed, self.progress = classifier, fit, seed, progress
        self.images, self.classes = held_out[0].to(classifier.device), held_out[1].to(classifier.device)
        self.passes = 0
        self.shifts = _Shifts.of(classifier, self.images)

    def train(
        self, stage: str, labels: list[int], schedule: GeneratorSchedule, start: GeneratedTriggers | None
    ) -> GeneratedTriggers:
        turns = len(labels) * schedule.turns
        self.passes += turns * schedule.batch
        count = counter(self.progress, stage, turns)
        return train_generator(
            self.classifier, *self.fit, labels, schedule, seed=self.seed, start=start, on_steps=count
        )

    def rows(self, generated: GeneratedTriggers, *, whole: bool) -> list[LabelResult]:
        """One row a label, measured on held-out images; of labels trained whole the shifts, too."""
        count = counter(self.progress, "judging", len(generated.labels))
        self.passes += len(generated.labels) * len(self.images) * (3 if whole else 2)

        def row(i: int) -> LabelResult:
            done = self._row(generated, i)
            count(1)
            return done

        rows = in_threads(row, range(len(generated.labels)))
        # one after the other: features are read by a hook, which would hear every thread's images
        return [self._shifted(generated, row) for row in rows] if whole else rows

    def _shifted(self, generated: GeneratedTriggers, row: LabelResult) -> LabelResult:
        if self.shifts is None or row.status == "failed":
            return row
        attacked = self.classes != row.label
        distance, variance = self.shifts.under(generated.apply(self.images[attacked], row.label), attacked)
        return replace(row, shift_distance=distance, shift_variance=variance)

    @torch.no_grad()
    def _row(self, generated: GeneratedTriggers, i: int) -> LabelResult:
        label, fit_asr = generated.labels[i], float(generated.fit_asr[i])
        attacked = self.classes != label
        x = self.images[attacked]
        if len(x) == 0 or fit_asr == 0:
            return LabelResult(label=label, status="failed", fit_asr=fit_asr)
        mask, pattern = generated.masks(x, label)
        norm = float(mask.sum((1, 2, 3)).mean())
        triggered = torch.lerp(x, pattern, mask.expand_as(x))
        moved = torch.lerp(x, pattern.roll(1, 0), mask.roll(1, 0).expand_as(x))
        asr = float((self.classifier.predict(triggered) == label).double().mean())
        # of one image there is no other to carry over to
        transfer = float((self.classifier.predict(moved) == label).double().mean()) if len(x) > 1 else None
        return LabelResult(
            label=label,
            status="searched" if asr > 0 else "failed",
            mask_norm=norm,
            mask_share=norm / mask[0].numel(),
            fit_asr=fit_asr,
            held_out_asr=asr,
            transfer_asr=None if transfer is None else max(transfer, _HALF / len(x)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shifts:
    """How triggers move the features that the last layer sees."""

    classifier: Classifier
    layer: str
    clean: Tensor
    scale: float

    @classmethod
    def of(cls, classifier: Classifier, images: Tensor) -> _Shifts | None:
        """None for a net whose last layer is not linear: it has no such features."""
        try:
            layer = surgery.output_layer(classifier)
        except ModelError:
            return None
        clean = surgery.features(classifier, layer, images)
        scale = float((clean - clean.mean(0)).square().sum(1).mean().sqrt())
        return cls(classifier=classifier, layer=layer, clean=clean, scale=scale)

    def under(self, triggered: Tensor, attacked: Tensor) -> tuple[float | None, float | None]:
        """(shift distance, shift variance) of the images at `attacked`; None where they are not defined."""
        shifts = surgery.features(self.classifier, self.layer, triggered) - self.clean[attacked.cpu()]
        mean = shifts.mean(0)
        length = float(mean.norm())
        if self.scale == 0 or length == 0:
            return None, None
        return length / self.scale, float((shifts - mean).square().sum(1).mean()) / length**2


def _norms(rows: Sequence[LabelResult]) -> npt.NDArray[np.float64]:
    """(K,) mask norms; NaN where the training failed."""
    return np.array([row.mask_norm if row.mask_norm and row.status != "failed" else np.nan for row in rows])


def _sizes(rows: Sequence[LabelResult]) -> npt.NDArray[np.float64]:
    """(K,) mask norm over transfer ASR; NaN where the training failed or there is no transfer."""
    sizes: npt.NDArray[np.float64] = _norms(rows) / np.array([row.transfer_asr or np.nan for row in rows])
    return sizes


def _distances(rows: Sequence[LabelResult]) -> npt.NDArray[np.float64]:
    """(K,) shift distances; NaN where there is none."""
    return np.array([row.shift_distance or np.nan for row in rows])


def _scored(rows: list[LabelResult], reference: npt.NDArray[np.bool_]) -> list[LabelResult]:
    """Rows with anomaly index, p-value and norm ratio, compared with the reference rows."""
    norms = _norms(rows)
    used = norms[reference & np.isfinite(norms)]
    if len(used) == 0:
        return rows
    index, ratios = stats.anomaly_index(norms, used), norms / np.median(used)
    evidence = ((norms, SCALE_PRIOR), (_sizes(rows), SCALE_PRIOR), (_distances(rows), DISTANCE_PRIOR))
    p_values = [stats.small_side_p_values(np.log(values), reference, prior=prior) for values, prior in evidence]
    joined = np.minimum(1.0, len(evidence) * np.fmin.reduce(p_values))

    def value(x: np.float64) -> float | None:
        return float(x) if np.isfinite(x) else None

    return [
        replace(row, score=value(index[i]), p_value=value(joined[i]), norm_ratio=value(ratios[i]))
        for i, row in enumerate(rows)
    ]
