"""What the walk over an ONNX graph's operators has made so far, and how an operator adds to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from goodnet.errors import ModelError, UnsafeFileError
from goodnet.models.arch.graph import layer
from goodnet.models.onnx_read import Array, Node

Spec = dict[str, Any]


@dataclass(kw_only=True)
class Walk:
    """What the walk over the operators has made so far.

    Attributes:
        file, opset: for messages, and for settings that changed their place.
        constants: what is known without an image, by name.
        values: which layer gives a tensor, by the tensor's name.
        shapes: what each layer gives, batch left out.
        uses: how many operators take a tensor.
    """

    file: str
    opset: int
    constants: dict[str, Array]
    values: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    uses: Mapping[str, int]
    specs: list[Spec] = field(default_factory=list)
    state: dict[str, Array] = field(default_factory=dict)

    def where(self, node: Node) -> str:
        return f"{self.file}: operator {node.name or node.outputs[0]!r:.80} ({node.op:.40})"

    def source(self, node: Node, index: int = 0) -> str:
        """The layer that gives an input."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self.values:
            what = "a constant" if name in self.constants else "made by no operator before it"
            raise ModelError(
                f"{self.where(node)}: its input {name!r:.60} is {what}; expected one that the image decides"
            )
        return self.values[name]

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
        self.join(node, op, [self.source(node)], weights=weights, **settings)

    def join(
        self, node: Node, op: str, inputs: list[str], *, weights: Mapping[str, Array] | None = None, **settings: Any
    ) -> None:
        """A layer on these layers."""
        name = self._free_name(node.name or node.outputs[0] or node.op)
        spec = {"name": name, "op": op, "inputs": inputs, **settings}
        try:
            _, _, _, self.shapes[name] = layer(spec, self.shapes)
        except (ModelError, UnsafeFileError) as error:
            raise type(error)(f"{self.where(node)}: {error}") from error
        self.specs.append(spec)
        self.state.update({f"{name}.{key}": value for key, value in (weights or {}).items()})
        self.values[node.outputs[0]] = name

    def same(self, node: Node) -> None:
        """What changes nothing."""
        self.values[node.outputs[0]] = self.source(node)

    def done(self, node: Node, *known: str) -> None:
        """Every attribute must be one that is handled: one that is not could change what the net means."""
        stray = next((name for name in node.attributes if name not in known), None)
        if stray is not None:
            raise ModelError(f"{self.where(node)}: does not know the setting {stray!r:.60}")

    def refuse(self, node: Node, what: str, got: Any) -> ModelError:
        return ModelError(f"{self.where(node)}: {what} that goodnet does not read: {got!r:.80}")

    def _free_name(self, wanted: str) -> str:
        """A module name: letters, digits, _ and - alone, not taken, not an attribute of modules."""
        base = re.sub(r"[^A-Za-z0-9_\-]", "_", wanted.strip("/"))[:150]
        name, count = base, 1
        while (
            name in self.shapes or hasattr(nn.Module, name) or name in ("training", "") or f"{name}__pad" in self.shapes
        ):
            name, count = f"{base}_{count}", count + 1
        return name
