"""The layers that a GraphNet is made of: one function each, from a checked description to torch modules.

Tensors are NCHW or (N, F). `padding: same` is TensorFlow's: as many outputs as ceil(n / stride), the odd row or
column of padding at the bottom or right; `explicit` states its `pads` (left, right, top, bottom). Where padding is
lopsided, a padding module goes before the layer. Keras's own PyTorch backend repeats the edge there before an average
pool (TensorFlow and JAX leave padding out of the average); that is `same-edge`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError
from goodnet.models.arch.fields import Fields

Shape = tuple[int, ...]
Chain = list[tuple[str, nn.Module]]
"""Modules in a row, each with what its name adds to the layer's."""
ORDERS = ("hwc", "chw")
MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "average": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


class Flatten(nn.Module):
    """(N, C, H, W) -> (N, F), in the order H, W, C (how Keras lays images out) or C, H, W."""

    def __init__(self, order: str):
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x.permute(0, 2, 3, 1) if self.order == "hwc" and x.ndim == 4 else x, 1)


class Unflatten(nn.Module):
    """(N, F) -> (N, C, H, W), the numbers lying in the order H, W, C or C, H, W."""

    def __init__(self, shape: Shape, order: str):
        super().__init__()
        self.shape, self.order = shape, order

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = self.shape
        return x.reshape(-1, h, w, c).permute(0, 3, 1, 2) if self.order == "hwc" else x.reshape(-1, c, h, w)


class Permute(nn.Module):
    """Swaps the axes of (N, C, H, W); `dims` are torch's, batch included."""

    def __init__(self, dims: Shape):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Merge(nn.Module):
    """Folds its inputs with one of MERGES, left to right; `average` divides by their number."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, *inputs: Tensor) -> Tensor:
        out = inputs[0]
        for other in inputs[1:]:
            out = MERGES[self.kind](out, other)
        return out / len(inputs) if self.kind == "average" else out


class Concatenate(nn.Module):
    """Joins its inputs along `dim`."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)


class Rescale(nn.Module):
    """x * scale + offset, one number each or one a channel."""

    def __init__(self, scale: tuple[float, ...], offset: tuple[float, ...]):
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        return x * x.new_tensor(self.scale).view(shape) + x.new_tensor(self.offset).view(shape)


class EdgeAveragePool(nn.Module):
    """Average pool over padded windows that counts real pixels alone, as TensorFlow's `same` does."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int, int, int]):
        super().__init__()
        self.pool, self.pad = nn.AvgPool2d(kernel, stride), nn.ZeroPad2d(pads)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(self.pad(x)) / self.pool(self.pad(torch.ones_like(x[:1, :1])))
        return out


class Clamp(nn.Module):
    """slope * x below 0, x above, at most `limit`: Keras's ReLU with both settings."""

    def __init__(self, slope: float, limit: float):
        super().__init__()
        self.slope, self.limit = slope, limit

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x, self.slope).clamp_max(self.limit)


class OldHardSigmoid(nn.Module):
    """clip(0.2 x + 0.5, 0, 1): Keras 1 and 2's; PyTorch and Keras 3 have slope 1/6."""

    def forward(self, x: Tensor) -> Tensor:
        return (0.2 * x + 0.5).clamp(0.0, 1.0)


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hard_sigmoid": nn.Hardsigmoid,
    "old_hard_sigmoid": OldHardSigmoid,
    "hard_silu": nn.Hardswish,
    "exponential": Exponential,
    "softmax": partial(nn.Softmax, dim=1),
    "log_softmax": partial(nn.LogSoftmax, dim=1),
}


def same_pads(shape: Shape, kernel: Shape, stride: Shape, dilation: Shape = (1, 1)) -> tuple[int, int, int, int]:
    """TensorFlow's `same` padding of an image (C, H, W) as (left, right, top, bottom)."""
    sides = []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        sides.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = sides
    return left, right, top, bottom


def _conv2d(spec: Fields, shapes: list[Shape]) -> Chain:
    return _convolution(spec, shapes, spec.whole("filters"), spec.whole("groups"))


def _depthwise(spec: Fields, shapes: list[Shape]) -> Chain:
    channels = _image(spec, shapes)[0]
    return _convolution(spec, shapes, channels * spec.whole("multiplier"), channels)


