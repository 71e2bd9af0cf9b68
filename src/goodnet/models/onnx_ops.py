"""One ONNX operator -> the GraphNet layers that do the same.

Operators as of opset 11 and later. A setting that changes what an operator computes and that is not handled here is an
error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable

from goodnet.models import onnx_tensors, onnx_windows
from goodnet.models.graph_walk import Node, Walk

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
_FUNCTIONS = {"Erf": "erf", "Sqrt": "sqrt"}
_BIG = 1e6  # beyond what any activation of a classifier reaches


def translate(walk: Walk, node: Node) -> None:
    """Adds a node's layers to the walk.

    Raises:
        ModelError: an operator or a setting that is not known; it is named.
    """
    if not node.outputs or (node.op != "Split" and any(walk.uses[name] for name in node.outputs[1:] if name)):
        raise walk.refuse(node, "several outputs", node.outputs)
    if node.op in _PLAIN:
        walk.done(node)
        walk.add(node, "activation", kind=_PLAIN[node.op])
    elif node.op in _FUNCTIONS:
        walk.done(node)
        walk.add(node, "function", kind=_FUNCTIONS[node.op])
    elif node.op in _OPS:
        _OPS[node.op](walk, node)
    else:
        raise walk.unknown(node, {*_PLAIN, *_FUNCTIONS, *_OPS, "Constant", "Shape"})


def _global_pool(walk: Walk, node: Node) -> None:
    walk.done(node)
    walk.add(node, "global_pool", kind="average" if node.op == "GlobalAveragePool" else "max", keepdims=True)


def _batch_norm(walk: Walk, node: Node) -> None:
    walk.done(node, "epsilon", "momentum", "training_mode", "spatial")
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = [walk.constant(node, index) for index in range(1, 5)]
    if node.attributes.get("training_mode", 0) or any(array is None for array in arrays):
        raise walk.refuse(node, "training mode", dict(node.attributes))
    weights = {name: array for name, array in zip(names, arrays) if array is not None}
    walk.add(node, "batch_norm", weights=weights, eps=float(node.attributes.get("epsilon", 1e-5)))


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
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Pad": onnx_windows.pad,
    "Identity": _same_value,
    "Dropout": _same_value,
    "Cast": _same_value,
    **onnx_tensors.OPS,
}
