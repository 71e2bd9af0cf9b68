"""The repair benchmark: `--method auto` on nets that others have planted backdoors in, judged on what built nothing.

For each net a defender has clean images, and for the face nets strangers' faces (half of the people of LFW; the other
half is measured on). The net is scanned and repaired with the defaults; nothing here tells a method a true target. The
GoodNet is measured as it is, and the repaired net in it alone, without class N. The lipstick and eyebrows sets are
painted on the defender's own faces: they are measured a second time on those faces alone that only judged the repair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from goodnet.about import data_info, environment, model_info
from goodnet.auto import auto
from goodnet.bench_record import BenchCell, BenchRecord, BenchRow, BenchScan
from goodnet.cells import run_cells, tell
from goodnet.csaw import PUBLISHED
from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.errors import DataError, UsageError
from goodnet.found import Found
from goodnet.keeping import Output
from goodnet.measure import answer, measure, share
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import GoodNet, SecondOpinion
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.load import file_sha256
from goodnet.progress import Progress, silent
from goodnet.record import Poisoned, RepairRecord, ScanRecord, Share, read_record
from goodnet.repair_subjects import NETS, Subject, in_order, subjects
from goodnet.runners import SERIAL, Runner
from goodnet.scan import scan
from goodnet.strict_json import write_record

HELD_OUT = "on faces that only judged the repair"
_GOODNET = "goodnet.safetensors"


def run_repairs(
    data: Path,
    out: Path,
    *,
    nets: Sequence[str] = NETS,
    seeds: Sequence[int] = (0,),
    time_limit: float = 300.0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
    runner: Runner = SERIAL,
) -> BenchRecord:
    """Scans and repairs each net and leaves the records in `out`; what is there already is not made again.

    Args:
        seeds: each decides on splits, scan and repair, and has a folder of its own.
        runner: where that is done; on Ray a net with a seed is a task, and all machines have to share the folders.

    Raises:
        UsageError: files are missing in `data`, or a machine does not share the folders.
        DataError: `out` holds a scan of another net.
    """
    started = time.perf_counter()
    cells = [(seed, name) for seed in seeds for name in in_order(nets)]
    if not cells:
        raise UsageError("bench repair: expected at least one net and one seed, got none")
    bench = Bench(
        data=data.absolute(),
        out=out.absolute(),
        time_limit=time_limit,
        command=tuple(command),
        progress=progress if runner.here else silent,
    )
    done = run_cells(
        repair_cell, bench, cells, out=bench.out, folders="bench repair: expected --out and --data", runner=runner,
        progress=progress, each=lambda cell, _: tell(cell.said, say),
    )  # fmt: skip
    record = BenchRecord(
        name="repair",
        rows=tuple(row for cell in done for row in cell.rows),
        scans=tuple(cell.scan for cell in done),
        published=tuple(row for row in PUBLISHED if row.net in nets),
        data=tuple(dict.fromkeys(data for cell in done for data in cell.used)),
        seconds=time.perf_counter() - started,
        environment=done[-1].machine,
        models=tuple(dict.fromkeys(cell.model for cell in done)),
    )
    write_record(record, out / "repair-bench.json")
    return record


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all nets' repairs share."""

    data: Path
    out: Path
    time_limit: float
    command: tuple[str, ...]
    progress: Progress


def repair_cell(bench: Bench, cell: tuple[int, str]) -> BenchCell:
    """Scans, repairs and measures a net."""
    seed, name = cell
    (subject,) = subjects(bench.data, [name], seed)
    folder = net_folder(bench.out, seed, name)
    record = scanned(subject, folder / "scan", seed, bench.command, _named(bench.progress, name))
    said = [f"{name}, seed {seed}: {record.verdict} {list(record.flagged_labels)}, {record.seconds:.0f} s"]
    rows = list(_measured(subject, subject.net, "none", None, record.seconds, seed))
    if record.flagged_labels:
        rows += _repaired(subject, folder, seed, bench.time_limit, bench.command, bench.progress)
        said.append(f"{name}, seed {seed}: {rows[-1].method}, {rows[-1].seconds:.0f} s")
    return BenchCell(
        scan=BenchScan(
            net=name,
            verdict=record.verdict,
            flagged_labels=record.flagged_labels,
            targets=subject.true_targets,
            seconds=record.seconds,
            seed=seed,
        ),
        rows=tuple(rows),
        used=tuple(data_info(images) for images in subject.images),
        model=model_info(subject.net),
        machine=environment(subject.net, bench.command),
        said=tuple(said),
    )


def net_folder(out: Path, seed: int, net: str) -> Path:
    """Where the scan and the repairs of a net go."""
    return out / f"seed-{seed}" / net


