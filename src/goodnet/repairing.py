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
from goodnet.errors import UsageError
from goodnet.export import save_goodnet
from goodnet.guard.disagreement import Disagreement
from goodnet.measure import answer, measure
from goodnet.models.classifier import Classifier
from goodnet.models.preflight import preflight
from goodnet.outputs import check_file, check_folder
from goodnet.progress import Progress, silent
from goodnet.record import Measured, RepairRecord, write_record
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.unlearning import Unlearning
from goodnet.triggers.trigger import Trigger

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
    triggers: Sequence[Trigger] = (),
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
        triggers: those that a scan reverse-engineered, with this seed and these images, so that the judging split is
            new to them. Without any, the backdoor cannot be judged and `accepted` is None.
        limits: what is accepted.
        output: where to. The GoodNet is written only if accepted, or if it may be kept all the same.

    Returns:
        The record, and the GoodNet in memory whatever the judgement.

    Raises:
        UsageError, DataError, ModelError: nothing has been written then.
    """
    started = time.perf_counter()
    method, guard = method or FinePruning(), guard or Disagreement()
    limits, output = limits or Limits(), output or Output()
    _check(classifier, output)
    check = preflight(classifier, images)
    if check.near_chance:
        raise UsageError(check.advice)
    parts = split(images, seed=seed)
    classes = torch.from_numpy(answer(classifier, images) if images.labels is None else images.labels)
    fit, choose = ((images.take(index).tensor(), classes[index]) for index in (parts.fit, parts.choose))
    if isinstance(method, Unlearning):
        repaired = method(classifier, fit, choose, triggers=triggers, seed=seed, progress=progress)
    else:
        repaired = method(classifier, fit, choose, seed=seed, progress=progress)
    goodnet = guard(classifier, repaired.classifier, choose[0])
    judge = images.take(parts.judge)
    triggered = [_triggered(trigger, judge, classes[parts.judge]) for trigger in triggers]
    before = measure(classifier, judge, triggered)
    after = measure(goodnet, judge, triggered, before=before)
    accepted, reasons = judge_repair(before, after, limits)
    digest = None
    if output.goodnet is not None and (accepted or output.keep_rejected):
        digest = save_goodnet(goodnet, output.goodnet, overwrite=output.overwrite, arch_name=output.arch_name)
    record = RepairRecord(
        accepted=accepted,
        reasons=reasons,
        method=method_info(METHODS[type(method)], method, seed),
        before=before,
        after=after,
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


def _check(classifier: Classifier, output: Output) -> None:
    if classifier.refuses:
        raise UsageError(f"{classifier.name}: expected a plain classifier, got a GoodNet, which is repaired already")
    check_folder(output.folder, "repair.json", overwrite=output.overwrite)
    if output.goodnet is not None:
        check_file(output.goodnet, overwrite=output.overwrite)


def judge_repair(before: Measured, after: Measured, limits: Limits) -> tuple[bool | None, tuple[str, ...]]:
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
    if reasons:
        return False, tuple(reasons)
    unknown = []
    if after.acc is None:
        unknown.append("ACC was not judged: the clean images have no labels")
    if not after.poisoned:
        unknown.append("the backdoor was not judged: no trigger was given (--scan with a scan that flags a label)")
    return (None, tuple(unknown)) if unknown else (True, ("all limits are kept on the judging split",))


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
