"""A net of Hugging Face's drawn layer by layer: GraphNet's descriptions, and which weights of the folder go where.

A layer has the name that its weights have in the folder, with `_` for the dots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from goodnet.errors import UnsafeFileError
from goodnet.models.arch.fields import Fields
from goodnet.models.arch.graph import INPUT, layer

MAX_DEPTH = 256
MAX_CONSTANTS = 1 << 26
"""Numbers that may be made of a folder's tokens, places and tables: a table of Swin's grows with the image."""
WIDEST = 1 << 16
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "selu": "selu",
    "mish": "mish",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(kw_only=True)
class Drawing:
    """The layers so far.

    Attributes:
        shapes: what each layer gives, batch left out.
        keys: which of the folder's weights is which of ours, by our name.
        made: how ours are made of the folder's, where they are not the same.
        numbers: in all constants.
        last: the newest layer, on which the next one goes.
    """

    shapes: dict[str, tuple[int, ...]]
    specs: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    made: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    numbers: int = 0
    last: str = INPUT

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.last]

    def add(
        self, prefix: str, op: str, *inputs: str, weights: tuple[str, ...] = ("weight", "bias"), **settings: Any
    ) -> str:
        """A layer on `inputs`, or on the newest one, whose weights have the prefix in the folder."""
        spec = {"name": self._name(prefix), "op": op, "inputs": list(inputs or (self.last,)), **settings}
        name, _, _, self.shapes[spec["name"]] = layer(spec, self.shapes)
        self.specs.append(spec)
        self.keys.update({f"{name}.{weight}": f"{prefix}.{weight}" for weight in weights})
        self.last = name
        return name

    def plain(self, op: str, *inputs: str, **settings: Any) -> str:
        """A layer without weights."""
        return self.add(op, op, *inputs, weights=(), **settings)

    def constant(
        self, key: str, shape: tuple[int, ...], made: Callable[[Tensor], Tensor] | None = None
    ) -> str:  # fmt: skip
        """A weight of the folder as a tensor of its own; what is `made` of it, or itself."""
        name = self.add(key, "constant", INPUT, weights=(), shape=list(shape))
        self.keys[f"{name}.value"] = key
        self.numbers += math.prod(shape)
        if self.numbers > MAX_CONSTANTS:
            raise UnsafeFileError(f"makes more than {MAX_CONSTANTS} numbers of tables and places; refused")
        self.made[f"{name}.value"] = lambda value: _in_a_row(made(value) if made else value, shape)
        return name

    def merge(self, kind: str, *inputs: str) -> str:
        return self.plain("merge", *inputs, kind=kind)

    def linear(self, prefix: str, units: int, *inputs: str, bias: bool = True) -> str:
        """On the last axis; `linear` where that is the only one, as everywhere else in goodnet."""
        op = "linear" if len(self.shapes[inputs[0] if inputs else self.last]) == 1 else "linear_last"
        return self.add(prefix, op, *inputs, weights=_with(bias), units=units, bias=bias)

    def norm(self, prefix: str, eps: float) -> str:
        return self.add(prefix, "layer_norm", axes=1, eps=eps)

    def conv(
        self, prefix: str, filters: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), *,
        pads: int | None = None, groups: int = 1, dilation: int = 1, bias: bool = False,
    ) -> str:  # fmt: skip
        """`pads` on every side, or as TensorFlow's `same` where it is None."""
        padding = {"padding": "same"} if pads is None else {"padding": "explicit", "pads": [pads] * 4}
        return self.add(
            prefix, "conv2d", weights=_with(bias), filters=filters, groups=groups, kernel=list(kernel),
            stride=list(stride), dilation=[dilation] * 2, bias=bias, **padding,
        )  # fmt: skip

    def batch_norm(self, prefix: str, eps: float = 1e-5) -> str:
        names = ("weight", "bias", "running_mean", "running_var")
        return self.add(prefix, "batch_norm", weights=names, eps=eps)

    def activation(self, kind: str | None) -> None:
        if kind is not None:
            self.plain("activation", kind=kind)

    def _name(self, prefix: str) -> str:
        base, count = prefix.replace(".", "_"), 1
        name = base
        while name in self.shapes:
            name, count = f"{base}_{count}", count + 1
        return name


def _in_a_row(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat, if its sides are those of `shape` but for sides of 1; else as it is, to be refused for its shape."""
    alike = [side for side in value.shape if side != 1] == [side for side in shape if side != 1]
    return value.reshape(-1) if alike else value.unsqueeze(0)


def _with(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def settings_of(config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Fields:
    """Those of a config that `defaults` names, with transformers' own defaults where it leaves one out."""
    return Fields({key: config.get(key, value) for key, value in defaults.items()}, where)


def pair(fields: Fields, config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """Rows and columns: one number for both, or two."""
    value = config.get(key, default)
    one = isinstance(value, int) and not isinstance(value, bool)
    return Fields({key: [value, value] if one else value}, fields.where).pair(key)


def depths_of(fields: Fields) -> tuple[int, ...]:
    """Blocks in each stage."""
    depths = fields.dims("depths", 8, 1, MAX_DEPTH)
    if sum(depths) > MAX_DEPTH:
        raise fields.error("depths", f"at most {MAX_DEPTH} layers", list(depths))
    return depths


def activation_of(fields: Fields) -> str:
    """Ours for `hidden_act`."""
    return ACTIVATIONS[fields.choice("hidden_act", list(ACTIVATIONS))]
