"""How much memory a scan takes, and how it is cut so that it stays under a bound.

What is reckoned, beside what the process has in memory already before the net's stand-in is made, is the greater of

    the stand-in, as it is made: two copies of the weights, and the images that it is compared on
    the search: the stand-in's weights, clean images once more (all-to-all), the triggers that are kept, and for each
    thread block x bytes of an image + the largest layer's weights

times a factor, plus some MiB. Bytes of an image come from what autograd keeps of it on this very net
(`triggers.blocks.footprint`); factor and MiB are what the allocator and the kernels' scratch add (docs/scale.md): less
where the allocator gives back what is freed, as it does in scans that are given a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection import Planned
from goodnet.errors import UsageError
from goodnet.memory import free_memory, in_words, peak, resident, trim
from goodnet.models.classifier import Classifier
from goodnet.models.twin import twin
from goodnet.staged import Staged
from goodnet.triggers.blocks import block_size, footprint, shown_at_once

LEAST = 4
"""Images: a smaller block saves little and takes long."""
KEPT, GIVEN_BACK = (1.5, 32 << 20), (1.2, 52 << 20)
"""Factor and bytes on top, as malloc is by itself, and inside `memory.giving_back`."""
_HEAP = 96 << 20  # at most, that malloc keeps beyond KEPT's factor in each thread's heap, and the main one
_SHARE = 0.75  # of the free memory, where no bound is given
_FLOAT = 4
_KEPT_TWICE = 2  # a trigger on its way to the disk, and in the results


@dataclass(frozen=True, kw_only=True)
class Size:
    """How a scan is cut.

    Attributes:
        block: images through the net at a time, in each thread.
        threads: that search at a time.
        memory: bytes, of the whole process at its peak from now on; on a GPU, of the GPU's memory.
        lowered: block or threads are fewer than the machine would take.
    """

    block: int
    threads: int
    memory: int
    lowered: bool = False


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """A scan that fits under a bound.

    Attributes:
        method: with the block that fits.
        threads: that search at a time.
        gives_back: it fits only inside `memory.giving_back`.
    """

    method: Staged | NeuralCleanse
    threads: int
    gives_back: bool = False


def bounded(
    method: Staged | NeuralCleanse,
    classifier: Classifier,
    images: Tensor,
    labels: int,
    *,
    clean: int,
    memory: int | None = None,
) -> Bounded:
    """The method with a block that keeps the scan under a bound, and how many threads.

    The method comes back as it is, and so its record, where its own block fits with all threads, which nearly always
    is so: another block changes results by rounding. Blocks are halved before threads are given up. Before either, a
    scan that was given a bound has malloc give back what is freed, unless there is room for what it might keep.

    Args:
        images: some of the clean ones, (N, C, H, W) in [0, 1], which decide the precision.
        labels: how many are scanned.
        clean: how many images the scan uses.
        memory: bytes that the process may take; by default what it has, and three quarters of what is free.

    Raises:
        UsageError: not even the least block of one thread fits into `memory`.
    """
    if memory is not None:
        trim()
    now = held(classifier)
    bound = memory if memory is not None else _default_bound(classifier, now)
    free = Bounded(method=method, threads=torch.get_num_threads())
    if bound is None:
        return free
    # the twin takes less than the net itself, and time to make
    most = size(method, classifier, classifier, clean, labels, now=now)
    heaps = 0 if memory is None else _HEAP * (1 + threads_of(classifier))
    if most.memory + heaps <= bound:
        return free
    given = memory is not None
    stand_in = twin(classifier, images, precision=_masks(method).precision, batch=LEAST).classifier
    found = size(method, classifier, stand_in, clean, labels, now=now, memory=bound, strict=given, gives_back=given)
    if found.block != own_block(method, stand_in):
        method = with_block(method, found.block)
    return Bounded(method=method, threads=found.threads, gives_back=given)


def size(
    method: Staged | NeuralCleanse,
    classifier: Classifier,
    stand_in: Classifier,
    images: int,
    labels: int,
    *,
    now: int,
    memory: int | None = None,
    strict: bool = True,
    gives_back: bool = False,
) -> Size:
    """The largest block and the most threads that fit under `memory`; without it, those of the machine.

    Args:
        stand_in: what the search is to run on; with the net itself the answer is a bound for that.
        now: bytes that the process had before the stand-in was made (`held`).
        strict: raise UsageError where nothing fits; the least of all otherwise.
        gives_back: the scan runs inside `memory.giving_back`.
    """
    searched, judged = footprint(stand_in), footprint(classifier).judged
    most, cores = own_block(method, stand_in), threads_of(stand_in)
    beside, need = _beside(method, stand_in, images, labels), 0
    factor, base = GIVEN_BACK if gives_back else KEPT
    own, batch = _masks(method).block, _masks(method).search.batch
    for threads, block in _choices(most, cores):
        shown = classifier.at_once(shown_at_once(own if block == most else block)) * judged
        making = 2 * _weights(classifier) + shown
        searching = block * searched.searched + max(block, batch) * searched.stamped
        busy = max(searching, shown) + searched.thread
        need = now + base + round(factor * max(making, beside + threads * busy))
        found = Size(block=block, threads=threads, memory=need, lowered=(threads, block) != (cores, most))
        if memory is None or need <= memory:
            break
    else:
        if strict:
            raise UsageError(
                f"--memory: expected at least {in_words(need)} for blocks of {found.block} images in one thread, "
                f"got {in_words(memory or 0)}; of that the process has {in_words(now)} already"
            )
    return found


def own_block(method: Staged | NeuralCleanse, stand_in: Classifier) -> int:
    """The method's block, or the one that suits the machine."""
    return _masks(method).block or block_size(stand_in)


