"""A repaired net and a guard joined to a GoodNet: each guard with what it is given, and nothing else."""

from __future__ import annotations

from goodnet.found import Found
from goodnet.guard.combined import Combined
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.strip import Strip
from goodnet.guard.ted import Ted
from goodnet.guard.watch import Watch
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import seconded_from
from goodnet.parts import Parts
from goodnet.progress import Progress, silent
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Repaired

Guard = Disagreement | Watch | Strip | Ted | Combined

GUARDS: dict[type[Guard], str] = {
    Disagreement: "disagreement",
    Watch: "watch",
    Strip: "strip",
    Ted: "ted",
    Combined: "combined",
}


def guarded(
    bad: Classifier,
    repaired: Repaired,
    guard: Guard,
    parts: Parts,
    found: Found,
    *,
    seed: int,
    progress: Progress = silent,
) -> Classifier:
    """The GoodNet of a repaired net: itself, where it has a class N of its own.

    Raises:
        UsageError: `Watch` or `Combined`, and no label was found; `Ted`, and there are too few clean images of a class.
    """
    good = repaired.classifier
    if good.refuses:
        return good
    if isinstance(guard, Disagreement):
        return guard(bad, good, parts.choose[0])
    if isinstance(guard, Strip):
        return guard(bad, good, parts.fit[0], parts.choose[0], seed=seed)
    if isinstance(guard, Ted):
        return guard(bad, good, parts.fit, parts.choose[0])
    watch = guard.watch if isinstance(guard, Combined) else guard
    known = repaired.strong if repaired.strong_searches == (watch.search, watch.further_search) else ()
    watching = watched(bad, watch, parts, found, known=known, seed=seed, progress=progress).classifier
    if isinstance(guard, Watch):
        return seconded_from(watching, good)
    sets = [parts.choose[0]] if parts.surrogate_choose is None else [parts.choose[0], parts.surrogate_choose]
    return guard(bad, good, watching, sets)


def watched(
    bad: Classifier,
    watch: Watch,
    parts: Parts,
    found: Found,
    *,
    known: tuple[Trigger, ...] = (),
    seed: int,
    progress: Progress = silent,
) -> Repaired:
    """The BadNet with its suspicious labels watched.

    Args:
        known: the labels' strong triggers, where they have been searched for already.
    """
    return watch(
        bad,
        parts.fit,
        parts.choose,
        labels=found.targets,
        further=found.further,
        known=known,
        stamps=found.stamps,
        surrogate_fit=parts.surrogate_fit,
        surrogate_choose=parts.surrogate_choose,
        seed=seed,
        progress=progress,
    )
