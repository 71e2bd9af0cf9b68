"""A Keras model as a list of stock layers, each with its settings, weights and inputs, before Keras has been seen.

Values are (H, W, C) or (F,), batch left out: channels last, as Keras has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from goodnet.errors import ModelError

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]
INPUT = "images"
# Beyond what separates two float32 logits of any size that nets have, so that a difference becomes 0 or 1.
_SHARP = 1e12


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a layer gives. `border`: left, right, top, bottom of -inf around it, which only a max pool can take."""

    layer: str
    shape: Shape
    border: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One stock layer: `kind` is its class in keras.layers."""

    kind: str
    name: str
    inputs: tuple[Value, ...]
    settings: Mapping[str, Any]
    weights: tuple[Array, ...]


@dataclass(kw_only=True, eq=False)
class Plan:
    """The layers so far, each after those that feed it."""

    where: str
    steps: dict[str, Step] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        *inputs: Value,
        shape: Shape | None = None,
        name: str = "",
        weights: Sequence[Tensor] = (),
        **settings: Any,
    ) -> Value:
        """One layer more; `shape` is what it gives, where that is not the shape of its first input."""
        if any(any(value.border) for value in inputs):
            raise self.refuse(f"{name or kind}: padding with -inf before it")
        base = re.sub(r"[^A-Za-z0-9_]", "_", name or kind.lower()).strip("_")[:100] or "layer"
        free, count = base, 1
        while free in self.steps or free == INPUT:
            free, count = f"{base}_{count}", count + 1
        arrays = tuple(np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32) for tensor in weights)
        self.steps[free] = Step(kind=kind, name=free, inputs=inputs, settings=settings, weights=arrays)
        return Value(layer=free, shape=inputs[0].shape if shape is None else shape)

    def scaled(
        self, x: Value, scale: Sequence[float] | float, offset: Sequence[float] | float, name: str = ""
    ) -> Value:
        """x * scale + offset, one number each or one a channel."""
        plain = [
            row[0] if isinstance(row, Sequence) and len(row) == 1 else list(row) if isinstance(row, Sequence) else row
            for row in (scale, offset)
        ]
        return x if plain == [1.0, 0.0] else self.add("Rescaling", x, name=name, scale=plain[0], offset=plain[1])

    def dense(self, x: Value, weight: Tensor, bias: Tensor | None = None, name: str = "") -> Value:
        """`weight` (out, in), as torch has it."""
        weights = [weight.T] if bias is None else [weight.T, bias]
        units = len(weight)
        return self.add("Dense", x, shape=(units,), name=name, weights=weights, units=units, use_bias=bias is not None)

    def permuted(self, x: Value, axes: Shape) -> Value:
        """Output axis i is input axis `axes[i]`, of 1, 2, 3. Two in a row become one, or none."""
        made = self.steps.get(x.layer)
        if made is not None and made.kind == "Permute":
            before = made.settings["dims"]
            x, axes = made.inputs[0], tuple(before[axis - 1] for axis in axes)
        if axes == (1, 2, 3):
            return x
        return self.add("Permute", x, shape=tuple(x.shape[axis - 1] for axis in axes), dims=list(axes))

    def flat(self, x: Value, name: str = "") -> Value:
        """Channel by channel, as torch lays a picture out; what is flat stays."""
        if len(x.shape) == 1:
            return x
        x = x if x.shape[:2] == (1, 1) else self.permuted(x, (3, 1, 2))
        return self.add("Flatten", x, shape=(math.prod(x.shape),), name=name)

    def padded(self, x: Value, pads: tuple[int, int, int, int]) -> Value:
        """`pads`: left, right, top, bottom; zeros."""
        left, right, top, bottom = pads
        if not any(pads):
            return x
        h, w, c = x.shape
        shape = (h + top + bottom, w + left + right, c)
        return self.add("ZeroPadding2D", x, shape=shape, padding=[[top, bottom], [left, right]])

    def largest(self, x: Value) -> Value:
        """(K,) -> (1,)."""
        if x.shape == (1,):
            return x
        picture = self.add("Reshape", x, shape=(*x.shape, 1, 1), target_shape=[*x.shape, 1, 1])
        return self.add("GlobalMaxPooling2D", picture, shape=(1,))

    def positive(self, x: Value) -> Value:
        """1 where x > 0, else 0."""
        return self.add("ReLU", self.scaled(x, _SHARP, 0.0), max_value=1.0)

    def at_zero(self, x: Value) -> Value:
        """x <= 0 -> 1 where it is 0, else 0."""
        return self.add("ReLU", self.scaled(x, _SHARP, 1.0))

    def refuse(self, what: str) -> ModelError:
        return ModelError(f"{self.where}: {what} cannot be written in stock Keras layers")
