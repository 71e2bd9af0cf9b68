"""An ONNX graph -> a GraphNet that gives the same logits, and the recipe to build it again without ONNX."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from goodnet.errors import ModelError, UsageError
from goodnet.models.arch.graph import INPUT
from goodnet.models.formats import Loaded, LoadOptions, Shape
from goodnet.models.graph_tensors import dims_of
from goodnet.models.graph_walk import BATCH, Node, Walk, finished, image_shape
from goodnet.models.onnx_constants import FOLDED, fold
from goodnet.models.onnx_ops import translate
from goodnet.models.onnx_read import OnnxGraph, read_onnx


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
    walk.each(graph.nodes, _translate)
    return finished(walk, graph.output, shape)


def _translate(walk: Walk, node: Node) -> None:
    """Folds what is known without an image; all else becomes layers."""
    known = all(name in walk.constants or not name for name in node.inputs)
    if node.op in FOLDED and known:
        walk.constants.update(fold(node, walk.constants, walk.where(node)))
        to_all = node.op == "Expand" and BATCH in walk.constants[node.inputs[1]]
        if to_all or walk.stretched.intersection(node.inputs):
            walk.stretched.add(node.outputs[0])
    elif node.op == "Shape":
        walk.done(node, "start", "end")
        (name,) = node.inputs
        if name in walk.stretched:
            raise walk.refuse(node, "the shape of a constant that is stretched to all images", name)
        sides = list(walk.constants[name].shape) if known else dims_of(walk, node, name)
        start, end = node.attributes.get("start", 0), node.attributes.get("end")
        walk.constants[node.outputs[0]] = np.array(sides[start:end], np.int64)
    else:
        translate(walk, node)


def _start(graph: OnnxGraph, options: LoadOptions, file: str) -> tuple[Walk, Shape]:
    """The walk before the first operator, and the image (C, H, W). Images that lie N, H, W, C are turned first."""
    sides = graph.shape[1:]
    if len(sides) != 3:
        raise ModelError(f"{file}: expected an input of images (N, C, H, W), got {graph.shape}")
    last = sides[0] not in (1, 3) and sides[2] in (1, 3)
    said = (sides[2], sides[0], sides[1]) if last else sides
    shape = image_shape(said, options, file)
    walk = Walk(
        file=file,
        opset=graph.opset,
        constants=dict(graph.constants),
        values={graph.input: INPUT},
        shapes={INPUT: shape},
        uses=Counter([*(name for node in graph.nodes for name in node.inputs), graph.output]),
        batch=graph.shape[0],
    )
    if last:
        turned = Node(op="Transpose", name="nhwc", inputs=(graph.input,), outputs=(graph.input,))
        walk.join(turned, "permute", [INPUT], dims=[2, 3, 1])
    return walk, shape
