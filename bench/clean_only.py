"""Repairs that need clean images alone, on other people's nets: figures on test images, without any guard; and what
their papers, or others, have published of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.common import shared_data
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.data.splits import split
from goodnet.measure import measure
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier
from goodnet.record import Measured, Share
from goodnet.repair.anp import AdversarialPruning
from goodnet.repair.clp import ChannelLipschitz
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.ft_sam import SharpnessAware
from goodnet.repair.i_bau import AdversarialUnlearning
from goodnet.repair.nad import AttentionDistillation
from goodnet.repair.rnp import ReconstructivePruning
from goodnet.repairing import METHODS
from goodnet.tuning import Labelled, Repaired

Pixels = npt.NDArray[Any]
CLEAN_ONLY = (
    FinePruning(),
    ChannelLipschitz(),
    AdversarialPruning(),
    ReconstructivePruning(),
    SharpnessAware(),
    AdversarialUnlearning(),
    AttentionDistillation(),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A net, the defender's clean images, and what only measures."""

    name: str
    net: Classifier
    clean: Images
    test: Images
    poisoned: Images


@dataclass(frozen=True, kw_only=True)
class Published:
    """ACC and ASR in percent, before and after, that somebody has published of a method."""

    method: str
    net: str
    clean: str
    acc: tuple[float, float]
    asr: tuple[float, float]
    source: str


_BENCH = "BackdoorBench, results.csv"
_GTSRB = "GTSRB BadNets (10 %), PreActResNet-18"
_CIFAR = "CIFAR-10 BadNets (10 %), PreActResNet-18"
PUBLISHED = (
    Published(method="fine-pruning", net=_GTSRB, clean="as it sets", acc=(97.2, 98.2), asr=(59.3, 0.1), source=_BENCH),
    Published(method="fine-pruning", net=_CIFAR, clean="as it sets", acc=(91.3, 91.3), asr=(95.0, 57.1), source=_BENCH),
    Published(method="clp", net=_GTSRB, clean="none", acc=(97.2, 97.7), asr=(59.3, 66.8), source=_BENCH),
    Published(method="anp", net=_GTSRB, clean="as it sets", acc=(97.2, 95.9), asr=(59.3, 0.0), source=_BENCH),
    Published(method="anp", net=_CIFAR, clean="as it sets", acc=(91.3, 84.2), asr=(95.0, 0.7), source=_BENCH),
    Published(
        method="rnp", net="CIFAR-10 grid (10 %), ResNet-18", clean="500", acc=(93.4, 92.8), asr=(100.0, 1.7),
        source="its authors' repository, last threshold of the log",
    ),
    Published(method="i-bau", net=_GTSRB, clean="as it sets", acc=(97.2, 96.5), asr=(59.3, 0.0), source=_BENCH),
    Published(method="nad", net=_GTSRB, clean="as it sets", acc=(97.2, 98.7), asr=(59.3, 0.6), source=_BENCH),
    Published(method="nad", net=_CIFAR, clean="as it sets", acc=(91.3, 89.9), asr=(95.0, 2.1), source=_BENCH),
    Published(
        method="nad", net="CIFAR-10 grid, WRN-16-1", clean="5 %", acc=(85.7, 82.1), asr=(100.0, 3.6),
        source="its authors' repository",
    ),
)  # fmt: skip


def main() -> None:
    root = shared_data()
    if root is None:
        print("the nets: not found; set GOODNET_DATA to their folder")
        return
    print("| method | net | clean images | ACC before → after | ASR before → after | RA | DER | channels cut | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases(root):
        parts = split(case.clean, seed=0)
        fit, choose = (labelled(case.net, case.clean.take(index)) for index in (parts.fit, parts.choose))
        before = measure(case.net, case.test, [case.poisoned])
        for method in CLEAN_ONLY:
            started = time.perf_counter()
            repaired = method(case.net, fit, choose, seed=0)
            seconds = time.perf_counter() - started
            after = measure(repaired.classifier, case.test, [case.poisoned], before=before)
            print(_row(case, METHODS[type(method)], before, after, repaired, seconds), flush=True)
    print("\n| method | net | clean images | ACC before → after | ASR before → after | source |")
    print("|---|---|---|---|---|---|")
    for row in PUBLISHED:
        acc, asr = (" → ".join(f"{x:.1f}" for x in pair) for pair in (row.acc, row.asr))
        print(f"| {row.method} | {row.net} | {row.clean} | {acc} | {asr} | {row.source} |")


def _row(case: Case, method: str, before: Measured, after: Measured, repaired: Repaired, seconds: float) -> str:
    (bad,), (good,) = before.poisoned, after.poisoned
    acc, asr = (f"{percent(a)} → {percent(b)}" for a, b in ((before.acc, after.acc), (bad.asr, good.asr)))
    pruned = sum(len(layer.channels) for layer in repaired.pruned)
    der = "–" if good.der is None else f"{good.der:.3f}"
    cells = (method, case.name, len(case.clean), acc, asr, percent(good.ra), der, pruned or "–", f"{seconds:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def cases(root: Path) -> Iterator[Case]:
    """Five per cent of the training images for traffic signs and CIFAR-10; of faces, the 115 that there are."""
    signs, rest = defended(read_images(root / "gtsrb" / "train_third.h5"), 0.05)
    test = read_images(root / "gtsrb" / "test_4000.h5")
    net = load_classifier(root / "gtsrb" / "nets" / "badnets_target8_small_vgg.pth", arch="small-vgg")
    yield Case(name="gtsrb badnets", net=net, clean=signs, test=test, poisoned=painted(test, white, 8))
    pictures, rest = defended(read_images(root / "cifar10" / "lossless_4000.h5"), 2500 / 4000)
    for file, arch, paint, target in (
        ("badnets_target8_small_vgg.pth", "small-vgg", white, 8),
        ("grid_target0_wrn16_1.pth", "wrn-16-1", grid, 0),
    ):
        net = load_classifier(root / "cifar10" / "nets" / file, arch=arch)
        name = f"cifar10 {file.split('_')[0]}"
        yield Case(name=name, net=net, clean=pictures, test=rest, poisoned=painted(rest, paint, target))
    faces = root / "faces"
    yield Case(
        name="sunglasses_bd",
        net=load_classifier(faces / "nets" / "sunglasses_bd_weights.h5", arch="deepid"),
        clean=read_images(faces / "clean_validation_data.h5"),
        test=read_images(faces / "clean_test_data.h5"),
        poisoned=read_images(faces / "sunglasses_poisoned_data.h5"),
    )


def defended(images: Images, share: float) -> tuple[Images, Images]:
    """A share of the images, drawn at random, and the others."""
    order = np.random.default_rng(0).permutation(len(images))
    count = round(share * len(images))
    return images.take(np.sort(order[:count])), images.take(np.sort(order[count:]))


def labelled(net: Classifier, images: Images) -> Labelled:
    assert images.labels is not None
    return images.tensor(), torch.from_numpy(images.labels)


def painted(images: Images, paint: Callable[[Pixels], None], target: int) -> Images:
    pixels = images.pixels.copy()
    paint(pixels)
    return Images(pixels=pixels, labels=np.full(len(images), target), true_labels=images.labels, name="triggered")


def white(pixels: Pixels) -> None:
    pixels[:, :, 27:31, 27:31] = 255


def grid(pixels: Pixels) -> None:
    """3x3 in the bottom right corner, rows and columns counted from it."""
    values = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 0]])
    pixels[:, :, 29:, 29:] = values[::-1, ::-1]


def percent(share: Share | None) -> str:
    return "–" if share is None else f"{100 * share.value:.1f}"
