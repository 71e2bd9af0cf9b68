"""What exporters compute of shapes and constants inside an ONNX graph, evaluated here once: small, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from goodnet.errors import ModelError, UnsafeFileError
from goodnet.models.formats import MAX_BYTES, one_line
from goodnet.models.graph_walk import Array, Node

BATCH = -(1 << 40)
"""Stands for the number of images in what is computed of shapes; no size is as low."""
_SMALL = 4096


def fold(node: Node, constants: Mapping[str, Array], where: str) -> dict[str, Array]:
    """The output of an operator on constants alone, by name.

    Raises:
        ModelError: it does not fit its inputs; UnsafeFileError: it makes much of little.
    """
    arrays = [constants[name] for name in node.inputs if name]
    try:
        out = FOLDED[node.op](node, arrays)
    except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"{where}: does not fit its inputs ({one_line(error)})") from error
    held = sum(array.nbytes for array in constants.values())
    if out.size > _SMALL and (out.size > max((array.size for array in arrays), default=0) or held > MAX_BYTES):
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
    data, starts, ends, *rest = arrays
    axes = rest[0].reshape(-1).tolist() if rest else [0]
    steps = rest[1].reshape(-1).tolist() if len(rest) > 1 else [1]
    if data.ndim != 1 or axes != [0] or steps != [1]:
        raise ValueError("only a list of sizes is cut")
    return data[int(starts.reshape(-1)[0]) : int(ends.reshape(-1)[0])]


def _concat(node: Node, arrays: list[Array]) -> Array:
    if sum(array.size for array in arrays) > _SMALL:
        raise ValueError("only lists of sizes are joined")
    return np.concatenate(arrays, int(node.attributes["axis"]))


def _cast(node: Node, arrays: list[Array]) -> Array:
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float32, 11: np.float32}
    return arrays[0].astype(kinds[int(node.attributes["to"])], copy=False)


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
}
"""What is evaluated where all its inputs are constants."""
