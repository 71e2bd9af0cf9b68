"""A repair from BadNet to GoodNet: method, guard, judgement by what neither has seen, and the file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from goodnet.about import data_info, environment, method_info, model_info
from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.errors import DataError, UsageError
from goodnet.export import save_goodnet
from goodnet.guard.disagreement import Disagreement
from goodnet.measure import answer, measure
from goodnet.models.classifier import Classifier
from goodnet.models.preflight import preflight
from goodnet.outputs import check_file, check_folder
from goodnet.progress import Progress, silent
from goodnet.record import LabelResult, Measured, RepairRecord, ScanRecord, read_record, write_record
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.unlearning import Unlearning
from goodnet.triggers.files import read_triggers
from goodnet.triggers.inversion import Schedule, invert, success_rates
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Labelled

# As for a scan's flag: half the median, and most images that it was not fitted on.
_STILL_SMALL, _STILL_WORKS = 0.5, 0.6

METHODS: dict[type, str] = {FinePruning: "fine-pruning", Unlearning: "nc-unlearn"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a GoodNet must keep to, on the judging split, to be accepted. All are shares.

    Attributes:
        max_accuracy_drop: ACC may fall by at most this; what class N takes from clean images counts as fallen.
        max_asr: each of the scan's triggers may still reach its target on at most this share.
        min_detection: and must be sent to class N at least this often.
    """

    max_accuracy_drop: float = 0.05
    max_asr: float = 0.10
    min_detection: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected a share from 0 to 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a scan of the net found, to repair and to judge by.

    Attributes:
        triggers: of the flagged labels, fitted with this seed on these images, so that the judging split is new to
            them. Empty if nothing was flagged: then the backdoor cannot be judged.
        median_norm: mask norm of an innocent label, in pixels; None where unknown.
        schedule: of the search that gave that norm; a search on the repaired net must be the same to be compared.
    """

    triggers: tuple[Trigger, ...] = ()
    median_norm: float | None = None
    schedule: Schedule = Schedule()

    @staticmethod
    def in_folder(folder: Path) -> tuple[Found, ScanRecord]:
        """Reads what `goodnet scan --out` left. Raises DataError where that is not a scan's."""
        record = read_record(folder / "scan.json")
        if not isinstance(record, ScanRecord):
            raise DataError(f"--scan: expected {folder / 'scan.json'} to be a scan's record, got {record.format}")
        flagged = [t for t in read_triggers(folder / "triggers.npz") if t.target in record.flagged_labels]
        search = record.method.resolved.get("search", {})
        try:
            schedule = Schedule(steps=int(search["steps"]), batch=int(search["batch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"--scan: {folder / 'scan.json'} does not say how long the search was") from error
        found = Found(triggers=tuple(flagged), median_norm=record.decision.median_norm, schedule=schedule)
        return found, record


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a repair goes: the GoodNet's file, the folder for `repair.json`; None writes neither.

    `keep_rejected` writes the GoodNet even if the limits do not accept it; `arch_name` is the user's own code.
    """

    goodnet: Path | None = None
    folder: Path | None = None
    overwrite: bool = False
    keep_rejected: bool = False
    arch_name: str | None = None


def repair(
    classifier: Classifier,
    images: Images,
    *,
    method: FinePruning | Unlearning | None = None,
    guard: Disagreement | None = None,
    found: Found | None = None,
    limits: Limits | None = None,
    output: Output | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    progress: Progress = silent,
) -> tuple[RepairRecord, Classifier]:
    """Repairs a net and judges the GoodNet.

    Args:
        classifier: the BadNet; not changed.
        images: clean; without labels the net's own answers stand in for them.
        found: what a scan found. Without any trigger, the backdoor cannot be judged and `accepted` is None.
        limits: what is accepted.
        output: where to. The GoodNet is written only if accepted, or if it may be kept all the same.

    Returns:
        The record, and the GoodNet in memory whatever the judgement.

    Raises:
        UsageError, DataError, ModelError: nothing has been written then.
    """
    started = time.perf_counter()
    method, guard = method or FinePruning(), guard or Disagreement()
    limits, output, found = limits or Limits(), output or Output(), found or Found()
    _check(classifier, found, output)
    check = preflight(classifier, images)
    if check.near_chance:
        raise UsageError(check.advice)
    parts = split(images, seed=seed)
    classes = torch.from_numpy(answer(classifier, images) if images.labels is None else images.labels)
    fit, choose = ((images.take(index).tensor(), classes[index]) for index in (parts.fit, parts.choose))
    if isinstance(method, Unlearning):
        repaired = method(classifier, fit, choose, triggers=found.triggers, seed=seed, progress=progress)
    else:
        repaired = method(classifier, fit, choose, seed=seed, progress=progress)
    goodnet = guard(classifier, repaired.classifier, choose[0])
    judge = images.take(parts.judge)
    triggered = [_triggered(trigger, judge, classes[parts.judge]) for trigger in found.triggers]
    before = measure(classifier, judge, triggered)
    after = measure(goodnet, judge, triggered, before=before)
    again = _search_again(repaired.classifier, found, fit, (judge.tensor(), classes[parts.judge]), seed)
    accepted, reasons = judge_repair(before, after, again, limits)
    digest = _save(goodnet, output) if accepted or output.keep_rejected else None
    record = RepairRecord(
        accepted=accepted,
        reasons=reasons,
        method=method_info(METHODS[type(method)], method, seed),
        before=before,
        after=after,
        again=again,
        limits=dict(vars(limits)),
        n_fit=len(parts.fit),
        n_choose=len(parts.choose),
        n_judge=len(parts.judge),
        curve=repaired.curve,
        pruned_channels=repaired.channels,
        model=model_info(classifier),
        data=data_info(images),
        goodnet_file=None if digest is None else str(output.goodnet),
        goodnet_sha256=digest,
        seconds=time.perf_counter() - started,
        environment=environment(classifier, command),
    )
    if output.folder is not None:
        output.folder.mkdir(parents=True, exist_ok=True)
        write_record(record, output.folder / "repair.json")
    return record, goodnet


def _save(goodnet: Classifier, output: Output) -> str | None:
    if output.goodnet is None:
        return None
    return save_goodnet(goodnet, output.goodnet, overwrite=output.overwrite, arch_name=output.arch_name)


def _check(classifier: Classifier, found: Found, output: Output) -> None:
    if classifier.refuses:
        raise UsageError(f"{classifier.name}: expected a plain classifier, got a GoodNet, which is repaired already")
    for trigger in found.triggers:
        if tuple(trigger.pattern.shape) != classifier.input.shape or not 0 <= trigger.target < classifier.classes:
            raise DataError(
                f"--scan: expected triggers of the net's shape {classifier.input.shape} and labels under "
                f"{classifier.classes}, got {tuple(trigger.pattern.shape)} for label {trigger.target}; scan again"
            )
    check_folder(output.folder, "repair.json", overwrite=output.overwrite)
    if output.goodnet is not None:
        check_file(output.goodnet, overwrite=output.overwrite)


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
        unknown.append("the backdoor was not judged: no trigger was given (--scan with a scan that flags a label)")
    if unknown:
        return None, tuple(unknown)
    return True, (
        "all limits are kept on the judging split, with the triggers that were found; the attacker's own may differ, "
        "so evaluate on triggered images where there are any",
    )


def _is_still_there(row: LabelResult) -> bool:
    small = row.norm_ratio is not None and row.norm_ratio <= _STILL_SMALL
    return small and row.held_out_asr is not None and row.held_out_asr >= _STILL_WORKS


def _search_again(
    repaired: Classifier, found: Found, fit: Labelled, judge: Labelled, seed: int
) -> tuple[LabelResult, ...]:
    """Inverts the flagged labels anew: the triggers that a repair was fitted on, or judged by, are not the true one."""
    if not found.triggers or found.median_norm is None:
        return ()
    labels = [trigger.target for trigger in found.triggers]
    results = invert(repaired, *fit, labels, found.schedule, seed=seed + 1)
    rates = success_rates(repaired, [result.trigger for result in results], *judge)
    return tuple(
        LabelResult(
            label=label,
            status="searched" if result.success else "failed",
            mask_norm=result.trigger.norm if result.success else None,
            norm_ratio=result.trigger.norm / found.median_norm if result.success else None,
            held_out_asr=rate,
        )
        for label, result, rate in zip(labels, results, rates)
    )


def _triggered(trigger: Trigger, judge: Images, classes: torch.Tensor) -> Images:
    """The judging images that are not of the target, with the trigger on them, twice as strong as it was found."""
    attacked = (classes != trigger.target).numpy()
    pixels = trigger.strengthened().apply(judge.take(attacked).tensor()).contiguous().numpy()
    targets = torch.full((len(pixels),), trigger.target, dtype=torch.int64).numpy()
    return Images(
        pixels=pixels,
        labels=targets,
        true_labels=classes.numpy()[attacked],
        name=f"trigger found for label {trigger.target}",
    )
