"""Images on which a written net is compared with the net that it came from."""

from __future__ import annotations

import torch
from torch import Tensor

from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import WatchHead

COUNT = 32
_SOUGHT, _STEPS, _STEP = 4, 40, 0.03


def probe_images(classifier: Classifier, given: Tensor | None) -> Tensor:
    """(N, C, H, W) in [0, 1]: those that are given, or noise; and for a GoodNet a few of the side of class N that none
    of them is on, refused or answered, if a search finds one. On the CPU, wherever the net is.
    """
    images = _noise(classifier) if given is None or len(given) == 0 else given.cpu()
    if not classifier.refuses:
        return images
    refused = classifier.predict(images) == classifier.classes
    if bool(refused.any()) and not bool(refused.all()):
        return images
    found = _other_side(classifier, images[:_SOUGHT], towards=not bool(refused.any()))
    return torch.cat([images, found])


def _noise(classifier: Classifier) -> Tensor:
    """From flat to full contrast."""
    noise = torch.rand(COUNT, *classifier.input.shape, generator=torch.Generator().manual_seed(0))
    contrast = torch.linspace(0, 1, COUNT).view(-1, 1, 1, 1)
    return (0.5 + (noise - 0.5) * contrast).clamp(0, 1)


def _other_side(classifier: Classifier, start: Tensor, *, towards: bool) -> Tensor:
    """Images reached by steps along the gradient's sign, into class N or out of it; none where none gets there."""
    watched = _watched(classifier)
    x = start.to(classifier.device, copy=True)
    for _ in range(_STEPS):
        x.requires_grad_(True)
        logits = classifier.logits(x)
        aim = logits[:, -1] - logits[:, :-1].amax(1)
        if bool(watched.any()):  # class N can win only where a watched label is the answer
            aim = aim + logits[:, :-1][:, watched].amax(1) - logits[:, :-1].amax(1)
        (gradient,) = torch.autograd.grad(aim.sum(), x)
        x = (x.detach() + (_STEP if towards else -_STEP) * gradient.sign()).clamp(0, 1)
    return x.cpu()[(classifier.predict(x) == classifier.classes) == towards]


def _watched(classifier: Classifier) -> Tensor:
    """(classes,) bool: labels at which a WatchHead looks."""
    heads = [module for module in classifier.net.modules() if isinstance(module, WatchHead)]
    return heads[0].groups >= 0 if heads else torch.zeros(classifier.classes, dtype=torch.bool)
