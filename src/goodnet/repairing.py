"""A repair from BadNet to GoodNet: method, guard, judgement by what neither has seen, and the file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from goodnet.about import data_info, environment, method_info, model_info
from goodnet.data.images import Images
from goodnet.errors import DataError, UsageError
from goodnet.found import Found
from goodnet.guard.combined import Combined
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.watch import Watch
from goodnet.guarding import GUARDS, Guard, guarded, watched
from goodnet.judging import Limits, held_out_triggers, judge_repair, search_again, triggered
from goodnet.keeping import Output, check_output, keep
from goodnet.measure import answer, measure, share
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import GoodNet, StripGoodNet, TedGoodNet
from goodnet.models.preflight import check_images, preflight
from goodnet.parts import Parts
from goodnet.progress import Progress, silent
from goodnet.record import MethodInfo, RepairRecord, Share
from goodnet.repair.anp import AdversarialPruning
from goodnet.repair.clp import ChannelLipschitz
from goodnet.repair.distilled import DistilledUnlearning
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.ft_sam import SharpnessAware
from goodnet.repair.gangsweep import Sweep
from goodnet.repair.i_bau import AdversarialUnlearning
from goodnet.repair.nad import AttentionDistillation
from goodnet.repair.nc_filter import Filter
from goodnet.repair.nc_prune import Pruning
from goodnet.repair.retrain import Retraining
from goodnet.repair.rnp import ReconstructivePruning
from goodnet.repair.unlearning import Unlearning
from goodnet.sparing import changed_layers
from goodnet.staged import Staged
from goodnet.triggers.inversion import invert
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import Repaired

CleanOnly = (
    FinePruning
    | ChannelLipschitz
    | AdversarialPruning
    | ReconstructivePruning
    | SharpnessAware
    | AdversarialUnlearning
    | AttentionDistillation
)
"""Methods that are given clean images and nothing else."""

Method = Watch | DistilledUnlearning | CleanOnly | Filter | Pruning | Unlearning | Sweep | Retraining

METHODS: dict[type[Method], str] = {
    Watch: "watch",
    DistilledUnlearning: "unlearn",
    FinePruning: "fine-pruning",
    ChannelLipschitz: "clp",
    AdversarialPruning: "anp",
    ReconstructivePruning: "rnp",
    SharpnessAware: "ft-sam",
    AdversarialUnlearning: "i-bau",
    AttentionDistillation: "nad",
    Filter: "nc-filter",
    Pruning: "nc-prune",
    Unlearning: "nc-unlearn",
    Sweep: "gangsweep",
    Retraining: "retrain",
}


def repair(
    classifier: Classifier,
    images: Images,
    *,
    method: Method | None = None,
    guard: Guard | None = None,
    found: Found | None = None,
    surrogate: Images | None = None,
    poisoned: Sequence[Images] = (),
    rounds: int = 1,
    reuse: Classifier | None = None,
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
        guard: decides on class N where the method does not give the net one of its own. With `Watch` the repaired net
            answers only where the BadNet would give a watched label.
        found: what a scan found. Without any trigger or poisoned set, the backdoor cannot be judged and `accepted` is
            None.
        surrogate: pictures of the same kind that are none of the net's classes, or may be: strangers' faces, say. For
            methods that take them; a part of them, kept back, shows how many strangers the GoodNet refuses.
        poisoned: sets of known poison. Retraining learns from a part of each; what it did not see judges the GoodNet.
            Other methods see nothing of them; they judge alone.
        rounds: of repair and a whole scan of the repaired net. Labels flagged there join those found, and the BadNet
            is repaired of all of them, until nothing new is flagged or the rounds are over.
        reuse: what this very method has made of this net and these images before; it is not called again.
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
    _check(classifier, method, guard, found, poisoned, surrogate, output, rounds)
    check = preflight(classifier, images)
    if check.near_chance:
        raise UsageError(check.advice)
    parts = Parts(classifier, images, surrogate, poisoned, learns=isinstance(method, Retraining), seed=seed)
    job = _Job(classifier, parts, seed=seed, progress=progress)
    found = job.with_triggers(found)
    if reuse is None:
        repaired, found, all_rounds = job.repaired(method, found, rounds)
    else:
        repaired, all_rounds = Repaired(classifier=reuse), (found.targets,)
    goodnet = guarded(classifier, repaired, guard, parts, found, seed=seed, progress=progress)
    record = job.judged(repaired, goodnet, found, limits)
    record = replace(
        record,
        reasons=(*record.reasons, f"take care: {check.advice}") if check.advice else record.reasons,
        method=method_info(METHODS[type(method)], method, seed),
        guard=None if repaired.classifier.refuses else method_info(GUARDS[type(guard)], guard, seed),
        rounds=all_rounds,
        data=data_info(images),
        poisoned_data=tuple(data_info(part) for part in poisoned),
        surrogate_data=None if surrogate is None else data_info(surrogate),
        seconds=time.perf_counter() - started,
        environment=environment(classifier, command),
    )
    return keep(record, goodnet, found.triggers, output), goodnet


class _Job:
    """The net of one repair, and the parts of what its defender has."""

    def __init__(self, classifier: Classifier, parts: Parts, *, seed: int, progress: Progress):
        self.classifier, self.parts, self.seed, self.progress = classifier, parts, seed, progress

    def with_triggers(self, found: Found) -> Found:
        """What was found, with a mask for each flagged label of which none was kept."""
        if not found.labels:
            return found
        results = invert(self.classifier, *self.parts.fit, found.labels, found.schedule, seed=self.seed)
        return replace(found, triggers=(*found.triggers, *(result.trigger for result in results)), labels=())

    def repaired(
        self, method: Method, found: Found, rounds: int
    ) -> tuple[Repaired, Found, tuple[tuple[int, ...], ...]]:
        """Repairs the BadNet of all that was found; scans again; repairs it of what that finds, too.

        Returns:
            The last repair, all triggers, and the labels that each round has added.
        """
        added = [found.targets]
        repaired = self.call(method, found)
        for _ in range(rounds - 1):
            more = self._flagged(repaired.classifier)
            if not more:
                break
            found = replace(found, triggers=(*found.triggers, *more))
            added.append(tuple(trigger.target for trigger in more))
            repaired = self.call(method, found)
        return repaired, found, tuple(added)

    def call(self, method: Method, found: Found) -> Repaired:
        """Each method with what it is given beside clean images, and nothing else."""
        net, fit, choose, seed, progress = self.classifier, self.parts.fit, self.parts.choose, self.seed, self.progress
        if isinstance(method, Watch):
            return watched(net, method, self.parts, found, seed=seed, progress=progress)
        if isinstance(method, DistilledUnlearning):
            return method(
                net,
                fit,
                choose,
                triggers=found.triggers,
                labels=found.targets,
                further=found.further,
                stamps=found.stamps,
                surrogate_fit=self.parts.surrogate_fit,
                seed=seed,
                progress=progress,
            )
        if isinstance(method, CleanOnly):
            return method(net, fit, choose, seed=seed, progress=progress)
        if isinstance(method, Sweep):
            return method(net, fit, choose, targets=found.targets, seed=seed, progress=progress)
        if isinstance(method, Retraining):
            poisoned_fit, poisoned_choose = self.parts.poisoned_fit, self.parts.poisoned_choose
            return method(
                net,
                fit,
                choose,
                poisoned_fit=poisoned_fit,
                poisoned_choose=poisoned_choose,
                seed=seed,
                progress=progress,
            )
        return method(net, fit, choose, triggers=found.triggers, seed=seed, progress=progress)

    def _flagged(self, repaired: Classifier) -> list[Trigger]:
        """Triggers of what a scan of the repaired net flags."""
        detection = Staged()(repaired, self.parts.fit, self.parts.choose, seed=self.seed, progress=self.progress)
        return [
            detection.triggers[row.label] for row in detection.labels if row.flagged and row.label in detection.triggers
        ]

    def judged(self, repaired: Repaired, goodnet: Classifier, found: Found, limits: Limits) -> RepairRecord:
        """What the judging split and a new search say of a GoodNet. What made it is still to be filled in."""
        evidence = self.evidence(found)
        before = measure(self.classifier, self.parts.judge, evidence)
        after = measure(goodnet, self.parts.judge, evidence, before=before)
        # disagreement and TED's ranks give a search nothing to climb, and STRIP would cost it 65 times as much
        searched = repaired.classifier if isinstance(goodnet.net, GoodNet | StripGoodNet | TedGoodNet) else goodnet
        again = search_again(
            searched,
            found.targets,
            found.schedule,
            found.median_norm,
            self.parts.fit,
            self.parts.judge_labelled,
            seed=self.seed,
        )
        accepted, reasons = judge_repair(before, after, again, limits)
        strangers, like_target = self.refused(goodnet, found.targets)
        return RepairRecord(
            accepted=accepted,
            reasons=reasons,
            method=MethodInfo(name="", passed={}, resolved={}, seed=self.seed),
            before=before,
            after=after,
            again=again,
            fpr_strangers=strangers,
            fpr_target=like_target,
            limits=dict(vars(limits)),
            n_fit=len(self.parts.fit[0]),
            n_choose=len(self.parts.choose[0]),
            n_judge=len(self.parts.judge),
            curve=repaired.curve,
            pruned=repaired.pruned,
            changed=changed_layers(self.classifier, repaired.classifier),
            rounds=(),
            model=model_info(self.classifier),
            data=data_info(self.parts.judge),
            poisoned_data=(),
            goodnet_file=None,
            goodnet_sha256=None,
            seconds=0.0,
            environment=environment(self.classifier, ()),
        )

    def refused(self, goodnet: Classifier, targets: Sequence[int]) -> tuple[Share | None, Share | None]:
        """Of the strangers kept back, and of all clean images kept back that the BadNet answers with a target, the
        share that is sent to class N."""
        parts = (
            [self.parts.judge] if self.parts.surrogate_judge is None else [self.parts.judge, self.parts.surrogate_judge]
        )
        answers = [answer(goodnet, part) == goodnet.classes for part in parts]
        theirs = np.concatenate([np.isin(answer(self.classifier, part), targets) for part in parts])
        strangers = None if self.parts.surrogate_judge is None else share(answers[1])
        return strangers, share(np.concatenate(answers)[theirs])

    def evidence(self, found: Found) -> list[Images]:
        """Triggered images to judge by: known poison, the scan's triggers, and triggers that no method was given."""
        classes = self.parts.judge_labelled[1]
        judges = held_out_triggers(self.classifier, found.targets, self.parts.fit, found.schedule, seed=self.seed)
        return [
            *self.parts.poisoned_judge,
            *(
                triggered(trigger, self.parts.judge, classes, name=f"trigger found for label {trigger.target}")
                for trigger in found.triggers
            ),
            *(
                triggered(trigger, self.parts.judge, classes, name=f"another trigger for label {trigger.target}")
                for trigger in judges
            ),
        ]


