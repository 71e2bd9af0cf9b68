"""One torch module -> the stock Keras layers that do the same.

A setting that changes what a module computes and that is not handled here is an error, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from goodnet.export.keras_plan import Plan, Value
from goodnet.models.arch import layers as ours

Written = Callable[[Plan, Any, list[Value], str], Value]
_MERGES = {kind: kind.capitalize() for kind in ours.MERGES}
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Softsign: "softsign",
    nn.Hardsigmoid: "hard_sigmoid",
    nn.Hardswish: "hard_silu",
    ours.Exponential: "exponential",
}


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


def _windows(shape: tuple[int, ...], kernel: Any, stride: Any, dilation: Any = 1) -> tuple[int, int]:
    """Rows and columns that windows without padding give."""
    rows = zip(shape, _pair(kernel), _pair(stride), _pair(dilation))
    height, width = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in rows)
    return height, width


def _conv(plan: Plan, module: nn.Conv2d, inputs: list[Value], name: str) -> Value:
    (x,) = inputs
    if module.padding_mode != "zeros":
        raise plan.refuse(f"{name}: a convolution that pads with {module.padding_mode}")
    kernel, stride, dilation = (_pair(pair) for pair in (module.kernel_size, module.stride, module.dilation))
    spans = [d * (k - 1) for k, d in zip(kernel, dilation)]
    if module.padding == "same":
        pads = [(span // 2, span - span // 2) for span in spans]
    else:
        pads = [(p, p) for p in ((0, 0) if module.padding == "valid" else _pair(module.padding))]
    even = stride == (1, 1) and any(spans) and all(first + last == span for (first, last), span in zip(pads, spans))
    even = even and all(first == last for first, last in pads)
    settings: dict[str, Any] = {"padding": "same" if even else "valid", "data_format": "channels_last"}
    settings |= {"kernel_size": list(kernel), "strides": list(stride), "dilation_rate": list(dilation)}
    x = x if even else plan.padded(x, (*pads[1], *pads[0]))
    sides = x.shape[:2] if even else _windows(x.shape, kernel, stride, dilation)
    bias = [] if module.bias is None else [module.bias]
    settings["use_bias"] = module.bias is not None
    shape = (*sides, module.out_channels)
    if module.groups == module.in_channels and module.groups > 1:
        times = module.out_channels // module.in_channels
        weight = module.weight.reshape(module.in_channels, times, *kernel).permute(2, 3, 0, 1)
        return plan.add(
            "DepthwiseConv2D", x, shape=shape, name=name, weights=[weight, *bias], depth_multiplier=times, **settings
        )
    weights = [module.weight.permute(2, 3, 1, 0), *bias]
    settings |= {"filters": module.out_channels, "groups": module.groups}
    return plan.add("Conv2D", x, shape=shape, name=name, weights=weights, **settings)


def _linear(plan: Plan, module: nn.Linear, inputs: list[Value], name: str) -> Value:
    (x,) = inputs
    if len(x.shape) != 1:
        raise plan.refuse(f"{name}: a linear layer over pictures")
    return plan.dense(x, module.weight, module.bias, name)


def _batch_norm(plan: Plan, module: nn.BatchNorm1d | nn.BatchNorm2d, inputs: list[Value], name: str) -> Value:
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise plan.refuse(f"{name}: a batch norm by the batch itself")
    own = [] if module.weight is None else [module.weight, module.bias]
    both = bool(own)
    settings: dict[str, Any] = {"axis": -1, "epsilon": module.eps, "scale": both, "center": both}
    return plan.add("BatchNormalization", inputs[0], name=name, weights=[*own, mean, variance], **settings)


def _max_pool(plan: Plan, module: nn.MaxPool2d, inputs: list[Value], name: str) -> Value:
    (x,) = inputs
    kernel, stride, pads = (_pair(pair) for pair in (module.kernel_size, module.stride, module.padding))
    _whole_windows(plan, module, x, name)
    if _pair(module.dilation) != (1, 1) or module.return_indices or (any(pads) and any(x.border)):
        raise plan.refuse(f"{name}: a max pool with dilation, indices or padding twice")
    x, border = Value(layer=x.layer, shape=x.shape), (pads[1], pads[1], pads[0], pads[0]) if any(pads) else x.border
    if not any(border):
        return _pool(plan, "MaxPooling2D", x, kernel, stride, name)
    if border == ours.same_pads((1, *x.shape[:2]), kernel, stride):
        return _pool(plan, "MaxPooling2D", x, kernel, stride, name, "same")
    if border != ours.same_pads((1, *x.shape[:2]), kernel, (1, 1)) or kernel[0] % 2 + kernel[1] % 2 != 2:
        raise plan.refuse(f"{name}: a max pool of {kernel} padded by {border}")
    # padding must never win: the largest around each pixel, "same", and then every stride-th pixel
    x = _pool(plan, "MaxPooling2D", x, kernel, (1, 1), name, "same")
    return _pool(plan, "MaxPooling2D", x, (1, 1), stride, f"{name}_stride")


def _average_pool(plan: Plan, module: nn.AvgPool2d, inputs: list[Value], name: str) -> Value:
    (x,) = inputs
    down, right = _pair(module.padding)
    _whole_windows(plan, module, x, name)
    if module.divisor_override is not None or (not module.count_include_pad and (down, right) != (0, 0)):
        return _edges(plan, module, inputs, name)
    x = plan.padded(x, (right, right, down, down))
    return _pool(plan, "AveragePooling2D", x, _pair(module.kernel_size), _pair(module.stride), name)


def _edges(plan: Plan, module: nn.Module, inputs: list[Value], name: str) -> Value:
    raise plan.refuse(f"{name}: an average pool that leaves padding out or repeats edges (Keras's backends differ)")


def _whole_windows(plan: Plan, module: Any, x: Value, name: str) -> None:
    sides = zip(x.shape, *(_pair(pair) for pair in (module.kernel_size, module.stride, module.padding)))
    if module.ceil_mode and any((n + 2 * p - k) % s for n, k, s, p in sides):
        raise plan.refuse(f"{name}: a pool that rounds its size up")


def _pool(
    plan: Plan, kind: str, x: Value, size: tuple[int, int], stride: tuple[int, int], name: str, padding: str = "valid"
) -> Value:
    sides = _windows(x.shape, size if padding == "valid" else (1, 1), stride)
    settings: dict[str, Any] = {
        "pool_size": list(size),
        "strides": list(stride),
        "padding": padding,
        "data_format": "channels_last",
    }
    return plan.add(kind, x, shape=(*sides, x.shape[2]), name=name, **settings)


def _adaptive(plan: Plan, module: Any, inputs: list[Value], name: str) -> Value:
    (x,) = inputs
    average = isinstance(module, nn.AdaptiveAvgPool2d)
    kind = "Average" if average else "Max"
    height, width, channels = x.shape
    wanted = tuple(side if side is not None else own for side, own in zip(_open_pair(module.output_size), x.shape))
    if wanted == (1, 1):
        return plan.add(f"Global{kind}Pooling2D", x, shape=(1, 1, channels), name=name, keepdims=True)
    if height % wanted[0] == 0 and width % wanted[1] == 0:
        size = (height // wanted[0], width // wanted[1])
        return x if size == (1, 1) else _pool(plan, f"{kind}Pooling2D", x, size, size, name)
    if wanted[0] % height == 0 and wanted[1] % width == 0:
        size = (wanted[0] // height, wanted[1] // width)
        return plan.add("UpSampling2D", x, shape=(*wanted, channels), name=name, size=list(size))
    raise plan.refuse(f"{name}: a pool from {height}x{width} to {wanted[0]}x{wanted[1]}")


def _open_pair(value: Any) -> tuple[int | None, int | None]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _zero_pad(plan: Plan, module: nn.ZeroPad2d, inputs: list[Value], name: str) -> Value:
    left, right, top, bottom = module.padding
    if module.value == -math.inf and min(module.padding) >= 0:
        return Value(layer=inputs[0].layer, shape=inputs[0].shape, border=(left, right, top, bottom))
    if module.value != 0 or min(module.padding) < 0:
        raise plan.refuse(f"{name}: padding with {module.value}")
    return plan.padded(inputs[0], (left, right, top, bottom))


def _activation(plan: Plan, module: nn.Module, inputs: list[Value], name: str) -> Value:
    return plan.add("Activation", inputs[0], name=name, activation=_ACTIVATIONS[type(module)])


def _gelu(plan: Plan, module: nn.GELU, inputs: list[Value], name: str) -> Value:
    if module.approximate != "none":
        raise plan.refuse(f"{name}: GELU by tanh")
    return plan.add("Activation", inputs[0], name=name, activation="gelu")


def _softplus(plan: Plan, module: nn.Softplus, inputs: list[Value], name: str) -> Value:
    if module.beta != 1:
        raise plan.refuse(f"{name}: softplus with beta {module.beta:g}")
    return plan.add("Activation", inputs[0], name=name, activation="softplus")


def _softmax(plan: Plan, module: nn.Softmax | nn.LogSoftmax, inputs: list[Value], name: str) -> Value:
    if len(inputs[0].shape) != 1 or module.dim not in (1, -1):
        raise plan.refuse(f"{name}: softmax over pictures")
    kind = "softmax" if isinstance(module, nn.Softmax) else "log_softmax"
    return plan.add("Activation", inputs[0], name=name, activation=kind)


def _clip(plan: Plan, module: nn.Hardtanh, inputs: list[Value], name: str) -> Value:
    low, high = float(module.min_val), float(module.max_val)
    inside = plan.add("ReLU", plan.scaled(inputs[0], 1.0, -low), name=name, max_value=high - low)
    return plan.scaled(inside, 1.0, low)


def _flatten(plan: Plan, module: ours.Flatten | nn.Flatten, inputs: list[Value], name: str) -> Value:
    (x,) = inputs
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) not in ((1, -1), (1, len(x.shape))):
        raise plan.refuse(f"{name}: flattening of some sides only")
    if isinstance(module, ours.Flatten) and module.order == "hwc" and len(x.shape) == 3:
        return plan.add("Flatten", x, shape=(math.prod(x.shape),), name=name)
    return plan.flat(x, name)


def unflattened(plan: Plan, x: Value, shape: tuple[int, ...], order: str = "chw", name: str = "") -> Value:
    """(F,) -> a picture (C, H, W), the numbers lying in that order or as H, W, C."""
    c, h, w = shape
    if order == "hwc":
        return plan.add("Reshape", x, shape=(h, w, c), name=name, target_shape=[h, w, c])
    picture = plan.add("Reshape", x, shape=(c, h, w), name=name, target_shape=[c, h, w])
    return plan.permuted(picture, (2, 3, 1))


def permuted(plan: Plan, x: Value, dims: tuple[int, ...]) -> Value:
    """torch's order of (N, C, H, W), batch included and first."""
    keras_to_torch = {1: 2, 2: 3, 3: 1}
    torch_to_keras = {2: 1, 3: 2, 1: 3}
    return plan.permuted(x, tuple(torch_to_keras[dims[keras_to_torch[axis]]] for axis in (1, 2, 3)))


