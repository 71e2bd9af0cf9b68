"""safetensors that lie, recipes that ask for code, weights that are no weights, and labels that fit no class."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from hostile.case import MLP, SIDE, Case, state, writes

Header = dict[str, Any]


def raw(header: Any, body: bytes = b"", *, length: int | None = None) -> Callable[[], bytes]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda: (len(text) if length is None else length).to_bytes(8, "little") + text + body


def _entry(shape: list[int], start: int, end: int, kind: str = "F32") -> Header:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


LYING: dict[str, Callable[[], bytes]] = {
    "a header longer than the file": raw({}, length=1 << 40),
    "a header of 100 MB that is not there": raw({}, length=100_000_000),
    "a shape beyond its bytes": raw({"fc1.weight": _entry([1 << 20, 1 << 20], 0, 16)}, bytes(16)),
    "a shape whose product overflows": raw({"fc1.weight": _entry([1 << 32, 1 << 32], 0, 16)}, bytes(16)),
    "bytes beyond the file": raw({"fc1.weight": _entry([4], 0, 1 << 40)}, bytes(16)),
    "bytes that overlap": raw({"a": _entry([4], 0, 16), "b": _entry([4], 8, 24)}, bytes(24)),
    "bytes in reverse": raw({"a": _entry([4], 16, 0)}, bytes(16)),
    "a negative side": raw({"a": _entry([-4], 0, 16)}, bytes(16)),
    "an unknown type": raw({"a": _entry([4], 0, 16, "PICKLE")}, bytes(16)),
    "a header that is no JSON": raw(b"{" + b"x" * 30, bytes(16)),
    "a header nested without end": raw(b'{"a":' + b"[" * 100_000, bytes(16)),
    "holes between weights": raw({"a": _entry([4], 0, 16), "b": _entry([4], 32, 48)}, bytes(48)),
}


def _goodnet(recipe: Any, **more: Any) -> Callable[[], bytes]:
    about = {"format": "goodnet.net/1", "name": "n", "classes": 3, "notes": [], "recipe": recipe,
             "input": {"shape": [1, SIDE, SIDE], "scale": 1, "mean": [], "std": []}, **more}  # fmt: skip
    return lambda: save(state(), {"goodnet": json.dumps(about)})


def _plain(**options: Any) -> Header:
    sizes = {"classes": 3, "hidden": [9], "channels": 1, "height": SIDE, "width": SIDE}
    return {"arch": "mlp", "options": {**sizes, **options}}


RECIPES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a recipe that names code": (_goodnet({"arch": "evil.py:net", "options": {}}), "needs the code"),
    "a recipe of a net beyond memory": (_goodnet(_plain(hidden=[1 << 20, 1 << 20])), "are not built|numbers, but"),
    "a recipe of another net": (_goodnet(_plain(hidden=[8])), "numbers, but the file holds"),
    "a recipe of no known net": (_goodnet({"arch": "evil", "options": {}}), "no architecture of goodnet"),
    "a recipe within a recipe without end": (
        _goodnet({"arch": "goodnet", "options": {"kind": "grown", "layer": "", "net": None}}), "damaged|expected"),
    "an image of a million rows": (
        _goodnet(_plain(), input={"shape": [1, 1 << 20, 1], "scale": 1, "mean": [], "std": []}), "sides up to 4096"),
    "a later format": (_goodnet(_plain(), format="goodnet.net/2"), "expected a GoodNet of format goodnet.net/1"),
    "more classes than outputs": (_goodnet(_plain(), classes=99), "expected 99 outputs"),
    "a mean of NaN": (
        _goodnet(_plain(), input={"shape": [1, SIDE, SIDE], "scale": 1, "mean": [float("nan")], "std": []}), "damaged"),
}  # fmt: skip


def _torch(content: dict[str, Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        torch.save(content, out)
        return out.getvalue()

    return make


def _with(key: str, value: float) -> Callable[[], bytes]:
    weights = state()
    weights[key].view(-1)[3] = value
    return lambda: save(weights)


def _labels(*labels: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.zeros((len(labels), 1, SIDE, SIDE), np.uint8)
        np.savez(folder / "set.npz", data=pixels, label=np.array(labels))
        return folder / "set.npz"

    return make


def _case(kind: str, name: str, make: Callable[[Path], Path], message: str, **more: Any) -> Case:
    return Case(**{"name": name, "kind": kind, "make": make, "message": message, "options": MLP, **more})


SAFETENSORS, WEIGHTS = "safetensors and recipes", "weights and labels"
CASES = [
    *(_case(SAFETENSORS, name, writes("net.safetensors", make), "cannot be read|its bytes are none")
      for name, make in LYING.items()),
    *(_case(SAFETENSORS, name, writes("net.safetensors", make), message, options=())
      for name, (make, message) in RECIPES.items()),
    *(_case(WEIGHTS, f"{value} for a weight", writes("net.safetensors", _with("fc1.weight", value)), "NaN or infinite")
      for value in (float("nan"), float("inf"), float("-inf"))),
    _case(WEIGHTS, "numbers too large for float32", writes("net.pt", _torch(
        {key: value.double() * 1e300 for key, value in state().items()})), "NaN or infinite"),
    _case(WEIGHTS, "numbers too small to be normal", writes("net.safetensors", lambda: save(state(1e-41))), ""),
    _case(WEIGHTS, "complex numbers", writes("net.pt", _torch(
        {key: value.to(torch.complex64) for key, value in state().items()})), "complex"),
    _case(WEIGHTS, "a net of one class", writes("net.pt", _torch(state(classes=1))), "at least 2 outputs"),
    _case(WEIGHTS, "a net of a million classes", writes("net.pt", _torch(
        {**state(), "fc2.weight": torch.zeros(1).expand(1 << 20, 9), "fc2.bias": torch.zeros(1 << 20)})), "claims"),
    _case(WEIGHTS, "a sparse tensor", writes("net.pt", _torch(
        {**state(), "fc1.weight": torch.eye(64).to_sparse()})), "sparse"),
    _case(WEIGHTS, "labels beyond the classes", _labels(0, 1, 7), "expected labels|at or above|below 3|classes",
          role="set"),
    _case(WEIGHTS, "negative labels", _labels(0, -1), "label", role="set"),
    _case(WEIGHTS, "labels beyond 64 bits", lambda folder: _labels(0, 1 << 62)(folder), "label", role="set"),
]  # fmt: skip
