"""What damages bytes, text and JSON, whatever the format. All chance comes from the `Random` that is passed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Others = Sequence[bytes]
Mutator = Callable[[bytes, Random, Others], bytes]

_EDGES = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40,
          (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 255, 4096, 1 << 20, 1 << 31, 1 << 40, 1 << 63, 1 << 64, 10**400, -(10**30),
    0.5, -0.0, 1e-300, 1e308, -1e308, float("nan"), float("inf"), "", "x", "0", "\n\x1b[31m", "<b>&\"'", "../../x",
    "/etc/passwd", "\ud800", "é" * 300, "same", "valid", "Lambda", "relu", "tf", "channels_first", [], {}, [[]], [0],
    [1, 1], [2, 2, 2], [None, None], [-1], [1 << 40], [""], {"": None}, {"class_name": "Lambda", "config": {}},
    {"class_name": "__lambda__", "config": {"value": "x"}}, {"config": {}},
)  # fmt: skip
_NUMBER = re.compile(rb"\d+")
_MAX_PLACES = 4000


def damage(data: bytes, rng: Random, others: Others) -> bytes:
    """One to four changes of bytes that know nothing of the format."""
    for _ in range(1 + int(rng.random() ** 3 * 4)):
        data = rng.choice(_BYTE_CHANGES)(data, rng, others)
    return data


def numbers(data: bytes, rng: Random, others: Others) -> bytes:
    """A number that is written in digits becomes another, longer or shorter."""
    found = list(_NUMBER.finditer(data[: 1 << 16]))
    if not found:
        return damage(data, rng, others)
    where = rng.choice(found)
    return data[: where.start()] + str(rng.choice(_EDGES)).encode() + data[where.end() :]


def json_text(data: bytes, rng: Random, others: Others) -> bytes:
    """JSON with one to three nodes replaced, dropped, doubled, swapped or nested; rarely damaged as text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return damage(data, rng, others)
    if rng.random() < 0.02:
        depth = rng.choice((50, 2_000, 60_000))
        return rng.choice((b"[", b'{"a":')) * depth + data
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = json_value(value, rng)
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    return damage(text, rng, others) if rng.random() < 0.05 else text


def json_value(value: Any, rng: Random) -> Any:
    """A copy of a JSON value, changed in one place; JSON in its strings is looked into."""
    root = [copy.deepcopy(value)]
    places = _places(root)
    holder, key = rng.choice(places)
    old = holder[key]
    if isinstance(old, str) and old[:1] in ("{", "[") and rng.random() < 0.9:
        holder[key] = json_text(old.encode("utf-8", "surrogatepass"), rng, ()).decode("utf-8", "replace")
        return root[0]
    action = rng.random()
    if action < 0.45:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
    elif action < 0.6:
        other, place = rng.choice(places)
        holder[key] = copy.deepcopy(other[place])
    elif action < 0.72 and holder is not root:
        del holder[key]
    elif action < 0.82:
        holder[key] = [old] if rng.random() < 0.5 else {str(key): old}
    elif isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(old))
    else:
        holder[rng.choice(("", "x", "name", "config", f"{key}2"))] = copy.deepcopy(old)
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.2:
        near = old + rng.choice((-2, -1, 1, 2))
        if isinstance(holder, dict) or (isinstance(key, int) and key < len(holder)):
            holder[key] = near
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every (container, key) below `root`, up to a bound."""
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [root]
    while stack and len(places) < _MAX_PLACES:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])
    return places


def _flip(data: bytes, rng: Random, others: Others) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if out:
            out[_at(rng, len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set(data: bytes, rng: Random, others: Others) -> bytes:
    out = bytearray(data or b"\0")
    out[_at(rng, len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def _integer(data: bytes, rng: Random, others: Others) -> bytes:
    width = rng.choice((2, 4, 4, 8, 8))
    if len(data) < width:
        return _set(data, rng, others)
    at, order = _at(rng, len(data) - width + 1), rng.choice(("little", "little", "big"))
    old = int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]
    new = rng.choice((*_EDGES, old + 1, old - 1, old * 2, len(data))) % (1 << (8 * width))
    return data[:at] + new.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]


def _cut(data: bytes, rng: Random, others: Others) -> bytes:
    at = _at(rng, len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 4, 8, 16, 100, 1000)) :]


def _truncate(data: bytes, rng: Random, others: Others) -> bytes:
    return data[: _at(rng, len(data) + 1)] if rng.random() < 0.8 else data[_at(rng, len(data) + 1) :]


def _repeat(data: bytes, rng: Random, others: Others) -> bytes:
    at, length = _at(rng, len(data) + 1), rng.choice((1, 2, 4, 8, 64, 512))
    return data[: at + length] + data[at : at + length] * rng.choice((1, 1, 2, 20)) + data[at + length :]


def _insert(data: bytes, rng: Random, others: Others) -> bytes:
    at = _at(rng, len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 40))) + data[at:]


def _move(data: bytes, rng: Random, others: Others) -> bytes:
    """A piece of another file, or of this one, over or into this one."""
    source = rng.choice(others) if others and rng.random() < 0.5 else data
    start, at, length = _at(rng, len(source) + 1), _at(rng, len(data) + 1), rng.choice((2, 4, 8, 32, 256, 4096))
    piece = source[start : start + length]
    return data[:at] + piece + data[at + (len(piece) if rng.random() < 0.7 else 0) :]


def _zero(data: bytes, rng: Random, others: Others) -> bytes:
    at, length = _at(rng, len(data) + 1), rng.choice((4, 8, 16, 64))
    fill = rng.choice((b"\0", b"\xff"))
    return data[:at] + fill * len(data[at : at + length]) + data[at + length :]


def _at(rng: Random, size: int) -> int:
    """A place; half of the time among the first or last bytes, where headers and directories are."""
    if size < 2:
        return 0
    way = rng.random()
    if way < 0.35:
        return rng.randrange(min(size, 300))
    return size - 1 - rng.randrange(min(size, 300)) if way < 0.5 else rng.randrange(size)


_BYTE_CHANGES: tuple[Mutator, ...] = (_flip, _flip, _set, _integer, _integer, _cut, _truncate, _repeat, _insert, _move,
                                      _zero)  # fmt: skip