def _check(
    classifier: Classifier,
    method: Method,
    guard: Guard,
    found: Found,
    poisoned: Sequence[Images],
    surrogate: Images | None,
    output: Output,
    rounds: int,
) -> None:
    if classifier.refuses:
        raise UsageError(f"{classifier.name}: expected a plain classifier, got a GoodNet, which is repaired already")
    _check_found(classifier, found)
    name = METHODS[type(method)]
    by_label = isinstance(method, Watch | DistilledUnlearning | Filter | Pruning | Unlearning | Sweep)
    if (by_label or isinstance(guard, Watch | Combined)) and not found.targets:
        option = f"--method {name}" if by_label else f"--guard {GUARDS[type(guard)]}"
        raise UsageError(f"{option}: expected labels to repair, got none; pass --scan with a scan that flags a label")
    if isinstance(method, Retraining) and not poisoned:
        raise UsageError(f"--method {name}: expected triggered images to learn from, got none; pass --poisoned DATA")
    if rounds < 1 or (rounds > 1 and not isinstance(method, Pruning | Unlearning)):
        raise UsageError(
            f"--rounds: expected 1 with --method {name}, got {rounds}; more are for nc-prune and nc-unlearn"
        )
    if surrogate is not None:
        check_images(classifier, replace(surrogate, labels=None))
    for part in poisoned:
        check_images(classifier, part)
        if part.labels is None:
            raise DataError(f"{part.name}: expected the attacker's targets as labels of a poisoned set, found none")
    check_output(output)


def _check_found(classifier: Classifier, found: Found) -> None:
    for trigger in found.triggers:
        if tuple(trigger.pattern.shape) != classifier.input.shape or not 0 <= trigger.target < classifier.classes:
            raise DataError(
                f"expected triggers of the net's shape {classifier.input.shape} and labels under "
                f"{classifier.classes}, got {tuple(trigger.pattern.shape)} for label {trigger.target}; scan again"
            )
    for label in found.labels:
        if not 0 <= label < classifier.classes:
            raise DataError(f"--scan: expected labels under {classifier.classes}, got {label}; scan again")
