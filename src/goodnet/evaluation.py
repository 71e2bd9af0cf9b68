"""An evaluation: one net, or before and after, on clean images and any number of poisoned sets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from goodnet.about import data_info, environment, model_info
from goodnet.data.images import Images
from goodnet.errors import UsageError
from goodnet.measure import measure
from goodnet.models.classifier import Classifier
from goodnet.outputs import check_folder
from goodnet.progress import Progress, silent
from goodnet.record import EvaluateRecord
from goodnet.strict_json import write_record


def evaluate(
    classifier: Classifier,
    clean: Images,
    poisoned: Sequence[Images] = (),
    *,
    before: Classifier | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
    progress: Progress = silent,
) -> EvaluateRecord:
    """Measures ACC, FPR, ASR, RA, detection rate and, with `before`, DER.

    Args:
        clean: clean images with true labels.
        poisoned: each with the attacker's targets as labels, and true labels where known.
        before: the net to compare with, usually the BadNet that a GoodNet was made from.
        out: folder for `evaluate.json`; None writes nothing.

    Raises:
        UsageError, DataError: nothing has been written then.
    """
    started = time.perf_counter()
    check_folder(out, "evaluate.json", overwrite=overwrite)
    if before is not None and before.classes != classifier.classes:
        raise UsageError(f"--before: expected a net of {classifier.classes} classes, got one of {before.classes}")
    earlier = None if before is None else measure(before, clean, poisoned, progress=progress)
    measured = measure(classifier, clean, poisoned, before=earlier, progress=progress)
    record = EvaluateRecord(
        acc=measured.acc,
        fpr=measured.fpr,
        poisoned=measured.poisoned,
        before=earlier,
        model=model_info(classifier),
        before_model=None if before is None else model_info(before),
        data=data_info(clean),
        seconds=time.perf_counter() - started,
        environment=environment(classifier, command),
        poisoned_data=tuple(map(data_info, poisoned)),
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_record(record, out / "evaluate.json")
    return record
