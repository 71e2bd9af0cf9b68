"""ONNX operators on tensors of any rank: products, sums, shapes, norms, and what attention is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from goodnet.models import graph_tensors
from goodnet.models.graph_walk import FIRST, Array, Node, Walk

_MERGES = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Max": "maximum", "Min": "minimum", "Div": "divide"}
_END = (1 << 31) - 1


def _gemm(walk: Walk, node: Node) -> None:
    walk.done(node, "alpha", "beta", "transA", "transB")
    weight, bias = walk.constant(node, 1), walk.constant(node, 2)
    if weight is None or weight.ndim != 2 or node.attributes.get("transA", 0):
        raise walk.refuse(node, "a product", dict(node.attributes))
    weight = (weight if node.attributes.get("transB", 0) else weight.T) * np.float32(node.attributes.get("alpha", 1.0))
    if bias is not None:
        flat = np.broadcast_to(bias, (1, len(weight))) if bias.size in (1, len(weight)) else bias
        if flat.shape != (1, len(weight)):
            raise walk.refuse(node, "a bias", bias.shape)
        bias = flat[0] * np.float32(node.attributes.get("beta", 1.0))
    graph_tensors.linear(walk, node, node.inputs[0], weight, bias, node.outputs[0])


def _matmul(walk: Walk, node: Node) -> None:
    walk.done(node)
    graph_tensors.product(walk, node, _two(walk, node), node.outputs[0])


def _two(walk: Walk, node: Node) -> list[str]:
    if len(node.inputs) != 2:
        raise walk.refuse(node, "inputs", node.inputs)
    return list(node.inputs)


def _merge(walk: Walk, node: Node) -> None:
    """Layers joined, or one and a constant: numbers alone and one a channel go into what is there already."""
    walk.done(node)
    constant = [name for name in node.inputs if name in walk.constants]
    if len(constant) == 1 and len(node.inputs) == 2 and node.op not in ("Max", "Min"):
        at = list(node.inputs).index(constant[0])
        if _with_constant(walk, node, 1 - at, walk.constants[constant[0]]):
            return
    graph_tensors.merged(walk, node, _MERGES[node.op], node.inputs, node.outputs[0])


def _with_constant(walk: Walk, node: Node, index: int, constant: Array) -> bool:
    """False where a constant is neither one number nor one a channel."""
    layer, layout = walk.value(node, node.inputs[index])
    shape = walk.shapes[layer]
    if node.op in ("Add", "Sub") and _into_bias(walk, node, index, -constant if node.op == "Sub" else constant):
        return True
    rank = len(graph_tensors.dims_of(walk, node, node.inputs[index]))
    a_channel = layout == FIRST and rank in (2, 4) and constant.size == shape[0]
    sides = constant.shape if constant.ndim < rank else constant.shape[1:]
    if constant.size != 1 and not (a_channel and sides == (shape[0],) + (1,) * (rank - 2)):
        return False
    numbers = constant.reshape(-1).astype(np.float64)
    if constant.ndim > rank or not np.isfinite(numbers).all():
        raise walk.refuse(node, "a constant", constant.shape)
    scale, offset = [1.0], [0.0]
    if node.op in ("Add", "Sub"):
        first = index == 0
        scale = [-1.0 if node.op == "Sub" and not first else 1.0]
        offset = (-numbers if node.op == "Sub" and first else numbers).tolist()
    elif node.op == "Mul":
        scale = numbers.tolist()
    elif index == 0 and bool((numbers != 0).all()):
        scale = (1 / numbers).tolist()
    else:
        raise walk.refuse(node, "a quotient", "of a constant")
    walk.join(node, "rescale", [layer], layout=layout, scale=scale, offset=offset)
    return True


def _into_bias(walk: Walk, node: Node, index: int, offset: Array) -> bool:
    """Adds to the bias that a linear layer or a convolution has not, if nothing else looks at what it gives."""
    name = node.inputs[index]
    source, layout = walk.value(node, name)
    spec = next((spec for spec in reversed(walk.specs) if spec["name"] == source), None)
    rank = len(graph_tensors.dims_of(walk, node, name))
    alone = walk.uses[name] == 1 and (node.op == "Add" or index == 0) and offset.ndim <= rank
    if spec is None or spec["op"] not in ("linear", "linear_last", "conv2d") or spec["bias"] or not alone:
        return False
    count, ending = (spec["filters"], (1, 1)) if spec["op"] == "conv2d" else (spec["units"], ())
    fits = offset.size == 1 or offset.shape[offset.ndim - 1 - len(ending) :] == (count, *ending)
    if not fits or offset.size not in (1, count) or not np.isfinite(offset).all():
        return False
    spec["bias"] = True
    walk.state[f"{source}.bias"] = np.broadcast_to(offset.reshape(-1), (count,)).astype(np.float32)
    walk.gives(node.outputs[0], source, layout)
    return True


def _power(walk: Walk, node: Node) -> None:
    walk.done(node)
    exponent = walk.constant(node, 1)
    number = None if exponent is None or exponent.size != 1 else float(exponent.reshape(-1)[0])
    if number not in (0.5, 1.0, 2.0, 3.0):
        raise walk.refuse(node, "an exponent", number)
    if number == 1.0:
        return walk.same(node)
    walk.add(node, "function", kind="sqrt" if number == 0.5 else "square")
    if number == 3.0:
        layer, layout = walk.value(node, node.inputs[0])
        walk.join(node, "merge", [walk.values[node.outputs[0]], layer], layout=layout, kind="multiply")
    return None


def _reduce_mean(walk: Walk, node: Node) -> None:
    walk.done(node, "axes", "keepdims", "noop_with_empty_axes")
    axes, keep = _axes(walk, node), bool(node.attributes.get("keepdims", 1))
    graph_tensors.mean(walk, node, node.inputs[0], axes, keep, node.outputs[0])


def _axes(walk: Walk, node: Node) -> list[int]:
    given = walk.constant(node, 1)
    axes = node.attributes.get("axes", ()) if given is None else given.reshape(-1).tolist()
    return [int(axis) for axis in axes]


def _softmax(walk: Walk, node: Node) -> None:
    walk.done(node, "axis")
    name = node.inputs[0]
    rank = len(graph_tensors.dims_of(walk, node, name))
    axis = int(node.attributes.get("axis", 1 if walk.opset < 13 else -1))
    if walk.opset < 13 and axis % rank != rank - 1:  # meant all axes from that one on
        raise walk.refuse(node, "an axis", axis)
    if node.op == "Softmax":
        graph_tensors.softmax(walk, node, name, axis, node.outputs[0])
    elif len(walk.shape_of(node)) == 1 and axis in (1, -1):
        walk.add(node, "activation", kind="log_softmax")
    else:
        raise walk.refuse(node, "an axis", axis)


def _layer_norm(walk: Walk, node: Node) -> None:
    walk.done(node, "axis", "epsilon", "stash_type")
    rank = len(graph_tensors.dims_of(walk, node, node.inputs[0]))
    axes = rank - int(node.attributes.get("axis", -1)) % rank
    weights = walk.constant(node, 1), walk.constant(node, 2)
    eps = float(node.attributes.get("epsilon", 1e-5))
    graph_tensors.layer_norm(walk, node, node.inputs[0], axes, *weights, eps, node.outputs[0])


def _flatten(walk: Walk, node: Node) -> None:
    walk.done(node, "axis")
    dims = graph_tensors.dims_of(walk, node, node.inputs[0])
    if int(node.attributes.get("axis", 1)) not in (1, 1 - len(dims)):
        raise walk.refuse(node, "axis", node.attributes["axis"])
    graph_tensors.flatten(walk, node, node.inputs[0], 1, len(dims) - 1, node.outputs[0])


def _reshape(walk: Walk, node: Node) -> None:
    walk.done(node, "allowzero")
    target, dims = walk.constant(node, 1), graph_tensors.dims_of(walk, node, node.inputs[0])
    sides = [] if target is None else [int(side) for side in target.reshape(-1)]
    if not sides or (0 in sides and node.attributes.get("allowzero", 0)) or 0 in sides[len(dims) :]:
        raise walk.refuse(node, "a shape", sides)
    sides = [dims[i] if side == 0 else side for i, side in enumerate(sides)]
    graph_tensors.reshape(walk, node, node.inputs[0], sides, node.outputs[0])


def _squeeze(walk: Walk, node: Node) -> None:
    walk.done(node, "axes")
    dims = graph_tensors.dims_of(walk, node, node.inputs[0])
    axes = _axes(walk, node) or [axis for axis, side in enumerate(dims) if side == 1]
    graph_tensors.squeeze(walk, node, node.inputs[0], axes, node.outputs[0])


def _unsqueeze(walk: Walk, node: Node) -> None:
    walk.done(node, "axes")
    graph_tensors.unsqueeze(walk, node, node.inputs[0], _axes(walk, node), node.outputs[0])


def _transpose(walk: Walk, node: Node) -> None:
    walk.done(node, "perm")
    rank = len(graph_tensors.dims_of(walk, node, node.inputs[0]))
    order = [int(axis) for axis in node.attributes.get("perm", range(rank - 1, -1, -1))]
    graph_tensors.transpose(walk, node, node.inputs[0], order, node.outputs[0])


def _concat(walk: Walk, node: Node) -> None:
    walk.done(node, "axis")
    graph_tensors.concatenate(walk, node, node.inputs, int(node.attributes["axis"]), node.outputs[0])


def _gather(walk: Walk, node: Node) -> None:
    """One entry along an axis, or neighbours."""
    walk.done(node, "axis")
    index, axis = walk.constant(node, 1), int(node.attributes.get("axis", 0))
    if index is None or index.ndim > 1 or index.size < 1:
        raise walk.refuse(node, "an index", None if index is None else index.shape)
    if index.ndim == 0:
        return graph_tensors.select(walk, node, node.inputs[0], axis, int(index), node.outputs[0])
    first, last = int(index[0]), int(index[-1])
    if first < 0 or index.tolist() != list(range(first, last + 1)):
        raise walk.refuse(node, "an index", index.tolist())
    return graph_tensors.cut(walk, node, node.inputs[0], axis, first, last + 1, node.outputs[0])


def _slice(walk: Walk, node: Node) -> None:
    walk.done(node)
    given = [walk.constant(node, index) for index in range(1, 5)]
    starts, ends, axes, steps = (None if array is None else array.reshape(-1).tolist() for array in given)
    if starts is None or ends is None:
        raise walk.refuse(node, "a cut", (starts, ends))
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) != 1 or len(starts) != 1:
        raise walk.refuse(node, "a cut along several axes", axes)
    end = min(int(ends[0]), _END)
    graph_tensors.cut(walk, node, node.inputs[0], int(axes[0]), int(starts[0]), end, node.outputs[0], int(steps[0]))


def _split(walk: Walk, node: Node) -> None:
    walk.done(node, "axis", "split", "num_outputs")
    dims, axis = graph_tensors.dims_of(walk, node, node.inputs[0]), int(node.attributes.get("axis", 0))
    given = walk.constant(node, 1)
    sizes = list(node.attributes.get("split", ())) if given is None else given.reshape(-1).tolist()
    if not sizes and -len(dims) <= axis < len(dims):
        each = -(-dims[axis] // len(node.outputs))
        sizes = [min(each, dims[axis] - each * i) for i in range(len(node.outputs))]
    graph_tensors.split(walk, node, node.inputs[0], axis, [int(size) for size in sizes], node.outputs)


def _expand(walk: Walk, node: Node) -> None:
    """Of a layer, only to the shape that it has."""
    walk.done(node)
    target = walk.constant(node, 1)
    dims = graph_tensors.dims_of(walk, node, node.inputs[0])
    sides = [] if target is None else target.reshape(-1).tolist()
    if len(sides) > len(dims) or any(side not in (1, own) for side, own in zip(sides[::-1], dims[::-1])):
        raise walk.refuse(node, "a shape", sides)
    walk.same(node)


def _is_nan(walk: Walk, node: Node) -> None:
    """Only for what `_where` reads: NaN replaced by nought, as exporters write after a softmax."""
    walk.done(node)
    walk.value(node, node.inputs[0])
    walk.nan_of[node.outputs[0]] = node.inputs[0]


def _where(walk: Walk, node: Node) -> None:
    walk.done(node)
    asked, nought, other = node.inputs if len(node.inputs) == 3 else ("", "", "")
    array = walk.constants.get(nought)
    if array is None or array.size != 1 or float(array.reshape(-1)[0]) != 0 or walk.nan_of.get(asked) != other:
        raise walk.refuse(node, "a choice that the image decides", node.inputs)
    layer, layout = walk.value(node, other)
    walk.join(node, "function", [layer], layout=layout, kind="nan_to_zero")


OPS: dict[str, Callable[[Walk, Node], None]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(_MERGES, _merge),
    "Pow": _power,
    "ReduceMean": _reduce_mean,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_norm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "IsNaN": _is_nan,
    "Where": _where,
}
