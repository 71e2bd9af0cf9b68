"""Two-convolution CNN for MNIST, as the backdoor literature's toy BadNets have it.

conv 5x5x16, ReLU, average pool 2, conv 5x5x32, ReLU, average pool 2, linear 512, ReLU, linear. The published file's
net ends in softmax; this one gives logits. State dict keys `conv1.0`, `conv2.0`, `fc1.0`, `fc2.0`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn


class CNN(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes); the published net's input is 1, 28, 28."""

    def __init__(self, *, classes: int, channels: int = 1, height: int = 28, width: int = 28, hidden: int = 512):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.flatten = nn.Flatten()
        h, w = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        self.fc1 = nn.Sequential(nn.Linear(32 * h * w, hidden), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(self.flatten(self.conv2(self.conv1(x)))))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a state dict's shapes; the image is taken to be square."""
    hidden, features = state["fc1.0.weight"].shape
    side = (math.isqrt(features // 32) * 2 + 4) * 2 + 4
    return {
        "classes": state["fc2.0.weight"].shape[0],
        "channels": state["conv1.0.weight"].shape[1],
        "hidden": hidden,
        "height": side,
        "width": side,
    }
