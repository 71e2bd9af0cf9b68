"""A Keras config and its weights -> a GraphNet that gives the same logits, and the recipe to build it again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models.arch import GRAPH, build
from goodnet.models.arch.graph import INPUT
from goodnet.models.classifier import Recipe
from goodnet.models.formats import Loaded, LoadOptions, Shape
from goodnet.models.keras_config import KerasLayer, KerasModel, read_model
from goodnet.models.keras_hdf5 import Array, KerasFile
from goodnet.models.keras_layers import IDENTITY, translate
from goodnet.models.keras_settings import Context, Spec, Weight
from goodnet.models.weights import check_fit, load_weights, sketch

_FORMATS = {"channels_last": True, "tf": True, "channels_first": False, "th": False}
_ANY_RANK = ("Flatten", "Reshape", "Rescaling", "Activation", "ReLU", "LeakyReLU", "ELU")


@dataclass(kw_only=True)
class _Walk:
    """What the walk over the layers has made so far."""

    specs: list[Spec] = field(default_factory=list)
    weights: list[tuple[KerasLayer, Weight]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    flat_images: set[str] = field(default_factory=set)


def load_graph(file: KerasFile, options: LoadOptions, *, name: str) -> Loaded:
    """The net that a whole-model file describes, weights and all.

    Raises:
        UnsafeFileError: a layer that carries code, or sizes out of bounds.
        ModelError: unknown layers or settings, weights that do not fit.
        UsageError: the input shape is open, or contradicts `options.input_shape`.
    """
    model = read_model(file.config or {}, where=name)
    context = _context(model, file, name)
    walk, shape = _walk(model, context, options)
    output = walk.names[model.output]
    specs, output, notes = _without_softmax(walk.specs, output)
    recipe = Recipe(arch=GRAPH, options={"input": list(shape), "layers": specs, "output": output})
    drawn = sketch(recipe, name=name)
    state = _state(drawn, walk, file, name)
    check_fit(drawn, state, name=name)
    net = build(recipe)
    load_weights(net, state, name=name)
    return Loaded(net=net, recipe=recipe, shape=shape, notes=notes)


def turned(array: Array, turn: str, *, flipped: bool = False) -> Array:
    """A Keras array the way torch has it: `conv` and `kernel` (h, w, in, out) -> (out, in, h, w), `depthwise`
    (h, w, C, m) -> (C·m, 1, h, w), `dense` (in, out) -> (out, in). `flipped`: Theano's true convolution."""
    if turn in ("conv", "depthwise", "kernel") and array.ndim == 4:
        array = array[::-1, ::-1] if flipped else array
        if turn == "depthwise":
            array = array.transpose(2, 3, 0, 1).reshape(-1, 1, *array.shape[:2])
        else:
            array = array.transpose(3, 2, 0, 1)
    elif turn in ("dense", "kernel") and array.ndim == 2:
        array = array.T
    return np.array(array, dtype=np.float32, order="C")


def _context(model: KerasModel, file: KerasFile, name: str) -> Context:
    """Where channels are: what the convolutions and pools say, which must agree; Flatten only if there are none."""
    said: dict[bool, set[str]] = {True: set(), False: set()}
    for layer in model.layers:
        form = layer.config.get("data_format") or layer.config.get("dim_ordering")
        if isinstance(form, str) and form in _FORMATS:
            said[layer.kind == "Flatten"].add(form)
    forms = {_FORMATS[form] for form in said[False] or said[True] or {"channels_last"}}
    if len(forms) != 1:
        raise ModelError(f"{name}: some layers are channels_last, others channels_first; such nets cannot be read")
    major = file.version.partition(".")[0]
    version = int(major) if major.isdigit() else 3
    return Context(channels_last=forms.pop(), version=version, backend=file.backend, where=name)


def _walk(model: KerasModel, context: Context, options: LoadOptions) -> tuple[_Walk, Shape]:
    walk, shape = _Walk(), None
    for layer in model.layers:
        if layer.kind == "InputLayer":
            if shape is not None:
                raise ModelError(f"{context.where}: expected one input, got several")
            shape = _start(layer, walk, context, options)
            continue
        inputs = [walk.names[source] for source in layer.inputs]
        if layer.kind in IDENTITY and inputs:
            walk.names[layer.name] = inputs[0]
        else:
            _step(layer, inputs, walk, context)
        if any(source in walk.flat_images for source in layer.inputs):
            _stay_flat(layer, walk, context)
    if shape is None:
        raise ModelError(f"{context.where}: the net has no input layer")
    return walk, shape


