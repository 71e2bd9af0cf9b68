"""MobileNetV2 (Sandler et al., CVPR 2018) of width 1, torchvision's keys (`features.1.conv.0.0`, `classifier.1`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

# expansion, channels, blocks, stride of the first (the paper's Table 2)
_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_FIRST, _LAST = 32, 1280


class Inverted(nn.Module):
    """conv 1x1 to more channels (unless expansion is 1) -> depthwise 3x3 -> conv 1x1, added to its input."""

    def __init__(self, before: int, after: int, stride: int, expansion: int):
        super().__init__()
        middle = before * expansion
        wider = [_conv(before, middle, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *wider,
            _conv(middle, middle, 3, stride, groups=middle),
            nn.Conv2d(middle, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6())


class MobileNetV2(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, *, classes: int, channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = [_conv(channels, _FIRST, 3, 2)]
        before = _FIRST
        for expansion, width, blocks, stride in _GROUPS:
            for block in range(blocks):
                layers.append(Inverted(before, width, 1 if block else stride, expansion))
                before = width
        layers.append(_conv(before, _LAST, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {"classes": state["classifier.1.weight"].shape[0], "channels": state["features.0.0.weight"].shape[1]}
