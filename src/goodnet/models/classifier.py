"""Classifier: a net, what it expects at its input, and how many classes it tells apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError

_NUMBERS = 1 << 21


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a net expects at its input, given that goodnet hands on images in [0, 1].

    The net sees (scale * x - mean) / std, channel by channel.

    Attributes:
        channels, height, width: shape of one image.
        scale: 1.0 for nets that expect 0..1, 255.0 for nets that expect 0..255.
        mean, std: per channel, in the units *after* scaling; empty for none.
    """

    channels: int
    height: int
    width: int
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)

    def describe(self) -> str:
        """`55x47x3, 0..255` and the like, for people."""
        text = f"{self.height}x{self.width}x{self.channels}, 0..{self.scale:g}"
        return text + (f", mean {self.mean}, std {self.std}" if self.mean or self.std else "")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What it takes to build the net again without its weights: the name of an architecture and its options.

    `options` holds JSON values only, so that a saved GoodNet can carry it.
    """

    arch: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A net that gives logits, frozen and in eval mode.

    Attributes:
        net: takes what `input` describes, gives logits (N, classes) or, if `refuses`, (N, classes + 1).
        input: what the net expects.
        classes: the number N of classes of the task, class N (refused) not counted.
        recipe: how to build `net` again.
        refuses: True for a GoodNet: output N means "this input is triggered".
        name: where it came from, for messages and records.
        sha256: hash of the file it came from; empty for nets made in memory.
        notes: what a user should know of how it was read (softmax unwrapped, keys stripped, ...).
    """

    net: nn.Module
    input: InputSpec
    classes: int
    recipe: Recipe
    refuses: bool = False
    name: str = "net"
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.net.eval().requires_grad_(False)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def prepare(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> what the net expects."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.input.shape:
            raise ModelError(f"{self.name}: expected images (N, {self.input.shape}), got {tuple(x.shape)}")
        if self.input.scale != 1.0:
            x = x * self.input.scale
        if self.input.mean:
            x = x - x.new_tensor(self.input.mean).view(1, -1, 1, 1)
        if self.input.std:
            x = x / x.new_tensor(self.input.std).view(1, -1, 1, 1)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K). Gradients flow to `x`, never to the weights."""
        out: Tensor = self.net(self.prepare(x))
        return out

    @torch.no_grad()
    def predict(self, x: Tensor, *, batch: int = 256) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> classes (N,) int64 on the CPU; `classes` where refused.

        At most `batch` images go through the net at a time, and fewer of those that are large (`at_once`).
        """
        if len(x) == 0:
            return torch.empty(0, dtype=torch.int64)
        return torch.cat([self.logits(part).argmax(1).cpu() for part in self.parts(x, batch=batch)])

    def parts(self, x: Tensor, *, batch: int = 256) -> Iterator[Tensor]:
        """Images (N, C, H, W) -> as many at a time as `at_once` says, on the net's device."""
        for part in torch.split(x, self.at_once(batch)):
            yield part.to(self.device)

    def at_once(self, batch: int) -> int:
        """How many images to show the net at a time where no gradient is wanted: `batch`, or 8 MiB of pixels.

        256 of 55x47 pixels in three colours are that, and 13 of 224x224.
        """
        return max(1, min(batch, _NUMBERS // math.prod(self.input.shape)))
