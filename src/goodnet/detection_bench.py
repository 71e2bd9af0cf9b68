"""The detection benchmark: every net of the pool scanned as a user would scan it, and how often the scan was right.

A scan is given the net and the defender's clean images, nothing else. A net whose trigger did not take (ASR under
`MIN_ASR`) is shown and counts in no rate. All-to-all, source-specific and clean-label attacks are what scans are known
not to see: they have rows of their own, and rates are given with and without them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from goodnet.about import environment, method_info
from goodnet.cells import run_cells
from goodnet.detection_pool import Pooled, build, needs
from goodnet.detection_record import DetectionRecord, DetectionRow, DetectionSummary
from goodnet.detection_specs import BLIND_SPOTS, PARTS, PoolNet, specs
from goodnet.errors import UsageError
from goodnet.pool_scan import pool_scan
from goodnet.progress import Progress, silent
from goodnet.record import Environment, ScanRecord, Share
from goodnet.runners import SERIAL, Runner
from goodnet.scan import METHODS, Detector
from goodnet.staged import Staged
from goodnet.stats import wilson
from goodnet.strict_json import write_record

ALL, SHAPED = "all", "all but blind spots"
_RESAMPLES = 2000


def run_detection(
    cache: Path,
    out: Path,
    *,
    data: Path | None = None,
    nets: Sequence[PoolNet] | None = None,
    method: Detector | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
    runner: Runner = SERIAL,
) -> DetectionRecord:
    """Makes the nets that the cache has not, scans all, and leaves `detection.json` and every scan in `out`.

    A scan that is there already, of the same net and images with the same settings, seed and version of goodnet, is
    not made again: a run that was interrupted goes on.

    Args:
        cache, data: see `detection_pool.build`. Nets whose images are not in `data` are left out, and named.
        out: gets `detection.json` and `scans/NAME/`.
        nets: some of `specs()`; None for all.
        method: the detector; `Staged()` by default.
        seed: of the scans and of the bootstrap.
        runner: where nets are made and scanned; on Ray a net is a task, and all machines have to share the folders.

    Raises:
        UsageError: no net can be made at all, or a machine does not share the folders.
        DataError, ModelError: see `detection_pool.build`.
    """
    started = time.perf_counter()
    chosen = specs() if nets is None else tuple(nets)
    method = method or Staged()
    made = [spec for spec in chosen if not needs(spec, data)]
    left_out = tuple(f"{spec.name}: {needs(spec, data)}" for spec in chosen if needs(spec, data))
    if not made:
        raise UsageError(
            f"bench detection: expected nets to scan, got none; {left_out[0] if left_out else 'name some'}"
        )
    bench = Bench(
        cache=cache.absolute(),
        out=out.absolute(),
        data=None if data is None else data.absolute(),
        method=method,
        seed=seed,
        command=tuple(command),
        progress=progress if runner.here else silent,
    )
    folders = "bench detection: expected --out, --cache and --data"
    cells = run_cells(
        scan_cell, bench, made, out=bench.out, folders=folders, runner=runner, progress=progress,
        each=lambda cell, count: say(_line(cell.row, count, len(made), time.perf_counter() - started)),
    )  # fmt: skip
    rows = [cell.row for cell in cells]
    result = DetectionRecord(
        rows=tuple(rows),
        summaries=summaries(rows, seed=seed),
        left_out=left_out,
        method=method_info(METHODS[type(method)], method, seed),
        seconds=time.perf_counter() - started,
        environment=cells[0].machine,
    )
    write_record(result, out / "detection.json")
    return result


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all nets' scans share."""

    cache: Path
    out: Path
    data: Path | None
    method: Detector
    seed: int
    command: tuple[str, ...]
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A net's row, and what it was made on."""

    row: DetectionRow
    machine: Environment


def scan_cell(bench: Bench, spec: PoolNet) -> Cell:
    """Makes a net, unless it is there, and scans it."""
    pooled = build(spec, bench.cache, bench.data, progress=bench.progress)
    record = pool_scan(pooled, bench.out / "scans" / spec.name, bench.method, bench.seed, bench.command)
    return Cell(row=detection_row(pooled, record), machine=environment(pooled.classifier, bench.command))


def detection_row(pooled: Pooled, record: ScanRecord) -> DetectionRow:
    """The scan's answer beside the truth."""
    info = pooled.record
    known = [row for row in record.labels if row.p_value is not None]
    best = min(known, key=lambda row: row.p_value or 0.0, default=None)
    mapping = record.all_to_all
    led = sorted({target for _, target in mapping.led}) if mapping is not None and mapping.flagged else []
    score = None if best is None or best.p_value is None else best.p_value * pooled.spec.classes
    ratios = [row.norm_ratio for row in record.labels if row.label in info.targets and row.norm_ratio is not None]
    return DetectionRow(
        net=info.name,
        part=pooled.spec.part,
        kind=pooled.spec.kind,
        attack=pooled.spec.attack or "",
        targets=info.targets,
        planted=info.planted,
        acc=info.acc,
        asr=min((trigger.asr.value for trigger in info.triggers if trigger.asr is not None), default=None),
        verdict=record.verdict,
        flagged_labels=tuple(sorted({*record.flagged_labels, *led})),
        score=0.0 if led else score,
        best_label=None if best is None else best.label,
        target_ratio=min(ratios, default=None),
        seconds=record.seconds,
        forward_passes=record.forward_passes,
        model_sha256=record.model.sha256,
        data_sha256=record.data.sha256,
    )


