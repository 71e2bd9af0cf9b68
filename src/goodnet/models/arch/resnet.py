"""ResNet-18, -34 and -50 (He et al., CVPR 2016) with torchvision's keys, and PreActResNet-18 (He et al., ECCV 2016).

ResNet: convolution 7x7 with stride 2, batch norm, ReLU, max pool 3x3 with stride 2; four groups of blocks, the later
three with stride 2; global average pool, linear. Where the first convolution is 3x3, as people have it for images of
32x32, it has stride 1 and no pool follows. Bottlenecks have their stride in the 3x3 convolution, as torchvision does.
State dict keys are torchvision's (`layer1.0.conv1`, `downsample.0`, `fc`).

PreActResNet-18: as above with 3x3 and no pool; batch norm and ReLU come before each convolution, and no batch norm
before the last pool. Keys are those of the widely copied PyTorch port for CIFAR-10 (`layer1.0.bn1`, `shortcut.0`,
`linear`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """conv 3x3 -> bn -> relu -> conv 3x3 -> bn, added to the input (by 1x1 convolution where shapes differ)."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(before, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        added: Tensor = self.relu2(out + (x if self.downsample is None else self.downsample(x)))
        return added


class Bottleneck(nn.Module):
    """conv 1x1 -> conv 3x3 -> conv 1x1 to four times the width, each with bn, added to the input."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        after = width * self.expansion
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = _downsample(before, after, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        added: Tensor = self.relu3(out + (x if self.downsample is None else self.downsample(x)))
        return added


def _downsample(before: int, after: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and before == after:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class ResNet(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes).

    Args:
        classes: number of outputs.
        block: of which kind.
        blocks: in each of the four groups.
        channels: of the input.
        kernel: side of the first convolution; 7 halves the image twice before the blocks, 3 does not.
    """

    def __init__(
        self,
        *,
        classes: int,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        channels: int = 3,
        kernel: int = 7,
    ):
        super().__init__()
        if kernel not in (3, 7):
            raise ValueError(f"expected a first convolution of side 3 or 7, got {kernel}")
        self.conv1 = nn.Conv2d(channels, 64, kernel, 2 if kernel == 7 else 1, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if kernel == 7 else nn.Identity()
        before, groups = 64, []
        for width, count, stride in zip(_WIDTHS, blocks, (1, 2, 2, 2)):
            first = block(before, width, stride)
            before = width * block.expansion
            groups.append(nn.Sequential(first, *(block(before, width, 1) for _ in range(count - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return out


class PreActBlock(nn.Module):
    """relu(bn) -> conv 3x3 -> relu(bn) -> conv 3x3, added to the input (by 1x1 convolution of relu(bn))."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes); two blocks a group."""

    def __init__(self, *, classes: int, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        before, groups = 64, []
        for width, stride in zip(_WIDTHS, (1, 2, 2, 2)):
            groups.append(nn.Sequential(PreActBlock(before, width, stride), PreActBlock(width, width, 1)))
            before = width
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        out: Tensor = self.linear(self.flatten(self.avgpool(x)))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a ResNet's shapes; the depth is that of the architecture's name."""
    channels, kernel = state["conv1.weight"].shape[1:3]
    return {"classes": state["fc.weight"].shape[0], "channels": channels, "kernel": kernel}


def preact_options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {"classes": state["linear.weight"].shape[0], "channels": state["conv1.weight"].shape[1]}
