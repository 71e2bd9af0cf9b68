"""`python -m bench scale-paper`: what scans of ImageNet's size would take on GPUs. Reckoned: no GPU was measured.

The stages are those of the default scan, counted by the code that plans a scan (`goodnet.planning.Clock`). Images a
second are published ones of training a ResNet-50 on 224x224 on one A100 80GB (NVIDIA DeepLearningExamples,
PyTorch/Classification/ConvNets/resnet50v1.5/README.md, commit 291f0d0: 938 in TF32, 2,470 in mixed precision). Training
takes a gradient to weights, too, which a search does not, and the search stamps and steps, which training does not. An
image of which only the answer is wanted is taken for half of one that is searched.
"""

from __future__ import annotations

from dataclasses import replace

from goodnet.planning import Clock, Speed
from goodnet.scan import USED
from goodnet.staged import Staged

RATES = {"TF32": 938.0, "mixed precision": 2470.0}
GPUS = (1, 8, 64)
BLOCK = 256
_LOADING = 15.0  # seconds a net: a process, the file, images to the GPU; assumed
_HUB = 10_000
_FULL = Staged()
SHAPE = (3, 224, 224)
_EVERY = replace(_FULL, masks=replace(_FULL.masks, exhaustive=True))


def main() -> None:
    gpus_of = [f"{gpus} GPU{'s' if gpus > 1 else ''}: hours (GPU-hours)" for gpus in GPUS]
    print(" | ".join(["| ", "images forward and back", "images a second and GPU", *gpus_of]) + " |")
    print("|" + "---|" * (3 + len(GPUS)))
    for name, method in (("one net of ImageNet-21k", _FULL), ("the same, `--exhaustive`", _EVERY)):
        for kind, rate in RATES.items():
            hours = [(seconds(method, 21_841, rate, gpus) + _LOADING) / 3600 for gpus in GPUS]
            print(row(name, passes(method, 21_841), kind, hours))
    for labels in (10, 1000):
        for kind, rate in RATES.items():
            each = (seconds(_FULL, labels, rate, 1) + _LOADING) / 3600
            hours = [-(-_HUB // gpus) * each for gpus in GPUS]
            print(row(f"{_HUB:,} nets of {labels:,} labels", _HUB * passes(_FULL, labels), kind, hours))


def passes(method: Staged, labels: int) -> int:
    """Images forward and back, if no label stands out."""
    return sum(stage.passes for stage in method.plan(labels, SHAPE) if stage.stage != "search again")


def seconds(method: Staged, labels: int, rate: float, gpus: int) -> float:
    """Of one scan in which a label stands out, its blocks spread over so many GPUs."""
    step = Speed(seconds=1 / rate, core_seconds=1 / rate, images_per_second=rate)
    shown = Speed(seconds=0.5 / rate, core_seconds=0.5 / rate, images_per_second=2 * rate)
    clock = Clock(method=method, step=step, shown=shown, clean=USED, block=BLOCK, threads=gpus, labels=labels)
    return clock.seconds(method.plan(labels, SHAPE), 1)


def row(name: str, count: int, kind: str, hours: list[float]) -> str:
    """Hours, and GPU-hours in brackets, of each number of GPUs."""
    cells = [f"{value:,.2f} h ({value * gpus:,.1f})" for value, gpus in zip(hours, GPUS)]
    return " | ".join([f"| {name}", f"{count / 1e6:,.1f} M", f"{RATES[kind]:,.0f} ({kind})", *cells]) + " |"
