"""What a walk over the operators of somebody's graph has made so far, and how an operator adds to it.

ONNX and torch.export files are graphs of operators; each operator becomes layers of a GraphNet. In a GraphNet the axis
of images stands in front; in a file it may stand anywhere, and be joined with heads. A Layout says where it is in a
tensor of the file: the numbers of each image, row after row, are those of the layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.models.arch import GRAPH, build
from goodnet.models.arch.graph import layer
from goodnet.models.classifier import Recipe
from goodnet.models.formats import Loaded, LoadOptions, Shape, one_line
from goodnet.models.weights import load_weights

Array = npt.NDArray[Any]
Spec = dict[str, Any]
BATCH = -(1 << 40)
"""Stands for the number of images in shapes that a file computes; no size is as low. `2 * BATCH` is twice as many."""
_SIDE = 4096
_SOFTMAXES = ("softmax", "log_softmax")
_ANY_LAYOUT = ("activation", "function")  # they look at one number at a time


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where images are counted in a tensor of the file: along `axis`, by `major` runs of all images, with `times`
    entries for each image in a run. (tokens * images, features) has as many runs as tokens, (images * heads, ...) as
    many times as heads. In the layer the runs and the times are axes of their own, if there is more than one.
    """

    axis: int = 0
    major: int = 1
    times: int = 1

    @property
    def inner(self) -> int:
        """How many axes of the layer the file's one axis holds."""
        return (self.major > 1) + (self.times > 1)

    @property
    def each(self) -> int:
        """Entries along the axis for each image."""
        return self.major * self.times


FIRST = Layout()


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator: attributes as Python values, tensors among them as arrays."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Walk:
    """What the walk over the operators has made so far.

    Attributes:
        file: for messages.
        opset: of ONNX's operators, for settings that changed their place; 0 for other graphs.
        constants: what is known without an image, by name.
        values: which layer gives a tensor, by the tensor's name.
        batch: how many images the file is fixed to; None where it is not.
        layouts: of tensors in which images are not counted first, by the tensor's name.
        stretched: constants that stand for one of each image, alike.
        sizes: whole numbers that the graph computes of shapes, by name.
        nan_of: which tensor is asked for NaN, by the name of the answer.
        shapes: what each layer gives, batch left out.
        uses: how many operators take a tensor.
    """

    file: str
    opset: int
    constants: dict[str, Array]
    values: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    uses: Mapping[str, int]
    batch: int | None = None
    layouts: dict[str, Layout] = field(default_factory=dict)
    stretched: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    nan_of: dict[str, str] = field(default_factory=dict)
    specs: list[Spec] = field(default_factory=list)
    state: dict[str, Array] = field(default_factory=dict)

    def where(self, node: Node) -> str:
        return f"{self.file}: operator {node.name or node.outputs[0]!r:.80} ({node.op:.40})"

    def each(self, nodes: Iterable[Node], translate: Callable[[Walk, Node], None]) -> None:
        """Translates the operators one by one. Settings of a type or a number that no exporter writes end in a
        ModelError, too."""
        for node in nodes:
            try:
                with np.errstate(all="ignore"):  # weights that are not finite are refused in the end
                    translate(self, node)
            except (GoodnetError, MemoryError):
                raise
            except Exception as error:
                raise ModelError(
                    f"{self.where(node)}: a setting makes no sense ({type(error).__name__}: {one_line(error)})"
                ) from error

    def source(self, node: Node, index: int = 0) -> str:
        """The layer that gives an input, in which images are counted first."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        layer, layout = self.value(node, name)
        if layout != FIRST:
            raise self.refuse(node, "an input whose images are not counted by its first axis", name)
        return layer

    def value(self, node: Node, name: str) -> tuple[str, Layout]:
        """The layer that gives a tensor, and how that lies in the file."""
        if name not in self.values:
            what = "a constant" if name in self.constants else "made by no operator before it"
            raise ModelError(
                f"{self.where(node)}: its input {name!r:.60} is {what}; expected one that the image decides"
            )
        return self.values[name], self.layouts.get(name, FIRST)

    def shape_of(self, node: Node, index: int = 0) -> tuple[int, ...]:
        return self.shapes[self.source(node, index)]

    def constant(self, node: Node, index: int) -> Array | None:
        """A constant input; None where it is left out."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if not name:
            return None
        if name not in self.constants:
            raise ModelError(f"{self.where(node)}: its input {name!r:.60} has to be a constant")
        return self.constants[name]

    def add(self, node: Node, op: str, *, weights: Mapping[str, Array] | None = None, **settings: Any) -> None:
        """A layer on the node's first input, whose output becomes the node's."""
        if op in _ANY_LAYOUT and node.inputs:
            layer, layout = self.value(node, node.inputs[0])
            self.join(node, op, [layer], layout=layout, weights=weights, **settings)
        else:
            self.join(node, op, [self.source(node)], weights=weights, **settings)

    def join(
        self, node: Node, op: str, inputs: list[str], *, weights: Mapping[str, Array] | None = None,
        layout: Layout = FIRST, output: str = "", **settings: Any,
    ) -> None:  # fmt: skip
        """A layer on these layers, which gives the tensor `output`, the node's first if not said otherwise."""
        self.gives(output or node.outputs[0], self.layer(node, op, inputs, weights=weights, **settings), layout)

    def layer(
        self, node: Node, op: str, inputs: list[str], *, weights: Mapping[str, Array] | None = None, **settings: Any
    ) -> str:
        """A layer on these layers; its name."""
        name = self._free_name(node.name or node.outputs[0] or node.op)
        spec = {"name": name, "op": op, "inputs": inputs, **settings}
        try:
            _, _, _, self.shapes[name] = layer(spec, self.shapes)
        except (ModelError, UnsafeFileError) as error:
            raise type(error)(f"{self.where(node)}: {error}") from error
        self.specs.append(spec)
        self.state.update({f"{name}.{key}": value for key, value in (weights or {}).items()})
        return name

    def gives(self, output: str, layer: str, layout: Layout) -> None:
        """A tensor of the file is what a layer gives."""
        self.values[output] = layer
        self.layouts[output] = layout

    def same(self, node: Node) -> None:
        """What changes nothing."""
        self.gives(node.outputs[0], *self.value(node, node.inputs[0] if node.inputs else ""))

    def done(self, node: Node, *known: str) -> None:
        """Every attribute must be one that is handled: one that is not could change what the net means."""
        stray = next((name for name in node.attributes if name not in known), None)
        if stray is not None:
            raise ModelError(f"{self.where(node)}: does not know the setting {stray!r:.60}")

    def refuse(self, node: Node, what: str, got: Any) -> ModelError:
        return ModelError(f"{self.where(node)}: {what} that goodnet does not read: {got!r:.80}")

    def unknown(self, node: Node, known: Iterable[str]) -> ModelError:
        """For an operator that is none of `known`. Guards, as `goodnet export` writes them, begin with one."""
        hint = ""
        if node.op.lower() in ("argmax", "reducemax") or ".amax" in node.op or ".argmax" in node.op:
            hint = "; if this is a GoodNet that goodnet export wrote, give the .safetensors file that it was made from"
        return ModelError(
            f"{self.where(node)}: not an operator that goodnet reads{hint}; it reads {', '.join(sorted(known))}"
        )

    def _free_name(self, wanted: str) -> str:
        """A module name: letters, digits, _ and - alone, not taken, not an attribute of modules."""
        base = re.sub(r"[^A-Za-z0-9_\-]", "_", wanted.strip("/"))[:150]
        name, count = base, 1
        while (
            name in self.shapes or hasattr(nn.Module, name) or name in ("training", "") or f"{name}__pad" in self.shapes
        ):
            name, count = f"{base}_{count}", count + 1
        return name


