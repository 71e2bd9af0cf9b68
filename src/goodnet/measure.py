"""ACC, FPR, ASR, RA, detection rate and DER, as DESIGN's table of words defines them, with Wilson intervals.

ASR counts only triggered images whose true label is not the target: a net that is right about an image of the
target class has not been attacked. A figure whose denominator is empty is None, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from goodnet import stats
from goodnet.data.images import Images
from goodnet.errors import DataError
from goodnet.models.classifier import Classifier
from goodnet.models.preflight import check_images
from goodnet.progress import Progress, silent
from goodnet.record import Measured, Poisoned, Share

Classes = npt.NDArray[np.int64]
_AT_ONCE = 256


def share(hits: npt.NDArray[np.bool_]) -> Share | None:
    """Share of True with its 95 % Wilson interval; None for an empty array."""
    if len(hits) == 0:
        return None
    count, n = int(hits.sum()), len(hits)
    low, high = stats.wilson(count, n)
    return Share(value=count / n, low=low, high=high, n=n)


def measure(
    classifier: Classifier,
    clean: Images | None,
    poisoned: Sequence[Images] = (),
    *,
    before: Measured | None = None,
    progress: Progress = silent,
) -> Measured:
    """Measures a BadNet or a GoodNet.

    Args:
        clean: labelled or not (without labels ACC is None, FPR is not).
        poisoned: each with `labels` (the attacker's targets); `true_labels` where known.
        before: the same sets on the net before repair; gives each poisoned set its DER.

    Raises:
        DataError: a poisoned set without labels, labels that the net does not have, images of another shape.
    """
    total = len(clean or ()) + sum(len(images) for images in poisoned)
    done = 0
    acc = fpr = None
    if clean is not None and len(clean):
        answers = answer(classifier, clean)
        done += len(clean)
        progress("measuring", done, total)
        acc = None if clean.labels is None else share(answers == clean.labels)
        fpr = share(answers == classifier.classes) if classifier.refuses else None
    figures = []
    for i, images in enumerate(poisoned):
        earlier = None
        if before is not None and before.acc is not None and acc is not None:
            earlier = (before.acc.value, before.poisoned[i].asr)
        triggered = present(images)
        refused = classifier.classes if classifier.refuses else None
        figures.append(of_answers(triggered, answer(classifier, triggered), refused, acc, earlier))
        done += len(images)
        progress("measuring", done, total)
    return Measured(acc=acc, fpr=fpr, poisoned=tuple(figures))


def answer(classifier: Classifier, images: Images) -> Classes:
    """The net's classes (N,) for images that may be none.

    Raises:
        DataError: images of another shape than the net's, labels that are none of its classes.
    """
    if len(images) == 0:
        return np.empty(0, np.int64)
    check_images(classifier, images)
    if images.true_labels is not None:
        check_images(classifier, replace(images, labels=images.true_labels))
    parts = [
        classifier.predict(images.take(slice(start, start + _AT_ONCE)).tensor()).numpy()
        for start in range(0, len(images), _AT_ONCE)
    ]
    return np.concatenate(parts)


def der(asr_before: float, asr_after: float, acc_before: float, acc_after: float) -> float:
    """Defence effectiveness rating: (max(0, fall of ASR) - max(0, fall of ACC) + 1) / 2, in [0, 1]."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2


def present(images: Images) -> Images:
    """Those of a poisoned set that carry the trigger. Raises DataError where they are not labelled with the target."""
    if images.labels is None:
        raise DataError(f"{images.name}: expected the attacker's targets as labels of a poisoned set, found no labels")
    return images if images.trigger_present is None else images.take(images.trigger_present)


def of_answers(
    triggered: Images,
    answers: Classes,
    refused: int | None,
    acc: Share | None = None,
    earlier: tuple[float, Share | None] | None = None,
) -> Poisoned:
    """The figures of a poisoned set from a net's answers (N,) to it.

    Args:
        triggered: of which all carry the trigger (`present`).
        refused: the answer that means so; None of a net that refuses nothing.
        acc, earlier: ACC after, and ACC and ASR before repair; with both the figures have a DER.
    """
    target, true = triggered.labels, triggered.true_labels
    assert target is not None
    attacked = np.ones(len(target), bool) if true is None else true != target
    asr = share(answers[attacked] == target[attacked])
    rating = None
    if earlier is not None and earlier[1] is not None and asr is not None and acc is not None:
        rating = der(earlier[1].value, asr.value, earlier[0], acc.value)
    targets = np.unique(target)
    return Poisoned(
        name=triggered.name,
        target=int(targets[0]) if len(targets) == 1 else None,
        asr=asr,
        ra=None if true is None else share(answers == true),
        detection=None if refused is None else share(answers == refused),
        der=rating,
    )
