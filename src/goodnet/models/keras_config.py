"""Keras model configs of every age -> one flat list of layers in the order in which they run.

Sequential and functional models, the dialects of Keras 1, 2 and 3, models inside models. The config is JSON from a
stranger: anything that is not as Keras writes it is a ModelError, anything that carries code an UnsafeFileError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from goodnet.errors import ModelError, UnsafeFileError

MAX_LAYERS = 4096
MAX_NESTING = 8
SEQUENTIAL, FUNCTIONAL = ("Sequential",), ("Functional", "Model")
CODE = ("Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "TorchModuleWrapper", "TFSMLayer", "JaxLayer")


@dataclass(frozen=True, kw_only=True)
class KerasLayer:
    """One layer. `scope` is the outermost model's entry in the weights and the layer's own name there."""

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    scope: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class KerasModel:
    """Layers in the order in which they run; `output` names the last one."""

    layers: tuple[KerasLayer, ...]
    output: str


def read_model(config: Mapping[str, Any], *, where: str) -> KerasModel:
    """A whole model's config -> its layers.

    Raises:
        UnsafeFileError: a layer that carries code (Lambda, custom classes).
        ModelError: not a Sequential or functional model, several inputs or outputs, shared layers, cycles.
    """
    model = _flatten(config, (), where)
    if len(model.layers) > MAX_LAYERS:
        raise UnsafeFileError(f"{where}: {len(model.layers)} layers, more than {MAX_LAYERS}; refused")
    return _in_order(model, where)


def check_class(entry: Mapping[str, Any], where: str) -> str:
    """The class name of a layer or activation, if it is Keras's own. Raises UnsafeFileError, ModelError."""
    kind = entry.get("class_name")
    if not isinstance(kind, str):
        raise ModelError(f"{where}: expected a layer with a class_name, got {str(entry)[:80]!r}")
    name = _text(entry.get("name") or _dict(entry.get("config")).get("name"))
    registered, module = entry.get("registered_name"), entry.get("module")
    custom = isinstance(registered, str) and registered not in (kind, "function", entry.get("config"))
    foreign = isinstance(module, str) and module.partition(".")[0] not in ("keras", "tf_keras", "builtins", "")
    if kind in CODE or kind == "__lambda__" or custom or foreign:
        what = registered if custom else kind
        raise UnsafeFileError(
            f"{where}: layer {name!r} is {what!r:.80}, which carries or needs code; it is not run. "
            f"Ask for the net's weights alone and pass --arch FILE.py:CALLABLE"
        )
    return kind


def _flatten(model: Mapping[str, Any], path: tuple[str, ...], where: str) -> KerasModel:
    if len(path) > MAX_NESTING:
        raise UnsafeFileError(f"{where}: models nested deeper than {MAX_NESTING}; refused")
    kind = check_class(model, where)
    config = model.get("config")
    if kind in SEQUENTIAL:
        entries = config if isinstance(config, list) else _dict(config).get("layers")
        return _sequential(_list(entries, f"{where}: layers"), _dict(config), path, where)
    if kind in FUNCTIONAL:
        return _functional(_dict(config), path, where)
    raise ModelError(f"{where}: expected a Sequential or functional Keras model, got {kind!r:.80}")


def _sequential(entries: list[Any], config: Mapping[str, Any], path: tuple[str, ...], where: str) -> KerasModel:
    layers: list[KerasLayer] = []
    previous: tuple[str, ...] = ()
    for position, entry in enumerate(entries):
        entry = _dict(entry)
        settings = _dict(entry.get("config"))
        if position == 0 and entry.get("class_name") not in ("InputLayer", *SEQUENTIAL, *FUNCTIONAL):
            shape = settings.get("batch_input_shape", settings.get("batch_shape", config.get("build_input_shape")))
            start = _entry("InputLayer", {"batch_shape": shape, "name": "input__"}, path, ())
            layers, previous = [start], (start.name,)
        new = _expand(entry, _name(entry, where), previous, path, where)
        layers += new
        previous = (new[-1].name,)
    if not layers:
        raise ModelError(f"{where}: a Sequential model without layers")
    return KerasModel(layers=tuple(layers), output=layers[-1].name)


