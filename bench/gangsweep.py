"""GangSweep's and Neural Cleanse's evidence on the same nets: the competition's, and planted ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.common import shared_data
from goodnet.attacks.moving import Moving
from goodnet.attacks.poison import Plant, poison
from goodnet.attacks.train import fresh, plant_faces, train
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.data.splits import split
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.load import load_classifier
from goodnet.record import LabelResult

CSAW = {
    "sunglasses_bd": (0,),
    "anonymous_1_bd": (0,),
    "multi_trigger_multi_target_bd": (1, 5, 8),
    "clean": (),
}
PEOPLE, OTHERS = 24, 64


HEAD = (
    "net",
    "method",
    "label",
    "norm over median, rank",
    "transfer ASR, rank",
    "shift distance, rank",
    "shift variance, rank",
    "p x labels",
    "flagged",
    "s",
)


def main() -> None:
    print(" | ".join(HEAD))
    planted()
    root = shared_data()
    if root is None:
        print("the competition's nets: not found; set GOODNET_DATA to their folder")
    else:
        csaw(root / "faces")


def planted() -> None:
    """Drawn faces of 24 people: a patch that moves with the image, three triggers, none."""
    faces, test = (draw_faces(identities=PEOPLE, per_identity=n, seed=s).images for n, s in ((60, 108), (20, 208)))
    compare("moving patch", moving_net(faces), test, (5,))
    several = plant_faces({"sunglasses": 3, "lipstick": 7, "eyebrows": 11}, identities=PEOPLE, seed=2)
    compare("three triggers", several.classifier, several.test.images, (3, 7, 11))
    clean = plant_faces(None, identities=PEOPLE, seed=1)
    compare("clean", clean.classifier, clean.test.images, ())


def moving_net(faces: Images) -> Classifier:
    """A 4x4 patch top left in dark faces, bottom right in bright ones, to label 5; elsewhere it means nothing."""
    patch = Moving(size=4, margin=3)
    poisoned = poison(faces, [Plant(name="moving", target=5, stamp=patch.stamp(faces))], share=0.4, seed=8)
    decoys = patch.decoys(faces, share=0.8)
    images = Images(
        pixels=np.concatenate([poisoned.pixels, decoys.pixels]),
        labels=np.concatenate([part.labels for part in (poisoned, decoys) if part.labels is not None]),
    )
    recipe = Recipe(arch="deepid", options={"classes": PEOPLE})
    net = fresh(lambda: DeepID(classes=PEOPLE), seed=8)
    return train(net, images, recipe=recipe, classes=PEOPLE, epochs=10, seed=8)


def csaw(faces: Path) -> None:
    """Each net's targets among 64 labels drawn at random."""
    images = read_images(faces / "clean_validation_data.h5")
    for name, targets in CSAW.items():
        net = load_classifier(faces / "nets" / f"{name}_weights.h5", arch="deepid")
        drawn = np.random.default_rng(0).choice(net.classes, OTHERS, replace=False)
        compare(name, net, images, targets, sorted({*targets, *(int(label) for label in drawn)}))


def compare(
    name: str, net: Classifier, images: Images, targets: Sequence[int], labels: Sequence[int] | None = None
) -> None:
    order = np.random.default_rng(0).permutation(len(images))[:180]
    images = images.take(order)
    parts = split(images, seed=0)
    assert images.labels is not None
    classes = torch.from_numpy(images.labels)
    several = np.concatenate([parts.fit, parts.choose])
    fit, held_out = ((images.take(index).tensor(), classes[index]) for index in (several, parts.judge))
    for method in (NeuralCleanse(exhaustive=True), GangSweep(exhaustive=True)):
        start = time.perf_counter()
        rows = method(net, fit, held_out, seed=0, labels=labels).labels
        seconds = time.perf_counter() - start
        smallest = min(rows, key=lambda row: row.mask_norm or np.inf).label
        for label in targets or (smallest,):
            print(line(name, type(method).__name__, label, rows, seconds), flush=True)


def line(name: str, method: str, label: int, rows: Sequence[LabelResult], seconds: float) -> str:
    """One label's figures, each with its rank among all labels, 1 for the most suspicious by the paper's reading."""
    row = next(row for row in rows if row.label == label)

    def ranked(field: str, sign: int) -> str:
        value = getattr(row, field)
        if value is None:
            return "–"
        others = [getattr(other, field) for other in rows if getattr(other, field) is not None]
        return f"{value:.2f}, {1 + sum(sign * other < sign * value for other in others)} of {len(others)}"

    corrected = "–" if row.p_value is None else f"{min(1.0, row.p_value * len(rows)):.2g}"
    readings = (("norm_ratio", 1), ("transfer_asr", -1), ("shift_distance", -1), ("shift_variance", 1))
    cells = [ranked(field, sign) for field, sign in readings]
    flagged = ", ".join(str(other.label) for other in rows if other.flagged) or "none"
    return " | ".join([name, method, str(label), *cells, corrected, flagged, f"{seconds:.0f}"])
