"""What a scan is going to do, how long it will take and how much memory, before it starts.

The machine is measured on this net: one step of the search in each thread, and the net alone on some images. From there
on it is counting (docs/scale.md): a stage has labels / slots blocks, of which as many run at a time as there are
threads, and a block that is not full costs as much as one that is.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodnet import sizing
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detect.plain_stamps import STAGE as STAMPS
from goodnet.detect.preference import IMAGES as PREFERENCE_IMAGES
from goodnet.detection import Planned
from goodnet.models.classifier import Classifier
from goodnet.models.twin import twin
from goodnet.runners import in_threads, quiet
from goodnet.staged import Staged
from goodnet.triggers.blocks import shown_at_once
from goodnet.triggers.generator import GeneratorSchedule, train_generator
from goodnet.triggers.inversion import Schedule, Search, State

_MEASURE, _ROUNDS = 0.3, 3
_TURNS = 4  # of a short training of GangSweep's generator
_AGAIN = "search again"
# Of the most that plain stamps can take: refining ends early, on the competition's four nets at 0.83 to 0.86 of it.
_REFINED = 0.85


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A scan's stages, and what they will take on this machine.

    Attributes:
        stages: what is done to how many labels, at most.
        images_per_second: through the net and back, all threads together.
        seconds: that a scan takes in which no label stands out; reading and drawing come on top.
        suspect_seconds: that it takes if one label does, and is searched again.
        at_most_seconds: that it takes if as many labels do as are ever searched again.
        core_seconds: `seconds` of all threads added up, of which a machine busy with other work takes no more.
        precision: what the net computes in while searching.
        block: images through the net at a time, in each thread; None where the method has its own.
        threads: that search at the same time.
        memory: bytes of the whole process at its peak, about; None where it is not known.
    """

    stages: tuple[Planned, ...]
    images_per_second: float
    seconds: float
    suspect_seconds: float
    at_most_seconds: float
    core_seconds: float
    precision: str
    block: int | None
    threads: int
    memory: int | None


