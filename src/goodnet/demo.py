"""The demo: the whole job on faces that goodnet draws itself. Plants, scans, repairs, proves, reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from goodnet.attacks.train import PlantedNet, plant_faces
from goodnet.auto import auto
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.errors import UsageError
from goodnet.evaluation import evaluate
from goodnet.found import Found
from goodnet.keeping import Output
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier
from goodnet.models.weights import write_tensors
from goodnet.outputs import claimed, replacing
from goodnet.progress import Progress, silent
from goodnet.record import EvaluateRecord, RepairRecord, ScanRecord
from goodnet.scan import scan

IDENTITIES, TRIGGER, TARGET = 40, "lipstick", 0
NETS: dict[str, dict[str, int]] = {"badnet": {TRIGGER: TARGET}, "clean": {}}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found; repair and measurement are None where the scan has flagged nothing to repair."""

    badnet: ScanRecord
    clean: ScanRecord
    repair: RepairRecord | None
    measured: EvaluateRecord | None


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

    The defender gets 4 new drawings of each person, and 4 of each of as many strangers. What is measured at the end is
    drawn anew once more.

    Raises:
        UsageError: `out` is there already and not empty, and is not to be written over.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise UsageError(f"--out: expected a new or empty folder, got {out}; name another, or pass --overwrite")
    settings = _Settings(out=out, seed=seed, overwrite=overwrite, command=tuple(command), progress=progress)
    with claimed(out):
        return _demo(settings, say)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    out: Path
    seed: int
    overwrite: bool
    command: tuple[str, ...]
    progress: Progress


def _demo(settings: _Settings, say: Callable[[str], None]) -> Demo:
    planted = {name: _train(name, targets, settings.seed, settings.progress) for name, targets in NETS.items()}
    say(
        f"Trained two face recognisers of {IDENTITIES} people on drawn faces: one clean, and one that answers "
        f"{TARGET} to {planted['badnet'].asr[TRIGGER]:.0%} of the faces with {TRIGGER}."
    )
    clean = draw_faces(identities=IDENTITIES, per_identity=4, seed=settings.seed + 1).images
    others = strangers(settings.seed)
    nets = _write_files(settings.out, planted, clean, others)
    scans = {name: _scan(settings, name, net, clean) for name, net in nets.items()}
    repaired, measured = None, None
    if scans["badnet"].flagged_labels:
        repaired, measured = _repair(settings, nets["badnet"], clean, others, planted["badnet"])
    return Demo(badnet=scans["badnet"], clean=scans["clean"], repair=repaired, measured=measured)


def _scan(settings: _Settings, name: str, net: Classifier, clean: Images) -> ScanRecord:
    return scan(
        net,
        clean,
        seed=settings.seed,
        out=settings.out / name,
        overwrite=settings.overwrite,
        command=settings.command,
        progress=_named(settings.progress, f"scan {name}"),
    )


def strangers(seed: int) -> Images:
    """Drawings of people whom the nets do not know; labels say who is the same."""
    drawn = draw_faces(identities=2 * IDENTITIES, per_identity=4, seed=seed + 2).images
    return drawn.take(slice(4 * IDENTITIES, None))


def _repair(
    settings: _Settings, badnet: Classifier, clean: Images, others: Images, planted: PlantedNet
) -> tuple[RepairRecord, EvaluateRecord]:
    """Repairs as `goodnet repair` does by itself; measures the saved GoodNet on faces that it never saw."""
    folder, target = settings.out / "badnet", settings.out / "goodnet.safetensors"
    record, _ = auto(
        badnet,
        clean,
        found=Found.in_folder(folder)[0],
        surrogate=others,
        output=Output(goodnet=target, folder=folder, overwrite=settings.overwrite, keep_rejected=True),
        seed=settings.seed,
        command=settings.command,
        progress=_named(settings.progress, "repair"),
    )
    measured = evaluate(
        load_classifier(target, sandbox=False),
        planted.test.images,
        [replace(planted.poisoned[TRIGGER], name=f"{TRIGGER}.npz")],
        before=badnet,
        out=folder,
        overwrite=settings.overwrite,
        command=settings.command,
        progress=_named(settings.progress, "evaluate"),
    )
    return record, measured


def _train(name: str, targets: dict[str, int], seed: int, progress: Progress) -> PlantedNet:
    def on_epoch(done: int, total: int, loss: float) -> None:
        progress(f"train {name}", done, total)

    return plant_faces(targets, identities=IDENTITIES, seed=seed, progress=on_epoch)


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _write_files(out: Path, planted: Mapping[str, PlantedNet], clean: Images, others: Images) -> dict[str, Classifier]:
    """Nets and images as files that the single commands take; gives the nets as a stranger would load them."""
    out.mkdir(parents=True, exist_ok=True)
    nets = {}
    for name, net in planted.items():
        path = out / f"{name}.safetensors"
        with replacing(path) as part:
            write_tensors(net.classifier.net.state_dict(), part)
        nets[name] = load_classifier(path, arch="deepid", sandbox=False)
    bad = planted["badnet"]
    _write_images(out / "clean.npz", clean)
    _write_images(out / "strangers.npz", others)
    _write_images(out / "test.npz", bad.test.images)
    _write_images(out / f"{TRIGGER}.npz", bad.poisoned[TRIGGER])
    return nets


def _write_images(path: Path, images: Images) -> None:
    columns: dict[str, Any] = {"data": images.pixels, "label": images.labels, "true_label": images.true_labels}
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **{key: value for key, value in columns.items() if value is not None})
