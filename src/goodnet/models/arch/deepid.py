"""DeepID (Sun et al., CVPR 2014) as the CSAW-HackML-2020 competition trains it.

conv 4x4x20, pool 2, conv 3x3x40, pool 2, conv 3x3x60, pool 2 -> a: dense 160; b: conv 2x2x80, dense 160;
relu(a + b) -> dense K. All convolutions valid, ReLU after each. Layer names are the competition's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class DeepID(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes). No softmax: goodnet works on logits.

    Args:
        classes: number of outputs.
        channels, height, width: input shape; the competition's is 3, 55, 47.
        embed: width of the two dense layers that are added.
    """

    def __init__(self, *, classes: int, channels: int = 3, height: int = 55, width: int = 47, embed: int = 160):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, 20, 4)
        self.conv_2 = nn.Conv2d(20, 40, 3)
        self.conv_3 = nn.Conv2d(40, 60, 3)
        self.conv_4 = nn.Conv2d(60, 80, 2)
        h, w = (_after_convolutions(side) for side in (height, width))
        self.fc_1 = nn.Linear(60 * h * w, embed)
        self.fc_2 = nn.Linear(80 * (h - 1) * (w - 1), embed)
        self.output = nn.Linear(embed, classes)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()

    def features(self, x: Tensor) -> Tensor:
        """What `output` sees: (N, embed)."""
        # ReLU after the pool instead of before it: the same values to the bit, on a quarter of the numbers
        x = self.relu(self.pool(self.conv_1(x)))
        x = self.relu(self.pool(self.conv_2(x)))
        x = self.relu(self.pool(self.conv_3(x)))
        a = self.fc_1(_flatten_channels_last(x))
        b = self.fc_2(_flatten_channels_last(self.relu(self.conv_4(x))))
        out: Tensor = self.relu(a + b)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.features(x))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a state dict's shapes (height and width stay the competition's)."""
    return {
        "classes": state["output.weight"].shape[0],
        "embed": state["output.weight"].shape[1],
        "channels": state["conv_1.weight"].shape[1],
    }


def _after_convolutions(side: int) -> int:
    return (((side - 3) // 2 - 2) // 2 - 2) // 2


def _flatten_channels_last(x: Tensor) -> Tensor:
    # Keras flattens NHWC; in channels-last memory this permutation moves nothing.
    return torch.flatten(x.permute(0, 2, 3, 1), 1)
