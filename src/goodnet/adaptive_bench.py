"""The adaptive benchmark: attackers who know the defence; each net is scanned, repaired, and attacked again.

Scan and repair are given the net and the defender's clean images (5 % of the training set), nothing else: no target, no
trigger, no test image. What is measured afterwards, on test images that neither side had, is what survives. A low-norm
attacker lowers the mask norm on images of his own, not on those. A clean net shows what a false alarm costs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from goodnet.about import environment, method_info
from goodnet.adaptive_record import AdaptiveRecord, AdaptiveRow, Again, Figures, KeptRow, read_row
from goodnet.adaptive_specs import LOW_NORM, adaptive_specs
from goodnet.attacks.low_norm import lowest
from goodnet.attacks.reattack import Reattack, reattack
from goodnet.attacks.train import share_right
from goodnet.auto import Auto, auto
from goodnet.cells import run_cells, tell
from goodnet.data.images import Images
from goodnet.detection_pool import Pooled, PoolSets, build, needs, pool_sets
from goodnet.detection_specs import PoolNet
from goodnet.errors import DataError, UsageError
from goodnet.found import Found
from goodnet.judging import Limits
from goodnet.keeping import Output
from goodnet.measure import measure
from goodnet.models.classifier import Classifier
from goodnet.pool_scan import pool_scan
from goodnet.progress import Progress, silent
from goodnet.record import Environment, Measured, MethodInfo, ScanRecord
from goodnet.repair.retrain import Retraining
from goodnet.repairing import METHODS, Method, repair
from goodnet.runners import SERIAL, Runner
from goodnet.scan import METHODS as DETECTORS
from goodnet.scan import Detector
from goodnet.staged import Staged
from goodnet.strict_json import write_record

DEFAULT_METHODS = ("auto",)
_NAMES: dict[type[Method | Auto], str] = {
    Auto: "auto",
    **{kind: name for kind, name in METHODS.items() if kind is not Retraining},
}
METHOD_NAMES = tuple(_NAMES.values())
"""Those that a defender with clean images alone can use."""
MIN_ASR = 0.75  # of a backdoor that counts: who hides settles for less than the 0.9 of `detection_pool`
_TRIGGERED, _CLEAN, _JUDGED = 32, 512, 256  # images of a re-attack


def run_adaptive(
    cache: Path,
    out: Path,
    *,
    data: Path | None = None,
    nets: Sequence[PoolNet] | None = None,
    methods: Sequence[Method | Auto] | None = None,
    detector: Detector | None = None,
    again: Reattack | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
    runner: Runner = SERIAL,
) -> AdaptiveRecord:
    """Makes the nets that the cache has not, scans and repairs each, and leaves `adaptive.json` and all else in `out`.

    A row that is there already, of the same net with the same settings, seed and version of goodnet, is not made
    again: a run that was interrupted goes on.

    Args:
        cache, data: see `detection_pool.build`. Nets whose images are not in `data` are left out, and named.
        out: gets `adaptive.json` and a folder for each net: its scan, its repairs, its rows.
        nets: some of `adaptive_specs()`; None for all.
        methods: of METHOD_NAMES' kinds; None for DEFAULT_METHODS with their own settings.
        detector: `Staged()` by default.
        again: settings of the re-attack.
        seed: of scans, repairs and re-attacks.
        runner: where that is done; on Ray a net is a task, and all machines have to share the folders.

    Raises:
        UsageError: no net can be made at all, a method that needs more than clean images, or a machine does not share
            the folders.
        DataError, ModelError: see `detection_pool.build`.
    """
    started = time.perf_counter()
    chosen = adaptive_specs() if nets is None else tuple(nets)
    used = methods_by_name(DEFAULT_METHODS) if methods is None else tuple(methods)
    if not used or any(isinstance(method, Retraining) for method in used):
        raise UsageError(f"bench adaptive: expected methods out of {', '.join(METHOD_NAMES)}; name one")
    made = [spec for spec in chosen if not needs(spec, data)]
    left_out = tuple(f"{spec.name}: {needs(spec, data)}" for spec in chosen if needs(spec, data))
    if not made:
        raise UsageError(
            f"bench adaptive: expected nets to attack, got none; {left_out[0] if left_out else 'name some'}"
        )
    bench = Bench(
        cache=cache.absolute(),
        out=out.absolute(),
        data=None if data is None else data.absolute(),
        others=chosen,
        methods=used,
        detector=detector or Staged(),
        again=again or Reattack(),
        seed=seed,
        command=tuple(command),
        progress=progress if runner.here else silent,
    )
    folders = "bench adaptive: expected --out, --cache and --data"
    done = run_cells(
        adaptive_cell, bench, made, out=bench.out, folders=folders, runner=runner, progress=progress,
        each=lambda cell, count: tell([_line(row, count, len(made)) for row in cell.rows], say),
    )  # fmt: skip
    record = AdaptiveRecord(
        rows=tuple(row for cell in done for row in cell.rows),
        left_out=left_out,
        scan=bench.scan_info,
        methods=tuple(bench.method_infos),
        reattack=asdict(bench.again),
        survives_over=Limits().max_asr,
        seconds=time.perf_counter() - started,
        environment=done[-1].machine,
    )
    write_record(record, out / "adaptive.json")
    return record


def methods_by_name(names: Sequence[str]) -> tuple[Method | Auto, ...]:
    """The methods with their default settings. Raises UsageError for one that a defender here cannot use."""
    unknown = [name for name in names if name not in METHOD_NAMES]
    if unknown:
        raise UsageError(f"--method: expected one of {', '.join(METHOD_NAMES)}, got {unknown[0]!r}; take one of them")
    return tuple(kind() for kind, name in _NAMES.items() if name in names)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A net's rows, and what they were made on."""

    rows: tuple[AdaptiveRow, ...]
    machine: Environment


