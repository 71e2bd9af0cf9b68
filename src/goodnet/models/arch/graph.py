"""GraphNet: a net built from a list of layer descriptions (JSON), with real torch modules named as the layers.

The list comes from a Keras config or from a GoodNet file, so it is hostile until checked: known layers only, inputs
from earlier layers only, every number bounded. The net is first put together on torch's `meta` device, which holds
shapes without memory; only when its parameters and its largest tensor are within bounds is memory taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UnsafeFileError
from goodnet.models.arch import layers, tensor_layers
from goodnet.models.arch.fields import Fields
from goodnet.models.arch.layers import Chain, Shape
from goodnet.models.arch.shapes import chain_shapes

INPUT = "input"
MAX_LAYERS = 4096
MAX_INPUTS = 256
MAX_PARAMETERS = 1 << 29
MAX_ELEMENTS = 1 << 26
LAYERS = {**layers.LAYERS, **tensor_layers.LAYERS}
_NAME = re.compile(r"[A-Za-z0-9_\-]{1,200}")


class GraphNet(nn.Module):
    """Images (N, C, H, W) -> the output of one layer.

    Args:
        input: (C, H, W).
        layers: one object a layer: `name`, `op` (a key of LAYERS), `inputs` (names of earlier layers, or
            `input`), and the settings of that op.
        output: name of the layer whose output the net gives.

    Raises:
        ModelError: a description that does not fit; UnsafeFileError: one whose size is out of bounds.
    """

    def __init__(self, *, input: Sequence[int], layers: Sequence[Mapping[str, Any]], output: str):
        super().__init__()
        target = torch.empty(0).device
        shapes: dict[str, Shape] = {INPUT: tuple(input)}
        self._steps: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for raw in layers:
            name, inputs, chain, shape = layer(raw, shapes)
            shapes[name] = shape
            for suffix, module in chain:
                self._attach(name + suffix, module)
            self._steps.append((name, inputs, tuple(name + suffix for suffix, _ in chain)))
        if output not in shapes or output == INPUT:
            raise ModelError(f"expected the net's output to be one of its layers, got {output!r:.80}")
        self._output = output
        self._materialise(target)

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        for name, inputs, modules in self._steps:
            first, *rest = modules
            out = self._modules[first](*(values[key] for key in inputs))  # type: ignore[misc]
            for module in rest:
                out = self._modules[module](out)  # type: ignore[misc]
            values[name] = out
        return values[self._output]

    def _attach(self, name: str, module: nn.Module) -> None:
        if hasattr(self, name):
            raise ModelError(f"layer {name!r}: its name is taken; every layer needs one of its own")
        self.add_module(name, module)

    def _materialise(self, device: torch.device) -> None:
        """From shapes to memory, with the usual random start; a net on `meta` stays there."""
        size = sum(parameter.numel() for parameter in self.parameters())
        if size > MAX_PARAMETERS:
            raise UnsafeFileError(f"the net has {size} parameters, more than {MAX_PARAMETERS} are not built")
        if device.type == "meta":
            return
        self.to_empty(device=device)
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                cast(Any, module).reset_parameters()


def layer(raw: Mapping[str, Any], shapes: Mapping[str, Shape]) -> tuple[str, tuple[str, ...], Chain, Shape]:
    """A layer's name, its inputs, its modules without memory, and the shape that it gives.

    Args:
        shapes: of the net's input and of all earlier layers.

    Raises:
        ModelError, UnsafeFileError: as `GraphNet`.
    """
    name, op, inputs, fields = _parse(raw, shapes)
    with torch.device("meta"):
        chain = _make(op, fields, [shapes[key] for key in inputs])
    after = chain_shapes(chain, [shapes[key] for key in inputs], fields.where)
    _check_sizes(after, fields.where)
    return name, inputs, chain, after[-1]


def build_graph(options: Mapping[str, Any]) -> GraphNet:
    """A GraphNet from a recipe's options, which may come from a stranger's file. Raises ModelError."""
    extra = set(options) - {"input", "layers", "output"}
    layers = options.get("layers")
    if extra or not isinstance(layers, list | tuple) or not 1 <= len(layers) <= MAX_LAYERS:
        raise ModelError(f"expected a net as input, output and 1 to {MAX_LAYERS} layers, got {sorted(options)!r:.80}")
    fields = Fields({"input": options.get("input")}, "the net")
    shape = fields.wholes("input", 3, 1, 4096)
    output = options.get("output")
    if not isinstance(output, str):
        raise fields.error("output", "the name of a layer", output)
    return GraphNet(input=shape, layers=layers, output=output)


def _parse(raw: Any, shapes: Mapping[str, Shape]) -> tuple[str, str, tuple[str, ...], Fields]:
    if not isinstance(raw, Mapping):
        raise ModelError(f"expected every layer to be an object, got {type(raw).__name__}")
    settings = dict(raw)
    name, op, inputs = (settings.pop(key, None) for key in ("name", "op", "inputs"))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in shapes:
        raise ModelError(
            f"expected every layer to have a name of its own in letters, digits, _ and -, got {name!r:.80}"
        )
    if not isinstance(op, str) or op not in LAYERS:
        raise ModelError(f"layer {name!r}: expected one of {', '.join(LAYERS)}; got {op!r:.80}")
    if not isinstance(inputs, list | tuple) or not 1 <= len(inputs) <= MAX_INPUTS:
        raise ModelError(f"layer {name!r}: expected 1 to {MAX_INPUTS} inputs, got {inputs!r:.80}")
    unknown = [key for key in inputs if not isinstance(key, str) or key not in shapes]
    if unknown:
        raise ModelError(f"layer {name!r}: its input {unknown[0]!r:.80} is no earlier layer")
    return name, op, tuple(inputs), Fields(settings, f"layer {name!r} ({op})")


def _make(op: str, fields: Fields, shapes: list[Shape]) -> Chain:
    try:
        chain = LAYERS[op](fields, shapes)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"{fields.where}: {error}") from error
    fields.done()
    return chain


def _check_sizes(shapes: list[Shape], where: str) -> None:
    largest = max(math.prod(shape) for shape in shapes)
    if largest > MAX_ELEMENTS:
        raise UnsafeFileError(f"{where}: gives {largest} numbers an image, more than {MAX_ELEMENTS}; refused")