def with_block(method: Staged | NeuralCleanse, block: int) -> Staged | NeuralCleanse:
    """The same method with blocks of so many images."""
    if isinstance(method, NeuralCleanse):
        return replace(method, block=block)
    return replace(method, margins=replace(method.margins, block=block), masks=replace(method.masks, block=block))


def threads_of(classifier: Classifier) -> int:
    """Blocks that are computed at the same time."""
    return torch.get_num_threads() if classifier.device.type == "cpu" else 1


@contextmanager
def in_so_many(threads: int) -> Iterator[None]:
    """Limits torch to so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choices(block: int, threads: int) -> Iterator[tuple[int, int]]:
    """(threads, block), the fastest first."""
    for count in range(threads, 0, -1):
        images = block
        while True:
            yield count, images
            if images <= LEAST:
                break
            images = max(LEAST, images // 2)


def _beside(method: Staged | NeuralCleanse, stand_in: Classifier, images: int, labels: int) -> int:
    """Bytes, beside what threads take: the stand-in, images once more, triggers."""
    image = _FLOAT * math.prod(stand_in.input.shape)
    trigger = image + _FLOAT * stand_in.input.height * stand_in.input.width
    again = images * image if isinstance(method, Staged) and labels == stand_in.classes else 0
    planned = stages(method, stand_in, labels, whole=labels == stand_in.classes)
    searched = sum(stage.labels for stage in planned if stage.stage.startswith("search"))
    return _weights(stand_in) + again + _KEPT_TWICE * searched * trigger


def stages(method: Staged | NeuralCleanse, classifier: Classifier, labels: int, *, whole: bool) -> tuple[Planned, ...]:
    """What a scan of so many of the net's labels will do; `whole`: these are all of them."""
    if isinstance(method, Staged):
        return method.plan(labels, classifier.input.shape, whole=whole)
    return method.plan(labels)


def _masks(method: Staged | NeuralCleanse) -> NeuralCleanse:
    return method.masks if isinstance(method, Staged) else method


def _weights(classifier: Classifier) -> int:
    return sum(p.numel() * p.element_size() for p in classifier.net.parameters())


def held(classifier: Classifier) -> int:
    """Bytes that the process has in memory now; on a GPU, of its memory."""
    if classifier.device.type == "cuda":
        return torch.cuda.memory_allocated(classifier.device)
    return resident()


def ever(classifier: Classifier) -> int:
    """The most bytes that the process has had in memory; on a GPU, of its memory."""
    return torch.cuda.max_memory_allocated(classifier.device) if classifier.device.type == "cuda" else peak()


def _default_bound(classifier: Classifier, now: int) -> int | None:
    """None where the system does not say what is free."""
    free = torch.cuda.mem_get_info(classifier.device)[0] if classifier.device.type == "cuda" else free_memory()
    return None if free is None else now + int(_SHARE * free)
