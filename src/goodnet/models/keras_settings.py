"""What the translation of Keras layers works with: their settings, read under the names of every age, and results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from goodnet.errors import ModelError
from goodnet.models.keras_config import KerasLayer

Spec = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One tensor of the state dict: `key`, the Keras arrays that it may be, its place in Keras's order, how to turn it.

    `default` is what fills it where the layer has none (BatchNormalization without scale or center).
    """

    key: str
    sources: tuple[str, ...]
    position: int
    turn: str = ""
    default: float | None = None


@dataclass(frozen=True, kw_only=True)
class Translated:
    """GraphNet layers (the last one's output is the Keras layer's) and the weights that they need."""

    specs: list[Spec] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What holds for the whole model: where channels are, Keras's major version, and its backend where known."""

    channels_last: bool
    version: int
    backend: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A Keras layer's settings, with names for messages."""

    layer: KerasLayer
    context: Context

    @property
    def where(self) -> str:
        return f"{self.context.where}: layer {self.layer.name!r:.80} ({self.layer.kind})"

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of `names` that the config has and that is not null."""
        values = (self.layer.config.get(name) for name in names)
        return next((value for value in values if value is not None), default)

    def pair(self, *names: str, default: Any = None) -> list[int]:
        value = self.get(*names, default=default)
        value = [value, value] if isinstance(value, int) else value
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(item, int) for item in value):
            raise ModelError(f"{self.where}: expected {names[0]} to be two whole numbers, got {value!r:.60}")
        return value

    @property
    def order(self) -> str:
        return "hwc" if self.context.channels_last else "chw"

    def number(self, *names: str, default: float) -> float:
        value = self.get(*names, default=default)
        if not isinstance(value, int | float) or (isinstance(value, int) and value.bit_length() > 64):
            raise ModelError(f"{self.where}: expected {names[0]} to be a number, got {value!r:.60}")
        return float(value)

    def padding(self) -> str:
        return str(self.get("padding", "border_mode", default="valid"))

    def refuse(self, what: str) -> ModelError:
        return ModelError(f"{self.where}: {what} cannot be read; only what goodnet computes exactly is accepted")
