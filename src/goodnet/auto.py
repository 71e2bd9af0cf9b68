"""`--method auto`: tries repairs within a time budget and keeps the first that keeps all limits.

The order is that of what repairs have kept on nets of others (docs/benchmarks.md): unlearning with the BadNet watched
in front of it, which costs least on clean images; the same with disagreement for a guard; then what needs less. Each is
judged as any repair is (`goodnet.repairing`): on the judging split, with triggers that it was not given, and by a new
search on the repaired net. No test set, no true trigger. Where none is accepted, the best is named and nothing is
written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from goodnet.data.images import Images
from goodnet.errors import ModelError, UsageError
from goodnet.found import Found
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.watch import Watch
from goodnet.guarding import Guard
from goodnet.judging import Limits
from goodnet.keeping import Output, check_output, keep
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.goodnet import GoodNet, SecondOpinion
from goodnet.progress import Progress, silent
from goodnet.record import RepairRecord, Share, Tried
from goodnet.repair.distilled import DistilledUnlearning
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.nc_filter import Filter
from goodnet.repair.unlearning import Unlearning
from goodnet.repairing import Method, repair


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A repair to try, with what decides on class N."""

    name: str
    method: Method
    guard: Guard | None = None


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Settings of `auto`, where it stands beside methods."""

    time_limit: float = 300.0


CANDIDATES = (
    Candidate(name="unlearn, watch", method=DistilledUnlearning(), guard=Watch()),
    Candidate(name="unlearn, disagreement", method=DistilledUnlearning(), guard=Disagreement(max_fpr=0.01)),
    Candidate(name="watch", method=Watch()),
    Candidate(name="nc-unlearn, disagreement", method=Unlearning(), guard=Disagreement(max_fpr=0.01)),
    Candidate(name="nc-filter", method=Filter()),
    Candidate(name="fine-pruning, disagreement", method=FinePruning(), guard=Disagreement(max_fpr=0.01)),
)


def auto(
    classifier: Classifier,
    images: Images,
    *,
    found: Found,
    surrogate: Images | None = None,
    poisoned: Sequence[Images] = (),
    candidates: Sequence[Candidate] = CANDIDATES,
    limits: Limits | None = None,
    time_limit: float = 300.0,
    output: Output | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> tuple[RepairRecord, Classifier]:
    """Repairs a net by the first of `candidates` that is accepted.

    Args:
        classifier: the BadNet; not changed.
        images: clean; split in three as by `repair`.
        found: what a scan found, with at least one flagged label.
        surrogate: pictures of the same kind that need not be of the net's classes.
        poisoned: sets of known poison; they judge, none learns from them.
        limits: what is accepted.
        time_limit: seconds after which no further candidate is begun, or before, if the longest so far would not fit.
        output: where to. The GoodNet is written only if accepted, or if it may be kept all the same.
        say: told, in a line, how each candidate ended.

    Returns:
        The record of the repair that was chosen, with all that were tried, and its GoodNet in memory.

    Raises:
        UsageError, DataError, ModelError: nothing has been written then.
    """
    if not found.targets:
        raise UsageError(
            "--method auto: expected labels to repair, got none; pass --scan with a scan that flags a label"
        )
    started, output = time.perf_counter(), output or Output()
    check_output(output)
    attempt = partial(
        repair,
        classifier,
        images,
        found=found,
        surrogate=surrogate,
        poisoned=poisoned,
        limits=limits,
        seed=seed,
        command=command,
    )
    tried: list[Tried] = []
    made: list[tuple[RepairRecord, Classifier]] = []
    failure: ModelError | None = None
    last: Method | None = None
    for candidate in candidates:
        if made and time.perf_counter() - started + max(record.seconds for record, _ in made) > time_limit:
            tried.append(_untried(candidate, "not tried: no time was left"))
            continue
        try:
            reuse = _repaired_net(made[-1][1]) if made and candidate.method == last else None
            record, goodnet = attempt(
                method=candidate.method, guard=candidate.guard, reuse=reuse, progress=_named(progress, candidate.name)
            )
        except ModelError as error:  # it asks for what this net does not have
            failure = error
            tried.append(_untried(candidate, str(error)))
            continue
        made.append((record, goodnet))
        last = candidate.method
        tried.append(_tried(candidate.name, record))
        say(f"{candidate.name}: {_word(record.accepted)}, {record.seconds:.0f} s")
        if record.accepted:
            break
    if failure is not None and not made:
        raise failure
    record, goodnet = max(made, key=_rank)
    return keep(_finished(record, tried, time.perf_counter() - started), goodnet, found.triggers, output), goodnet


def _repaired_net(goodnet: Classifier) -> Classifier | None:
    """The repaired net in a GoodNet of two, for the next guard to try."""
    net = goodnet.net
    if not isinstance(net, GoodNet | SecondOpinion):
        return None
    options = goodnet.recipe.options["good"]
    recipe = Recipe(arch=options["arch"], options=options["options"])
    return replace(goodnet, net=net.good, recipe=recipe, refuses=False)


def _finished(record: RepairRecord, tried: Sequence[Tried], seconds: float) -> RepairRecord:
    return replace(record, tried=tuple(tried), reasons=_reasons(record, tried), seconds=seconds)


def _reasons(record: RepairRecord, tried: Sequence[Tried]) -> tuple[str, ...]:
    """Why this one: the limits, and what became of those before it."""
    chosen = next(row for row in tried if row.seconds == record.seconds)
    others = [row.name for row in tried if row is not chosen and row.accepted is not None]
    if record.accepted:
        after = f" ({', '.join(others)} did not)" if others else ""
        return (f"{chosen.name} is the first that keeps all limits{after}", *record.reasons)
    return (f"none keeps all limits; {chosen.name} comes nearest", *record.reasons)


def _untried(candidate: Candidate, why: str) -> Tried:
    return Tried(name=candidate.name, accepted=None, reasons=(why,))


def _tried(name: str, record: RepairRecord) -> Tried:
    return Tried(
        name=name,
        accepted=record.accepted,
        reasons=record.reasons,
        acc=record.after.acc,
        fpr=record.after.fpr,
        asr=_extreme([row.asr for row in record.after.poisoned], max),
        detection=_extreme([row.detection for row in record.after.poisoned], min),
        fpr_strangers=record.fpr_strangers,
        fpr_target=record.fpr_target,
        seconds=record.seconds,
    )


def _extreme(shares: Sequence[Share | None], which: Callable[..., Share]) -> Share | None:
    known = [share for share in shares if share is not None]
    return which(known, key=lambda share: share.value) if known else None


def _rank(made: tuple[RepairRecord, Classifier]) -> tuple[bool, float, float]:
    """Larger is better: accepted, then the worst trigger's ASR, then ACC."""
    record, _ = made
    asr = _extreme([row.asr for row in record.after.poisoned], max)
    acc = record.after.acc
    return bool(record.accepted), -(asr.value if asr else 1.0), acc.value if acc else 0.0


def _word(accepted: bool | None) -> str:
    return {True: "accepted", False: "not accepted", None: "not judged"}[accepted]


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
