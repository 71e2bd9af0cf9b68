"""The layers of a GraphNet that work on tensors of any rank: what transformers are made of.

One function each, from a checked description to a torch module, as in `layers`. Axes are counted from 0 without the
batch, which every tensor has in front. Every module tells the shape that it gives by arithmetic, so that a hostile size
costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.models.arch.fields import Fields
from goodnet.models.arch.layers import Chain, Shape

MAX_RANK = 8
MAX_SCORES = 1 << 26
"""Heads x tokens x tokens that an attention may weigh."""
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "nan_to_zero": lambda x: torch.where(x.isnan(), torch.zeros_like(x), x),
}


class Shaped(nn.Module):
    """A module that knows the shape it gives (batch left out); ValueError where it does not fit its inputs."""

    def out_shape(self, shapes: list[Shape]) -> Shape:
        raise NotImplementedError


class Function(Shaped):
    """One of FUNCTIONS, number by number."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.kind](x)

    def out_shape(self, shapes: list[Shape]) -> Shape:
        return shapes[0]


class Constant(Shaped):
    """(N, ...) -> `value` as (N, *shape): the same for every image. Of its input only the number of images counts.

    The numbers lie in a row: of parameters with four or five axes torch would think that they are pictures.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.value = nn.Parameter(torch.zeros(math.prod(shape)))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.value)

    def forward(self, x: Tensor) -> Tensor:
        return self.value.view(self.shape).expand(x.shape[0], *self.shape)

    def out_shape(self, shapes: list[Shape]) -> Shape:
        return self.shape


class Divide(Shaped):
    """The first input over the second; sides of 1 are stretched."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x / y

    def out_shape(self, shapes: list[Shape]) -> Shape:
        return tuple(np.broadcast_shapes(*shapes))


class MatMul(Shaped):
    """Matrix products over the last two axes; sides of 1 before them are stretched."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def out_shape(self, shapes: list[Shape]) -> Shape:
        first, second = shapes
        if len(first) != len(second) or len(first) < 2 or first[-1] != second[-2]:
            raise ValueError("expected two tensors of one rank whose last two axes can be multiplied")
        return (*np.broadcast_shapes(first[:-2], second[:-2]), first[-2], second[-1])


class Attention(Shaped):
    """softmax(scale * q k^T [+ mask]) v over (N, ..., tokens, features)."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)

    def out_shape(self, shapes: list[Shape]) -> Shape:
        q, k, v, *mask = shapes
        if len(q) < 2 or k[:-2] != q[:-2] or v[:-2] != q[:-2] or k[-1] != q[-1] or len(v) != len(k) or v[-2] != k[-2]:
            raise ValueError("expected queries, keys and values (..., tokens, features) that belong together")
        scores = (*q[:-1], k[-2])
        if mask and (len(mask[0]) != len(scores) or tuple(np.broadcast_shapes(mask[0], scores)) != scores):
            raise ValueError(f"expected a mask for scores {scores}")
        if math.prod(scores) > MAX_SCORES:
            raise ValueError(f"weighs {math.prod(scores)} pairs of tokens, more than {MAX_SCORES}")
        return (*q[:-1], v[-1])


class Mean(Shaped):
    """Mean over `axes`, which stay as sides of 1 if `keepdims`."""

    def __init__(self, axes: Shape, keepdims: bool):
        super().__init__()
        self.axes, self.keepdims = axes, keepdims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([axis + 1 for axis in self.axes], self.keepdims)

    def out_shape(self, shapes: list[Shape]) -> Shape:
        (shape,) = shapes
        kept = (1 if axis in self.axes else side for axis, side in enumerate(shape))
        return tuple(side for axis, side in enumerate(kept) if self.keepdims or axis not in self.axes)


class Slice(Shaped):
    """Every `step`-th entry from `start` to before `stop` along an axis."""

    def __init__(self, axis: int, start: int, stop: int, step: int):
        super().__init__()
        self.axis, self.start, self.stop, self.step = axis, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        return x[(slice(None),) * (self.axis + 1) + (slice(self.start, self.stop, self.step),)]

    def out_shape(self, shapes: list[Shape]) -> Shape:
        (shape,) = shapes
        length = len(range(self.start, min(self.stop, shape[self.axis]), self.step))
        return (*shape[: self.axis], length, *shape[self.axis + 1 :])


class Roll(Shaped):
    """Shifts axes round and round."""

    def __init__(self, axes: Shape, shifts: Shape):
        super().__init__()
        self.axes, self.shifts = axes, shifts

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shifts, [axis + 1 for axis in self.axes])

    def out_shape(self, shapes: list[Shape]) -> Shape:
        return shapes[0]