def summaries(rows: Sequence[DetectionRow], *, seed: int = 0) -> tuple[DetectionSummary, ...]:
    """Rates of each part and, where there are nets of both, of both together.

    Of all nets, of all but the blind spots, by kind, and by attack. An attack stands beside all clean nets of the
    part, a kind beside its own.
    """
    parts = [part for part in PARTS if any(row.part == part for row in rows)]
    result = []
    for part in [*parts, *([ALL] if len(parts) > 1 else [])]:
        mine = [row for row in rows if part in (row.part, ALL)]
        result += [summary(part, group, some, seed=seed) for group, some in _groups(mine).items()]
    return tuple(result)


def _groups(rows: Sequence[DetectionRow]) -> Mapping[str, list[DetectionRow]]:
    groups = {ALL: list(rows), SHAPED: [row for row in rows if row.attack not in BLIND_SPOTS]}
    for kind in dict.fromkeys(row.kind for row in rows):
        groups[f"kind {kind}"] = [row for row in rows if row.kind == kind]
    for attack in dict.fromkeys(row.attack for row in rows if row.attack):
        groups[f"attack {attack}"] = [row for row in rows if row.attack in ("", attack)]
    return groups


def summary(part: str, group: str, rows: Sequence[DetectionRow], *, seed: int = 0) -> DetectionSummary:
    """Rates over `rows`; see `DetectionSummary`."""
    counted = [row for row in rows if row.planted]
    clean = [row for row in counted if not row.attack]
    bad = [row for row in counted if row.attack]
    flagged = [label in row.targets for row in bad for label in row.flagged_labels]
    found = [label in row.flagged_labels for row in bad for label in row.targets]
    return DetectionSummary(
        part=part,
        group=group,
        clean=len(clean),
        backdoored=len(bad),
        not_planted=len(rows) - len(counted),
        tpr=_share(row.verdict == "suspect" and set(row.flagged_labels) & set(row.targets) for row in bad),
        suspect=_share(row.verdict == "suspect" for row in bad),
        fpr=_share(row.verdict == "suspect" for row in clean),
        inconclusive=_share(row.verdict == "inconclusive" for row in counted),
        missed=_share(row.verdict == "clean" for row in bad),
        precision=_share(flagged),
        recall=_share(found),
        auc=auc_share([_suspicion(row) for row in bad], [_suspicion(row) for row in clean], seed=seed),
        seconds=statistics.median(row.seconds for row in counted) if counted else None,
    )


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores higher than a negative, ties counting half: the area under the ROC curve.

    Raises:
        ValueError: one of both is empty.
    """
    if not len(positive) or not len(negative):
        raise ValueError("expected scores of both kinds, got none of one")
    return _auc(np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64)))


def auc_share(positive: Sequence[float], negative: Sequence[float], *, seed: int = 0) -> Share | None:
    """AUC with its 95 % percentile bootstrap interval, nets of each kind resampled on their own; None without both.

    Where the kinds do not overlap, no resample overlaps either, and the interval says nothing.
    """
    if not len(positive) or not len(negative):
        return None
    high, low = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    random = np.random.default_rng([seed, len(high), len(low)])
    values = [
        _auc(high[random.integers(len(high), size=len(high))], np.sort(low[random.integers(len(low), size=len(low))]))
        for _ in range(_RESAMPLES)
    ]
    ends = np.quantile(values, [0.025, 0.975])
    return Share(value=auc(positive, negative), low=float(ends[0]), high=float(ends[1]), n=len(high) + len(low))


def _auc(positive: npt.NDArray[np.float64], sorted_negative: npt.NDArray[np.float64]) -> float:
    below = np.searchsorted(sorted_negative, positive, side="left")
    up_to = np.searchsorted(sorted_negative, positive, side="right")
    return float((below + up_to).sum() / (2 * len(positive) * len(sorted_negative)))


def _suspicion(row: DetectionRow) -> float:
    """Higher is more suspicious; a net without any p-value is the least."""
    return -np.inf if row.score is None else -row.score


def _share(hits: Iterable[object]) -> Share | None:
    counted = [bool(hit) for hit in hits]
    if not counted:
        return None
    low, high = wilson(sum(counted), len(counted))
    return Share(value=sum(counted) / len(counted), low=low, high=high, n=len(counted))


def _line(row: DetectionRow, done: int, total: int, seconds: float) -> str:
    truth = f"targets {list(row.targets)[:4]}" if row.attack else "clean net"
    note = "" if row.planted else ", NOT PLANTED"
    score = "unknown" if row.score is None else f"{row.score:.2g}"
    left = seconds / done * (total - done) / 60
    return (
        f"{done}/{total} {row.net}: {row.verdict} {list(row.flagged_labels)[:6]}, {truth}{note}, p x K {score}, "
        f"{row.seconds:.0f} s; {left:.0f} min left"
    )
