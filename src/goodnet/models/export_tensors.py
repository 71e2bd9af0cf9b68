"""torch.export's operators on tensors of any rank: products, sums, shapes, norms, and what attention is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from goodnet.errors import ModelError
from goodnet.models import graph_tensors
from goodnet.models.export_constants import whole, wholes
from goodnet.models.graph_walk import BATCH, FIRST, Array, Node, Walk

_PREFIX = "torch.ops.aten."
_MERGES = {"add": "add", "sub": "subtract", "mul": "multiply", "maximum": "maximum", "minimum": "minimum"}
_MERGES |= {"div": "divide"}
SEVERAL = ("unbind", "chunk", "split", "split_with_sizes")
"""Operators that give several tensors."""
_END = (1 << 31) - 1


def array(walk: Walk, node: Node, name: str) -> Array | None:
    """A constant argument; None where it is left out."""
    tensor = node.attributes.get(name)
    if tensor is None:
        return None
    if not isinstance(tensor, str) or tensor not in walk.constants:
        raise ModelError(f"{walk.where(node)}: its argument {name!r:.40} has to be a weight")
    return walk.constants[tensor]


def _tensor(walk: Walk, node: Node, name: str = "self") -> str:
    tensor = node.attributes.get(name)
    if not isinstance(tensor, str):
        raise walk.refuse(node, name, tensor)
    return tensor


def _linear(walk: Walk, node: Node) -> None:
    walk.done(node, "input", "weight", "bias")
    weight, bias = array(walk, node, "weight"), array(walk, node, "bias")
    if weight is None:
        raise walk.refuse(node, "weights", None)
    graph_tensors.linear(walk, node, _tensor(walk, node, "input"), weight, bias, node.outputs[0])


def _product(walk: Walk, node: Node) -> None:
    second = "mat2" if "mat2" in node.attributes else "other"
    walk.done(node, "self", second)
    names = [_tensor(walk, node), _tensor(walk, node, second)]
    graph_tensors.product(walk, node, names, node.outputs[0])


def _attention(walk: Walk, node: Node) -> None:
    walk.done(node, "query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = node.attributes
    if given.get("dropout_p", 0) or given.get("is_causal", False) or given.get("enable_gqa", False):
        raise walk.refuse(node, "dropout_p, is_causal or enable_gqa", dict(given))
    names = [_tensor(walk, node, name) for name in ("query", "key", "value")]
    scale = given.get("scale")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        raise walk.refuse(node, "scale", scale)
    graph_tensors.attention(walk, node, names, scale, array(walk, node, "attn_mask"), node.outputs[0])


def _layer_norm(walk: Walk, node: Node) -> None:
    walk.done(node, "input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable")
    shape, eps = wholes(walk, node, "normalized_shape"), float(node.attributes.get("eps", 1e-5))
    name = _tensor(walk, node, "input")
    if graph_tensors.dims_of(walk, node, name)[-len(shape) :] != shape:
        raise walk.refuse(node, "normalized_shape", shape)
    weights = array(walk, node, "weight"), array(walk, node, "bias")
    graph_tensors.layer_norm(walk, node, name, len(shape), *weights, eps, node.outputs[0])


def _softmax(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "dtype", "half_to_float")
    name, axis = _tensor(walk, node), whole(walk, node, "dim")
    if node.attributes.get("dtype") not in (None, _FLOAT):
        raise walk.refuse(node, "dtype", node.attributes["dtype"])
    if "log" not in node.op:
        graph_tensors.softmax(walk, node, name, axis, node.outputs[0])
    elif len(walk.shape_of(node)) == 1 and axis in (1, -1):
        walk.add(node, "activation", kind="log_softmax")
    else:
        raise walk.refuse(node, "dim", axis)


_FLOAT = 7  # torch's ScalarType


def _mean(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "keepdim", "dtype")
    if node.attributes.get("dtype") not in (None, _FLOAT):
        raise walk.refuse(node, "dtype", node.attributes["dtype"])
    keep = bool(node.attributes.get("keepdim", False))
    graph_tensors.mean(walk, node, _tensor(walk, node), wholes(walk, node, "dim"), keep, node.outputs[0])


def _flatten(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "start_dim", "end_dim")
    name = _tensor(walk, node)
    rank = len(graph_tensors.dims_of(walk, node, name))
    start, end = whole(walk, node, "start_dim", 0) % rank, whole(walk, node, "end_dim", -1) % rank
    if start > end:
        raise walk.refuse(node, "start_dim and end_dim", (start, end))
    graph_tensors.flatten(walk, node, name, start, end, node.outputs[0])


def _unflatten(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "sizes")
    name, sizes = _tensor(walk, node), wholes(walk, node, "sizes")
    dims, axis = graph_tensors.dims_of(walk, node, name), whole(walk, node, "dim")
    axis %= len(dims)
    graph_tensors.reshape(walk, node, name, [*dims[:axis], *sizes, *dims[axis + 1 :]], node.outputs[0])


def _view(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "size", "shape")
    sides = wholes(walk, node, "size" if "size" in node.attributes else "shape")
    graph_tensors.reshape(walk, node, _tensor(walk, node), sides, node.outputs[0])


def _unsqueeze(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim")
    graph_tensors.unsqueeze(walk, node, _tensor(walk, node), wholes(walk, node, "dim"), node.outputs[0])


def _squeeze(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim")
    graph_tensors.squeeze(walk, node, _tensor(walk, node), wholes(walk, node, "dim"), node.outputs[0])


def _permute(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dims")
    graph_tensors.transpose(walk, node, _tensor(walk, node), wholes(walk, node, "dims"), node.outputs[0])


def _transpose(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim0", "dim1")
    name = _tensor(walk, node)
    order = list(range(len(graph_tensors.dims_of(walk, node, name))))
    first, second = (whole(walk, node, key) % len(order) for key in ("dim0", "dim1"))
    order[first], order[second] = order[second], order[first]
    graph_tensors.transpose(walk, node, name, order, node.outputs[0])


def _select(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "index")
    axis, index = whole(walk, node, "dim"), whole(walk, node, "index")
    graph_tensors.select(walk, node, _tensor(walk, node), axis, index, node.outputs[0])


def _slice(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "start", "end", "step")
    axis, start = whole(walk, node, "dim", 0), whole(walk, node, "start", 0)
    end, step = whole(walk, node, "end", _END), whole(walk, node, "step", 1)
    graph_tensors.cut(walk, node, _tensor(walk, node), axis, start, min(end, _END), node.outputs[0], step)


def _unbind(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim")
    name, axis = _tensor(walk, node), whole(walk, node, "dim", 0)
    dims = graph_tensors.dims_of(walk, node, name)
    if dims[axis] != len(node.outputs):
        raise walk.refuse(node, "dim", axis)
    for index, output in enumerate(node.outputs):
        graph_tensors.select(walk, node, name, axis, index, output)


def _split(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "dim", "chunks", "split_size", "split_sizes")
    name, axis = _tensor(walk, node), whole(walk, node, "dim", 0)
    side = graph_tensors.dims_of(walk, node, name)[axis]
    sizes = wholes(walk, node, "split_sizes")
    if not sizes:
        chunks = node.attributes.get("chunks")
        each = whole(walk, node, "split_size") if chunks is None else -(-side // max(whole(walk, node, "chunks"), 1))
        sizes = [min(each, side - each * i) for i in range(len(node.outputs))]
    graph_tensors.split(walk, node, name, axis, sizes, node.outputs)


def _expand(walk: Walk, node: Node) -> None:
    """Of a layer, only to the shape that it has."""
    walk.done(node, "self", "size", "implicit")
    dims, sides = graph_tensors.dims_of(walk, node, _tensor(walk, node)), wholes(walk, node, "size")
    fits = len(dims) == len(sides) and all(
        side in (-1, own) or (own <= BATCH and side == walk.batch) for side, own in zip(sides, dims)
    )
    if not fits:
        raise walk.refuse(node, "a shape", sides)
    walk.same(node)


def _cat(walk: Walk, node: Node) -> None:
    walk.done(node, "tensors", "dim")
    names: Sequence[Any] = node.attributes.get("tensors") or []
    if not names or not all(isinstance(name, str) for name in names):
        raise walk.refuse(node, "tensors", names)
    graph_tensors.concatenate(walk, node, names, whole(walk, node, "dim", 0), node.outputs[0])


def _merge(walk: Walk, node: Node) -> None:
    """Two tensors joined, or one and a number."""
    walk.done(node, "self", "other", "alpha")
    name = node.op.removeprefix(_PREFIX).partition(".")[0].rstrip("_")
    first, other = _tensor(walk, node), node.attributes.get("other")
    if node.attributes.get("alpha", 1) != 1:
        raise walk.refuse(node, "alpha", node.attributes["alpha"])
    if isinstance(other, str) and not _one_a_channel(walk, node, first, other):
        graph_tensors.merged(walk, node, _MERGES[name], [first, other], node.outputs[0])
        return
    numbers = _numbers(walk, node, other)
    scale, offset = [1.0], [0.0]
    if name in ("add", "sub"):
        offset = numbers if name == "add" else [-number for number in numbers]
    elif name == "mul":
        scale = numbers
    elif name == "div" and 0.0 not in numbers:
        scale = [1 / number for number in numbers]
    else:
        raise walk.refuse(node, "an operand", other)
    layer, layout = walk.value(node, first)
    walk.join(node, "rescale", [layer], layout=layout, scale=scale, offset=offset)


def _one_a_channel(walk: Walk, node: Node, first: str, other: str) -> bool:
    """Whether the second operand is a weight with one number, or one for each channel of the first."""
    constant = walk.constants.get(other)
    if constant is None or first in walk.constants:
        return False
    layer, layout = walk.value(node, first)
    shape, rank = walk.shapes[layer], len(graph_tensors.dims_of(walk, node, first))
    sides = constant.shape if constant.ndim < rank else constant.shape[1:]
    a_channel = layout == FIRST and rank in (2, 4) and sides == (shape[0],) + (1,) * (rank - 2)
    return constant.ndim <= rank and (constant.size == 1 or (a_channel and constant.size == shape[0]))


def _numbers(walk: Walk, node: Node, other: Any) -> list[float]:
    """A number, or the numbers of a weight."""
    if isinstance(other, int | float) and not isinstance(other, bool):
        return [float(other)]
    constant = walk.constants.get(other) if isinstance(other, str) else None
    if constant is None or not np.isfinite(constant).all():
        raise walk.refuse(node, "an operand", other)
    return [float(value) for value in constant.reshape(-1)]


def _pad(walk: Walk, node: Node) -> None:
    """Noughts around an image."""
    walk.done(node, "self", "pad", "mode", "value")
    sides, value = wholes(walk, node, "pad"), node.attributes.get("value")
    plain = node.attributes.get("mode", "constant") == "constant" and value in (None, 0)
    if not plain or len(walk.shape_of(node)) != 3 or len(sides) not in (2, 4) or min(sides) < 0:
        raise walk.refuse(node, "padding", sides)
    walk.add(node, "zero_pad", pads=[*sides, 0, 0][:4])


def _roll(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "shifts", "dims")
    name, shifts, dims = _tensor(walk, node), wholes(walk, node, "shifts"), wholes(walk, node, "dims")
    axes = [graph_tensors.axis_of(walk, node, name, axis) for axis in dims]
    if not axes or len(shifts) != len(axes):
        raise walk.refuse(node, "shifts and dims", (shifts, dims))
    layer, layout = walk.value(node, name)
    walk.join(node, "roll", [layer], layout=layout, axes=axes, shifts=shifts)


def _power(walk: Walk, node: Node) -> None:
    walk.done(node, "self", "exponent")
    if node.attributes.get("exponent") != 2:
        raise walk.refuse(node, "an exponent", node.attributes.get("exponent"))
    walk.add(node, "function", kind="square")


OPS: dict[str, Callable[[Walk, Node], None]] = {
    "linear": _linear,
    "matmul": _product,
    "bmm": _product,
    "mm": _product,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "mean": _mean,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "view": _view,
    "reshape": _view,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "permute": _permute,
    "transpose": _transpose,
    "select": _select,
    "slice": _slice,
    "unbind": _unbind,
    "chunk": _split,
    "split": _split,
    "split_with_sizes": _split,
    "expand": _expand,
    "cat": _cat,
    **dict.fromkeys(_MERGES, _merge),
    "pow": _power,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "roll": _roll,
}
