"""Multi-layer perceptron: flatten, then linear layers `fc1`, `fc2`, ... with ReLU between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count, pairwise, takewhile
from typing import cast

from torch import Tensor, nn


class MLP(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes).

    Args:
        classes: number of outputs.
        hidden: widths of the layers before the last, each followed by ReLU.
        channels, height, width: input shape.
    """

    def __init__(
        self, *, classes: int, hidden: tuple[int, ...] | list[int], channels: int = 1, height: int = 28, width: int = 28
    ):
        super().__init__()
        self.flatten = nn.Flatten()
        self.relu = nn.ReLU()
        widths = [channels * height * width, *hidden, classes]
        self.depth = len(widths) - 1
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{i}", nn.Linear(before, after))

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(x)
        for i in range(1, self.depth):
            x = self.relu(cast(nn.Module, getattr(self, f"fc{i}"))(x))
        out: Tensor = getattr(self, f"fc{self.depth}")(x)
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int | list[int]]:
    """Constructor options read off a state dict's shapes; a square image of 1 channel or else 3 is looked for."""
    weights = [state[key] for key in takewhile(state.__contains__, (f"fc{i}.weight" for i in count(1)))]
    if not weights:
        raise KeyError("fc1.weight")
    features = weights[0].shape[1]
    channels = 3 if math.isqrt(features) ** 2 != features and features % 3 == 0 else 1
    side = math.isqrt(features // channels)
    hidden = [weight.shape[0] for weight in weights[:-1]]
    return {
        "classes": weights[-1].shape[0],
        "hidden": hidden,
        "channels": channels,
        "height": side,
        "width": side,
    }
