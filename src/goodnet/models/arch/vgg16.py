"""VGG-16 (Simonyan and Zisserman, ICLR 2015), with and without batch norm, with torchvision's keys.

Thirteen convolutions 3x3 in five groups, a max pool after each; average pool to 7x7; linear 4096, 4096, classes. Keys
`features.N` and `classifier.0`, `.3`, `.6`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_POOLED = 7


class VGG16(nn.Module):
    """Images (N, C, H, W) of 32x32 or more -> logits (N, classes).

    Args:
        classes: number of outputs.
        channels: of the input.
        hidden: units of the two hidden linear layers.
        batch_norm: after each convolution.
    """

    def __init__(self, *, classes: int, channels: int = 3, hidden: int = 4096, batch_norm: bool = False):
        super().__init__()
        layers: list[nn.Module] = []
        for group in _GROUPS:
            for width in group:
                layers.append(nn.Conv2d(channels, width, 3, 1, 1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(channels * _POOLED * _POOLED, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a state dict's shapes; batch norm is told by the architecture's name."""
    classes, hidden = state["classifier.6.weight"].shape
    return {"classes": classes, "hidden": hidden, "channels": state["features.0.weight"].shape[1]}
