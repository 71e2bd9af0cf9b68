"""Fine-pruning's figures: against plain and pruning-aware backdoors on drawn faces, and on the competition's nets."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from bench.common import shared_data
from goodnet.attacks.pruning_aware import PruningAwareNet, plant_pruning_aware
from goodnet.attacks.train import PlantedNet, plant_faces
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.data.splits import split
from goodnet.measure import measure
from goodnet.models import surgery
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.load import load_classifier
from goodnet.record import Measured, Share
from goodnet.repair.fine_pruning import FinePruning, pruning_curve
from goodnet.tuning import Labelled, Repaired, accuracy

IDENTITIES, TARGET = 40, 3
MODES = ("prune", "tune", "both")
CSAW = {
    "sunglasses_bd": ("sunglasses",),
    "anonymous_1_bd": ("anonymous_1",),
    "multi_trigger_multi_target_bd": ("multi_sunglasses", "lipstick", "eyebrows"),
}
LAYERS = (("conv_3",), ("conv_4",), ("fc_1",), ("conv_3", "conv_4", "fc_1"))


def main() -> None:
    cost()
    planted()
    root = shared_data()
    if root is None:
        print("the competition's nets: not found; set GOODNET_DATA to their folder")
    else:
        csaw(root / "faces")


def cost() -> None:
    """What it saves to compute only what lies behind the pruned layer: the curve of a DeepID with 1283 classes."""
    net = Classifier(
        net=DeepID(classes=1283),
        input=InputSpec(channels=3, height=55, width=47),
        classes=1283,
        recipe=Recipe(arch="deepid", options={"classes": 1283}),
    )
    images = torch.rand(1024, *net.input.shape, generator=torch.Generator().manual_seed(0))
    choose = (images, net.predict(images))
    for layer in ("conv_3", "fc_1"):
        order = range(surgery.resolve_layer(net.net, layer).get_parameter("weight").shape[0])
        start = time.perf_counter()
        curve = pruning_curve(net, layer, None, order, choose)
        middle = time.perf_counter()
        trial = surgery.clone(net)
        whole = [accuracy(trial, choose)]
        for channel in order[:-1]:
            surgery.zero_channels(trial.net, layer, [channel])
            whole.append(accuracy(trial, choose))
        assert [point.acc for point in curve] == whole
        seconds = (middle - start, time.perf_counter() - middle)
        print(f"curve of {layer}, 1,024 images: {seconds[0]:.1f} s, by whole passes {seconds[1]:.1f} s", flush=True)


def planted() -> None:
    """Plain and pruning-aware backdoors under the three defences; the defender has 6 clean images a person."""
    fit, choose = _defender(draw_faces(identities=IDENTITIES, per_identity=6, seed=991).images)
    print(f"drawn faces, {IDENTITIES} people, fitted on {len(fit[0])} images, chosen on {len(choose[0])}")
    print("| backdoor | defence | ACC | ASR | channels cut | of them decoys | epoch |")
    print("|---|---|---|---|---|---|---|")
    for trigger in ("lipstick", "eyebrows", "sunglasses"):
        for plant in (plant_faces, plant_pruning_aware):
            net = plant({trigger: TARGET}, identities=IDENTITIES, seed=0)
            _planted_rows(f"{trigger}, {'plain' if plant is plant_faces else 'aware'}", net, fit, choose)


def _planted_rows(name: str, net: PlantedNet, fit: Labelled, choose: Labelled) -> None:
    decoys = set(net.decoys) if isinstance(net, PruningAwareNet) else set()
    before = measure(net.classifier, net.test.images, list(net.poisoned.values()))
    print(f"| {name} | none | {_plain(before.acc)} | {_plain(before.poisoned[0].asr)} | | | |")
    for mode in MODES:
        found = FinePruning(mode=mode)(net.classifier, fit, choose, seed=0)
        after = measure(found.classifier, net.test.images, list(net.poisoned.values()))
        cut = [channel for layer in found.pruned for channel in layer.channels]
        print(
            f"| {name} | {mode} | {_plain(after.acc)} | {_plain(after.poisoned[0].asr)} | {len(cut)} | "
            f"{len(decoys & set(cut))} | {found.epoch} |",
            flush=True,
        )
    print(f"{name}: {_pruned_out(net, fit, choose)}", flush=True)


def _pruned_out(net: PlantedNet, fit: Labelled, choose: Labelled) -> str:
    """What pruning costs that goes on until the backdoor is gone: an experimenter's look, no defender knows ASR."""
    found = FinePruning(mode="prune", max_accuracy_drop=0.99)(net.classifier, fit, choose, seed=0)
    trial = surgery.clone(net.classifier)
    for count, channel in enumerate(found.pruned[0].channels, start=1):
        surgery.zero_channels(trial.net, found.pruned[0].layer, [channel])
        if count % 3 == 0:
            figures = measure(trial, net.test.images, list(net.poisoned.values()))
            asr = figures.poisoned[0].asr
            if asr is not None and asr.value <= 0.1:
                return f"ASR is under 10 % with {count} channels gone, at ACC {_plain(figures.acc)}"
    return "ASR is never under 10 %"


def csaw(faces: Path) -> None:
    """The competition's nets, by layer and mode; ACC on its test images, ASR on its poisoned sets."""
    fit, choose = _defender(read_images(faces / "clean_validation_data.h5"))
    test = read_images(faces / "clean_test_data.h5")
    print(f"CSAW-HackML-2020, fitted on {len(fit[0])} images, chosen on {len(choose[0])}")
    print("| net | layers | mode | cut | epoch | ACC (95 %) | ASR (95 %) | s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, sets in CSAW.items():
        net = load_classifier(faces / "nets" / f"{name}_weights.h5", arch="deepid")
        poisoned = [read_images(faces / f"{one}_poisoned_data.h5") for one in sets]
        print(f"| {name} | | none | | | {_figures(measure(net, test, poisoned))} | |", flush=True)
        runs = [(layers, mode) for layers in LAYERS for mode in ("prune", "both")]
        for chosen, mode in [*runs, (None, "tune")]:
            start = time.perf_counter()
            found = FinePruning(layers=chosen, mode=mode)(net, fit, choose, seed=0)
            seconds = time.perf_counter() - start
            figures = _figures(measure(found.classifier, test, poisoned))
            layers = ", ".join(chosen or ())
            print(
                f"| {name} | {layers} | {mode} | {_cut(found)} | {found.epoch} | {figures} | {seconds:.1f} |",
                flush=True,
            )


def _defender(images: Images) -> tuple[Labelled, Labelled]:
    parts = split(images, seed=0)
    assert images.labels is not None
    classes = torch.from_numpy(images.labels)
    fit, choose = ((images.take(part).tensor(), classes[part]) for part in (parts.fit, parts.choose))
    return fit, choose


def _cut(found: Repaired) -> str:
    return " + ".join(str(len(layer.channels)) for layer in found.pruned)


def _plain(value: Share | None) -> str:
    return "–" if value is None else f"{value.value:.3f}"


def _figures(measured: Measured) -> str:
    asr = "; ".join(_with_interval(part.asr) for part in measured.poisoned)
    return f"{_with_interval(measured.acc)} | {asr}"


def _with_interval(value: Share | None) -> str:
    return "–" if value is None else f"{value.value:.2f} ({value.low:.2f}–{value.high:.2f}, n={value.n})"
