"""ONNX files: weights elsewhere or beyond memory, cycles, code of others, constants that grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hostile.case import Case
from test_models_onnx import model, one, saved, to_logits, weights


def bomb() -> Any:
    """Forty concatenations, each twice the last: a terabyte of constants."""
    nodes = [helper.make_node("Concat", [f"k{i}", f"k{i}"], [f"k{i + 1}"], axis=0) for i in range(40)]
    last, extra = to_logits("x", 216)
    return model([*nodes, *last], {"k0": weights(64), **extra})


def changed(change: Callable[[Any], Any]) -> Callable[[], Any]:
    def make() -> Any:
        proto = one("convolution")
        change(proto)
        return proto

    return make


def outside(proto: Any) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def lying(proto: Any) -> None:
    proto.graph.initializer[0].dims[0] = 1 << 26


def huge(proto: Any) -> None:
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend([1 << 40, 1 << 20])


def negative(proto: Any) -> None:
    proto.graph.initializer[0].dims[0] = -4


def short(proto: Any) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-8]


def cyclic(proto: Any) -> None:
    proto.graph.node[0].input[0] = "y"


def loop(proto: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    proto.graph.node[1].attribute.append(helper.make_attribute("body", body))


def foreign(proto: Any) -> None:
    proto.graph.node[1].domain = "com.evil"


def function(proto: Any) -> None:
    call = helper.make_function("com.evil", "Conv", ["a"], ["b"], [], [helper.make_opsetid("", 17)])
    proto.functions.append(call)


def nan(proto: Any) -> None:
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[0] = np.nan
    proto.graph.initializer[0].raw_data = array.tobytes()


def words(proto: Any) -> None:
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("c0", TensorProto.STRING, [1], [b"x"]))


def operator(name: str) -> Callable[[Any], None]:
    return lambda proto: setattr(proto.graph.node[1], "op_type", name)


def setting(name: str, value: Any) -> Callable[[Any], None]:
    return lambda proto: proto.graph.node[1].attribute.append(helper.make_attribute(name, value))


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "weights in another file": (changed(outside), "lie in another file"),
    "a shape that the bytes do not hold": (changed(lying), "claim"),
    "a shape beyond memory": (changed(huge), "claim the shape"),
    "a negative side": (changed(negative), "claim the shape"),
    "too few bytes": (changed(short), "cannot be read"),
    "weights that are words": (changed(words), "expected numbers|cannot be read"),
    "NaN": (changed(nan), "NaN"),
    "a cycle": (changed(cyclic), "no operator before it"),
    "a graph in an attribute": (changed(loop), "carries a graph"),
    "an operator of somebody's": (changed(foreign), "domain 'com.evil'"),
    "a function of somebody's": (changed(function), "functions"),
    "an unknown operator": (changed(operator("Einsum")), "not an operator that goodnet reads"),
    "an unknown setting": (changed(setting("mode", "x")), "does not know the setting 'mode'"),
    "constants that grow": (bomb, "does not fit its inputs"),
    "an old opset": (
        lambda: model(*to_logits("x", 216), opset=9), "opset 11 or later, got 9"),
    "no images": (lambda: model(*to_logits("x", 216), shape=("n", 216)), "input of images"),
    "an open shape": (
        lambda: model(*to_logits("x", 216), shape=("n", 3, "h", "w")), "--input-shape"),
    "an output of nothing": (lambda: model(*to_logits("x", 216), output="y"), "made by no operator"),
    "a giant image": (
        lambda: model(*to_logits("x", 216), shape=(1, 3, 1 << 30, 1 << 30)), "up to 4096"),
}  # fmt: skip


def _make(proto: Callable[[], Any]) -> Callable[[Path], Path]:
    return lambda folder: saved(folder / "net.onnx", proto())


CASES = [Case(name=name, kind="ONNX", make=_make(proto), message=message) for name, (proto, message) in HOSTILE.items()]
