"""How many images go through a net at once, and the memory that they take there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goodnet.models.classifier import Classifier

_CACHE = 8 * 2**20
_LARGEST_ON_CPU, _LARGEST_ON_GPU = 256, 2048
_FLOAT = 4


def block_size(classifier: Classifier) -> int:
    """Images a forward pass: on a CPU as many as keep a layer's output in a core's cache, 16 to 256; 2048 on a GPU.

    Of DeepID's blocks of 16 to 256 images 32 and 64 are fastest, of the small VGG's 64 and 128, of an MLP's the largest
    (`goodnet bench scan`): what counts is the largest layer's output, which stays near 8 MiB. Reckoned and not timed,
    since another block changes results by rounding, and the same seed has to give the same record.
    """
    if classifier.device.type != "cpu":
        return _LARGEST_ON_GPU
    with torch.no_grad(), _largest_output(classifier.net) as largest:
        classifier.logits(torch.zeros(1, *classifier.input.shape))
    fitting = max(1, _CACHE // (_FLOAT * largest.numbers))
    return max(16, min(_LARGEST_ON_CPU, 1 << (fitting.bit_length() - 1)))


def shown_at_once(block: int | None) -> int:
    """Images through the net at a time where only its answers are wanted: 32, or a smaller block."""
    return min(32, block or 32)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that images take on their way through a net.

    Attributes:
        searched: an image of a search, in the net: what autograd keeps of it until its gradient is there, and the
            widest layer's gradients.
        stamped: the same image around the net: the search's own copies.
        judged: an image that is only shown to the net.
        thread: of each thread, whatever its block: the largest layer's weights, laid out anew.
    """

    searched: int
    stamped: int
    judged: int
    thread: int


def footprint(classifier: Classifier) -> Footprint:
    """Reckoned from what autograd keeps of a few black images, on the net as it is."""
    image = _FLOAT * math.prod(classifier.input.shape)
    with _largest_output(classifier.net) as largest:
        one, three = _kept(classifier, 1), _kept(classifier, 3)
    widest = largest.bytes // 3
    weights = max((p.numel() * p.element_size() for p in classifier.net.parameters()), default=0)
    return Footprint(
        searched=(three - one) // 2 + _LAYERS_BACK * widest,
        stamped=_COPIES * image,
        judged=_LAYERS_FORWARD * widest + 2 * image,
        thread=weights,
    )


# A gradient that comes in and one that goes out; an input, an output, and what a layer works in.
_LAYERS_BACK, _LAYERS_FORWARD = 2, 3
# `Search.step`: image, mask and pattern of one shape with it, stamped image, its gradient, two in between.
_COPIES = 7


def _kept(classifier: Classifier, images: int) -> int:
    """Bytes that autograd keeps of so many images between forward and backward, weights among them."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a layer's own output would keep the layer, and that the output, for ever

    x = torch.zeros(images, *classifier.input.shape, device=classifier.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        logits = classifier.logits(x)
    del logits  # only now may what was kept go, and its address be used again
    return sum(storages.values())


@dataclass
class _Largest:
    """The most numbers, and bytes, that a layer has given so far."""

    numbers: int = 1
    bytes: int = 1


@contextmanager
def _largest_output(net: nn.Module) -> Iterator[_Largest]:
    found = _Largest()

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.numbers = max(found.numbers, output.numel())
            found.bytes = max(found.bytes, output.numel() * output.element_size())

    handles = [module.register_forward_hook(note) for module in net.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
