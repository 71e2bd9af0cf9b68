"""What every file format's reader takes (LoadOptions) and gives back (Loaded)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError, UsageError
from goodnet.models.classifier import Classifier, InputSpec, Recipe

Shape = tuple[int, int, int]
SCALES = {"0..1": 1.0, "0..255": 255.0}
MAX_BYTES = 2 << 30
"""No file's weights may take more than this once read (2 GiB): checked before memory is taken."""
MAX_FILE = 2 * MAX_BYTES
"""No larger file is looked at."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the user said of a net, checked.

    Attributes:
        arch: one of ours, `FILE.py:CALLABLE`, or None where the file describes its own net.
        classes: number of classes, or None to read it off the file.
        input_range: `0..1` or `0..255`: what the net expects before mean and std.
        mean, std: per channel (or one for all), in the units of `input_range`; empty for none.
        input_shape: (C, H, W), or None to read it off the file or the architecture.

    Raises:
        UsageError: an option out of its range.
    """

    arch: str | None = None
    classes: int | None = None
    input_range: str = "0..1"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_shape: Shape | None = None

    def __post_init__(self) -> None:
        if self.input_range not in SCALES:
            raise UsageError(f"input range: expected {' or '.join(SCALES)}, got {self.input_range!r}")
        if self.classes is not None and self.classes < 2:
            raise UsageError(f"classes: expected at least 2, got {self.classes}")
        if not all(math.isfinite(value) for value in self.mean):
            raise UsageError(f"mean: expected finite numbers, got {self.mean}")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise UsageError(f"std: expected numbers above 0, got {self.std}")
        if self.input_shape is not None:
            check_shape(self.input_shape)

    def input_spec(self, shape: Shape) -> InputSpec:
        """The whole input spec of a net that takes images of `shape`."""
        mean, std = (self._per_channel(name, shape[0]) for name in ("mean", "std"))
        channels, height, width = shape
        return InputSpec(
            channels=channels, height=height, width=width, scale=SCALES[self.input_range], mean=mean, std=std
        )

    def _per_channel(self, name: str, channels: int) -> tuple[float, ...]:
        values: tuple[float, ...] = tuple(float(value) for value in getattr(self, name))
        if len(values) not in (0, 1, channels):
            raise UsageError(f"{name}: expected 1 or {channels} numbers (one a channel), got {len(values)}")
        return values * channels if len(values) == 1 else values


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A net as a format's reader leaves it. `shape` is (C, H, W) of its input; `input` where the file tells more."""

    net: nn.Module
    recipe: Recipe
    shape: Shape
    input: InputSpec | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What a file holds, as far as it can be read without user code.

    Attributes:
        format: of the file, as `load.file_format` names it; empty where it is none.
        sha256: of the file.
        read_in: where it was read and what could not be done there, in words.
        classifier: the net; None where user code has to build it, or only tensors were asked for.
        tensors, notes: of a file of weights alone. None with `classifier` None: a GoodNet of user code.
        error: why it cannot be read.
    """

    format: str
    sha256: str = ""
    read_in: str = "goodnet's own process, without limits"
    classifier: Classifier | None = None
    tensors: Mapping[str, Tensor] | None = None
    notes: tuple[str, ...] = ()
    error: GoodnetError | None = None


def check_shape(shape: Shape) -> None:
    """Raises UsageError unless `shape` is (C, H, W) with C of 1 or 3 and sides of 1 to 4096."""
    fits = len(shape) == 3 and shape[0] in (1, 3) and all(1 <= side <= 4096 for side in shape[1:])
    if not fits:
        raise UsageError(f"input shape: expected C,H,W with C 1 or 3 and sides up to 4096, got {tuple(shape)}")


def one_line(error: BaseException, limit: int = 200) -> str:
    """An error of somebody else's library, cut to one line for our message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_device(net: nn.Module, device: str | torch.device) -> nn.Module:
    """Moves the net; raises UsageError where the device does not exist."""
    try:
        return net.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device: expected one that PyTorch has here, got {device} ({one_line(error)})") from error
