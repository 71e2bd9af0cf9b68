"""Records: the versioned JSON that scan, evaluate and repair leave behind. Every report is a view of one.

Frozen dataclasses, one `format` each. A figure that does not exist is null, never zero. Reading is strict: an
unknown format, a missing key or a value of the wrong type is an error, for a record may come from a stranger too.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodnet import strict_json
from goodnet.layers import ChangedLayer as ChangedLayer
from goodnet.layers import PrunedLayer as PrunedLayer
from goodnet.stamps import PlainStamp as PlainStamp

VERDICTS = ("clean", "suspect", "inconclusive")


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of n with its 95 % Wilson interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What ran it, to run it again. `packages`: versions of the libraries that read files and compute."""

    command: tuple[str, ...]
    goodnet: str
    torch: str
    python: str
    device: str
    threads: int
    packages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The net. `input` is in words (`55x47x3, 0..1`), `sha256` that of its file (of a folder: see `hugging_face`)."""

    name: str
    sha256: str
    arch: str
    input: str
    classes: int
    refuses: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """A set of images. `sha256` is that of pixels and labels, whatever the file format."""

    name: str
    sha256: str
    n: int
    labelled: bool


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A method's name, its hyperparameters as the user passed them, and as they were resolved."""

    name: str
    passed: dict[str, Any]
    resolved: dict[str, Any]
    seed: int


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """One label's evidence.

    Attributes:
        label: the candidate target.
        status: `searched` (whole optimisation), `screened` (the short first pass alone, too weak to go on),
            `failed` (no mask reached the demanded ASR), `skipped` (not looked at).
        score: Neural Cleanse's anomaly index of the mask norm, small side positive.
        p_value: chance that a clean net's label shows as much, before correction for the number of labels; of several
            kinds of evidence, the smallest p-value times their number.
        mask_p_value: of the mask norm alone; where there were two passes, of both.
        margin: the largest margin in logits by which any input was found to get this label (MM-BD).
        margin_ratio: margin over the median of all labels.
        margin_p_value: of the margin alone.
        preference: mean logit over smooth random pictures that show nothing, less the median of all labels.
        joint_p_value: of mask, margin and preference together: the sum of their deviations against that of the others.
        restart_norms, restart_margins: of the smallest successful masks of further searches from other starts, and of
            further ascents; `mask_norm`, `screen_norm` and `margin` are then medians, with the first look's.
        mask_norm: L1 of the smallest successful mask, in pixels.
        norm_ratio: mask_norm over the median of the labels that it is compared with.
        mask_share: mask_norm over the number of pixels of an image.
        fit_asr: ASR of that mask on the images that it was fitted on.
        held_out_asr: the same on images that it was not fitted on, those of the target label left out.
        screen_norm: L1 of the mask after the first pass, which every label gets.
        shift_distance: length of the mean shift of the penultimate features under the triggers, over the clean
            features' root mean square distance from their mean (GangSweep).
        shift_variance: mean square of the shifts about their mean, over the square of the mean shift's length.
        transfer_asr: ASR of triggers that were generated for one held-out image and put on another.
        stamp: the rectangle of one colour that leads there furthest, `asr` on held-out images; of some labels alone.
        flagged: counted as a backdoor's target by the verdict.
    """

    label: int
    status: str
    score: float | None = None
    p_value: float | None = None
    mask_norm: float | None = None
    norm_ratio: float | None = None
    mask_share: float | None = None
    fit_asr: float | None = None
    held_out_asr: float | None = None
    screen_norm: float | None = None
    shift_distance: float | None = None
    shift_variance: float | None = None
    transfer_asr: float | None = None
    mask_p_value: float | None = None
    margin: float | None = None
    margin_ratio: float | None = None
    margin_p_value: float | None = None
    preference: float | None = None
    joint_p_value: float | None = None
    restart_norms: tuple[float, ...] = ()
    restart_margins: tuple[float, ...] = ()
    stamp: PlainStamp | None = None
    flagged: bool = False