def adaptive_cell(bench: Bench, spec: PoolNet) -> Cell:
    """Makes a net, unless it is there; scans it, and repairs and attacks it again with every method."""
    pooled = bench.made(spec)
    return Cell(rows=tuple(bench.rows(pooled)), machine=environment(pooled.classifier, bench.command))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all nets' rows share; `others` are all nets of the run."""

    cache: Path
    out: Path
    data: Path | None
    others: tuple[PoolNet, ...]
    methods: tuple[Method | Auto, ...]
    detector: Detector
    again: Reattack
    seed: int
    command: tuple[str, ...]
    progress: Progress

    @property
    def scan_info(self) -> MethodInfo:
        return method_info(DETECTORS[type(self.detector)], self.detector, self.seed)

    @property
    def method_infos(self) -> list[MethodInfo]:
        return [method_info(_NAMES[type(method)], method, self.seed) for method in self.methods]

    def made(self, spec: PoolNet) -> Pooled:
        """The net; with a low-norm attacker the one with the lowest norm."""
        low = spec.attack == LOW_NORM and "strength" not in spec.attack_options
        return self._built(self._lowest(spec) if low else spec)

    def rows(self, pooled: Pooled) -> list[AdaptiveRow]:
        """A row a method of the net."""
        spec = pooled.spec
        folder = self.out / spec.name
        job: _Attacked | None = None
        rows = []
        for method, info in zip(self.methods, self.method_infos):
            path = folder / f"{info.name}.json"
            digest = self._sha256(pooled, info)
            row = _kept(path, digest)
            if row is None:
                job = job or self._attacked(pooled)
                row = job.row(method, info.name)
                write_record(KeptRow(sha256=digest, row=row), path)
            rows.append(row)
        return rows

    def _built(self, spec: PoolNet) -> Pooled:
        return build(spec, self.cache, self.data, progress=self.progress)

    def _attacked(self, pooled: Pooled) -> _Attacked:
        record = pool_scan(pooled, self.out / pooled.spec.name, self.detector, self.seed, self.command)
        reference = (
            None if pooled.spec.attack is None else self._built(reference_of(pooled.spec, self.others)).classifier
        )
        return _Attacked(
            run=self, pooled=pooled, sets=pool_sets(pooled.spec, self.data), scan=record, reference=reference
        )

    def _lowest(self, spec: PoolNet) -> PoolNet:
        """The net with the lowest mask norm that trains, by images of the attacker's: no test image says so."""

        def at(norm: float) -> PoolNet:
            return replace(spec, name=f"{spec.name}-{norm:g}", attack_options={**spec.attack_options, "strength": norm})

        def asr_of(norm: float) -> float:
            sets = pool_sets(at(norm), self.data)
            assert sets.plan is not None
            own = next(iter(sets.plan.test(sets.train).values()))
            return share_right(self._built(at(norm)).classifier, own)

        return at(lowest(asr_of))

    def _sha256(self, pooled: Pooled, info: Any) -> str:
        """Of all that a row hangs on."""
        plain = {
            "spec": pooled.spec.sha256(),
            "model": pooled.record.model.sha256,
            "clean": pooled.record.clean.sha256,
            "scan": asdict(self.scan_info),
            "method": asdict(info),
            "again": asdict(self.again),
            "goodnet": environment(pooled.classifier, ()).goodnet,
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Attacked:
    """One net with its scan, and what its repairs are measured on. `reference`: a clean net of the same task."""

    run: Bench
    pooled: Pooled
    sets: PoolSets
    scan: ScanRecord
    reference: Classifier | None

    def row(self, method: Method | Auto, name: str) -> AdaptiveRow:
        """Repairs the net with the method, and measures what came of it."""
        spec = self.pooled.spec
        net = self.pooled.classifier
        poisoned = list(self.sets.poisoned.values())
        before = measure(net, self.sets.test, poisoned)
        started = time.perf_counter()
        goodnet, accepted, note = self._repaired(method, name)
        seconds = time.perf_counter() - started
        after = before if goodnet is None else measure(goodnet, self.sets.test, poisoned, before=before)
        target = self.sets.targets[0] if self.sets.targets else None
        ratios = [label.norm_ratio for label in self.scan.labels if label.label == target]
        return AdaptiveRow(
            net=spec.name,
            kind=spec.kind,
            attack=spec.attack or "",
            trigger_norm=spec.attack_options.get("strength") if spec.attack == LOW_NORM else None,
            target=target,
            planted=all(part.asr is not None and part.asr.value >= MIN_ASR for part in before.poisoned),
            before=_figures(before),
            verdict=self.scan.verdict,
            flagged_labels=self.scan.flagged_labels,
            target_flagged=None if target is None else target in self.scan.flagged_labels,
            target_ratio=ratios[0] if ratios else None,
            method=name,
            model_sha256=self.pooled.record.model.sha256,
            repaired=goodnet is not None,
            accepted=accepted,
            after=_figures(after),
            again=None if goodnet is None else self._again(goodnet),
            again_clean=None if self.reference is None else self._again(self.reference),
            train=self.pooled.record.train,
            clean=self.pooled.record.clean,
            scan_seconds=self.scan.seconds,
            repair_seconds=seconds,
            note=note,
        )

    def _repaired(self, method: Method | Auto, name: str) -> tuple[Classifier | None, bool | None, str]:
        """The GoodNet, whether it was accepted, and why there is none."""
        run, folder = self.run, self.run.out / self.pooled.spec.name
        found, _ = Found.in_folder(folder)
        job = (
            partial(auto, time_limit=method.time_limit) if isinstance(method, Auto) else partial(repair, method=method)
        )
        try:
            record, goodnet = job(
                self.pooled.classifier,
                self.pooled.clean,
                found=found,
                output=Output(folder=folder / name, overwrite=True),
                seed=run.seed,
                command=run.command,
                progress=run.progress,
            )
        except UsageError as error:  # most methods need a flagged label
            if found.targets:
                raise
            return None, None, f"the scan flagged nothing ({error})"
        return goodnet, record.accepted, ""

    def _again(self, classifier: Classifier) -> Again | None:
        """The re-attack; None for a net without a trigger to plant."""
        plan = self.sets.plan
        if plan is None:
            return None
        random = np.random.default_rng([self.run.seed, 7])
        train = self.sets.train.take(random.permutation(len(self.sets.train))[: 2 * _CLEAN])
        clean, stamped = train.take(slice(0, _CLEAN)), train.take(slice(_CLEAN, None))
        triggered = next(iter(plan.test(stamped if len(stamped) else clean).values()))
        found = reattack(
            classifier,
            clean,
            triggered.take(slice(0, _TRIGGERED)),
            _some(next(iter(self.sets.poisoned.values())), _JUDGED),
            settings=self.run.again,
            seed=self.run.seed,
        )
        return Again(curve=found.curve, steps_to_half=found.steps_to_half)


def reference_of(spec: PoolNet, others: Sequence[PoolNet]) -> PoolNet:
    """A clean net of the same images and architecture: one of `others` or of all specs, or one of its own."""
    task = (spec.data, spec.arch, spec.options)
    for other in (*others, *adaptive_specs()):
        if other.attack is None and (other.data, other.arch, other.options) == task:
            return other
    return replace(spec, name=f"{spec.name}-clean", attack=None, target=0, faces={}, attack_options={})


def _kept(path: Path, digest: str) -> AdaptiveRow | None:
    """None where there is no row, or one of another run."""
    try:
        kept = read_row(path)
    except DataError:
        return None
    return kept.row if kept.sha256 == digest else None


def _figures(measured: Measured) -> Figures:
    if not measured.poisoned:
        return Figures(acc=measured.acc, fpr=measured.fpr)
    first = measured.poisoned[0]
    return Figures(acc=measured.acc, asr=first.asr, ra=first.ra, detection=first.detection, fpr=measured.fpr)


def _some(images: Images, most: int) -> Images:
    """Evenly spread over the set."""
    return images.take(np.unique(np.linspace(0, len(images) - 1, most).round().astype(np.int64)))


def _line(row: AdaptiveRow, done: int, total: int) -> str:
    def percent(figures: Figures) -> str:
        parts = [("ACC", figures.acc), ("ASR", figures.asr)]
        return ", ".join(f"{name} {100 * part.value:.1f}" for name, part in parts if part is not None)

    after = f"{row.method} {percent(row.after)}" if row.repaired else f"{row.method}: not repaired"
    note = "" if row.planted else ", NOT PLANTED"
    return (
        f"{done}/{total} {row.net}: {percent(row.before)}{note}; {row.verdict} {list(row.flagged_labels)[:6]}; {after}"
    )