def _convolution(spec: Fields, shapes: list[Shape], filters: int, groups: int) -> Chain:
    shape = _image(spec, shapes)
    kernel, stride, dilation = spec.pair("kernel"), spec.pair("stride"), spec.pair("dilation")
    left, right, top, bottom = _pads(spec, shape, kernel, stride, dilation)
    even = left == right and top == bottom
    padding = (top, left) if even else (0, 0)
    bias = spec.flag("bias")
    conv = nn.Conv2d(shape[0], filters, kernel, stride, padding, dilation, groups, bias)
    return [("", conv)] if even else [("__pad", nn.ZeroPad2d((left, right, top, bottom))), ("", conv)]


def _linear(spec: Fields, shapes: list[Shape]) -> Chain:
    (features,) = _only(spec, shapes, 1)
    return [("", nn.Linear(features, spec.whole("units"), bias=spec.flag("bias")))]


def _batch_norm(spec: Fields, shapes: list[Shape]) -> Chain:
    shape = _only(spec, shapes)
    if len(shape) > 3:
        raise ModelError(f"{spec.where}: expected (N, F), (N, C, T) or (N, C, H, W), got {shapes!r:.80}")
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    return [("", kind(shape[0], eps=spec.number("eps", 0.0, 1.0)))]


def _max_pool(spec: Fields, shapes: list[Shape]) -> Chain:
    kernel, stride = spec.pair("kernel"), spec.pair("stride")
    pads = _pads(spec, _image(spec, shapes), kernel, stride)
    pool = nn.MaxPool2d(kernel, stride)
    return [("__pad", nn.ConstantPad2d(pads, -math.inf)), ("", pool)] if any(pads) else [("", pool)]


def _average_pool(spec: Fields, shapes: list[Shape]) -> Chain:
    shape, kernel, stride = _image(spec, shapes), spec.pair("kernel"), spec.pair("stride")
    padding = spec.choice("padding", ("valid", "same", "same-edge", "explicit"))
    pool = nn.AvgPool2d(kernel, stride)
    if padding == "explicit":
        pads = _explicit(spec)
        if spec.flag("count_pad"):
            return [("__pad", nn.ZeroPad2d(pads)), ("", pool)] if any(pads) else [("", pool)]
        return [("", EdgeAveragePool(kernel, stride, pads) if any(pads) else pool)]
    pads = (0, 0, 0, 0) if padding == "valid" else same_pads(shape, kernel, stride)
    if padding == "same-edge" and (pads[0] != pads[1] or pads[2] != pads[3]):
        return [("__pad", nn.ReplicationPad2d(pads)), ("", pool)]
    return [("", EdgeAveragePool(kernel, stride, pads) if any(pads) else pool)]


def _global_pool(spec: Fields, shapes: list[Shape]) -> Chain:
    _image(spec, shapes)
    average = spec.choice("kind", ("average", "max")) == "average"
    pool: nn.Module = nn.AdaptiveAvgPool2d(1) if average else nn.AdaptiveMaxPool2d(1)
    return [("", pool)] if spec.flag("keepdims") else [("", pool), ("__flatten", nn.Flatten())]


def _flatten(spec: Fields, shapes: list[Shape]) -> Chain:
    _only(spec, shapes)
    return [("", Flatten(spec.choice("order", ORDERS)))]


def _reshape(spec: Fields, shapes: list[Shape]) -> Chain:
    before, after = _only(spec, shapes), spec.shape("shape")
    order = spec.choice("order", ORDERS)
    if len(before) not in (1, 3):
        raise ModelError(f"{spec.where}: expected (N, F) or (N, C, H, W), got {shapes!r:.80}")
    if math.prod(before) != math.prod(after):
        raise spec.error("shape", f"{math.prod(before)} numbers, as its input has", after)
    flat: Chain = [("__flatten", Flatten(order))] if len(before) == 3 else []
    return [*flat, ("", Unflatten(after, order) if len(after) == 3 else nn.Identity())]


def _permute(spec: Fields, shapes: list[Shape]) -> Chain:
    _image(spec, shapes)
    dims = spec.wholes("dims", 3, 1, 3)
    if sorted(dims) != [1, 2, 3]:
        raise spec.error("dims", "an order of 1, 2, 3", dims)
    return [("", Permute((0, *dims)))]


