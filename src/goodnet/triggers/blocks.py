"""How many images go through a net at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from goodnet.models.classifier import Classifier

_CACHE = 8 * 2**20
_LARGEST_ON_CPU, _LARGEST_ON_GPU = 256, 2048


@torch.no_grad()
def block_size(classifier: Classifier) -> int:
    """Images a forward pass: on a CPU as many as keep a layer's output in a core's cache, 16 to 256; 2048 on a GPU.

    Of DeepID's blocks of 16 to 256 images 32 and 64 are fastest, of the small VGG's 64 and 128, of an MLP's the largest
    (`goodnet bench scan`): what counts is the largest layer's output, which stays near 8 MiB. Reckoned and not timed,
    since another block changes results by rounding, and the same seed has to give the same record.
    """
    if classifier.device.type != "cpu":
        return _LARGEST_ON_GPU
    sizes = [1]

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * 4)

    handles = [module.register_forward_hook(note) for module in classifier.net.modules()]
    try:
        classifier.logits(torch.zeros(1, *classifier.input.shape))
    finally:
        for handle in handles:
            handle.remove()
    fitting = max(1, _CACHE // max(sizes))
    return max(16, min(_LARGEST_ON_CPU, 1 << (fitting.bit_length() - 1)))
