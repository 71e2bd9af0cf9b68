"""A scan from net and clean images to verdict, triggers and record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from goodnet.about import data_info, environment, fingerprint, method_info, model_info
from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection import Detection, OwnDetector, check_found, check_own
from goodnet.errors import DataError, UsageError
from goodnet.measure import answer, share
from goodnet.memory import giving_back, in_bytes
from goodnet.models.classifier import Classifier
from goodnet.models.preflight import check_images, preflight
from goodnet.outputs import check_folder
from goodnet.progress import Progress, silent
from goodnet.record import Example, LabelResult, ScanRecord, Share
from goodnet.runners import SERIAL, Runner
from goodnet.sizing import Bounded, bounded, in_so_many
from goodnet.staged import Staged
from goodnet.strict_json import writing_record
from goodnet.triggers.files import visible_pattern, write_pictures, write_png, write_triggers
from goodnet.triggers.plain import stamp_trigger
from goodnet.triggers.trigger import Trigger
from goodnet.verdicts import decide, strongest
from goodnet.work import Work

# More images do not sharpen a search whose steps see 16 each; ASR on 128 is known to +-4 points at 95 %.
_MAX_FIT, _MAX_HELD_OUT = 384, 128
USED = _MAX_FIT + _MAX_HELD_OUT
"""Images that a scan uses at most."""
_SAVED_TRIGGERS, _DRAWN_LABELS, _DRAWN_IMAGES = 16, 4, 4
_STAMPED_IMAGES = 2

Detector = Staged | NeuralCleanse | GangSweep

METHODS: dict[type[Detector], str] = {Staged: "staged", NeuralCleanse: "neural-cleanse", GangSweep: "gangsweep"}
TESTED = {
    "staged": (
        "for each label, whether some input leads to it by an unusually large margin, whatever the trigger (MM-BD)",
        "for each label, whether one fixed mask and pattern, put on any image, leads to it (Neural Cleanse)",
        "whether each trigger also works on clean images that it was not fitted on",
        "whether what stands out is found again from other starts",
    ),
    "neural-cleanse": (
        "for each label, whether one fixed mask and pattern, put on any image, leads to it (Neural Cleanse)",
        "whether each trigger also works on clean images that it was not fitted on",
    ),
    "gangsweep": (
        "for each label, whether a generator that sees the image can make small triggers that lead to it (GangSweep)",
        "whether the triggers work on clean images that it was not trained on, and carry over from image to image",
    ),
}
_LARGE = "triggers as large as what any innocent label needs (whole-image blends)"
NOT_TESTED = {
    "staged": (
        "backdoors that make the net no surer of the target than of other labels, by triggers as large as what any "
        "innocent label needs (some warps, some clean-label attacks)",
    ),
    "neural-cleanse": ("triggers that move, warp the image or depend on it", _LARGE),
    "gangsweep": ("triggers that warp the image", _LARGE),
}
_ALL_TO_ALL = "one trigger that turns each class into another (all-to-all)"
NOT_TESTED_BY_ANY = (
    "triggers that work only on images of some classes (source-specific), if the clean images hold few of these",
)


def scan(
    classifier: Classifier,
    images: Images,
    *,
    method: Detector | OwnDetector | None = None,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    check_input: bool = True,
    time_limit: float | None = None,
    memory: int | str | None = None,
    command: Sequence[str] = (),
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
    before: Callable[[], None] = lambda: None,
    runner: Runner = SERIAL,
) -> ScanRecord:
    """Scans a net for backdoors.

    Args:
        classifier: the net; not changed. A GoodNet cannot be scanned, the nets inside it can.
        images: clean, with labels or without (then the net's own answers stand in for them).
        method: the detector with its hyperparameters; `Staged()` by default. One of your own is asked for no more than
            `goodnet.detection.OwnDetector` says.
        seed: of splits, starts and batches.
        labels: scan only these; the verdict is then never `clean`.
        out: folder for `scan.json`, `triggers.npz` and pictures; None writes nothing.
        overwrite: replace an earlier scan in `out`.
        check_input: stop where ACC on the clean images says that the net is fed the wrong way.
        time_limit: seconds after which the scan stops and ends as inconclusive with what was found.
        memory: what this process may take, in bytes or as `2GiB`: blocks, then threads, are made fewer until it fits.
            By default what it has and 3/4 of what is free. Another block rounds otherwise; `method` then has it.
        command: what the user typed, for the record.
        progress: told how far each stage is.
        say: told, in a line, that an earlier run's results are taken over.
        before: called once nothing is wrong with net, images and settings, before the work.
        runner: who computes the blocks of labels; the record is the same whoever it is.

    With `out`, what is done is kept there while the scan runs: one that was killed goes on if it is called again with
    the same net, images and settings, and ends with the same record.

    Raises:
        UsageError, DataError, ModelError: nothing has been written then.
    """
    started = time.perf_counter()
    method = method or Staged()
    name = _checked(method, time_limit, memory, runner)
    check_folder(out, "scan.json", overwrite=overwrite)
    _check(classifier, images, labels)
    acc, advice = _input_acc(classifier, images) if check_input else (None, "")
    fit, held_out = _images_for(classifier, images, seed)
    _check_classes(fit[1], range(classifier.classes) if labels is None else labels)
    fitting = _bounded(method, classifier, fit[0], labels, len(fit[0]) + len(held_out[0]), memory, runner)
    method, threads = (fitting.method, fitting.threads) if fitting else (method, torch.get_num_threads())
    before()
    work = _work(out, fingerprint(classifier, images, method, seed, labels), time_limit, say)
    with giving_back(fitting is not None and fitting.gives_back):
        detection = _detect(method, classifier, fit, held_out, seed, labels, threads, progress, work, runner)
    verdict, reasons = decide(detection, classifier.classes, whole=not work.out_of_time)
    tested, not_tested = _coverage(method, detection)
    record = ScanRecord(
        verdict=verdict,
        flagged_labels=tuple(row.label for row in detection.labels if row.flagged),
        labels=detection.labels,
        seconds=time.perf_counter() - started,
        forward_passes=detection.forward_passes,
        reasons=(*reasons, *_remarks(time_limit if work.out_of_time else None, advice)),
        decision=detection.decision,
        method=method_info(name, method, seed),
        model=model_info(classifier),
        data=data_info(images),
        n_fit=len(fit[0]),
        n_held_out=len(held_out[0]),
        preflight_acc=acc,
        tested=tested,
        not_tested=not_tested,
        examples=_examples(classifier, detection, held_out, out),
        environment=environment(classifier, command),
        all_to_all=detection.all_to_all,
        whole=not work.out_of_time,
    )
    if out is not None:
        _write(record, detection, out)
    if not work.out_of_time:
        work.remove()
    return record


def _remarks(over: float | None, advice: str) -> Iterator[str]:
    """Further reasons: the time limit that is over, what to take care of."""
    if over is not None:
        yield f"the time limit of {over:g} s was over before the scan was whole"
    if advice:
        yield f"take care: {advice}"


def _work(out: Path | None, sha256: str, time_limit: float | None, say: Callable[[str], None]) -> Work:
    work = Work(None if out is None else out / f".checkpoint-{sha256[:16]}", time_limit=time_limit)
    if work.resumed:
        say(f"going on where an earlier run stopped: {work.resumed} results are there")
    return work


def _write(record: ScanRecord, detection: Detection, out: Path) -> None:
    kept = [row.label for row in strongest(detection.labels)[:_SAVED_TRIGGERS]]
    triggers = [detection.triggers[label] for label in kept]
    with writing_record(record, out / "scan.json"):  # which takes its name last, and fails before anything is replaced
        if triggers:  # none where time ran out before the first was whole
            write_pictures(out / "triggers", triggers)
            write_triggers(out / "triggers.npz", triggers, flagged=record.flagged_labels)


def _name(method: Detector | OwnDetector) -> str:
    if isinstance(method, Detector):
        return METHODS[type(method)]
    check_own(method, tuple(METHODS.values()))
    return method.name


def _bounded(
    method: Detector | OwnDetector,
    classifier: Classifier,
    images: torch.Tensor,
    labels: Sequence[int] | None,
    clean: int,
    memory: int | str | None,
    runner: Runner,
) -> Bounded | None:
    """The method with blocks that fit into memory; None where it has no blocks, or workers with memory of their own."""
    if isinstance(method, Staged | NeuralCleanse) and runner.here:
        count = classifier.classes if labels is None else len(set(labels))
        bound = None if memory is None else in_bytes(memory)
        return bounded(method, classifier, images, count, clean=clean, memory=bound)
    return None


def _checked(method: Detector | OwnDetector, time_limit: float | None, memory: int | str | None, runner: Runner) -> str:
    """The method's name; UsageError where it cannot be stopped in between, or done elsewhere, as it is asked to be."""
    name = _name(method)
    if time_limit is not None and (isinstance(method, GangSweep) or not time_limit > 0):
        wanted = "a method that works label by label" if time_limit > 0 else "more than 0 seconds"
        raise UsageError(f"time limit: expected {wanted}, got {name} with {time_limit:g} s")
    if not runner.here and (isinstance(method, GangSweep) or not isinstance(method, Detector)):
        raise UsageError(f"runner: expected serial or a method of goodnet's that works label by label, got {name}")
    if memory is not None:
        in_bytes(memory)  # before anything is read
    if memory is not None and not (runner.here and isinstance(method, Staged | NeuralCleanse)):
        where = name if runner.here else "blocks that other processes compute"
        raise UsageError(f"memory: expected staged or neural-cleanse in this process, got {where}; leave it out")
    return name


def _detect(
    method: Detector | OwnDetector,
    classifier: Classifier,
    fit: tuple[torch.Tensor, torch.Tensor],
    held_out: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    labels: Sequence[int] | None,
    threads: int,
    progress: Progress,
    work: Work,
    runner: Runner,
) -> Detection:
    if isinstance(method, GangSweep):  # one generator for all labels: nothing is done before all is
        return method(classifier, fit, held_out, seed=seed, labels=labels, progress=progress)
    try:
        if isinstance(method, Detector):
            with in_so_many(threads):
                return method(
                    classifier, fit, held_out, seed=seed, labels=labels, progress=progress, work=work, runner=runner
                )
        found = method(classifier, fit, held_out, seed=seed, labels=labels, progress=progress, work=work)
    finally:
        work.flush()
    check_found(found, range(classifier.classes) if labels is None else labels, method.name)
    return found


def _check(classifier: Classifier, images: Images, labels: Sequence[int] | None) -> None:
    if classifier.refuses:
        raise UsageError(
            f"{classifier.name}: expected a plain classifier, got a GoodNet; scan the net it was made from"
        )
    if labels is not None and not all(0 <= label < classifier.classes for label in labels):
        raise UsageError(f"--labels: expected labels 0..{classifier.classes - 1}, got {list(labels)}")
    check_images(classifier, images)


def _check_classes(classes: torch.Tensor, labels: Sequence[int]) -> None:
    """Raises DataError where some label has no image (of `classes`, (N,)) to fit a trigger on."""
    shown = set(classes.tolist())
    if len(shown) == 1 and shown & set(labels):
        raise DataError(
            f"all {len(classes)} images to fit triggers on are of label {shown.pop()}; add images of other classes"
        )


def _input_acc(classifier: Classifier, images: Images) -> tuple[Share | None, str]:
    """ACC on the clean images, and what to take care of.

    Raises UsageError where the net is fed the wrong way: near chance, or far better under another input range.
    """
    check = preflight(classifier, images)
    if check.near_chance:
        raise UsageError(f"{check.advice}; or pass --no-preflight to scan all the same")
    acc = None if images.labels is None else share(answer(classifier, images) == images.labels)
    return acc, check.advice


def _images_for(
    classifier: Classifier, images: Images, seed: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(images, classes) to fit triggers on, and to judge them on; a repair with this seed judges on the latter too."""
    parts = split(images, seed=seed)
    random = np.random.default_rng([seed, 2])
    result = []
    for index, limit in ((np.concatenate([parts.fit, parts.choose]), _MAX_FIT), (parts.judge, _MAX_HELD_OUT)):
        chosen = images.take(np.sort(random.permutation(index)[:limit]))
        classes = chosen.labels if chosen.labels is not None else answer(classifier, chosen)
        result.append((chosen.tensor(), torch.from_numpy(classes)))
    return result[0], result[1]


def _shown(rows: Sequence[LabelResult]) -> list[int]:
    """Labels whose triggers are drawn: the flagged ones, or the strongest one where none is."""
    searched = strongest(rows)
    flagged = [row.label for row in searched if row.flagged][:_DRAWN_LABELS]
    return flagged or [row.label for row in searched[:1]]


def _coverage(method: Detector | OwnDetector, detection: Detection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was tested, and what was not; a detector of somebody's own says it itself."""
    if not isinstance(method, Detector):
        return method.tested, method.not_tested
    name = METHODS[type(method)]
    tested, not_tested = TESTED[name], (*NOT_TESTED[name], *NOT_TESTED_BY_ANY)
    if detection.all_to_all is not None:
        return (*tested, f"whether there is {_ALL_TO_ALL}"), not_tested
    why = ", which takes all labels and three clean images each of at least four classes" if name == "staged" else ""
    return tested, (*not_tested, _ALL_TO_ALL + why)


def _examples(
    classifier: Classifier,
    detection: Detection,
    held_out: tuple[torch.Tensor, torch.Tensor],
    out: Path | None,
) -> tuple[Example, ...]:
    """Draws the triggers of the labels that are shown, and one of all labels that is flagged, into `out`/triggers."""
    if out is None:
        return ()
    folder = out / "triggers"
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    drawn: list[tuple[int | None, Trigger]] = []
    stamps = {row.label: row.stamp for row in detection.labels if row.stamp is not None and row.stamp.leads(0.0)}
    mapping, away = detection.all_to_all, detection.all_to_all_trigger
    if away is not None and mapping is not None and (mapping.flagged or mapping.doubtful):
        drawn.append((None, away))
    if not (mapping is not None and mapping.flagged and not any(row.flagged for row in detection.labels)):
        drawn += [(label, detection.triggers[label]) for label in _shown(detection.labels)]
    for label, trigger in drawn:
        images = held_out[0][held_out[1] != trigger.target]
        images = images[torch.linspace(0, len(images) - 1, min(len(images), _DRAWN_IMAGES)).long()]  # of many classes
        for kind, pixels in (("mask", trigger.mask), ("pattern", visible_pattern(trigger))):
            examples.append(_draw(folder, label, kind, None, pixels, None))
        for kind, pictures in (("clean", images), ("triggered", trigger.apply(images))):
            answers = classifier.predict(pictures).tolist()
            for i, (picture, given) in enumerate(zip(pictures, answers)):
                examples.append(_draw(folder, label, kind, i, picture, given))
        if label in stamps:
            stamped = stamp_trigger(stamps[label], classifier.input.shape).apply(images[:_STAMPED_IMAGES])
            for i, (picture, given) in enumerate(zip(stamped, classifier.predict(stamped).tolist())):
                examples.append(_draw(folder, label, "stamped", i, picture, given))
    return tuple(examples)


def _draw(
    folder: Path, label: int | None, kind: str, index: int | None, pixels: torch.Tensor, given: int | None
) -> Example:
    whose = "all-to-all" if label is None else f"label-{label:04d}"
    name = f"{whose}-{kind}" + ("" if index is None else f"-{index}") + ".png"
    write_png(folder / name, pixels)
    return Example(label=label, kind=kind, file=f"{folder.name}/{name}", index=index, answer=given)