def _merge(plan: Plan, module: ours.Merge, inputs: list[Value], name: str) -> Value:
    return merged(plan, module.kind, inputs, name)


def merged(plan: Plan, kind: str, inputs: list[Value], name: str = "") -> Value:
    """Folds values with one of MERGES, left to right."""
    ranks = {len(value.shape) for value in inputs}
    if len(ranks) != 1:
        raise plan.refuse(f"{name or kind}: {kind} of pictures and rows")
    if kind == "subtract" and len(inputs) > 2:
        first, second, *rest = inputs
        return merged(plan, kind, [merged(plan, kind, [first, second]), *rest], name)
    shape = tuple(max(sides) for sides in zip(*(value.shape for value in inputs)))
    return inputs[0] if len(inputs) == 1 else plan.add(_MERGES[kind], *inputs, shape=shape, name=name)


def _concatenate(plan: Plan, module: ours.Concatenate, inputs: list[Value], name: str) -> Value:
    return concatenated(plan, inputs, module.dim, name)


def concatenated(plan: Plan, inputs: list[Value], dim: int, name: str = "") -> Value:
    """Along torch's axis `dim`."""
    rank = len(inputs[0].shape)
    axis = {1: rank, 2: 1, 3: 2}.get(dim % (rank + 1), 0)
    if not axis:
        raise plan.refuse(f"{name or 'concatenation'}: joining along the batch")
    total = sum(value.shape[axis - 1] for value in inputs)
    shape = (*inputs[0].shape[: axis - 1], total, *inputs[0].shape[axis:])
    return plan.add("Concatenate", *inputs, shape=shape, name=name, axis=axis)


