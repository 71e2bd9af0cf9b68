"""What exporters compute of shapes and constants inside an ONNX graph, evaluated here once: small, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from goodnet.errors import ModelError, UnsafeFileError
from goodnet.models.formats import MAX_BYTES, one_line
from goodnet.models.graph_walk import BATCH, Array, Node

_SMALL = 4096
_STRETCHED = 1 << 20
"""Numbers that sides of 1 may be stretched to: attention masks of 1024 tokens."""


def fold(node: Node, constants: Mapping[str, Array], where: str) -> dict[str, Array]:
    """The output of an operator on constants alone, by name.

    Raises:
        ModelError: it does not fit its inputs; UnsafeFileError: it makes much of little.
    """
    arrays = [constants[name] for name in node.inputs if name]
    try:
        with np.errstate(all="ignore"):
            out = FOLDED[node.op](node, arrays)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{where}: makes {error}") from error
    except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"{where}: does not fit its inputs ({one_line(error)})") from error
    held = sum(array.nbytes for array in constants.values())
    most = max((array.size for array in arrays), default=0) if node.op not in _STRETCH else _STRETCHED
    if out.size > _SMALL and (out.size > most or held > MAX_BYTES):
        raise UnsafeFileError(f"{where}: makes {out.size} numbers of constants; refused")
    return {node.outputs[0]: out}


def _constant(node: Node, arrays: list[Array]) -> Array:
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if "value" in node.attributes:
        return np.asarray(node.attributes["value"])
    kind = next((kind for kind in kinds if kind in node.attributes), "value")
    return np.asarray(node.attributes[kind], kinds[kind])


def _gather(node: Node, arrays: list[Array]) -> Array:
    data, index = arrays
    if data.ndim != 1 or index.size > _SMALL:
        raise ValueError("only sizes are picked from a list")
    return np.asarray(data[index])


def _axes(node: Node, arrays: list[Array]) -> tuple[int, ...]:
    axes = node.attributes.get("axes") if len(arrays) < 2 else arrays[1].reshape(-1).tolist()
    return tuple(int(axis) for axis in axes or ())


def _squeeze(node: Node, arrays: list[Array]) -> Array:
    axes = _axes(node, arrays)
    return np.squeeze(arrays[0], axes or None)


def _slice(node: Node, arrays: list[Array]) -> Array:
    """Also backwards, as exporters turn the sides of a padding round."""
    data, starts, ends, *rest = arrays
    axes = rest[0].reshape(-1).tolist() if rest else list(range(starts.size))
    steps = rest[1].reshape(-1).tolist() if len(rest) > 1 else [1] * starts.size
    for axis, start, end, step in zip(axes, starts.reshape(-1).tolist(), ends.reshape(-1).tolist(), steps, strict=True):
        cut = [slice(None)] * data.ndim
        cut[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
        data = data[tuple(cut)]
    return data


def _concat(node: Node, arrays: list[Array]) -> Array:
    if sum(array.size for array in arrays) > _SMALL:
        raise ValueError("only lists of sizes are joined")
    return np.concatenate(arrays, int(node.attributes["axis"]))


def _cast(node: Node, arrays: list[Array]) -> Array:
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float32, 11: np.float32}
    return arrays[0].astype(kinds[int(node.attributes["to"])], copy=False)


def _stretched(*arrays: Array) -> list[Array]:
    """Sides of 1 stretched to the others', without memory; what would be too many numbers is refused before."""
    size = math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if size > _STRETCHED and size > max(array.size for array in arrays):
        raise UnsafeFileError(f"{size} numbers of constants; refused")
    return list(np.broadcast_arrays(*arrays))


def _expand(node: Node, arrays: list[Array]) -> Array:
    """To a shape in which BATCH is left at 1: what is the same for every image is one image's."""
    sides = [1 if side == BATCH else int(side) for side in arrays[1].reshape(-1).tolist()]
    if min(sides, default=1) < 1 or len(sides) > 8 or math.prod(sides) > MAX_BYTES:
        raise ValueError("sizes out of bounds")
    return _stretched(arrays[0], np.broadcast_to(np.zeros((), np.int8), sides))[0]


def _constant_of_shape(node: Node, arrays: list[Array]) -> Array:
    sides = [int(side) for side in arrays[0].reshape(-1).tolist()]
    if min(sides, default=1) < 0 or math.prod(sides) > _SMALL:
        raise ValueError("more numbers than a shape has sides")
    value = np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)
    return np.full(sides, value[0], value.dtype)


def _divide(node: Node, arrays: list[Array]) -> Array:
    """Whole numbers towards nought, as ONNX has it."""
    first, second = _stretched(*arrays)
    if first.dtype.kind == "f":
        return np.asarray(first / second)
    return np.asarray(np.abs(first) // np.abs(second) * np.sign(first) * np.sign(second))


def _with(function: Callable[..., Any]) -> Callable[[Node, list[Array]], Array]:
    """Number by number."""
    return lambda node, arrays: np.asarray(function(*_stretched(*arrays)))


_STRETCH: dict[str, Callable[[Node, list[Array]], Array]] = {
    "Expand": _expand,
    "Add": _with(np.add),
    "Sub": _with(np.subtract),
    "Mul": _with(np.multiply),
    "Div": _divide,
    "Mod": _with(np.mod),
    "Pow": _with(np.power),
    "Equal": _with(np.equal),
    "Where": _with(np.where),
    "Sqrt": _with(np.sqrt),
}
FOLDED: dict[str, Callable[[Node, list[Array]], Array]] = {
    "Constant": _constant,
    "Identity": lambda node, arrays: arrays[0],
    "Cast": _cast,
    "Gather": _gather,
    "Unsqueeze": lambda node, arrays: np.expand_dims(arrays[0], _axes(node, arrays)),
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Concat": _concat,
    "Transpose": lambda node, arrays: np.transpose(arrays[0], node.attributes.get("perm")),
    "Reshape": lambda node, arrays: np.reshape(arrays[0], arrays[1].tolist()),
    "ConstantOfShape": _constant_of_shape,
    **_STRETCH,
}
"""What is evaluated where all its inputs are constants."""