def image_shape(said: Sequence[int | None], options: LoadOptions, file: str) -> Shape:
    """(C, H, W): what a file says, filled up from what the user says.

    Args:
        said: C, H and W; None where the file leaves one open.

    Raises:
        UsageError: it stays open, or the two contradict each other; UnsafeFileError: sides out of bounds.
    """
    given = options.input_shape
    if given is None and None in said:
        raise UsageError(f"{file}: leaves its input shape open ({tuple(said)}); pass it as --input-shape C,H,W")
    if given is not None and any(own not in (None, other) for own, other in zip(said, given)):
        raise UsageError(f"{file}: expected input shape {tuple(said)} as in the file, got {given}")
    channels, height, width = given if given is not None else (int(side or 0) for side in said)
    shape = (channels, height, width)
    if not all(1 <= side <= _SIDE for side in shape):
        raise UnsafeFileError(f"{file}: expected images of sides up to {_SIDE}, got {shape}; refused")
    return shape


def finished(walk: Walk, output: str, shape: tuple[int, int, int]) -> Loaded:
    """The net of a finished walk, with its weights. A softmax at its end is left out: goodnet works on logits.

    Args:
        output: name of the tensor that the net gives.
        shape: (C, H, W) of its images.

    Raises:
        ModelError, UnsafeFileError: nothing gives that tensor, weights that do not fit, or sizes out of bounds.
    """
    source = walk.values.get(output)
    last = next((spec for spec in walk.specs if spec["name"] == source), None)
    if source is None or last is None:
        raise ModelError(f"{walk.file}: its output {output!r:.80} is made by no operator")
    if walk.layouts.get(output, FIRST) != FIRST:
        raise ModelError(f"{walk.file}: expected its output {output!r:.80} to count images by its first axis")
    specs: list[Spec] = walk.specs
    notes: tuple[str, ...] = ()
    if last["op"] == "activation" and last["kind"] in _SOFTMAXES:
        specs, source = [spec for spec in specs if spec is not last], last["inputs"][0]
        notes = (f"the net ends in {last['kind']}; it was left out, so that the net gives logits",)
    recipe = Recipe(arch=GRAPH, options={"input": list(shape), "layers": specs, "output": source})
    try:
        net = build(recipe)
    except (ModelError, UnsafeFileError) as error:
        raise type(error)(f"{walk.file}: {error}") from error
    state = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in walk.state.items()}
    load_weights(net, state, name=walk.file)
    return Loaded(net=net, recipe=recipe, shape=shape, notes=notes)