def _merge(spec: Fields, shapes: list[Shape]) -> Chain:
    if len({len(shape) for shape in shapes}) != 1:
        raise ModelError(f"{spec.where}: expected inputs of one rank, got {shapes!r:.80}")
    return [("", Merge(spec.choice("kind", list(MERGES))))]


def _concatenate(spec: Fields, shapes: list[Shape]) -> Chain:
    axis, order = spec.whole("axis", -1, 3), spec.choice("order", ORDERS)
    if len(shapes[0]) == 1 and axis in (-1, 1):
        return [("", Concatenate(1))]
    dims = {"hwc": {-1: 1, 1: 2, 2: 3, 3: 1}, "chw": {-1: 3, 1: 1, 2: 2, 3: 3}}[order]
    if any(len(shape) != 3 for shape in shapes) or axis not in dims:
        raise spec.error("axis", "one of its inputs'", axis)
    return [("", Concatenate(dims[axis]))]


def _activation(spec: Fields, shapes: list[Shape]) -> Chain:
    shape = _only(spec, shapes)
    kind = spec.choice("kind", [*PLAIN, "leaky_relu", "elu", "clamp", "clip"])
    if kind.endswith("softmax") and len(shape) != 1:
        raise ModelError(f"{spec.where}: softmax over an image {shape} is not read; only over classes (N, K)")
    if kind == "leaky_relu":
        return [("", nn.LeakyReLU(spec.number("slope")))]
    if kind == "elu":
        return [("", nn.ELU(spec.number("alpha")))]
    if kind == "clip":
        low, high = spec.number("low"), spec.number("high")
        if not low < high:
            raise spec.error("low", f"under high, {high:g}", low)
        return [("", nn.Hardtanh(low, high))]
    if kind == "clamp":
        return [("", Clamp(spec.number("slope"), spec.number("limit", 0.0)))]
    return [("", PLAIN[kind]())]


def _zero_pad(spec: Fields, shapes: list[Shape]) -> Chain:
    _image(spec, shapes)
    return [("", nn.ZeroPad2d(_explicit(spec)))]


def _rescale(spec: Fields, shapes: list[Shape]) -> Chain:
    (channels, *_) = _only(spec, shapes)
    scale, offset = spec.numbers("scale"), spec.numbers("offset")
    if len(scale) not in (1, channels) or len(offset) not in (1, channels):
        raise spec.error("scale and offset", f"1 or {channels} numbers", (len(scale), len(offset)))
    return [("", Rescale(scale, offset))]


LAYERS: dict[str, Callable[[Fields, list[Shape]], Chain]] = {
    "conv2d": _conv2d,
    "depthwise": _depthwise,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_pool": _global_pool,
    "flatten": _flatten,
    "reshape": _reshape,
    "permute": _permute,
    "merge": _merge,
    "concatenate": _concatenate,
    "activation": _activation,
    "zero_pad": _zero_pad,
    "rescale": _rescale,
}


def _pads(
    spec: Fields, shape: Shape, kernel: Shape, stride: Shape, dilation: Shape = (1, 1)
) -> tuple[int, int, int, int]:
    padding = spec.choice("padding", ("valid", "same", "explicit"))
    if padding == "explicit":
        return _explicit(spec)
    return same_pads(shape, kernel, stride, dilation) if padding == "same" else (0, 0, 0, 0)


def _explicit(spec: Fields) -> tuple[int, int, int, int]:
    """`pads`: left, right, top, bottom."""
    left, right, top, bottom = spec.wholes("pads", 4, 0, 4096)
    return left, right, top, bottom


def _only(spec: Fields, shapes: list[Shape], rank: int | None = None) -> Shape:
    if len(shapes) != 1 or rank not in (None, len(shapes[0])):
        wanted = {1: "flat (N, F)", 3: "an image (N, C, H, W)"}.get(rank or 0, "of any shape")
        raise ModelError(f"{spec.where}: expected one input {wanted}, got {shapes!r:.80}")
    return shapes[0]


def _image(spec: Fields, shapes: list[Shape]) -> Shape:
    return _only(spec, shapes, 3)
