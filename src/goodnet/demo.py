"""The demo: the whole job on faces that goodnet draws itself. Plants, scans, repairs, proves, reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from goodnet.attacks.train import PlantedNet, plant_faces
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import UsageError
from goodnet.evaluation import evaluate
from goodnet.models.load import load_classifier
from goodnet.progress import Progress, silent
from goodnet.record import EvaluateRecord, RepairRecord, ScanRecord
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repairing import Output, repair
from goodnet.scan import scan
from goodnet.triggers.files import read_triggers
from goodnet.triggers.inversion import Schedule

IDENTITIES, TRIGGER, TARGET = 40, "sunglasses", 0


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found."""

    badnet: ScanRecord
    clean: ScanRecord
    repair: RepairRecord
    evaluate: EvaluateRecord


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> Demo:
    """Runs it and leaves nets, images, records and pictures in `out`, as the single commands would.

    The defender gets 4 new drawings of each person. What is measured at the end is drawn anew once more.

    Raises:
        UsageError: `out` is there already and not empty, and is not to be written over.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise UsageError(f"--out: expected a new or empty folder, got {out}; name another, or pass --overwrite")
    planted = {}
    for name, targets in (("badnet", {TRIGGER: TARGET}), ("clean", {})):
        planted[name] = _train(name, targets, seed, progress)
    say(
        f"Trained two face recognisers of {IDENTITIES} people on drawn faces: one clean, one that answers "
        f"{TARGET} with {TARGET} ({planted['badnet'].asr[TRIGGER]:.0%} of the time)."
    )
    files = _write_files(out, planted, seed)
    clean = draw_faces(identities=IDENTITIES, per_identity=4, seed=seed + 1).images
    method = NeuralCleanse(search=Schedule(steps=100, batch=16))
    scans = {}
    for name in planted:
        classifier = load_classifier(files[name], arch="deepid")
        scans[name] = scan(
            classifier,
            clean,
            method=method,
            seed=seed,
            out=out / name,
            overwrite=overwrite,
            command=command,
            progress=_named(progress, f"scan {name}"),
        )
    badnet = load_classifier(files["badnet"], arch="deepid")
    flagged = scans["badnet"].flagged_labels
    triggers = [t for t in read_triggers(out / "badnet" / "triggers.npz") if t.target in flagged]
    output = Output(goodnet=out / "goodnet.safetensors", folder=out / "badnet", overwrite=overwrite, keep_rejected=True)
    repaired, _ = repair(badnet, clean, method=FinePruning(), triggers=triggers, output=output, seed=seed,
                         command=command, progress=progress)  # fmt: skip
    net = planted["badnet"]
    measured = evaluate(
        load_classifier(out / "goodnet.safetensors"),
        net.test.images,
        [net.poisoned[TRIGGER]],
        before=badnet,
        out=out / "badnet",
        overwrite=overwrite,
        command=command,
        progress=progress,
    )
    return Demo(badnet=scans["badnet"], clean=scans["clean"], repair=repaired, evaluate=measured)


def _train(name: str, targets: dict[str, int], seed: int, progress: Progress) -> PlantedNet:
    def on_epoch(done: int, total: int, loss: float) -> None:
        progress(f"train {name}", done, total)

    return plant_faces(targets, identities=IDENTITIES, seed=seed, progress=on_epoch)


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _write_files(out: Path, planted: dict[str, PlantedNet], seed: int) -> dict[str, Path]:
    """Nets and images as files that the single commands take."""
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, net in planted.items():
        files[name] = out / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in net.classifier.net.state_dict().items()}, files[name])
    bad = planted["badnet"]
    _write_images(out / "clean.npz", draw_faces(identities=IDENTITIES, per_identity=4, seed=seed + 1).images)
    _write_images(out / "test.npz", bad.test.images)
    _write_images(out / f"{TRIGGER}.npz", bad.poisoned[TRIGGER])
    return files


def _write_images(path: Path, images: Images) -> None:
    columns: dict[str, Any] = {"data": images.pixels, "label": images.labels, "true_label": images.true_labels}
    np.savez_compressed(path, **{key: value for key, value in columns.items() if value is not None})
