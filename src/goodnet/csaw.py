"""The CSAW-HackML-2020 benchmark: every method on every net of the competition, judged on what built nothing.

A defender has the net and `clean_validation_data.h5`. The scan of a net gives its repairs their labels and triggers;
nothing here tells a method a true target. Retraining alone is given poison: half of each poisoned set; it is measured
on the other half, and on test faces of people who are not in the first. The clean net is the control: its strongest
label is repaired as if it had been flagged, which shows what a false alarm costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from goodnet.about import data_info, environment, method_info, model_info
from goodnet.bench_record import BenchCell, BenchRecord, BenchRow, BenchScan, Published
from goodnet.cells import run_cells, tell
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import UsageError
from goodnet.found import Found
from goodnet.keeping import Output
from goodnet.measure import answer, measure, share
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier
from goodnet.progress import Progress, silent
from goodnet.record import Measured, Poisoned, ScanRecord, Share, read_record
from goodnet.repair.retrain import Retraining
from goodnet.repairing import METHODS, Method, repair
from goodnet.runners import SERIAL, Runner
from goodnet.scan import scan
from goodnet.strict_json import write_record
from goodnet.triggers.files import read_triggers
from goodnet.triggers.inversion import Schedule

NETS = {
    "sunglasses": "sunglasses_bd_weights.h5",
    "anonymous_1": "anonymous_1_bd_weights.h5",
    "multi": "multi_trigger_multi_target_bd_weights.h5",
    "clean": "clean_weights.h5",
}
TRIGGERS: dict[str, dict[str, str]] = {
    "sunglasses": {"sunglasses": "sunglasses_poisoned_data.h5"},
    "anonymous_1": {"lipstick": "anonymous_1_poisoned_data.h5"},
    "multi": {
        "lipstick": "lipstick_poisoned_data.h5",
        "eyebrows": "eyebrows_poisoned_data.h5",
        "sunglasses": "multi_sunglasses_poisoned_data.h5",
    },
    "clean": {"sunglasses": "sunglasses_poisoned_data.h5"},
}
# Half of `goodnet scan`'s work: four nets of 1283 labels and all repairs are to take under half an hour.
SCAN = NeuralCleanse(screen=Schedule(steps=24, batch=8), candidates=16, controls=64)

PUBLISHED = (
    Published(net="sunglasses", who="refusing nearly all that is predicted as one of 5 labels", acc=97.4, asr=0.008),
    Published(net="multi", who="refusing nearly all that is predicted as one of 25 labels", acc=94.2, asr=0.26),
    Published(net="sunglasses", who="repair that refuses nothing", acc=92.8, asr=9.5),
    Published(net="anonymous_1", who="repair that refuses nothing", acc=95.1, asr=3.1),
    Published(net="multi", who="repair that refuses nothing", acc=85.3, asr=1.3),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Faces:
    """The competition's images: the defender's, the test faces, strangers, and the poisoned sets by file."""

    clean: Images
    test: Images
    strangers: Images
    poisoned: Mapping[str, Images]

    @staticmethod
    def read(folder: Path) -> Faces:
        """Raises UsageError where files of the competition are missing."""
        files = {name for names in TRIGGERS.values() for name in names.values()}
        base = ("clean_validation_data.h5", "clean_test_data.h5", "lfw_158_people.h5")
        wanted = [*sorted(files), *base, *(f"nets/{name}" for name in NETS.values())]
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise UsageError(
                f"bench csaw: expected the competition's files in {folder}, and {missing[0]} is not there; pass --data "
                "DIR with the folder that holds them"
            )
        clean, test, strangers = (read_images(folder / name) for name in base)
        return Faces(
            clean=clean,
            test=test,
            strangers=replace(strangers, labels=None),
            poisoned={name: read_images(folder / name) for name in sorted(files)},
        )


def run_csaw(
    folder: Path,
    out: Path,
    *,
    nets: Sequence[str] = tuple(NETS),
    methods: Sequence[Method] | None = None,
    detector: NeuralCleanse = SCAN,
    seed: int = 0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
    runner: Runner = SERIAL,
) -> BenchRecord:
    """Runs the benchmark and leaves every scan's and repair's record in `out`. `methods` None is all of them.

    A scan that is there already, of the same net with the same settings and seed, is not made again: a run that was
    interrupted goes on.

    Args:
        runner: where that is done; on Ray a net is a task, and all machines have to share the folders.

    Raises:
        UsageError: files of the competition are missing, `out` holds a scan made otherwise, or a machine does not share
            the folders.
    """
    started = time.perf_counter()
    bench = Bench(
        folder=folder.absolute(),
        out=out.absolute(),
        methods=tuple(kind() for kind in METHODS) if methods is None else tuple(methods),
        detector=detector,
        seed=seed,
        command=tuple(command),
        progress=progress if runner.here else silent,
    )
    _prepared.cache_clear()
    done = run_cells(
        csaw_cell, bench, nets, out=bench.out, folders="bench csaw: expected --out and --data", runner=runner,
        progress=progress, each=lambda cell, _: tell(cell.said, say),
    )  # fmt: skip
    _prepared.cache_clear()
    if not done:
        raise UsageError("bench csaw: expected at least one net, got none")
    record = BenchRecord(
        name="csaw",
        rows=tuple(row for cell in done for row in cell.rows),
        scans=tuple(cell.scan for cell in done),
        published=tuple(row for row in PUBLISHED if row.net in nets),
        data=done[0].used,
        seconds=time.perf_counter() - started,
        environment=done[0].machine,
        models=tuple(cell.model for cell in done),
    )
    write_record(record, out / "bench.json")
    return record


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all nets' cells share."""

    folder: Path
    out: Path
    methods: tuple[Method, ...]
    detector: NeuralCleanse
    seed: int
    command: tuple[str, ...]
    progress: Progress