MODULES: dict[type[nn.Module], Written] = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.AdaptiveMaxPool2d: _adaptive,
    nn.ZeroPad2d: _zero_pad,
    nn.ConstantPad2d: _zero_pad,
    nn.Flatten: _flatten,
    nn.Identity: lambda plan, module, inputs, name: inputs[0],
    nn.Dropout: lambda plan, module, inputs, name: inputs[0],
    nn.Dropout2d: lambda plan, module, inputs, name: inputs[0],
    nn.ReLU: lambda plan, module, inputs, name: plan.add("ReLU", inputs[0], name=name),
    nn.ReLU6: lambda plan, module, inputs, name: plan.add("ReLU", inputs[0], name=name, max_value=6.0),
    nn.LeakyReLU: lambda plan, module, inputs, name: plan.add(
        "LeakyReLU", inputs[0], name=name, negative_slope=float(module.negative_slope)
    ),
    nn.ELU: lambda plan, module, inputs, name: plan.add("ELU", inputs[0], name=name, alpha=float(module.alpha)),
    nn.GELU: _gelu,
    nn.Softplus: _softplus,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _softmax,
    nn.Hardtanh: _clip,
    nn.ReplicationPad2d: _edges,
    ours.EdgeAveragePool: _edges,
    ours.Flatten: _flatten,
    ours.Unflatten: lambda plan, module, inputs, name: unflattened(plan, inputs[0], module.shape, module.order, name),
    ours.Permute: lambda plan, module, inputs, name: permuted(plan, inputs[0], module.dims),
    ours.Merge: _merge,
    ours.Concatenate: _concatenate,
    ours.Rescale: lambda plan, module, inputs, name: plan.scaled(inputs[0], module.scale, module.offset, name),
    ours.Clamp: lambda plan, module, inputs, name: plan.add(
        "ReLU", inputs[0], name=name, negative_slope=float(module.slope), max_value=float(module.limit)
    ),
    ours.OldHardSigmoid: lambda plan, module, inputs, name: plan.add(
        "ReLU", plan.scaled(inputs[0], 0.2, 0.5), name=name, max_value=1.0
    ),
}