def plan(
    method: Staged | NeuralCleanse | GangSweep,
    classifier: Classifier,
    labels: Sequence[int] | None = None,
    *,
    images: Tensor | None = None,
    clean: int = 512,
    memory: int | None = None,
) -> Plan:
    """Plans a scan; takes a second or two to measure the net on this machine, longer where a step of it takes longer.

    Args:
        labels: only these; all of the net's by default.
        images: some of those to come (N, C, H, W) in [0, 1], which decide the precision; noise by default.
        clean: how many images there will be.
        memory: bytes that the scan may take (`sizing.bounded`).

    Raises:
        UsageError: `memory` is too little.
    """
    count = classifier.classes if labels is None else len(set(labels))
    if isinstance(method, GangSweep):
        return _generated(method, classifier, count)
    now = sizing.held(classifier)
    some = _noise(classifier, 32) if images is None else images
    fitting = sizing.bounded(method, classifier, some, count, clean=clean, memory=memory)
    method = fitting.method
    with sizing.in_so_many(fitting.threads):
        masks = method.masks if isinstance(method, Staged) else method
        started, core = time.perf_counter(), time.process_time()
        stand_in = twin(classifier, some, precision=masks.precision, batch=shown_at_once(masks.block))
        made, core = time.perf_counter() - started, time.process_time() - core
        size = sizing.size(
            method, classifier, stand_in.classifier, clean, count, now=now, gives_back=fitting.gives_back
        )
        step = _step_speed(stand_in.classifier, size.block, masks.search)
        shown = _shown_speed(classifier)
        whole = count == classifier.classes
        stages = sizing.stages(method, classifier, count, whole=whole)
        clock = Clock(method=method, step=step, shown=shown, clean=clean, block=size.block,
                       threads=sizing.threads_of(classifier), labels=count)  # fmt: skip
    return Plan(
        stages=stages,
        images_per_second=step.images_per_second,
        seconds=made + clock.seconds(stages, 0),
        suspect_seconds=made + clock.seconds(stages, 1),
        at_most_seconds=made + clock.seconds(stages, classifier.classes),
        core_seconds=core + clock.seconds(stages, 0, cores=True),
        precision=stand_in.precision,
        block=size.block,
        threads=size.threads,
        memory=max(size.memory, sizing.ever(classifier)),
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of images in one thread (or GPU) while all are busy: seconds an image, by the clock and of a core; and all
    together."""

    seconds: float
    core_seconds: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Turns stages into seconds.

    Attributes:
        method: the scan.
        step: of a search, forward and back.
        shown: of images of which only the answers are wanted.
        clean: images that triggers are judged on.
        block: images at a time in each thread.
        threads: that work at the same time; GPUs, where each takes blocks of its own.
        labels: that are scanned.
    """

    method: Staged | NeuralCleanse
    step: Speed
    shown: Speed
    clean: int
    block: int
    threads: int
    labels: int

    def seconds(self, stages: Sequence[Planned], again: int, *, cores: bool = False) -> float:
        """Of all stages, if so many labels stand out; `cores`: of all threads added up."""
        total = self._judged(PREFERENCE_IMAGES // self.clean + 1, 1, cores) if isinstance(self.method, Staged) else 0.0
        for stage in stages:
            count = stage.labels
            if stage.stage == _AGAIN:
                assert isinstance(self.method, Staged)
                count, starts = min(again, stage.labels), self.method.restarts
                kinds = ["margins", "search", *(["first pass"] if self.method.masks.two_passes(self.labels) else [])]
                total += starts * sum(self._stage(kind, count, cores) for kind in kinds) if count else 0.0
                total += self._judged(count, starts, cores)
                continue
            if stage.stage == STAMPS:
                images = _REFINED * 3 * stage.passes  # counted as forwards and back, of which one is a third
                total += images * (self.shown.core_seconds if cores else self.shown.seconds / self.threads)
                continue
            total += self._stage(stage.stage, count, cores)
            if stage.stage != "margins" and stage.stage != "first pass":
                total += self._judged(count if stage.stage == "search" else 1, 1, cores)
        return total

    def _stage(self, stage: str, labels: int, cores: bool) -> float:
        """Seconds of the blocks of a stage: each thread takes one after the other."""
        steps, images = self._schedule(stage)
        if stage == "all-to-all" and isinstance(self.method, Staged):
            labels = self.method.away.starts
        slots = max(1, self.block // images)
        blocks = math.ceil(labels / slots)
        shown = steps * slots * images
        if cores:
            return blocks * shown * self.step.core_seconds
        return math.ceil(blocks / self.threads) * shown * self.step.seconds

    def _judged(self, triggers: int, times: int, cores: bool) -> float:
        """Seconds of so many triggers, shown on all clean images."""
        if cores:
            return times * triggers * self.clean * self.shown.core_seconds
        return times * math.ceil(triggers / self.threads) * self.clean * self.shown.seconds

    def _schedule(self, stage: str) -> tuple[int, int]:
        """Steps of a stage, and images a label and step."""
        masks = self.method.masks if isinstance(self.method, Staged) else self.method
        if isinstance(self.method, Staged) and stage == "margins":
            return self.method.margins.climb.steps, self.method.margins.climb.starts
        schedule = masks.screen if stage == "first pass" else masks.search
        if isinstance(self.method, Staged) and stage == "all-to-all":
            schedule = self.method.away.search
        return schedule.steps, schedule.batch


def _noise(classifier: Classifier, count: int) -> Tensor:
    return torch.rand(count, *classifier.input.shape, generator=torch.Generator().manual_seed(0))


def _generated(method: GangSweep, classifier: Classifier, count: int) -> Plan:
    """Images a second through generator and net, over a few turns of a few labels; the first turn is slower."""
    schedule: GeneratorSchedule = method.search
    labels = range(min(schedule.slots, classifier.classes))
    short = replace(schedule, turns=_TURNS, even_steps=0, even_images=1)
    times: list[float] = []
    images, classes = _noise(classifier, schedule.batch), torch.full((schedule.batch,), classifier.classes)
    train_generator(
        classifier, images, classes, labels, short, seed=0, on_steps=lambda _: times.append(time.perf_counter())
    )
    rate = len(labels) * (_TURNS - 1) * schedule.batch / (times[-1] - times[0])
    stages, threads = method.plan(count), sizing.threads_of(classifier)
    seconds = sum(stage.passes for stage in stages) / rate
    return Plan(stages=stages, images_per_second=rate, seconds=seconds, suspect_seconds=seconds,
                at_most_seconds=seconds, core_seconds=threads * seconds, precision="float32", block=None,
                threads=threads, memory=None)  # fmt: skip


def _step_speed(stand_in: Classifier, block: int, schedule: Schedule) -> Speed:
    """Of `Search.step` on a full block."""
    slots = max(1, block // schedule.batch)
    images = _noise(stand_in, schedule.batch)
    short = replace(schedule, steps=1)

    def stepping(thread: int) -> Callable[[], None]:
        none = torch.full((len(images),), -1)  # a class that no label is
        search = Search(stand_in, images, none, [0] * slots, short, thread)
        search.block = block
        state = State.empty(search)
        for job in range(slots):
            state = state.add(search.start(job))

        def step() -> None:
            state.step.zero_()
            search.step(state, slots)

        return step

    return _speed(stand_in, stepping, slots * schedule.batch)


def _shown_speed(classifier: Classifier) -> Speed:
    """Of the net on images of which only the answers are wanted."""
    images = _noise(classifier, classifier.at_once(32))

    def showing(_thread: int) -> Callable[[], None]:
        return lambda: quiet(len(classifier.predict(images)))

    return _speed(classifier, showing, len(images))


def _speed(classifier: Classifier, make: Callable[[int], Callable[[], None]], images: int) -> Speed:
    """Seconds an image: each thread repeats what `make` gives it for a third of a second, and three times at least."""
    threads = sizing.threads_of(classifier)
    ready = threading.Barrier(threads)

    def measured(thread: int) -> tuple[float, float]:
        try:
            work = make(thread)
            work()  # the first time is slower
            ready.wait()
        except BaseException:
            ready.abort()
            raise
        rounds: list[tuple[float, float]] = []
        began = time.perf_counter()
        while len(rounds) < _ROUNDS or time.perf_counter() - began < _MEASURE:
            started, core = time.perf_counter(), time.thread_time()
            work()
            if classifier.device.type == "cuda":  # or the time would be that of giving orders
                torch.cuda.synchronize(classifier.device)
            rounds.append((time.perf_counter() - started, time.thread_time() - core))
        wall, core = (statistics.median(times) / images for times in zip(*rounds))
        return wall, core

    each = in_threads(measured, range(threads))
    seconds, core = (sum(values) / threads for values in zip(*each))
    return Speed(seconds=seconds, core_seconds=core, images_per_second=sum(1 / wall for wall, _ in each))