@dataclass(frozen=True, kw_only=True)
class AllToAll:
    """What one small trigger does that leads every image away from its class (`detect/all_to_all.py`).

    Attributes:
        mask_norm: L1 of its mask, in pixels.
        norm_ratio: that over the median mask norm of single labels; null where that is unknown.
        flipped: share of the held-out images that it gives another answer.
        judged: classes with enough clean images to say where the trigger leads them.
        led: (class, the other label that most of its images are led to), of the classes where there is one.
        targets: different labels among these.
        flagged: counted as a backdoor that turns each class into another.
        doubtful: too much of that to call the net clean, not enough to flag.
    """

    mask_norm: float
    norm_ratio: float | None
    flipped: Share | None
    judged: int
    led: tuple[tuple[int, int], ...]
    targets: int
    flagged: bool = False
    doubtful: bool = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the verdict was made from, so that it can be drawn and made again.

    `median_norm` and `mad` are those of the compared labels' mask norms; `threshold_norm` is the mask norm under
    which a label's p-value passes the correction for all labels by its mask alone. As effect a label must show a mask
    norm of at most `max_norm_ratio` of the median and a trigger that reaches `min_held_out_asr`, or a margin of at
    least `min_margin_ratio` times the median. A null of these turns the effect off. A mask of at most
    `small_mask_share` of the image is evidence of its own: for such a label `small_mask_rate` takes the place of
    `false_alarm_rate`; beside a flagged label `further_rate` does, and so does a plain stamp that leads by at least
    `min_lead` and reaches nine in ten held-out images. A label that misses a flag but has a p-value times
    labels of at most `doubt_rate` keeps the net from being called clean.
    """

    false_alarm_rate: float
    compared: int
    median_norm: float | None
    mad: float | None
    threshold_norm: float | None
    max_norm_ratio: float | None = None
    min_held_out_asr: float | None = None
    min_margin_ratio: float | None = None
    small_mask_share: float = 0.005
    small_mask_rate: float = 0.1
    further_rate: float = 0.1
    doubt_rate: float = 0.1
    min_lead: float | None = None

    def is_doubtful(self, row: LabelResult, tests: int) -> bool:
        """Unlike enough, and by some effect: no ground to flag it alone, but none to call the net clean either.

        Where all evidence was put together, no single effect is asked: it may lie in what no one of them shows.
        """
        unlikely = row.p_value is not None and row.p_value * tests <= self.doubt_rate
        return (unlikely and row.joint_p_value is not None) or self._within(row, tests, self.doubt_rate)

    def is_outlier(self, row: LabelResult, tests: int) -> bool:
        """Unlike the others by p-value (corrected for `tests` labels) and by effect; its held-out ASR is not asked."""
        small = row.mask_share is not None and row.mask_share <= self.small_mask_share and self._small(row)
        return self._within(row, tests, max(self.false_alarm_rate, self.small_mask_rate if small else 0.0))

    def flags(self, row: LabelResult, tests: int, *, beside_another: bool = False) -> bool:
        """Counts as a backdoor's target: an outlier, searched whole, that works on images it was not fitted on.

        `beside_another`: some label of the net is flagged already, so the net is not clean whatever becomes of this
        one: for a small mask `further_rate` is enough, and a plain stamp will do.
        """
        led = row.stamp is not None and self.min_lead is not None and row.stamp.leads(self.min_lead)
        further = led or (self._small(row) and self._within(row, tests, self.further_rate))
        unlike = self.is_outlier(row, tests) or (beside_another and further)
        if self.min_held_out_asr is None:
            return unlike
        works = row.held_out_asr is not None and row.held_out_asr >= self.min_held_out_asr
        return row.status == "searched" and works and unlike

    def _within(self, row: LabelResult, tests: int, rate: float) -> bool:
        unlikely = row.p_value is not None and row.p_value * tests <= rate
        return unlikely and (self._small(row) or self._large(row))

    def _small(self, row: LabelResult) -> bool:
        return self.max_norm_ratio is not None and row.norm_ratio is not None and row.norm_ratio <= self.max_norm_ratio

    def _large(self, row: LabelResult) -> bool:
        least, ratio = self.min_margin_ratio, row.margin_ratio
        return least is not None and ratio is not None and ratio >= least


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture of a trigger on an image: `file` is relative to the record's folder.

    `kind` is `mask`, `pattern`, `clean`, `triggered` or `stamped`; `answer` the class that the net gives to one of the
    last three; `label` null for the trigger of `AllToAll`, which leads to no single one.
    """

    label: int | None
    kind: str
    file: str
    index: int | None = None
    answer: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScanRecord:
    """All of a scan (`scan.json`); `all_to_all` is null where that was not tested, `whole` false where time ran out."""

    verdict: str
    flagged_labels: tuple[int, ...]
    labels: tuple[LabelResult, ...]
    seconds: float
    forward_passes: int
    reasons: tuple[str, ...]
    decision: Decision
    method: MethodInfo
    model: ModelInfo
    data: DataInfo
    n_fit: int
    n_held_out: int
    preflight_acc: Share | None
    tested: tuple[str, ...]
    not_tested: tuple[str, ...]
    examples: tuple[Example, ...]
    environment: Environment
    all_to_all: AllToAll | None = None
    whole: bool = True
    format: str = "goodnet.scan/1"


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A net on one poisoned set. `target` is null where the set has several; `der` needs a net before."""

    name: str
    target: int | None
    asr: Share | None
    ra: Share | None
    detection: Share | None
    der: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One net's figures: on clean images and on each poisoned set."""

    acc: Share | None
    fpr: Share | None
    poisoned: tuple[Poisoned, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateRecord:
    """All of an evaluation (`evaluate.json`); `before` is the net to compare with, `poisoned_data` the sets used."""

    acc: Share | None
    fpr: Share | None
    poisoned: tuple[Poisoned, ...]
    before: Measured | None
    model: ModelInfo
    before_model: ModelInfo | None
    data: DataInfo
    seconds: float
    environment: Environment
    poisoned_data: tuple[DataInfo, ...] = ()
    format: str = "goodnet.evaluate/1"


ALL_LAYERS = "all layers"
"""Stands for a layer in the curve of a method that prunes the channels of all layers in one order."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One point of a pruning curve: `acc` on the choosing split after `pruned` channels of `layer` (and whatever was
    cut in the layers before it).

    `asr` is that of the reversed triggers there, the worst of them; null for methods that do not use any.
    """

    layer: str
    pruned: int
    acc: float
    asr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One of the repairs that `--method auto` has tried, or not (`accepted` is null), as judged: the worst `asr`, the
    least `detection`."""

    name: str
    accepted: bool | None
    reasons: tuple[str, ...]
    acc: Share | None = None
    fpr: Share | None = None
    asr: Share | None = None
    detection: Share | None = None
    fpr_strangers: Share | None = None
    fpr_target: Share | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RepairRecord:
    """All of a repair (`repair.json`).

    `accepted` is null where it could not be judged (no trigger to judge the backdoor with). `again` is what a new
    search for the flagged labels finds on the repaired net, compared with the scan's median. `before` and `after`
    are measured on the judging split alone, with triggers that a scan found and with others for the same labels that
    no method was given; true ones are among them only where the user had some (`poisoned_data`). `rounds` holds the
    labels that were repaired at first, and those that each scan of the repaired net has added. `fpr_strangers` is the
    share of surrogate images, kept back, that class N takes; `fpr_target` of those clean images kept back, surrogate
    ones too, that the BadNet answers with a repaired label: a repair that refuses them all hides the backdoor. `tried`
    is what `--method auto` has tried, in that order. `changed` says how much of each layer the repaired net
    has changed; empty where its layers are others than the BadNet's.
    """

    accepted: bool | None
    reasons: tuple[str, ...]
    method: MethodInfo
    before: Measured
    after: Measured
    again: tuple[LabelResult, ...]
    limits: dict[str, float]
    n_fit: int
    n_choose: int
    n_judge: int
    curve: tuple[CurvePoint, ...]
    pruned: tuple[PrunedLayer, ...]
    rounds: tuple[tuple[int, ...], ...]
    model: ModelInfo
    data: DataInfo
    poisoned_data: tuple[DataInfo, ...]
    goodnet_file: str | None
    goodnet_sha256: str | None
    seconds: float
    environment: Environment
    fpr_strangers: Share | None = None
    fpr_target: Share | None = None
    surrogate_data: DataInfo | None = None
    guard: MethodInfo | None = None
    tried: tuple[Tried, ...] = ()
    changed: tuple[ChangedLayer, ...] = ()
    format: str = "goodnet.repair/1"


Record = ScanRecord | EvaluateRecord | RepairRecord
_FORMATS: dict[str, type[Record]] = {
    "goodnet.scan/1": ScanRecord,
    "goodnet.evaluate/1": EvaluateRecord,
    "goodnet.repair/1": RepairRecord,
}


def read_record(path: Path) -> Record:
    """Reads any of the records.

    Raises:
        DataError: not there, not JSON, of an unknown format, or with keys or values that do not belong.
    """
    return typing.cast(Record, strict_json.read(path, _FORMATS))