@lru_cache(maxsize=1)
def _prepared(folder: Path) -> tuple[Faces, Classifier, Mapping[str, float | None]]:
    """What all nets are measured on, the clean net, and its RA under each trigger."""
    faces = Faces.read(folder)
    clean = load_classifier(folder / "nets" / NETS["clean"], arch="deepid")
    return faces, clean, _ceilings(clean, faces)


def csaw_cell(bench: Bench, name: str) -> BenchCell:
    """Scans a net, repairs it with every method, and measures what came of each."""
    faces, clean, ceilings = _prepared(bench.folder)
    net = load_classifier(bench.folder / "nets" / NETS[name], arch="deepid")
    out, progress = bench.out / name, _named(bench.progress, name)
    record = _scan(net, faces.clean, out, bench.detector, bench.seed, bench.command, progress)
    said = [f"{name}: {record.verdict} {list(record.flagged_labels)}, {record.seconds:.0f} s"]
    job = _Net(name=name, net=net, faces=faces, ceilings=ceilings)
    rows = job.rows("none", None, net, job.unseen, record.seconds)
    found = _found(out)
    for method in bench.methods:
        rows += _method_rows(job, method, found, out, bench.seed, bench.command, progress)
        said.append(f"{name}, {METHODS[type(method)]}: {rows[-1].seconds:.0f} s")
    return BenchCell(
        scan=_bench_scan(name, record, faces),
        rows=tuple(rows),
        used=tuple(map(data_info, (faces.clean, faces.test, faces.strangers, *faces.poisoned.values()))),
        model=model_info(net),
        machine=environment(clean, bench.command),
        said=tuple(said),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Evidence:
    """What one row is measured on. `trigger` is empty where the net has none."""

    trigger: str
    images: Images
    test: Images
    like_target: Images


@dataclass(frozen=True, kw_only=True, eq=False)
class _Net:
    """One net and what its repairs are measured on."""

    name: str
    net: Classifier
    faces: Faces
    ceilings: Mapping[str, float | None]

    @cached_property
    def unseen(self) -> list[_Evidence]:
        """What every method but retraining is measured on; the net's answers to all strangers are asked for once."""
        return self.evidence(learned=False)

    def evidence(self, *, learned: bool) -> list[_Evidence]:
        """For each trigger of the net; without what retraining has learned from, where it has."""
        result = []
        for trigger, file in TRIGGERS[self.name].items():
            images, test = self.faces.poisoned[file], self.faces.test
            if learned:
                taught = images.take(_half(images))
                assert test.labels is not None
                assert taught.true_labels is not None
                test = test.take(~np.isin(test.labels, taught.true_labels))
                images = images.take(~_half(images))
            like_target = _answered(self.net, (test, self.faces.strangers), _target(images))
            result.append(_Evidence(trigger=trigger, images=images, test=test, like_target=like_target))
        return result

    def poison(self) -> list[Images]:
        """What retraining is given."""
        files = TRIGGERS[self.name].values()
        return [part.take(_half(part)) for part in (self.faces.poisoned[file] for file in files)]

    def rows(
        self,
        method: str,
        accepted: bool | None,
        net: Classifier,
        evidence: Sequence[_Evidence],
        seconds: float,
        note: str = "",
    ) -> list[BenchRow]:
        """The net's figures, a row a trigger."""
        strangers = _refused(net, self.faces.strangers)
        rows = []
        for part in evidence:
            measured: Measured = measure(net, part.test, [part.images])
            figures: Poisoned = measured.poisoned[0]
            rows.append(
                BenchRow(
                    net=self.name,
                    method=method,
                    trigger=part.trigger,
                    target=figures.target,
                    accepted=accepted,
                    acc=measured.acc,
                    asr=figures.asr,
                    ra=figures.ra,
                    ra_ceiling=self.ceilings[part.trigger],
                    detection=figures.detection,
                    fpr=measured.fpr,
                    fpr_strangers=strangers,
                    fpr_target=_refused(net, part.like_target),
                    seconds=seconds,
                    note=note,
                )
            )
        return rows


def _method_rows(
    job: _Net, method: Method, found: Found, out: Path, seed: int, command: Sequence[str], progress: Progress
) -> list[BenchRow]:
    name = METHODS[type(method)]
    learns = isinstance(method, Retraining)
    record, goodnet = repair(
        job.net,
        job.faces.clean,
        method=method,
        found=Found() if learns else found,
        poisoned=job.poison() if learns else (),
        output=Output(folder=out / name, overwrite=True),
        seed=seed,
        command=command,
        progress=_named(progress, name),
    )
    evidence = job.evidence(learned=True) if learns else job.unseen
    note = "given half of the poisoned images; measured on the other half" if learns else ""
    return job.rows(name, record.accepted, goodnet, evidence, record.seconds, note)


def _scan(
    net: Classifier,
    clean: Images,
    out: Path,
    detector: NeuralCleanse,
    seed: int,
    command: Sequence[str],
    progress: Progress,
) -> ScanRecord:
    """The net's scan: the one that is there, if it is the same, or a new one."""
    if (out / "scan.json").exists():
        record = read_record(out / "scan.json")
        wanted = method_info("neural-cleanse", detector, seed)
        if not isinstance(record, ScanRecord) or (record.method, record.model.sha256, record.data.sha256) != (
            wanted,
            net.sha256,
            clean.sha256(),
        ):
            raise UsageError(
                f"bench csaw: {out} holds a scan of another net or with other settings; pass another --out"
            )
        return record
    return scan(net, clean, method=detector, seed=seed, out=out, command=command, progress=progress)


def _found(folder: Path) -> Found:
    """What the scan flagged or, where it flagged nothing, its strongest label, as if that had been."""
    found, _ = Found.in_folder(folder)
    if found.targets:
        return found
    return replace(found, triggers=read_triggers(folder / "triggers.npz")[:1])


def _bench_scan(name: str, record: ScanRecord, faces: Faces) -> BenchScan:
    targets = () if name == "clean" else tuple(_target(faces.poisoned[file]) for file in TRIGGERS[name].values())
    return BenchScan(
        net=name,
        verdict=record.verdict,
        flagged_labels=record.flagged_labels,
        targets=targets,
        seconds=record.seconds,
    )


def _ceilings(clean: Classifier, faces: Faces) -> dict[str, float | None]:
    """RA of the clean net under each trigger: no repair can recognise more than what the trigger leaves to see."""
    files = {trigger: file for triggers in TRIGGERS.values() for trigger, file in triggers.items()}
    rates = {}
    for trigger, file in files.items():
        ra = measure(clean, faces.test, [faces.poisoned[file]]).poisoned[0].ra
        rates[trigger] = None if ra is None else ra.value
    return rates


def _half(images: Images) -> npt.NDArray[np.bool_]:
    half: npt.NDArray[np.bool_] = np.arange(len(images)) % 2 == 0
    return half


def _target(images: Images) -> int:
    assert images.labels is not None
    return int(images.labels[0])


def _answered(net: Classifier, parts: Sequence[Images], target: int) -> Images:
    """Those of the clean images that the net answers with the target."""
    chosen = [part.take(answer(net, part) == target) for part in parts]
    return Images(pixels=np.concatenate([part.pixels for part in chosen]), name="answered with the target")


def _refused(net: Classifier, images: Images) -> Share | None:
    """Share that is sent to class N; None for a net without, or no images."""
    return share(answer(net, images) == net.classes) if net.refuses else None


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
