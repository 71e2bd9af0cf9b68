"""The guard benchmark: each guard in front of the same net and the same repaired twin, by what it tells apart.

Nets, defenders' images and repaired twins are those of the repair benchmark; what it has left in its folder is used,
the rest is made. A guard's score is by how much class N wins, whatever its threshold, so that guards of all kinds
compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from goodnet import stats
from goodnet.about import data_info, environment, model_info
from goodnet.cells import run_cells, tell
from goodnet.class_n import over
from goodnet.data.images import Images
from goodnet.errors import UsageError
from goodnet.found import Found
from goodnet.guard.combined import Combined
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.strip import Strip
from goodnet.guard.ted import Ted
from goodnet.guard.watch import Watch
from goodnet.guard_record import GuardRecord, GuardRow
from goodnet.guarding import GUARDS, Guard, guarded, watched
from goodnet.measure import answer, share
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import GoodNet, SecondOpinion
from goodnet.parts import Parts
from goodnet.predict_bench import fastest
from goodnet.progress import Progress, silent
from goodnet.record import DataInfo, Environment, ModelInfo
from goodnet.repair.nc_filter import Filter
from goodnet.repair_bench import Bench, built, net_folder, refused_like, scanned
from goodnet.repair_subjects import NETS, Subject, in_order, subjects
from goodnet.runners import SERIAL, Runner
from goodnet.strict_json import write_record
from goodnet.tuning import logits_of

_WITH_TWIN: tuple[Guard, ...] = (Disagreement(max_fpr=0.01), Strip(), Strip(max_fpr=0.01), Ted(), Watch(), Combined())
_FPR = 0.01
_BATCH = 64


def run_guards(
    data: Path,
    out: Path,
    *,
    nets: Sequence[str] = NETS,
    seed: int = 0,
    time_limit: float = 300.0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
    runner: Runner = SERIAL,
) -> GuardRecord:
    """Measures every guard on each net that a scan flags and that a repair gives a twin.

    Args:
        out: of `goodnet bench repair`, whose scans and GoodNets are used; the record goes there.
        runner: where that is done; on Ray a net is a task, and all machines have to share the folders.

    Raises:
        UsageError: files are missing in `data`, no net has a twin, or a machine does not share the folders.
        DataError: `out` holds a scan of another net, or of another seed.
    """
    started = time.perf_counter()
    bench = Bench(
        data=data.absolute(),
        out=out.absolute(),
        time_limit=time_limit,
        command=tuple(command),
        progress=progress if runner.here else silent,
    )
    cells = [(seed, name) for name in in_order(nets)]
    made = run_cells(
        guard_cell, bench, cells, out=bench.out, folders="bench guards: expected --out and --data", runner=runner,
        progress=progress, each=lambda cell, _: tell(cell.said, say),
    )  # fmt: skip
    done = [cell for cell in made if cell.rows]
    if not done:
        raise UsageError("bench guards: expected at least one net that is flagged and repaired, got none")
    record = GuardRecord(
        rows=tuple(row for cell in done for row in cell.rows),
        seed=seed,
        seconds=time.perf_counter() - started,
        environment=done[-1].machine,
        models=tuple(cell.model for cell in done),
        data=tuple(dict.fromkeys(data for cell in done for data in cell.used)),
    )
    write_record(record, out / "guard-bench.json")
    return record


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What came of one net, on what, and lines for who watches; no rows where it has no twin."""

    rows: tuple[GuardRow, ...]
    used: tuple[DataInfo, ...]
    model: ModelInfo
    machine: Environment
    said: tuple[str, ...]


def guard_cell(bench: Bench, cell: tuple[int, str]) -> Cell:
    """Measures every guard on a net."""
    seed, name = cell
    (subject,) = subjects(bench.data, [name], seed)
    rows, said = _rows(bench, subject, seed)
    return Cell(
        rows=tuple(rows),
        used=tuple(data_info(images) for images in subject.images),
        model=model_info(subject.net),
        machine=environment(subject.net, bench.command),
        said=tuple(f"{name}: {line}" for line in said),
    )


def _rows(bench: Bench, subject: Subject, seed: int) -> tuple[list[GuardRow], list[str]]:
    """The rows of a net, and what to say of it."""
    folder, command, progress = net_folder(bench.out, seed, subject.name), bench.command, bench.progress
    if not scanned(subject, folder / "scan", seed, command, progress).flagged_labels:
        return [], ["nothing is flagged, nothing to guard"]
    _, goodnet = built(subject, folder, seed=seed, time_limit=bench.time_limit, command=command, progress=progress)
    if not isinstance(goodnet.net, GoodNet | SecondOpinion):
        return [], ["its GoodNet has no repaired net of its own, so guards have nothing to compare"]
    found, _ = Found.in_folder(folder / "scan")
    good = replace(subject.net, net=goodnet.net.good)
    rows: list[GuardRow] = []
    said: list[str] = []
    for name, guard in _guards(subject, good, found, seed, said.append, progress):
        rows += list(_measured(subject, name, guard))
        said.append(name)
    return rows, said


def _guards(
    subject: Subject, good: Classifier, found: Found, seed: int, say: Callable[[str], None], progress: Progress
) -> Iterator[tuple[str, Classifier]]:
    """Each guard's GoodNet, by name."""
    bad = subject.net
    parts = Parts(bad, subject.clean, subject.surrogate, seed=seed)
    if found.triggers:
        yield "nc-filter", Filter()(bad, parts.fit, parts.choose, triggers=found.triggers, seed=seed).classifier
    alone = watched(bad, Watch(), parts, found, seed=seed, progress=progress)
    yield "watch, alone", alone.classifier
    twin = replace(alone, classifier=good)  # with the strong triggers, which every watch searches for alike
    for guard in _WITH_TWIN:
        try:
            made = guarded(bad, twin, guard, parts, found, seed=seed, progress=progress)
        except UsageError as error:  # ted, where hardly any class has clean images to compare with
            say(str(error))
            continue
        bound = f" ({guard.max_fpr:.0%})" if isinstance(guard, Disagreement | Strip | Ted) else ""
        yield f"{GUARDS[type(guard)]}{bound}", made


def _measured(subject: Subject, name: str, guard: Classifier) -> Iterator[GuardRow]:
    clean = _scores(guard, subject.test)
    x = subject.test.tensor()[:_BATCH]
    seconds = fastest({"net": lambda: subject.net.predict(x), "guard": lambda: guard.predict(x)}, 3, 1)
    strangers = None if subject.strangers is None else answer(guard, subject.strangers) == guard.classes
    for trigger, images in subject.poisoned.items():
        present = images if images.trigger_present is None else images.take(images.trigger_present)
        assert present.labels is not None
        target = int(present.labels[0])
        if present.true_labels is not None:
            present = present.take(present.true_labels != present.labels)
        scores = _scores(guard, present)
        detection, fpr = share(scores > 0), share(clean > 0)
        assert detection is not None
        assert fpr is not None
        enough = len(clean) * _FPR >= 1
        yield GuardRow(
            net=subject.name,
            trigger=trigger,
            guard=name,
            auc=stats.auc(scores, clean),
            detection=detection,
            detection_at=stats.hits_at(scores, clean, _FPR) if enough else None,
            fpr=fpr,
            fpr_strangers=None if strangers is None else share(strangers),
            fpr_target=refused_like(subject, guard, target),
            times=seconds["guard"] / seconds["net"],
        )


@torch.no_grad()
def _scores(guard: Classifier, images: Images) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) by how much class N wins."""
    return over(logits_of(guard, images.tensor())).double().cpu().numpy()
