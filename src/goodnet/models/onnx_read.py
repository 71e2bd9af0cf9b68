"""ONNX files as data: the graph and its constants, checked; no operator runs here.

The file is one protobuf message. Weights in files beside it (external data) are refused, as are subgraphs, functions
and operators of other domains: whatever else such a file can say, a classifier does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models.formats import MAX_BYTES, one_line
from goodnet.models.graph_walk import Array, Node

MIN_OPSET = 11
MAX_NODES = 4096
_DOMAINS = ("", "ai.onnx")
_TAGS = b"\x12\x1a\x22\x28\x32\x3a\x42\x72"  # fields that writers put after ir_version
_INSTALL = "reading ONNX needs the package onnx: pip install 'goodnet[onnx]'"


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """What a file says, nothing of it evaluated.

    Attributes:
        opset: version of the standard operators.
        input: name of the only input; `shape`: its sizes, batch first, None where open.
        output: name of the only output.
        nodes: in the file's order, which must be one in which they can run.
        constants: initialisers by name.
    """

    opset: int
    input: str
    shape: tuple[int | None, ...]
    output: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]


def is_onnx(head: bytes) -> bool:
    """Whether a file's first bytes are those of an ONNX message: ir_version, then a field that belongs there."""
    return len(head) > 2 and head[0] == 0x08 and 1 <= head[1] < 32 and head[2] in _TAGS


def read_onnx(path: Path) -> OnnxGraph:
    """Reads and checks the graph.

    Raises:
        UsageError: the package onnx is not installed.
        UnsafeFileError: external data, functions, subgraphs, or sizes out of bounds.
        ModelError: damaged, several inputs or outputs, or older than opset 11.
    """
    try:
        import onnx
    except ImportError as error:
        raise UsageError(f"{path}: {_INSTALL}") from error
    if path.stat().st_size > MAX_BYTES:
        raise UnsafeFileError(f"{path}: larger than {MAX_BYTES >> 30} GiB; refused")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except MemoryError as error:
        raise UnsafeFileError(f"{path}: claims more memory than there is; refused") from error
    except Exception as error:  # protobuf raises its own
        raise ModelError(f"{path}: expected an ONNX file, but it cannot be read ({one_line(error)})") from error
    graph = model.graph
    if len(model.functions) or len(graph.sparse_initializer) or len(model.training_info):
        raise UnsafeFileError(
            f"{path}: holds functions, sparse weights or training information; such a net is not read"
        )
    if not 1 <= len(graph.node) <= MAX_NODES:
        raise ModelError(f"{path}: expected 1 to {MAX_NODES} operators, got {len(graph.node)}")
    constants = {_word(tensor.name, path): _array(tensor, path) for tensor in graph.initializer}
    inputs = [value for value in graph.input if _word(value.name, path) not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ModelError(
            f"{path}: expected one input and one output, got {len(inputs)} and {len(graph.output)}; only classifiers "
            "that take an image and give logits are read"
        )
    return OnnxGraph(
        opset=_opset(model, path),
        input=inputs[0].name,
        shape=_shape(inputs[0], path),
        output=_word(graph.output[0].name, path),
        nodes=tuple(_node(node, path) for node in graph.node),
        constants=constants,
    )


def _opset(model: Any, path: Path) -> int:
    versions = {entry.domain: int(entry.version) for entry in model.opset_import}
    version = next((versions[domain] for domain in _DOMAINS if domain in versions), 0)
    if version < MIN_OPSET:
        raise ModelError(
            f"{path}: expected opset {MIN_OPSET} or later, got {version}; convert it with onnx.version_converter"
        )
    return version


def _shape(value: Any, path: Path) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or tensor.elem_type not in (1, 10, 11):
        raise ModelError(f"{path}: expected an input of floats, got another type")
    sizes = [int(side.dim_value) if side.WhichOneof("value") == "dim_value" else None for side in tensor.shape.dim]
    return tuple(side if side is not None and side > 0 else None for side in sizes)


def _word(value: Any, path: Path) -> str:
    """A name; protobuf gives bytes where it is no UTF-8."""
    if not isinstance(value, str):
        raise ModelError(f"{path}: expected names in UTF-8, got {value!r:.60}")
    return value


def _node(node: Any, path: Path) -> Node:
    for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
        _word(name, path)
    where = f"{path}: operator {node.name or node.op_type!r:.80} ({node.op_type:.40})"
    if not node.output:
        raise ModelError(f"{where}: gives nothing")
    if node.domain not in _DOMAINS:
        raise ModelError(f"{where}: is of the domain {node.domain!r:.60}; only ONNX's own operators are read")
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        attributes[_word(attribute.name, path)] = _value(attribute, where, path)
    return Node(
        op=node.op_type,
        name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
    )


def _value(attribute: Any, where: str, path: Path) -> Any:
    kinds = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
    kind = kinds.get(attribute.type)
    if kind is None:
        raise UnsafeFileError(f"{where}: carries a graph or another kind of attribute that is not read; refused")
    value = getattr(attribute, kind)
    if kind == "t":
        return _array(value, path)
    if kind == "s":
        return value.decode("utf-8", "replace")
    return tuple(value) if kind in ("floats", "ints", "strings") else value


def _array(tensor: Any, path: Path) -> Array:
    from onnx import TensorProto, numpy_helper

    where = f"{path}: weights {_word(tensor.name, path)!r:.80}"
    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise UnsafeFileError(f"{where}: lie in another file, which is not opened; ask for one file with all weights")
    if any(side < 0 for side in tensor.dims) or math.prod(tensor.dims) * 4 > MAX_BYTES or len(tensor.dims) > 8:
        raise UnsafeFileError(f"{where}: claim the shape {list(tensor.dims)!r:.80}; refused")
    held = tensor.ByteSize()
    if math.prod(tensor.dims) > 8 * held:  # the smallest types take four bits
        raise UnsafeFileError(f"{where}: claim {math.prod(tensor.dims)} numbers in {held} bytes; refused")
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # numpy_helper raises what its checks and numpy's raise
        raise ModelError(f"{where}: cannot be read ({one_line(error)})") from error
    if array.dtype.kind not in "fiub":
        raise ModelError(f"{where}: expected numbers, got {array.dtype}")
    return array.astype(np.float32) if array.dtype.kind == "f" else array
