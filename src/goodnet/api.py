"""The commands as functions, for those who write Python: nets and images by path or already loaded, records back.

They do what `goodnet scan`, `repair`, `evaluate` and `report` do, with the same defaults; the modules below have more
settings. Nothing is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from goodnet.auto import auto
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.detection import OwnDetector
from goodnet.errors import DataError, UsageError
from goodnet.evaluation import evaluate as _evaluate
from goodnet.found import Found
from goodnet.judging import Limits
from goodnet.keeping import Output
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier
from goodnet.outputs import check_file, write_text
from goodnet.record import EvaluateRecord, RepairRecord, ScanRecord
from goodnet.report import read_parts, write_report
from goodnet.report.junit import render_junit
from goodnet.report.sarif import render_sarif
from goodnet.runners import SERIAL, Runner
from goodnet.scan import Detector
from goodnet.scan import scan as _scan

load = load_classifier


def scan(
    net: Classifier,
    clean: Images | str | Path,
    *,
    method: Detector | OwnDetector | None = None,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    time_limit: float | None = None,
    memory: str | int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    runner: Runner = SERIAL,
) -> ScanRecord:
    """Says whether a net is backdoored, for which labels, and shows the trigger (`goodnet scan`).

    Args:
        net: from `goodnet.load`; not changed.
        clean: clean images, or the HDF5, npz or folder that they are in.
        method: the detector with its settings, or one of your own; `goodnet.staged.Staged()` by default.
        seed: of splits, starts and batches.
        labels: scan only these; the verdict is then never `clean`.
        time_limit: seconds after which the scan ends as inconclusive with what was found.
        memory: what this process may take while it scans, as `2GiB` or in bytes; blocks are made to fit.
        out: folder for `scan.json`, `triggers.npz` and pictures; None writes nothing.
        overwrite: replace an earlier scan in `out`.
        runner: where the labels are searched: in this process, or a `goodnet.runners.OnRay`.

    Returns:
        The record: `verdict`, `flagged_labels`, and each label's evidence in `labels`.

    Raises:
        UsageError, DataError, ModelError: nothing has been written then.
    """
    return _scan(net, _images(clean, net), method=method, seed=seed, labels=labels, time_limit=time_limit,
                 memory=memory, out=None if out is None else Path(out), overwrite=overwrite, runner=runner)  # fmt: skip


def repair(
    net: Classifier,
    clean: Images | str | Path,
    *,
    scan: str | Path | None = None,
    surrogate: Images | str | Path | None = None,
    poisoned: Sequence[Images | str | Path] = (),
    limits: Limits | None = None,
    time_limit: float = 300.0,
    seed: int = 0,
    save: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[RepairRecord, Classifier]:
    """Turns a BadNet into a GoodNet that answers class N for triggered images (`goodnet repair`).

    Args:
        net: from `goodnet.load`; not changed.
        clean: clean images, or where they are.
        scan: `out` of a scan of this net, which gives the seed, too; without, it is scanned first.
        surrogate: pictures of the same kind that need not be of the net's classes, or where they are.
        poisoned: sets of known triggered images, labelled with the target; they judge, nothing learns from them.
        limits: what is accepted.
        time_limit: seconds after which nothing further is tried.
        save: where the GoodNet goes, if it is accepted; None keeps it in memory alone.
        out: folder for `repair.json` and triggers, with the scan in `out/scan` where there was none.
        overwrite: replace earlier results.

    Returns:
        The record (`accepted`, and why), and the GoodNet, whatever the judgement.

    Raises:
        UsageError: no label is flagged, so there is nothing to repair; or as below.
        DataError, ModelError: wrong images, or a scan of another net.
    """
    images = _images(clean, net)
    folder = None if out is None else Path(out)
    output = Output(goodnet=None if save is None else Path(save), folder=folder, overwrite=overwrite)
    with ExitStack() as stack:
        if scan is not None:
            scanned = Path(scan)
        else:
            scanned = Path(stack.enter_context(TemporaryDirectory())) if folder is None else folder / "scan"
            _scan(net, images, seed=seed, out=scanned, overwrite=overwrite)
        found, record = Found.in_folder(scanned)
    if record.model.sha256 != net.sha256:
        raise DataError(f"scan: expected a scan of this net, but {scanned} is of another")
    if not found.targets:
        raise UsageError(f"repair: expected a flagged label, but the scan is {record.verdict}; there is none to repair")
    return auto(
        net,
        images,
        found=found,
        surrogate=None if surrogate is None else _images(surrogate, None),
        poisoned=[_images(one, net) for one in poisoned],
        limits=limits,
        time_limit=time_limit,
        output=output,
        seed=record.method.seed,
    )


def evaluate(
    net: Classifier,
    clean: Images | str | Path,
    poisoned: Sequence[Images | str | Path] = (),
    *,
    before: Classifier | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> EvaluateRecord:
    """Measures ACC, ASR, RA, detection and FPR of a net, with 95 % intervals (`goodnet evaluate`).

    Args:
        net: a BadNet or a GoodNet.
        clean: clean test images with true labels, or where they are.
        poisoned: sets of triggered images, labelled with the target, or where they are.
        before: the net before repair, to compare with: DER.
        out: folder for `evaluate.json`; None writes nothing.
        overwrite: replace an earlier one.

    Raises:
        UsageError, DataError: nothing has been written then.
    """
    sets = [_images(one, net) for one in poisoned]
    folder = None if out is None else Path(out)
    return _evaluate(net, _images(clean, net), sets, before=before, out=folder, overwrite=overwrite)


def report(
    folder: str | Path, *, sarif: str | Path | None = None, junit: str | Path | None = None, overwrite: bool = False
) -> Path:
    """Writes one self-contained HTML page from the records in `folder` and one level below (`goodnet report`).

    Args:
        sarif, junit: files for the scans and repairs as SARIF 2.1.0 and JUnit XML.
        overwrite: replace earlier files of these two; the page is always replaced.

    Returns:
        The page's path.

    Raises:
        UsageError: a file is there already. DataError: no record, or none that can be read.
    """
    views = {"sarif": (sarif, render_sarif), "junit": (junit, render_junit)}
    for option, (path, _) in views.items():
        if path is not None:
            check_file(Path(path), overwrite=overwrite, option=option)
    parts = read_parts(Path(folder))
    records = [record for part in parts for record in (part.scan, part.repair) if record is not None]
    page = write_report(Path(folder))
    for path, render in views.values():
        if path is not None:
            write_text(Path(path), render(records))
    return page


def _images(given: Images | str | Path, net: Classifier | None) -> Images:
    if isinstance(given, Images):
        return given
    return read_images(given, classes=None if net is None else net.classes)
