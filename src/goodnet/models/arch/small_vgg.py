"""Small VGG, as the GTSRB and CIFAR-10 nets of the backdoor literature's toolboxes have it.

[conv 3x3 pad 1 + batch norm + ELU] twice at 32, max pool 2, dropout .3; twice at 64, pool, dropout .4; twice at
128, pool, dropout .4; flatten; linear. State dict keys `features.i` and `classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

WIDTHS = (32, 64, 128)
DROPOUTS = (0.3, 0.4, 0.4)


class SmallVGG(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes); H and W are multiples of 8 (32 in the published nets)."""

    def __init__(self, *, classes: int, channels: int = 3, height: int = 32, width: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for after, dropout in zip(WIDTHS, DROPOUTS):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ELU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ELU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
            before = after
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before * (height // 8) * (width // 8), classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.flatten(self.features(x)))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a state dict's shapes; the image is taken to be square."""
    classes, features = state["classifier.weight"].shape
    side = 8 * math.isqrt(features // WIDTHS[-1])
    return {"classes": classes, "channels": state["features.0.weight"].shape[1], "height": side, "width": side}
