"""One ONNX operator -> the GraphNet layers that do the same.

Operators as of opset 11 and later. A setting that changes what an operator computes and that is not handled here is an
error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from goodnet.errors import ModelError
from goodnet.models import onnx_windows
from goodnet.models.graph_walk import Array, Node, Walk
from goodnet.models.onnx_constants import BATCH

_PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Selu": "selu",
    "Mish": "mish",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSwish": "hard_silu",
    "Exp": "exponential",
}
_MERGES = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Max": "maximum", "Min": "minimum"}
_BIG = 1e6  # beyond what any activation of a classifier reaches


def translate(walk: Walk, node: Node) -> None:
    """Adds a node's layers to the walk.

    Raises:
        ModelError: an operator or a setting that is not known; it is named.
    """
    if not node.outputs or any(node.outputs[1:]):
        raise walk.refuse(node, "several outputs", node.outputs)
    if node.op in _PLAIN:
        walk.done(node)
        walk.add(node, "activation", kind=_PLAIN[node.op])
    elif node.op in _OPS:
        _OPS[node.op](walk, node)
    else:
        known = ", ".join(sorted({*_PLAIN, *_OPS, "Constant", "Shape", "Gather", "Slice", "Cast"}))
        raise ModelError(f"{walk.where(node)}: not an operator that goodnet reads; it reads {known}")


def _global_pool(walk: Walk, node: Node) -> None:
    walk.done(node)
    walk.add(node, "global_pool", kind="average" if node.op == "GlobalAveragePool" else "max", keepdims=True)


def _reduce_mean(walk: Walk, node: Node) -> None:
    walk.done(node, "axes", "keepdims", "noop_with_empty_axes")
    given = walk.constant(node, 1)
    axes = node.attributes.get("axes", ()) if given is None else given.reshape(-1).tolist()
    shape = walk.shape_of(node)
    if len(shape) != 3 or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        raise walk.refuse(node, "axes", axes)
    walk.add(node, "global_pool", kind="average", keepdims=bool(node.attributes.get("keepdims", 1)))


def _gemm(walk: Walk, node: Node) -> None:
    walk.done(node, "alpha", "beta", "transA", "transB")
    weight, bias = walk.constant(node, 1), walk.constant(node, 2)
    if weight is None or weight.ndim != 2 or node.attributes.get("transA", 0):
        raise walk.refuse(node, "a product", dict(node.attributes))
    weight = weight if node.attributes.get("transB", 0) else weight.T
    weights = {"weight": weight * np.float32(node.attributes.get("alpha", 1.0))}
    if bias is not None:
        flat = np.broadcast_to(bias, (1, len(weight))) if bias.size in (1, len(weight)) else bias
        if flat.shape != (1, len(weight)):
            raise walk.refuse(node, "a bias", bias.shape)
        weights["bias"] = flat[0] * np.float32(node.attributes.get("beta", 1.0))
    walk.add(node, "linear", weights=weights, units=len(weight), bias=bias is not None)


def _matmul(walk: Walk, node: Node) -> None:
    walk.done(node)
    weight = walk.constant(node, 1)
    if weight is None or weight.ndim != 2 or len(walk.shape_of(node)) != 1:
        raise walk.refuse(node, "a product", None if weight is None else weight.shape)
    walk.add(node, "linear", weights={"weight": weight.T}, units=weight.shape[1], bias=False)


def _batch_norm(walk: Walk, node: Node) -> None:
    walk.done(node, "epsilon", "momentum", "training_mode", "spatial")
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = [walk.constant(node, index) for index in range(1, 5)]
    if node.attributes.get("training_mode", 0) or any(array is None for array in arrays):
        raise walk.refuse(node, "training mode", dict(node.attributes))
    weights = {name: array for name, array in zip(names, arrays) if array is not None}
    walk.add(node, "batch_norm", weights=weights, eps=float(node.attributes.get("epsilon", 1e-5)))


def _merge(walk: Walk, node: Node) -> None:
    """Two layers joined, or one and a constant: one number, or one a channel."""
    walk.done(node)
    at = next((i for i, name in enumerate(node.inputs) if name in walk.constants), None)
    if at is None:
        if node.op == "Div":
            raise walk.refuse(node, "a quotient", "of two layers")
        inputs = [walk.source(node, i) for i in range(len(node.inputs))]
        walk.join(node, "merge", inputs, kind=_MERGES[node.op])
        return
    if len(node.inputs) != 2 or node.op in ("Max", "Min"):
        raise walk.refuse(node, "constants", len(node.inputs))
    _with_constant(walk, node, 1 - at, walk.constants[node.inputs[at]])


def _with_constant(walk: Walk, node: Node, index: int, constant: Array) -> None:
    shape = walk.shape_of(node, index)
    numbers = walk.per_channel(node, constant, shape)
    if node.op in ("Add", "Sub"):
        first = index == 0
        sign = -1.0 if node.op == "Sub" and not first else 1.0
        offset = -numbers if node.op == "Sub" and first else numbers
        if sign > 0 and _into_bias(walk, node, index, offset):
            return
        scale, offsets = [sign], offset.tolist()
    elif node.op == "Mul":
        scale, offsets = numbers.tolist(), [0.0]
    elif index == 0 and bool((numbers != 0).all()):
        scale, offsets = (1 / numbers).tolist(), [0.0]
    else:
        raise walk.refuse(node, "a quotient", "of a constant")
    walk.join(node, "rescale", [walk.source(node, index)], scale=scale, offset=offsets)


def _into_bias(walk: Walk, node: Node, index: int, offset: Array) -> bool:
    """Adds to the bias that a linear layer or a convolution has not, if nothing else looks at what it gives."""
    source = walk.source(node, index)
    spec = next((spec for spec in walk.specs if spec["name"] == source), None)
    alone = walk.uses[node.inputs[index]] == 1
    if spec is None or spec["op"] not in ("linear", "conv2d") or spec["bias"] or not alone:
        return False
    count = spec["units"] if spec["op"] == "linear" else spec["filters"]
    spec["bias"] = True
    walk.state[f"{source}.bias"] = np.broadcast_to(offset, (count,)).astype(np.float32)
    walk.values[node.outputs[0]] = source
    return True


def _clip(walk: Walk, node: Node) -> None:
    walk.done(node)
    low, high = walk.constant(node, 1), walk.constant(node, 2)
    ends = [-_BIG if low is None else float(low.reshape(-1)[0]), _BIG if high is None else float(high.reshape(-1)[0])]
    if ends == [0.0, 6.0]:
        walk.add(node, "activation", kind="relu6")
    elif ends[0] == 0.0 and ends[1] >= _BIG:
        walk.add(node, "activation", kind="relu")
    else:
        low_end, high_end = (min(max(end, -_BIG), _BIG) for end in ends)
        walk.add(node, "activation", kind="clip", low=low_end, high=high_end)


def _leaky_relu(walk: Walk, node: Node) -> None:
    walk.done(node, "alpha")
    walk.add(node, "activation", kind="leaky_relu", slope=float(node.attributes.get("alpha", 0.01)))


def _elu(walk: Walk, node: Node) -> None:
    walk.done(node, "alpha")
    walk.add(node, "activation", kind="elu", alpha=float(node.attributes.get("alpha", 1.0)))


def _hard_sigmoid(walk: Walk, node: Node) -> None:
    walk.done(node, "alpha", "beta")
    slope, middle = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
    kinds = {0.2: "old_hard_sigmoid", 1 / 6: "hard_sigmoid"}
    kind = next((kind for known, kind in kinds.items() if abs(slope - known) < 1e-6 and middle == 0.5), None)
    if kind is None:
        raise walk.refuse(node, "alpha and beta", (slope, middle))
    walk.add(node, "activation", kind=kind)


def _gelu(walk: Walk, node: Node) -> None:
    walk.done(node, "approximate")
    how = node.attributes.get("approximate", "none")
    if how not in ("none", "tanh"):
        raise walk.refuse(node, "approximate", how)
    walk.add(node, "activation", kind="gelu" if how == "none" else "gelu_tanh")


def _softmax(walk: Walk, node: Node) -> None:
    walk.done(node, "axis")
    axis = int(node.attributes.get("axis", 1 if walk.opset < 13 else -1))
    if len(walk.shape_of(node)) != 1 or axis not in (1, -1):
        raise walk.refuse(node, "an axis", axis)
    walk.add(node, "activation", kind="softmax" if node.op == "Softmax" else "log_softmax")


def _flatten(walk: Walk, node: Node) -> None:
    walk.done(node, "axis")
    if int(node.attributes.get("axis", 1)) != 1:
        raise walk.refuse(node, "axis", node.attributes["axis"])
    walk.flatten(node)


def _reshape(walk: Walk, node: Node) -> None:
    walk.done(node, "allowzero")
    target = walk.constant(node, 1)
    shape = walk.shape_of(node)
    sides = [] if target is None else [int(side) for side in target.reshape(-1)]
    if not sides or sides[0] not in (0, 1, BATCH, -1) or (0 in sides and node.attributes.get("allowzero", 0)):
        raise walk.refuse(node, "a shape", sides)
    rest = [shape[i] if side == 0 and i < len(shape) else side for i, side in enumerate(sides[1:])]
    walk.reshape(node, rest, sides)


def _squeeze(walk: Walk, node: Node) -> None:
    walk.done(node, "axes")
    given = walk.constant(node, 1)
    axes = node.attributes.get("axes", ()) if given is None else given.reshape(-1).tolist()
    shape = walk.shape_of(node)
    if len(shape) != 3 or shape[1:] != (1, 1) or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        raise walk.refuse(node, "axes", axes)
    walk.add(node, "flatten", order="chw")


def _transpose(walk: Walk, node: Node) -> None:
    walk.done(node, "perm")
    perm = [int(axis) for axis in node.attributes.get("perm", ())]
    if perm == [0, 1] and len(walk.shape_of(node)) == 1:
        walk.same(node)
    elif len(perm) == 4 and perm[0] == 0 and len(walk.shape_of(node)) == 3:
        walk.add(node, "permute", dims=perm[1:])
    else:
        raise walk.refuse(node, "perm", perm)


def _concat(walk: Walk, node: Node) -> None:
    walk.done(node, "axis")
    inputs = [walk.source(node, i) for i in range(len(node.inputs))]
    rank = len(walk.shape_of(node)) + 1
    if int(node.attributes["axis"]) % rank != 1:
        raise walk.refuse(node, "axis", node.attributes["axis"])
    walk.join(node, "concatenate", inputs, axis=1, order="chw")


def _same_value(walk: Walk, node: Node) -> None:
    walk.done(node, "seed", "ratio", "to", "saturate")
    if node.op == "Cast" and int(node.attributes.get("to", 0)) != 1:
        raise walk.refuse(node, "a cast", node.attributes.get("to"))
    walk.same(node)


_OPS: dict[str, Callable[[Walk, Node], None]] = {
    "Conv": onnx_windows.conv,
    "MaxPool": onnx_windows.max_pool,
    "AveragePool": onnx_windows.average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduce_mean,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Add": _merge,
    "Sub": _merge,
    "Mul": _merge,
    "Div": _merge,
    "Max": _merge,
    "Min": _merge,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Pad": onnx_windows.pad,
    "Concat": _concat,
    "Identity": _same_value,
    "Dropout": _same_value,
    "Cast": _same_value,
}