def _repaired(
    subject: Subject, out: Path, seed: int, time_limit: float, command: Sequence[str], progress: Progress
) -> list[BenchRow]:
    record, goodnet = built(subject, out, seed=seed, time_limit=time_limit, command=command, progress=progress)
    name = f"auto: {_chosen(record)}"
    rows = list(_measured(subject, goodnet, name, record, record.seconds, seed))
    if isinstance(goodnet.net, GoodNet | SecondOpinion):
        alone = replace(subject.net, net=goodnet.net.good)
        rows += _measured(subject, alone, "its repaired net alone", record, record.seconds, seed)
    return rows


def built(
    subject: Subject, out: Path, *, seed: int, time_limit: float, command: Sequence[str], progress: Progress
) -> tuple[RepairRecord, Classifier]:
    """The GoodNet of a subject whose scan is in `out`: what an earlier run has left there, or made now."""
    return _made(subject, out, seed) or _make(subject, out, seed, time_limit, command, progress)


def _make(
    subject: Subject, out: Path, seed: int, time_limit: float, command: Sequence[str], progress: Progress
) -> tuple[RepairRecord, Classifier]:
    found, _ = Found.in_folder(out / "scan")
    return auto(
        subject.net,
        subject.clean,
        found=found,
        surrogate=subject.surrogate,
        time_limit=time_limit,
        output=Output(folder=out / "auto", goodnet=out / _GOODNET, keep_rejected=True, overwrite=True),
        seed=seed,
        command=command,
        progress=_named(progress, subject.name),
    )


def _made(subject: Subject, out: Path, seed: int) -> tuple[RepairRecord, Classifier] | None:
    """What an earlier run has left, if it is whole and of this net and seed."""
    if not (out / "auto" / "repair.json").exists() or not (out / _GOODNET).exists():
        return None
    record = read_record(out / "auto" / "repair.json")
    digest = file_sha256(out / _GOODNET)
    if not isinstance(record, RepairRecord) or record.goodnet_sha256 != digest or record.method.seed != seed:
        return None
    return (record, load_goodnet(out / _GOODNET)) if record.model.sha256 == subject.net.sha256 else None


def _chosen(record: RepairRecord) -> str:
    return record.method.name if record.guard is None else f"{record.method.name}, {record.guard.name}"


def _measured(
    subject: Subject, net: Classifier, method: str, record: RepairRecord | None, seconds: float, seed: int
) -> Iterator[BenchRow]:
    """A row a trigger; a second one where it is painted on the defender's own images."""
    strangers = None
    if subject.strangers is not None and net.refuses:
        strangers = share(answer(net, subject.strangers) == net.classes)
    for trigger, images in subject.poisoned.items():
        parts = [(images, subject.note)]
        if trigger in subject.painted_on_clean and method != "none":
            parts.append((images.take(_only_judged(images, subject.clean, seed)), HELD_OUT))
        for part, note in parts:
            measured = measure(net, subject.test, [part])
            figures: Poisoned = measured.poisoned[0]
            yield BenchRow(
                net=subject.name,
                method=method,
                trigger=trigger,
                target=figures.target,
                accepted=None if record is None else record.accepted,
                acc=measured.acc,
                asr=figures.asr,
                ra=figures.ra,
                ra_ceiling=_ceiling(subject, part),
                detection=figures.detection,
                fpr=measured.fpr,
                fpr_strangers=strangers,
                fpr_target=refused_like(subject, net, figures.target),
                seconds=seconds,
                note=note,
                seed=seed,
            )


def _ceiling(subject: Subject, part: Images) -> float | None:
    if subject.ceiling is None:
        return None
    ra = measure(subject.ceiling, None, [part]).poisoned[0].ra
    return None if ra is None else ra.value


def refused_like(subject: Subject, net: Classifier, target: int | None) -> Share | None:
    """Share refused of clean images, none of which built the GoodNet, that the net as it came gives the target."""
    if not net.refuses or target is None:
        return None
    parts = [subject.test] if subject.strangers is None else [subject.test, subject.strangers]
    like = [part.take(answer(subject.net, part) == target) for part in parts]
    return share(np.concatenate([answer(net, part) == net.classes for part in like]))


def _only_judged(poisoned: Images, clean: Images, seed: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(N,) which triggered images are painted on a clean one that the repair saw only when it was judged."""
    faces = clean.tensor()
    nearest = [int((faces - image).abs().flatten(1).median(1).values.argmin()) for image in poisoned.tensor()]
    return np.isin(nearest, split(clean, seed=seed).judge)


def scanned(subject: Subject, out: Path, seed: int, command: Sequence[str], progress: Progress) -> ScanRecord:
    """The scan in `out`, or one made now. Raises DataError where another net's, or another seed's, is there."""
    if (out / "scan.json").exists():
        record = read_record(out / "scan.json")
        same = isinstance(record, ScanRecord) and record.model.sha256 == subject.net.sha256
        if not isinstance(record, ScanRecord) or not same or record.method.seed != seed:
            raise DataError(f"bench repair: {out} holds a scan of another net, or of another seed; pass another --out")
        return record
    return scan(subject.net, subject.clean, seed=seed, out=out, command=command, progress=progress)


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