def _functional(config: Mapping[str, Any], path: tuple[str, ...], where: str) -> KerasModel:
    layers: list[KerasLayer] = []
    for entry in _list(config.get("layers"), f"{where}: layers"):
        entry = _dict(entry)
        name = _name(entry, where)
        layers += _expand(entry, name, _inbound(entry, name, path, where), path, where)
    for what in ("input_layers", "output_layers"):
        ends = _ends(config.get(what))
        if len(ends) != 1:
            raise ModelError(f"{where}: expected one input and one output, got {len(ends)} {what.replace('_', ' ')}")
    return KerasModel(layers=tuple(layers), output=_join(path, _ends(config["output_layers"])[0]))


def _expand(
    entry: Mapping[str, Any], name: str, inputs: tuple[str, ...], path: tuple[str, ...], where: str
) -> list[KerasLayer]:
    """The layer itself; or, where it is a model, its layers, and its name for the last of them."""
    kind = check_class(entry, where)
    if kind not in SEQUENTIAL + FUNCTIONAL:
        return [_entry(kind, {**_dict(entry.get("config")), "name": name}, path, inputs)]
    inner = _flatten(entry, (*path, name), where)
    layers = list(inner.layers)
    if inputs:  # an inner model's own input is whatever the outer one feeds it
        layers = [
            KerasLayer(name=layer.name, kind="Identity", config={}, inputs=inputs, scope=layer.scope)
            if layer.kind == "InputLayer"
            else layer
            for layer in layers
        ]
    return [*layers, _entry("Identity", {"name": name}, path, (inner.output,))]


def _entry(kind: str, config: Mapping[str, Any], path: tuple[str, ...], inputs: tuple[str, ...]) -> KerasLayer:
    name = str(config["name"])
    scope = (path[0], name) if path else (name,)
    return KerasLayer(name=_join(path, name), kind=kind, config=config, inputs=inputs, scope=scope)


def _inbound(entry: Mapping[str, Any], name: str, path: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Names of the layers that feed this one."""
    nodes = entry.get("inbound_nodes") or []
    if not isinstance(nodes, list):
        raise ModelError(f"{where}: layer {name!r:.80}: expected inbound_nodes to be a list")
    if len(nodes) > 1:
        raise ModelError(f"{where}: layer {name!r:.80} is used {len(nodes)} times; shared layers cannot be read")
    found: list[str] = []
    for node in nodes:
        _sources(node.get("args") if isinstance(node, Mapping) else node, found, 0)
    if nodes and not found:
        raise ModelError(f"{where}: layer {name!r:.80}: its inputs cannot be read")
    return tuple(_join(path, source) for source in found)


def _sources(node: Any, found: list[str], depth: int) -> None:
    """Collects `[name, node, tensor, ...]` (Keras 1 and 2) and `__keras_tensor__` objects (Keras 3)."""
    if depth > MAX_NESTING or len(found) > 256:
        raise ModelError("a layer's inbound_nodes are nested too deeply or too many")
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            _sources(_dict(node.get("config")).get("keras_history"), found, depth + 1)
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int) and isinstance(node[2], int):
            if node[2] != 0:
                raise ModelError(f"expected layers with one output each; {node[0]!r:.80} has more")
            found.append(node[0])
        else:
            for item in node:
                _sources(item, found, depth + 1)


def _ends(value: Any) -> list[str]:
    found: list[str] = []
    _sources(value, found, 0)
    return found


def _in_order(model: KerasModel, where: str) -> KerasModel:
    """Only what the output needs, every layer after those that feed it."""
    by_name = {layer.name: layer for layer in model.layers}
    if len(by_name) != len(model.layers):
        raise ModelError(f"{where}: two layers have the same name")
    ordered: dict[str, KerasLayer] = {}
    open_now: set[str] = set()
    stack = [(model.output, False)]
    while stack:
        name, fed = stack.pop()
        if name in ordered:
            continue
        if name not in by_name:
            raise ModelError(f"{where}: there is no layer {name!r:.80}, which another one names as its input")
        if fed:
            ordered[name] = by_name[name]
        elif name in open_now:
            raise ModelError(f"{where}: layer {name!r:.80} feeds itself")
        else:
            open_now.add(name)
            stack.append((name, True))
            stack += [(source, False) for source in by_name[name].inputs if source not in ordered]
    return KerasModel(layers=tuple(ordered.values()), output=model.output)


def _name(entry: Mapping[str, Any], where: str) -> str:
    name = entry.get("name") or _dict(entry.get("config")).get("name")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{where}: expected every layer to have a name, got {str(entry)[:80]!r}")
    return name[:200]


def _join(path: tuple[str, ...], name: str) -> str:
    return "/".join((*path, name))


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ModelError(f"{where}: expected a list, got {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    return str(value)[:80]