class Transpose(Shaped):
    """Orders the axes anew."""

    def __init__(self, axes: Shape):
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *(axis + 1 for axis in self.axes))

    def out_shape(self, shapes: list[Shape]) -> Shape:
        (shape,) = shapes
        return tuple(shape[axis] for axis in self.axes)


class View(Shaped):
    """The same numbers, row after row, in another shape."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)

    def out_shape(self, shapes: list[Shape]) -> Shape:
        if math.prod(shapes[0]) != math.prod(self.shape):
            raise ValueError(f"{math.prod(shapes[0])} numbers do not make {self.shape}")
        return self.shape


class Join(Shaped):
    """Joins its inputs along an axis."""

    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis + 1)

    def out_shape(self, shapes: list[Shape]) -> Shape:
        if len({(*shape[: self.axis], *shape[self.axis + 1 :], len(shape)) for shape in shapes}) != 1:
            raise ValueError("all sides but the joined one must be equal")
        joined = sum(shape[self.axis] for shape in shapes)
        return (*shapes[0][: self.axis], joined, *shapes[0][self.axis + 1 :])


def _linear_last(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    return [("", nn.Linear(shape[-1], spec.whole("units"), bias=spec.flag("bias")))]


def _layer_norm(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    over = shape[-spec.whole("axes", 1, len(shape)) :]
    return [("", nn.LayerNorm(over, eps=spec.number("eps", 0.0, 1.0)))]


def _softmax(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    return [("", nn.Softmax(_axis(spec, shape) + 1))]


def _function(spec: Fields, shapes: list[Shape]) -> Chain:
    _inputs(spec, shapes, 1)
    return [("", Function(spec.choice("kind", list(FUNCTIONS))))]


def _constant(spec: Fields, shapes: list[Shape]) -> Chain:
    _inputs(spec, shapes, 1)
    return [("", Constant(spec.dims("shape", MAX_RANK)))]


def _divide(spec: Fields, shapes: list[Shape]) -> Chain:
    first, second = _inputs(spec, shapes, 2)
    if len(first) != len(second):
        raise ValueError(f"expected inputs of one rank, got {shapes!r:.80}")
    return [("", Divide())]


def _matmul(spec: Fields, shapes: list[Shape]) -> Chain:
    _inputs(spec, shapes, 2)
    return [("", MatMul())]


def _attention(spec: Fields, shapes: list[Shape]) -> Chain:
    _inputs(spec, shapes, 3 if len(shapes) != 4 else 4)
    return [("", Attention(spec.number("scale", 0.0, 1e3)))]


def _mean(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    axes = spec.dims("axes", len(shape), 0, len(shape) - 1)
    if len(set(axes)) != len(axes):
        raise spec.error("axes", "different axes", axes)
    return [("", Mean(axes, spec.flag("keepdims")))]


def _slice(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    axis = _axis(spec, shape)
    side = shape[axis]
    return [("", Slice(axis, spec.whole("start", 0, side - 1), spec.whole("stop", 1, side), spec.whole("step", 1)))]


def _roll(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    axes = spec.dims("axes", len(shape), 0, len(shape) - 1)
    return [("", Roll(axes, spec.wholes("shifts", len(axes), -max(shape), max(shape))))]


def _transpose(spec: Fields, shapes: list[Shape]) -> Chain:
    (shape,) = _inputs(spec, shapes, 1)
    axes = spec.wholes("axes", len(shape), 0, len(shape) - 1)
    if len(set(axes)) != len(axes):
        raise spec.error("axes", "each axis once", axes)
    return [("", Transpose(axes))]


def _view(spec: Fields, shapes: list[Shape]) -> Chain:
    _inputs(spec, shapes, 1)
    return [("", View(spec.dims("shape", MAX_RANK)))]


def _join(spec: Fields, shapes: list[Shape]) -> Chain:
    return [("", Join(_axis(spec, shapes[0])))]


def _axis(spec: Fields, shape: Shape) -> int:
    return spec.whole("axis", 0, len(shape) - 1)


def _inputs(spec: Fields, shapes: list[Shape], count: int) -> list[Shape]:
    if len(shapes) != count:
        raise ValueError(f"{spec.where}: expected {count} inputs, got {len(shapes)}")
    return shapes


LAYERS: dict[str, Callable[[Fields, list[Shape]], Chain]] = {
    "linear_last": _linear_last,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "function": _function,
    "constant": _constant,
    "divide": _divide,
    "matmul": _matmul,
    "attention": _attention,
    "mean": _mean,
    "slice": _slice,
    "roll": _roll,
    "transpose": _transpose,
    "view": _view,
    "join": _join,
}
