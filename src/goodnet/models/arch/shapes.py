"""The shape that a layer of a GraphNet gives, by arithmetic: nothing is run, so a hostile size costs nothing.

PyTorch could tell the same on its `meta` device, but that imports its compiler, which takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from goodnet.errors import ModelError
from goodnet.models.arch import layers, tensor_layers
from goodnet.models.arch.layers import Chain, Shape


def chain_shapes(chain: Chain, shapes: list[Shape], where: str) -> list[Shape]:
    """Shapes (batch left out) after every module of `chain`, the first of which gets `shapes`. Raises ModelError."""
    out: list[Shape] = []
    for _, module in chain:
        try:
            shape = _shape(module, shapes)
        except (ValueError, RuntimeError, IndexError) as error:
            raise ModelError(f"{where}: does not fit its input {shapes!r:.80} ({error})") from error
        if not 1 <= len(shape) <= tensor_layers.MAX_RANK or min(shape) < 1:
            raise ModelError(
                f"{where}: expected it to give (C, H, W), (F,) or the like, got {shape} from {shapes!r:.80}"
            )
        out.append(shape)
        shapes = [shape]
    return out


def _shape(module: nn.Module, shapes: list[Shape]) -> Shape:
    if isinstance(module, tensor_layers.Shaped):
        return module.out_shape(shapes)
    if isinstance(module, layers.Merge):
        return tuple(int(side) for side in np.broadcast_shapes(*shapes))
    if isinstance(module, layers.Concatenate):
        return _joined(shapes, module.dim - 1)
    (shape,) = shapes
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, *_windows(module, shape, module.dilation))
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return (shape[0], *_windows(module, shape, (1, 1)))
    if isinstance(module, layers.EdgeAveragePool):
        return _shape(module.pool, [_shape(module.pad, [shape])])
    if isinstance(module, nn.ConstantPad2d | nn.ReplicationPad2d):  # ZeroPad2d is one of the former
        left, right, top, bottom = module.padding
        return (shape[0], shape[1] + top + bottom, shape[2] + left + right)
    return _reordered(module, shape)


def _reordered(module: nn.Module, shape: Shape) -> Shape:
    """Modules that keep the numbers and at most lay them out anew, and global pools."""
    if isinstance(module, nn.Linear):
        return (*shape[:-1], module.out_features)
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return (shape[0], 1, 1)
    if isinstance(module, nn.Flatten | layers.Flatten):
        return (math.prod(shape),)
    if isinstance(module, layers.Unflatten):
        return module.shape
    if isinstance(module, layers.Permute):
        return tuple(shape[axis - 1] for axis in module.dims[1:])
    return shape  # activations, norms, rescaling


def _windows(module: Any, shape: Shape, dilation: Sequence[int]) -> tuple[int, ...]:
    """Rows and columns after sliding windows: floor((n + 2 p - d (k - 1) - 1) / s) + 1."""
    pads = module.padding if isinstance(module.padding, tuple) else (module.padding, module.padding)
    rows = zip(shape[1:], module.kernel_size, module.stride, pads, dilation)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in rows)


def _joined(shapes: list[Shape], axis: int) -> Shape:
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) != 1:
        raise ValueError("all sides but the joined one must be equal")
    total = sum(shape[axis] for shape in shapes)
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