def _step(layer: KerasLayer, inputs: list[str], walk: _Walk, context: Context) -> None:
    made = translate(layer, _free_name(layer.name, walk), inputs, context)
    walk.specs += made.specs
    walk.weights += [(layer, weight) for weight in made.weights]
    walk.names[layer.name] = made.specs[-1]["name"] if made.specs else inputs[0]


def _stay_flat(layer: KerasLayer, walk: _Walk, context: Context) -> None:
    """Input (H, W) without channels is taken as one channel, which is right only for layers that do not mind."""
    if layer.kind not in (*_ANY_RANK, *IDENTITY):
        raise ModelError(f"{context.where}: layer {layer.name!r} ({layer.kind}) on images without channels is not read")
    if layer.kind not in ("Flatten", "Reshape"):
        walk.flat_images.add(layer.name)


def _start(layer: KerasLayer, walk: _Walk, context: Context, options: LoadOptions) -> Shape:
    """The input (C, H, W); flat inputs get the image from `options` and a flatten in front."""
    raw = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
    sides = raw[1:] if isinstance(raw, list) else None
    walk.names[layer.name] = INPUT
    if not sides or len(sides) > 3 or not all(side is None or isinstance(side, int) for side in sides):
        shape = _asked(options, None, context) if sides is None else None
        if shape is None:
            raise ModelError(f"{context.where}: expected an input of images, got the shape {raw!r:.60}")
        return shape
    if len(sides) == 1:
        shape = _asked(options, None, context)
        if sides[0] != math.prod(shape):
            raise UsageError(f"{context.where}: expected an input shape of {sides[0]} numbers, got {shape}")
        flat = _free_name("input__flatten", walk)
        order = "hwc" if context.channels_last else "chw"
        walk.specs.append({"name": flat, "op": "flatten", "inputs": [INPUT], "order": order})
        walk.names[layer.name] = flat
        return shape
    if len(sides) == 2:
        walk.flat_images.add(layer.name)
        return _asked(options, (1, *sides), context)
    return _asked(options, (sides[2], *sides[:2]) if context.channels_last else tuple(sides), context)


def _asked(options: LoadOptions, said: tuple[int | None, ...] | None, context: Context) -> Shape:
    """What the file says of (C, H, W), filled up from what the user says; they must not contradict each other."""
    given = options.input_shape
    if given is None:
        if said is None or None in said:
            raise UsageError(f"{context.where}: leaves its input shape open; pass it as --input-shape C,H,W")
        channels, height, width = (int(side or 0) for side in said)
        return channels, height, width
    if said is not None and any(own not in (None, other) for own, other in zip(said, given)):
        raise UsageError(f"{context.where}: expected input shape {said} as in the file, got {given}")
    return given


def _without_softmax(specs: list[Spec], output: str) -> tuple[list[Spec], str, tuple[str, ...]]:
    """Drops a last softmax: goodnet works on logits."""
    last = next((spec for spec in specs if spec["name"] == output), None)
    if last is None or last["op"] != "activation" or last["kind"] not in ("softmax", "log_softmax"):
        return specs, output, ()
    note = f"the net ends in {last['kind']}; it was left out, so that the net gives logits"
    source = last["inputs"][0]
    return [spec for spec in specs if spec is not last], source, (note,)


def _free_name(wanted: str, walk: _Walk) -> str:
    """A module name for a Keras layer: letters, digits, _ and - alone, not taken, not an attribute of modules."""
    taken = {spec["name"] for spec in walk.specs} | {INPUT}
    base = re.sub(r"[^A-Za-z0-9_\-]", "_", wanted)[:150]
    name, count = base, 1
    while name in taken or hasattr(nn.Module, name) or name in ("training", ""):
        name, count = f"{base}_{count}", count + 1
    return name


def _state(net: nn.Module, walk: _Walk, file: KerasFile, name: str) -> dict[str, Tensor]:
    shapes: Mapping[str, Any] = net.state_dict()
    state: dict[str, Tensor] = {}
    for layer, weight in walk.weights:
        if weight.key not in shapes:
            continue
        if weight.default is not None:
            state[weight.key] = torch.tensor(weight.default).expand(shapes[weight.key].shape)  # one number in memory
            continue
        arrays = file.of(layer.scope)
        wanted = (*weight.sources, str(weight.position))
        found = next((arrays[source] for source in wanted if source in arrays), None)
        if found is None:
            have = ", ".join(arrays) or "none"
            raise ModelError(f"{name}: layer {layer.name!r:.80} has no {weight.sources[0]} among its weights ({have})")
        flipped = file.backend == "theano"
        state[weight.key] = torch.from_numpy(turned(found, weight.turn, flipped=flipped))
    return state
