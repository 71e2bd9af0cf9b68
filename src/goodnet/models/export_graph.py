"""A torch.export graph -> a GraphNet that gives the same logits, and the recipe to build it again.

The operators are those of `torch.export.export` as it leaves classifiers, before any decomposition.
Every argument that is given must be handled: one that is not could change what the net means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from goodnet.errors import ModelError, UsageError
from goodnet.models import export_constants, export_tensors
from goodnet.models.arch.graph import INPUT
from goodnet.models.export_read import read_export
from goodnet.models.formats import Loaded, LoadOptions
from goodnet.models.graph_walk import Node, Walk, finished, image_shape

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
_FUNCTIONS = {"erf": "erf", "sqrt": "sqrt"}
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
        batch=graph.shape[0],
    )
    walk.each(graph.nodes, _translate)
    return finished(walk, graph.output, shape)


def _translate(walk: Walk, node: Node) -> None:
    name = node.op.removeprefix(_PREFIX).partition(".")[0].rstrip("_")
    if export_constants.fold(walk, node):
        return
    if not node.op.startswith(_PREFIX):
        raise ModelError(f"{walk.where(node)}: not one of PyTorch's own operators")
    if len(node.outputs) != 1 and name not in export_tensors.SEVERAL:
        raise ModelError(f"{walk.where(node)}: gives {len(node.outputs)} results; expected one")
    if name in _FUNCTIONS:
        walk.done(node, "self")
        walk.add(node, "function", kind=_FUNCTIONS[name])
    elif name in _PLAIN:
        walk.done(node, "self", "input")
        walk.add(node, "activation", kind=_PLAIN[name])
    elif name in _SAME:
        if node.attributes.get("train", False) or node.attributes.get("training", False):
            raise walk.refuse(node, "training mode", "train=True")
        walk.same(node)
    elif name in _OPS:
        _OPS[name](walk, node)
    else:
        raise walk.unknown(node, {*_PLAIN, *_FUNCTIONS, *_SAME, *_OPS})


def _pair(walk: Walk, node: Node, name: str, default: list[int]) -> list[int]:
    value = node.attributes.get(name)
    sides = default if value is None or value == [] else list(value) if isinstance(value, list) else [value]
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise walk.refuse(node, name, value)
    return sides


def _conv2d(walk: Walk, node: Node) -> None:
    walk.done(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
    weight, bias = export_tensors.array(walk, node, "weight"), export_tensors.array(walk, node, "bias")
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


def _batch_norm(walk: Walk, node: Node) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    walk.done(node, "input", *names, "training", "momentum", "eps", "cudnn_enabled")
    arrays = {name: export_tensors.array(walk, node, name) for name in names}
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


_OPS: dict[str, Callable[[Walk, Node], None]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _global_pool,
    "hardtanh": _hardtanh,
    "clamp": _hardtanh,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    **export_tensors.OPS,
}
