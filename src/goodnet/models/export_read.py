"""torch.export's `.pt2` files as data: the graph as JSON, weights as raw numbers. torch.export.load is not called.

Of the archive's members three kinds are read: the graph (`models/model.json`), the list of weights, and each weight's
bytes. Whatever is pickled in it (sample inputs, odd constants) is never opened.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError
from goodnet.models.formats import MAX_BYTES, one_line
from goodnet.models.graph_walk import Array, Node

GRAPH_FILE = "models/model.json"
_OLD = "serialized_exported_program.json"
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_MAX_JSON = 64 << 20
_MAX_NODES = 4096
# torch's ScalarType, by number; bfloat16 is the upper half of a float32
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8", 12: "?", 13: "<u2"}
_BFLOAT16 = 13
_NAMES = {"as_tensor": "name", "as_sym_int": "as_name"}


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """What a file says, nothing of it evaluated: as `OnnxGraph`, attributes by torch's names of arguments."""

    input: str
    shape: tuple[int | None, ...]
    output: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]


def is_export(names: Sequence[str]) -> bool:
    """Whether a zip's members are torch.export's."""
    return any(name.partition("/")[2] == GRAPH_FILE or name.endswith(_OLD) for name in names)


def read_export(path: Path) -> ExportedGraph:
    """Reads and checks the graph.

    Raises:
        UnsafeFileError: sizes out of bounds, pickled weights, subgraphs.
        ModelError: damaged, of a version before PyTorch 2.8, several inputs or outputs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive, path).graph()
    except GoodnetError:
        raise
    except RecursionError as error:
        raise UnsafeFileError(f"{path}: its graph is nested too deeply; refused") from error
    except Exception as error:  # zipfile, json, and whatever a missing key or a wrong type provokes
        raise ModelError(
            f"{path}: expected a torch.export file, but it cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from error


def _needed(nodes: list[Node], output: str) -> tuple[Node, ...]:
    """Those that the output depends on: torch.export leaves what nobody asks for."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.archive, self.path = archive, path
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UnsafeFileError(f"{path}: a compressed archive, which PyTorch never writes; refused")
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise UnsafeFileError(f"{path}: unpacks to more than {MAX_BYTES >> 30} GiB; refused")
        names = [member.filename for member in members]
        root = next((name.partition("/")[0] for name in names if name.partition("/")[2] == GRAPH_FILE), None)
        if root is None:
            raise ModelError(f"{path}: a torch.export file of before PyTorch 2.8; load and save it with a later one")
        self.root = root
        if self._bytes("byteorder", 16).strip() != b"little":
            raise ModelError(f"{path}: expected little-endian weights")

    def graph(self) -> ExportedGraph:
        module = self._json(GRAPH_FILE)["graph_module"]
        graph, signature = module["graph"], module["signature"]
        kinds = [(kind, value) for spec in signature["input_specs"] for kind, value in spec.items()]
        inputs = [_word(value["arg"]["as_tensor"]["name"]) for kind, value in kinds if kind == "user_input"]
        outputs = [value for spec in signature["output_specs"] for value in spec.values()]
        if len(inputs) != 1 or len(outputs) != 1 or "user_output" not in signature["output_specs"][0]:
            raise ModelError(
                f"{self.path}: expected one input and one output, got {len(inputs)} and {len(outputs)}; only "
                "classifiers that take an image and give logits are read"
            )
        if not 1 <= len(graph["nodes"]) <= _MAX_NODES:
            raise ModelError(f"{self.path}: expected 1 to {_MAX_NODES} operators, got {len(graph['nodes'])}")
        output = _word(outputs[0]["arg"]["as_tensor"]["name"])
        sizes = [side.get("as_int") for side in graph["tensor_values"][inputs[0]]["sizes"]]
        return ExportedGraph(
            input=inputs[0],
            shape=tuple(int(side) if isinstance(side, int) and side > 0 else None for side in sizes),
            output=output,
            nodes=_needed([self._node(node) for node in graph["nodes"]], output),
            constants=self._constants(kinds),
        )

    def _constants(self, kinds: list[tuple[str, Any]]) -> dict[str, Array]:
        weights = self._json(_WEIGHTS)["config"]
        others = self._json(_CONSTANTS)["config"]
        found = {}
        for kind, value in kinds:
            if kind == "user_input":
                continue
            keys = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            if kind not in keys:
                raise UnsafeFileError(f"{self.path}: takes a {kind!r:.40}, which is not read; refused")
            name = value[keys[kind]]
            entry, folder = (weights[name], "weights") if name in weights else (others[name], "constants")
            found[_word(value["arg"]["name"])] = self._weight(name, entry, folder)
        return found

    def _weight(self, name: str, entry: Mapping[str, Any], folder: str) -> Array:
        where = f"{self.path}: weights {name!r:.80}"
        if entry.get("use_pickle", True):
            raise UnsafeFileError(f"{where}: are pickled, which is not opened; refused")
        meta = entry["tensor_meta"]
        sizes: list[int] = [int(side["as_int"]) for side in meta["sizes"]]
        strides: list[int] = [int(side["as_int"]) for side in meta["strides"]]
        start, kind = int(meta["storage_offset"]["as_int"]), int(meta["dtype"])
        if kind not in _TYPES or min(0, start, *sizes, *strides) < 0 or len(sizes) != len(strides):
            raise ModelError(f"{where}: of a kind or a shape that is not read")
        flat = np.frombuffer(self._bytes(f"data/{folder}/{entry['path_name']}", MAX_BYTES), _TYPES[kind])
        last = start + sum((side - 1) * stride for side, stride in zip(sizes, strides) if side)
        count: int = math.prod(sizes)
        if count > max(len(flat), 1) or (count and last >= len(flat)):
            raise UnsafeFileError(f"{where}: claim the shape {sizes!r:.60}, more than the file holds; refused")
        view = np.lib.stride_tricks.as_strided(
            flat[start:], sizes, [stride * flat.itemsize for stride in strides], writeable=False
        )
        if kind == _BFLOAT16:
            view = (view.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(view, np.float32 if view.dtype.kind == "f" else None).reshape(sizes)

    def _node(self, raw: Mapping[str, Any]) -> Node:
        where = f"{self.path}: operator {raw['target']!r:.80}"
        outputs: list[str] = []
        for output in raw["outputs"]:
            (kind, value), *_ = output.items()
            if kind not in ("as_tensor", "as_tensors", "as_sym_int"):
                raise ModelError(f"{where}: gives something else than tensors")
            names = [one["name"] for one in value] if kind == "as_tensors" else [value[_NAMES[kind]]]
            outputs += map(_word, names)
        tensors: list[str] = []
        sizes: list[str] = []
        attributes: dict[str, Any] = {}
        for given in raw["inputs"]:
            (kind, value), *_ = given["arg"].items()
            if kind == "as_tensor":
                tensors.append(_word(value["name"]))
                attributes[given["name"]] = value["name"]
            elif kind == "as_tensors":
                tensors += [_word(one["name"]) for one in value]
                attributes[given["name"]] = [one["name"] for one in value]
            elif kind in ("as_graph", "as_custom_obj", "as_string_to_argument"):
                raise UnsafeFileError(f"{where}: carries a graph or an object of its own; refused")
            else:
                listed = value if isinstance(value, list) else [value]
                sizes += [_word(one["as_name"]) for one in listed if isinstance(one, dict) and "as_name" in one]
                attributes[given["name"]] = None if kind == "as_none" else value
        return Node(
            op=str(raw["target"]),
            name=str(raw.get("name") or outputs[0]),
            inputs=(*tensors, *sizes),
            outputs=tuple(outputs),
            attributes=attributes,
        )

    def _json(self, member: str) -> Any:
        return json.loads(self._bytes(member, _MAX_JSON))

    def _bytes(self, member: str, limit: int) -> bytes:
        info = self.archive.getinfo(f"{self.root}/{member}")
        if info.file_size > limit:
            raise UnsafeFileError(f"{self.path}: {member[:80]} holds more than {limit} bytes; refused")
        return self.archive.read(info)


def _word(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"expected a name, got {raw!r:.40}")
    return raw
