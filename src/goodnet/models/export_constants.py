"""What a torch.export graph computes of sizes and constants, evaluated here once: small, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from goodnet.errors import UnsafeFileError
from goodnet.models import graph_tensors
from goodnet.models.graph_walk import BATCH, Array, Node, Walk

_STRETCHED = 1 << 20
"""Numbers that sides of 1 may be stretched to: attention masks of 1024 tokens."""
_SIZES: dict[str, Callable[[int, int], int]] = {
    "_operator.mul": lambda a, b: a * b,
    "_operator.floordiv": lambda a, b: a // b,
    "_operator.add": lambda a, b: a + b,
    "_operator.sub": lambda a, b: a - b,
}
_SIZE_OF = "torch.ops.aten.sym_size.int"


def fold(walk: Walk, node: Node) -> bool:
    """Whether the operator works on sizes or constants alone; its result is noted.

    Raises ModelError, UnsafeFileError.
    """
    if node.op == _SIZE_OF:
        dims = graph_tensors.dims_of(walk, node, node.attributes["self"])
        walk.sizes[node.outputs[0]] = dims[node.attributes["dim"]]
    elif node.op in _SIZES:
        a, b = (whole(walk, node, name) for name in ("a", "b"))
        if b == 0 and node.op == "_operator.floordiv":
            raise walk.refuse(node, "a divisor", 0)
        walk.sizes[node.outputs[0]] = _bounded(walk, node, _SIZES[node.op](a, b))
    else:
        name = node.op.removeprefix("torch.ops.aten.").partition(".")[0]
        tensors = [given for given in node.inputs if given not in walk.sizes]
        if name not in _FOLDED or not all(given in walk.constants for given in tensors):
            return False
        walk.constants[node.outputs[0]] = _FOLDED[name](walk, node)
    return True


def whole(walk: Walk, node: Node, name: str, default: int | None = None) -> int:
    """A whole number that is given as itself or by the name of a size."""
    value: Any = node.attributes.get(name)
    if value is None and default is not None:
        return default
    return one_size(walk, node, value)


def one_size(walk: Walk, node: Node, value: Any) -> int:
    if isinstance(value, dict):
        value = value.get("as_int", walk.sizes.get(str(value.get("as_name"))))
    if not isinstance(value, int) or isinstance(value, bool):
        raise walk.refuse(node, "a size", value)
    return value


def wholes(walk: Walk, node: Node, name: str) -> list[int]:
    """A list of such numbers; one number is a list of one."""
    value: Any = node.attributes.get(name)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return [one_size(walk, node, one) for one in listed]


def _bounded(walk: Walk, node: Node, size: int) -> int:
    if abs(size) > 1 << 80:
        raise UnsafeFileError(f"{walk.where(node)}: counts to {size.bit_length()} bits; refused")
    return size


def _arange(walk: Walk, node: Node) -> Array:
    walk.done(node, "start", "end", "dtype", "layout", "device", "pin_memory")
    start, end = whole(walk, node, "start", 0), whole(walk, node, "end")
    if not 0 <= end - start <= _STRETCHED:
        raise walk.refuse(node, "a range", (start, end))
    return np.arange(start, end)


def _expand(walk: Walk, node: Node) -> Array:
    """BATCH is left at 1: what is the same for every image is one image's."""
    walk.done(node, "self", "size", "implicit")
    array, sides = _self(walk, node), wholes(walk, node, "size")
    own = (1,) * (len(sides) - array.ndim) + array.shape
    if walk.batch is not None and sides and sides[0] == walk.batch and own[0] == 1:
        sides[0] = BATCH
    sides = [1 if side == BATCH else kept if side == -1 else side for side, kept in zip(sides, own)]
    if len(own) != len(sides) or min(sides, default=1) < 1 or any(a not in (1, b) for a, b in zip(own, sides)):
        raise walk.refuse(node, "a shape", sides)
    if math.prod(sides) > max(_STRETCHED, array.size):
        raise UnsafeFileError(f"{walk.where(node)}: makes {math.prod(sides)} numbers of constants; refused")
    return np.broadcast_to(array, sides)


def _unsqueeze(walk: Walk, node: Node) -> Array:
    walk.done(node, "self", "dim")
    array, axis = _self(walk, node), whole(walk, node, "dim")
    if not -array.ndim - 1 <= axis <= array.ndim or array.ndim >= 8:
        raise walk.refuse(node, "dim", axis)
    return np.expand_dims(array, axis)


def _compare(walk: Walk, node: Node) -> Array:
    walk.done(node, "self", "other")
    compare = {"ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less}
    function = compare[node.op.removeprefix("torch.ops.aten.").partition(".")[0]]
    return np.asarray(function(_self(walk, node), _number(walk, node)))


def _add(walk: Walk, node: Node) -> Array:
    walk.done(node, "self", "other")
    return np.asarray(_self(walk, node) + _number(walk, node))


def _self(walk: Walk, node: Node) -> Array:
    return walk.constants[node.attributes["self"]]


def _number(walk: Walk, node: Node) -> float:
    other = node.attributes.get("other")
    if isinstance(other, bool) or not isinstance(other, int | float):
        raise walk.refuse(node, "an operand", other)
    return other


_FOLDED: dict[str, Callable[[Walk, Node], Array]] = {
    "arange": _arange,
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "add": _add,
    "alias": lambda walk, node: _self(walk, node),
    "clone": lambda walk, node: _self(walk, node),
    "detach": lambda walk, node: _self(walk, node),
    "lift_fresh_copy": lambda walk, node: _self(walk, node),
    **dict.fromkeys(("ge", "gt", "le", "lt"), _compare),
}
