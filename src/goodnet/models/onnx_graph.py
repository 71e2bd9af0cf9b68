"""An ONNX graph -> a GraphNet that gives the same logits, and the recipe to build it again without ONNX."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models.arch import GRAPH, build
from goodnet.models.arch.graph import INPUT
from goodnet.models.classifier import Recipe
from goodnet.models.formats import Loaded, LoadOptions, Shape
from goodnet.models.onnx_constants import BATCH, FOLDED, fold
from goodnet.models.onnx_ops import translate
from goodnet.models.onnx_read import Node, OnnxGraph, read_onnx
from goodnet.models.onnx_walk import Spec, Walk
from goodnet.models.weights import load_weights

_SIDE = 4096
_SOFTMAXES = ("softmax", "log_softmax")


def load_onnx(path: Path, options: LoadOptions) -> Loaded:
    """Reads an ONNX classifier.

    Raises:
        UsageError: onnx is not installed, the input shape is open or contradicts `options`, or `--arch` is given.
        UnsafeFileError: see `onnx_read`.
        ModelError: operators or settings that are not read, weights that do not fit.
    """
    if options.arch is not None:
        raise UsageError(f"{path}: holds the whole net, so --arch {options.arch} has no place; leave it out")
    graph = read_onnx(path)
    walk, shape = _start(graph, options, str(path))
    for node in graph.nodes:
        if node.op in FOLDED and all(name in walk.constants or not name for name in node.inputs):
            walk.constants.update(fold(node, walk.constants, walk.where(node)))
        elif node.op == "Shape":
            walk.constants[node.outputs[0]] = np.array([BATCH, *walk.shape_of(node)], np.int64)
        else:
            translate(walk, node)
    output = walk.values.get(graph.output)
    if output is None or output == INPUT:
        raise ModelError(f"{path}: its output {graph.output!r:.80} is made by no operator")
    specs, output, notes = _without_softmax(walk.specs, output)
    recipe = Recipe(arch=GRAPH, options={"input": list(shape), "layers": specs, "output": output})
    try:
        net = build(recipe)
    except (ModelError, UnsafeFileError) as error:
        raise type(error)(f"{path}: {error}") from error
    state = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in walk.state.items()}
    load_weights(net, state, name=str(path))
    return Loaded(net=net, recipe=recipe, shape=shape, notes=notes)


def _start(graph: OnnxGraph, options: LoadOptions, file: str) -> tuple[Walk, Shape]:
    """The walk before the first operator, and the image (C, H, W). Images that lie N, H, W, C are turned first."""
    sides = graph.shape[1:]
    if len(sides) != 3:
        raise ModelError(f"{file}: expected an input of images (N, C, H, W), got {graph.shape}")
    last = sides[0] not in (1, 3) and sides[2] in (1, 3)
    said = (sides[2], sides[0], sides[1]) if last else sides
    given = options.input_shape
    if given is None and None in said:
        raise UsageError(f"{file}: leaves its input shape open ({said}); pass it as --input-shape C,H,W")
    if given is not None and any(own not in (None, other) for own, other in zip(said, given)):
        raise UsageError(f"{file}: expected input shape {said} as in the file, got {given}")
    channels, height, width = given if given is not None else (int(side or 0) for side in said)
    shape = (channels, height, width)
    if not all(1 <= side <= _SIDE for side in shape):
        raise UnsafeFileError(f"{file}: expected images of sides up to {_SIDE}, got {shape}; refused")
    walk = Walk(
        file=file,
        opset=graph.opset,
        constants=dict(graph.constants),
        values={graph.input: INPUT},
        shapes={INPUT: shape},
        uses=Counter([*(name for node in graph.nodes for name in node.inputs), graph.output]),
    )
    if last:
        turned = Node(op="Transpose", name="nhwc", inputs=(graph.input,), outputs=(graph.input,))
        walk.join(turned, "permute", [INPUT], dims=[2, 3, 1])
    return walk, shape


def _without_softmax(specs: list[Spec], output: str) -> tuple[list[Spec], str, tuple[str, ...]]:
    """Drops a last softmax: goodnet works on logits."""
    last = next(spec for spec in specs if spec["name"] == output)
    if last["op"] != "activation" or last["kind"] not in _SOFTMAXES:
        return specs, output, ()
    note = f"the net ends in {last['kind']}; it was left out, so that the net gives logits"
    return [spec for spec in specs if spec is not last], last["inputs"][0], (note,)
