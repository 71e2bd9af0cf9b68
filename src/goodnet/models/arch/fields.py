"""Reading one layer's description out of JSON that a stranger may have written: every value checked, none left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from goodnet.errors import ModelError

MAX_SIDE = 1 << 16


class Fields:
    """A JSON object whose values are taken out one by one, each with its bounds; all raise ModelError."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self._left = dict(raw)
        self.where = where

    def whole(self, key: str, low: int = 1, high: int = MAX_SIDE) -> int:
        return self._whole(key, self._take(key), low, high)

    def wholes(self, key: str, count: int, low: int = 1, high: int = MAX_SIDE) -> tuple[int, ...]:
        """Exactly `count` whole numbers."""
        value = self._take(key)
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self.error(key, f"{count} whole numbers", value)
        return tuple(self._whole(key, item, low, high) for item in value)

    def dims(self, key: str, most: int, low: int = 1, high: int = 1 << 26) -> tuple[int, ...]:
        """1 to `most` whole numbers."""
        value = self._take(key)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= most:
            raise self.error(key, f"1 to {most} whole numbers", value)
        return tuple(self._whole(key, item, low, high) for item in value)

    def pair(self, key: str) -> tuple[int, int]:
        first, second = self.wholes(key, 2)
        return first, second

    def number(self, key: str, low: float = -1e6, high: float = 1e6) -> float:
        return self._number(key, self._take(key), low, high)

    def numbers(self, key: str) -> tuple[float, ...]:
        """1 to 4096 numbers."""
        value = self._take(key)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 4096:
            raise self.error(key, "a list of numbers", value)
        return tuple(self._number(key, item, -1e12, 1e12) for item in value)

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def choice(self, key: str, options: Sequence[str]) -> str:
        value = self._take(key)
        if not isinstance(value, str) or value not in options:
            raise self.error(key, " or ".join(options), value)
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape without the batch: (C, H, W) or (F,)."""
        value = self._take(key)
        if not isinstance(value, list | tuple) or len(value) not in (1, 3):
            raise self.error(key, "a shape (C, H, W) or (F,)", value)
        return tuple(self._whole(key, item, 1, 1 << 26) for item in value)

    def done(self) -> None:
        """Nothing may be left: a key that is not understood could change what the net means."""
        if self._left:
            raise ModelError(f"{self.where}: does not know the setting {next(iter(self._left))!r:.60}")

    def error(self, key: str, expected: str, value: object) -> ModelError:
        return ModelError(f"{self.where}: expected {key} to be {expected}, got {value!r:.60}")

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise ModelError(f"{self.where}: the setting {key!r} is missing")
        return self._left.pop(key)

    def _whole(self, key: str, value: Any, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"a whole number from {low} to {high}", value)
        return value

    def _number(self, key: str, value: Any, low: float, high: float) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not low <= value <= high:  # nor NaN, nor what no float holds
            raise self.error(key, f"a number from {low:g} to {high:g}", value)
        return float(value)
