"""A torch.export graph -> a GraphNet that gives the same logits, and the recipe to build it again.

The operators are those of `torch.export.export` as it leaves convolutional nets and MLPs, before any decomposition.
Every argument that is given must be handled: one that is not could change what the net means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from goodnet.errors import ModelError, UsageError
from goodnet.models.arch.graph import INPUT
from goodnet.models.export_read import read_export
from goodnet.models.formats import Loaded, LoadOptions
from goodnet.models.graph_walk import Array, Node, Walk, finished, image_shape

_PREFIX = "torch.ops.aten."
_PLAIN = {
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "selu": "selu",
    "silu": "silu",
    "mish": "mish",
    "hardswish": "hard_silu",
    "hardsigmoid": "hard_sigmoid",
    "exp": "exponential",
}
_MERGES = {"add": "add", "sub": "subtract", "mul": "multiply", "maximum": "maximum", "minimum": "minimum"}
_SAME = ("dropout", "feature_dropout", "dropout2d", "contiguous", "clone", "detach", "alias", "lift_fresh_copy")


def load_export(path: Path, options: LoadOptions) -> Loaded:
    """Reads a classifier that `torch.export.save` has written.

    Raises:
        UsageError: the input shape is open or contradicts `options`, or `--arch` is given.
        UnsafeFileError: see `export_read`.
        ModelError: operators or arguments that are not read, weights that do not fit.
    """
    if options.arch is not None:
        raise UsageError(f"{path}: holds the whole net, so --arch {options.arch} has no place; leave it out")
    graph = read_export(path)
    if len(graph.shape) != 4:
        raise ModelError(f"{path}: expected an input of images (N, C, H, W), got {graph.shape}")
    shape = image_shape(graph.shape[1:], options, str(path))
    walk = Walk(
        file=str(path),
        opset=0,
        constants=dict(graph.constants),
        values={graph.input: INPUT},
        shapes={INPUT: shape},
        uses=Counter([*(name for node in graph.nodes for name in node.inputs), graph.output]),
    )
    walk.each(graph.nodes, _translate)
    return finished(walk, graph.output, shape)


def _translate(walk: Walk, node: Node) -> None:
    name = node.op.removeprefix(_PREFIX).partition(".")[0].rstrip("_")
    if not node.op.startswith(_PREFIX) or len(node.outputs) != 1:
        raise ModelError(f"{walk.where(node)}: not one of PyTorch's own operators with one result")
    if name in _PLAIN:
        walk.done(node, "self", "input")
        walk.add(node, "activation", kind=_PLAIN[name])
    elif name in _SAME:
        if node.attributes.get("train", False) or node.attributes.get("training", False):
            raise walk.refuse(node, "training mode", "train=True")
        walk.same(node)
    elif name in _OPS:
        _OPS[name](walk, node)
    else:
        known = ", ".join(sorted({*_PLAIN, *_SAME, *_OPS}))
        raise ModelError(f"{walk.where(node)}: not an operator that goodnet reads; it reads {known}")


def _array(walk: Walk, node: Node, name: str) -> Array | None:
    """A constant argument; None where it is left out."""
    tensor = node.attributes.get(name)
    if tensor is None:
        return None
    if tensor not in walk.constants:
        raise ModelError(f"{walk.where(node)}: its argument {name!r:.40} has to be a weight")
    return walk.constants[tensor]


def _pair(walk: Walk, node: Node, name: str, default: list[int]) -> list[int]:
    value = node.attributes.get(name)
    sides = default if value is None or value == [] else list(value) if isinstance(value, list) else [value]
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise walk.refuse(node, name, value)
    return sides


def _conv2d(walk: Walk, node: Node) -> None:
    walk.done(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
    weight, bias = _array(walk, node, "weight"), _array(walk, node, "bias")
    if weight is None or weight.ndim != 4:
        raise walk.refuse(node, "weights", None if weight is None else weight.shape)
    down, right = _pair(walk, node, "padding", [0, 0])
    walk.add(
        node,
        "conv2d",
        weights={"weight": weight} if bias is None else {"weight": weight, "bias": bias},
        filters=weight.shape[0],
        groups=int(node.attributes.get("groups", 1)),
        kernel=list(weight.shape[2:]),
        stride=_pair(walk, node, "stride", [1, 1]),
        dilation=_pair(walk, node, "dilation", [1, 1]),
        padding="explicit",
        pads=[right, right, down, down],
        bias=bias is not None,
    )


def _linear(walk: Walk, node: Node) -> None:
    walk.done(node, "input", "weight", "bias")
    weight, bias = _array(walk, node, "weight"), _array(walk, node, "bias")
    if weight is None or weight.ndim != 2:
        raise walk.refuse(node, "weights", None if weight is None else weight.shape)
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    walk.add(node, "linear", weights=weights, units=len(weight), bias=bias is not None)


def _batch_norm(walk: Walk, node: Node) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    walk.done(node, "input", *names, "training", "momentum", "eps", "cudnn_enabled")
    arrays = {name: _array(walk, node, name) for name in names}
    weights = {name: array for name, array in arrays.items() if array is not None}
    if node.attributes.get("training", False) or len(weights) != len(names):
        raise walk.refuse(node, "a batch norm", sorted(weights))
    walk.add(node, "batch_norm", weights=weights, eps=float(node.attributes.get("eps", 1e-5)))


def _pool(walk: Walk, node: Node) -> None:
    average = "avg" in node.op
    own = ("count_include_pad", "divisor_override") if average else ("dilation",)
    walk.done(node, "self", "kernel_size", "stride", "padding", "ceil_mode", *own)
    kernel = _pair(walk, node, "kernel_size", [])
    stride, (down, right) = _pair(walk, node, "stride", kernel), _pair(walk, node, "padding", [0, 0])
    shape = walk.shape_of(node)
    sizes = [side + 2 * pad for side, pad in zip(shape[1:], (down, right))]
    rounds = node.attributes.get("ceil_mode", False) and any((n - k) % s for n, k, s in zip(sizes, kernel, stride))
    odd = node.attributes.get("divisor_override") is not None or _pair(walk, node, "dilation", [1, 1]) != [1, 1]
    if len(shape) != 3 or rounds or odd:
        raise walk.refuse(node, "dilation, divisor_override or ceil_mode", dict(node.attributes))
    extra: dict[str, Any] = {"count_pad": bool(node.attributes.get("count_include_pad", True))} if average else {}
    walk.add(
        node,
        "average_pool" if average else "max_pool",
        kernel=kernel,
        stride=stride,
        padding="explicit",
        pads=[right, right, down, down],
        **extra,
    )


def _global_pool(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "output_size")
    size, shape = _pair(walk, node, "output_size", []), walk.shape_of(node)
    if size == list(shape[1:]):
        walk.same(node)
    elif size == [1, 1]:
        walk.add(node, "global_pool", kind="average" if "avg" in node.op else "max", keepdims=True)
    else:
        raise walk.refuse(node, "output_size", size)


def _mean(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "keepdim")
    axes = node.attributes.get("dim") or []
    if len(walk.shape_of(node)) != 3 or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        raise walk.refuse(node, "dim", axes)
    walk.add(node, "global_pool", kind="average", keepdims=bool(node.attributes.get("keepdim", False)))


def _flatten(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "start_dim", "end_dim")
    rank = len(walk.shape_of(node)) + 1
    start, end = (int(node.attributes.get(name, value)) % rank for name, value in (("start_dim", 0), ("end_dim", -1)))
    if start != 1 or end != rank - 1:
        raise walk.refuse(node, "start_dim and end_dim", (start, end))
    walk.flatten(node)


def _view(walk: Walk, node: Node) -> None:
    """A shape whose first side is the batch, whatever it is called, and one of whose others may be -1."""
    walk.done(node, "self", "size", "shape")
    raw = node.attributes.get("size", node.attributes.get("shape")) or []
    sides = [side.get("as_int", -1) if isinstance(side, dict) else side for side in raw][1:]
    walk.reshape(node, sides, raw)


def _permute(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dims")
    dims = [int(axis) % 4 for axis in node.attributes.get("dims") or []]
    if len(walk.shape_of(node)) != 3 or sorted(dims) != [0, 1, 2, 3] or dims[0] != 0:
        raise walk.refuse(node, "dims", dims)
    walk.add(node, "permute", dims=dims[1:])


def _merge(walk: Walk, node: Node) -> None:
    """Two layers joined, or one and a number."""
    walk.done(node, "self", "other", "alpha")
    name = node.op.removeprefix(_PREFIX).partition(".")[0].rstrip("_")
    other = node.attributes.get("other")
    if node.attributes.get("alpha", 1) != 1 or node.attributes.get("self") in walk.constants:
        raise walk.refuse(node, "an operand", node.attributes.get("self"))
    if isinstance(other, str) and other not in walk.constants:
        walk.join(node, "merge", [walk.source(node, 0), walk.source(node, 1)], kind=_MERGES[name])
        return
    if name in ("maximum", "minimum"):
        raise walk.refuse(node, "an operand", other)
    numbers = _numbers(walk, node, other)
    scale, offset = ([1.0], [-number for number in numbers] if name == "sub" else numbers)
    if name == "mul":
        scale, offset = numbers, [0.0]
    walk.add(node, "rescale", scale=scale, offset=offset)


def _div(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "other")
    numbers = _numbers(walk, node, node.attributes.get("other"))
    if 0.0 in numbers:
        raise walk.refuse(node, "a divisor", 0.0)
    walk.add(node, "rescale", scale=[1 / number for number in numbers], offset=[0.0])


def _numbers(walk: Walk, node: Node, other: Any) -> list[float]:
    """A number, or a weight with one number a channel."""
    if isinstance(other, int | float) and not isinstance(other, bool):
        return [float(other)]
    array = walk.constants.get(other) if isinstance(other, str) else None
    if array is None:
        raise walk.refuse(node, "an operand", other)
    return [float(value) for value in walk.per_channel(node, array, walk.shape_of(node))]


def _cat(walk: Walk, node: Node) -> None:
    walk.done(node, "tensors", "dim")
    inputs = [walk.source(node, i) for i in range(len(node.inputs))]
    if int(node.attributes.get("dim", 0)) % (len(walk.shape_of(node)) + 1) != 1:
        raise walk.refuse(node, "dim", node.attributes.get("dim", 0))
    walk.join(node, "concatenate", inputs, axis=1, order="chw")


def _hardtanh(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "min_val", "max_val", "min", "max")
    low, high = (node.attributes.get(name, node.attributes.get(other, default)) for name, other, default in
                 (("min_val", "min", -1.0), ("max_val", "max", 1.0)))  # fmt: skip
    if low is None or high is None:
        raise walk.refuse(node, "a bound", (low, high))
    kind = {"kind": "relu6"} if (low, high) == (0, 6) else {"kind": "clip", "low": float(low), "high": float(high)}
    walk.add(node, "activation", **kind)


def _leaky_relu(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "negative_slope")
    walk.add(node, "activation", kind="leaky_relu", slope=float(node.attributes.get("negative_slope", 0.01)))


def _elu(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "alpha")
    walk.add(node, "activation", kind="elu", alpha=float(node.attributes.get("alpha", 1.0)))


def _gelu(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "approximate")
    tanh = node.attributes.get("approximate", "none") == "tanh"
    walk.add(node, "activation", kind="gelu_tanh" if tanh else "gelu")


def _softmax(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "dtype", "half_to_float")
    if len(walk.shape_of(node)) != 1 or int(node.attributes.get("dim", 0)) not in (1, -1):
        raise walk.refuse(node, "dim", node.attributes.get("dim"))
    walk.add(node, "activation", kind="log_softmax" if "log" in node.op else "softmax")


_OPS: dict[str, Callable[[Walk, Node], None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _global_pool,
    "mean": _mean,
    "flatten": _flatten,
    "view": _view,
    "reshape": _view,
    "permute": _permute,
    "add": _merge,
    "sub": _merge,
    "mul": _merge,
    "maximum": _merge,
    "minimum": _merge,
    "div": _div,
    "cat": _cat,
    "hardtanh": _hardtanh,
    "clamp": _hardtanh,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "softmax": _softmax,
    "log_softmax": _softmax,
}
