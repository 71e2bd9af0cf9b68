"""WideResNet (Zagoruyko and Komodakis, BMVC 2016), pre-activation blocks without dropout, for CIFAR-sized images.

WRN-d-k: conv 3x3x16; three groups of (d - 4) / 6 blocks at 16k, 32k, 64k channels, the second and third with
stride 2; batch norm, ReLU, global average pool, linear. State dict keys are those of the widely copied PyTorch port
(`block1.layer.0.bn1`, `convShortcut`, `fc`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class Block(nn.Module):
    """relu(bn) -> conv 3x3 -> relu(bn) -> conv 3x3, added to the input (by 1x1 convolution where widths differ)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.convShortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        # The port's quirk: a widening block's shortcut starts after batch norm and ReLU, the others' before.
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class Group(nn.Module):
    """`blocks` blocks, the first of which widens and strides."""

    def __init__(self, blocks: int, before: int, after: int, stride: int):
        super().__init__()
        first = Block(before, after, stride)
        self.layer = nn.Sequential(first, *(Block(after, after, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes).

    Args:
        classes: number of outputs.
        blocks: blocks a group, (depth - 4) / 6.
        widen: k, the factor on 16, 32 and 64 channels.
        channels: of the input.
    """

    def __init__(self, *, classes: int, blocks: int = 2, widen: int = 1, channels: int = 3):
        super().__init__()
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Group(blocks, 16, widths[0], 1)
        self.block2 = Group(blocks, widths[0], widths[1], 2)
        self.block3 = Group(blocks, widths[1], widths[2], 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        out: Tensor = self.fc(self.flatten(self.pool(self.relu(self.bn1(x)))))
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a state dict's shapes; depth and width are those of the architecture's name."""
    return {"classes": state["fc.weight"].shape[0], "channels": state["conv1.weight"].shape[1]}
