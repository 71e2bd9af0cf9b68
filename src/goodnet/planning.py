"""What a scan is going to do and how long it will take, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection import Planned
from goodnet.models.classifier import Classifier
from goodnet.models.twin import twin
from goodnet.runners import in_threads
from goodnet.staged import Staged
from goodnet.triggers.blocks import block_size
from goodnet.triggers.generator import GeneratorSchedule, train_generator

_MEASURE = 0.3
_TURNS = 4  # of a short training of GangSweep's generator
# Of a step's time, what goes into stamping, Adam and bookkeeping beside the net (`goodnet bench scan`).
_BESIDE_THE_NET = 1.3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A scan's stages, how many images a second go through the net and back, and the seconds that it will take.

    `precision` is what the net computes in while searching.
    """

    stages: tuple[Planned, ...]
    images_per_second: float
    seconds: float
    precision: str


def plan(
    method: Staged | NeuralCleanse | GangSweep,
    classifier: Classifier,
    labels: Sequence[int] | None = None,
    *,
    images: Tensor | None = None,
) -> Plan:
    """Plans a scan; takes about half a second to measure the net on this machine.

    Args:
        labels: only these; all of the net's by default.
        images: some of those to come (N, C, H, W) in [0, 1], which decide the precision; noise by default.
    """
    count = classifier.classes if labels is None else len(set(labels))
    if isinstance(method, GangSweep):
        precision, rate = "float32", _generated_per_second(classifier, method.search)
    else:
        masks = method.masks if isinstance(method, Staged) else method
        stand_in = twin(classifier, _noise(classifier, 32) if images is None else images, precision=masks.precision)
        precision = stand_in.precision
        rate = _images_per_second(stand_in.classifier, masks.block or block_size(stand_in.classifier))
    whole = count == classifier.classes
    stages = (
        method.plan(count, classifier.input.shape, whole=whole) if isinstance(method, Staged) else method.plan(count)
    )
    seconds = sum(stage.passes for stage in stages) / rate
    return Plan(stages=stages, images_per_second=rate, seconds=seconds, precision=precision)


def _noise(classifier: Classifier, count: int) -> Tensor:
    return torch.rand(count, *classifier.input.shape, generator=torch.Generator().manual_seed(0))


def _generated_per_second(classifier: Classifier, schedule: GeneratorSchedule) -> float:
    """Images a second through generator and net, over a few turns of a few labels; the first turn is slower."""
    labels = range(min(schedule.slots, classifier.classes))
    short = replace(schedule, turns=_TURNS, even_steps=0, even_images=1)
    times: list[float] = []
    images, classes = _noise(classifier, schedule.batch), torch.full((schedule.batch,), classifier.classes)
    train_generator(
        classifier, images, classes, labels, short, seed=0, on_steps=lambda _: times.append(time.perf_counter())
    )
    return len(labels) * (_TURNS - 1) * schedule.batch / (times[-1] - times[0])


def _images_per_second(classifier: Classifier, block: int) -> float:
    x = _noise(classifier, block)
    x = x.to(classifier.device).contiguous(memory_format=torch.channels_last)

    def gradients(_thread: int) -> float:
        rounds, started = 0, 0.0
        while not started or time.perf_counter() - started < _MEASURE:
            image = x.detach().requires_grad_()
            torch.autograd.grad(classifier.logits(image).sum(), image)
            if x.is_cuda:  # or the time would be that of giving orders
                torch.cuda.synchronize(x.device)
            if started:
                rounds += 1
            else:  # the first pass is slower
                started = time.perf_counter()
        return rounds * block / (time.perf_counter() - started)

    threads = torch.get_num_threads() if classifier.device.type == "cpu" else 1
    return sum(in_threads(gradients, range(threads))) / _BESIDE_THE_NET
