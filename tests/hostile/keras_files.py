"""Keras files that carry code, in .h5 and .keras, and .keras archives that lie."""

from __future__ import annotations

import base64
import io
import json
import marshal
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.case import PAYLOAD, Case

Layer = dict[str, Any]
EVIL_MODULE = "evil_module"  # lies beside the file; whoever imports it runs it


def _layer(kind: str, name: str, **config: Any) -> Layer:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def sequential(*more: Layer, **fields: Any) -> dict[str, Any]:
    """A net of a flatten and a dense layer, and what is added to it."""
    layers = [
        _layer("InputLayer", "in", batch_shape=[None, 8, 8, 3], batch_input_shape=[None, 8, 8, 3]),
        _layer("Flatten", "flat"),
        *more,
        _layer("Dense", "dense", units=4, activation="linear", use_bias=True),
    ]
    model = _layer("Sequential", "net", layers=layers)
    return {**model, "module": "keras", **fields}


def _nested(depth: int) -> dict[str, Any]:
    model = sequential()
    for _ in range(depth):
        model = sequential(model)
    return model


def marshalled() -> str:
    """A compiled lambda, as Keras stores it."""
    return base64.b64encode(marshal.dumps(eval(f"lambda x: exec({PAYLOAD!r}) or x").__code__)).decode()


def run_marshalled(path: Path) -> None:
    """What Keras does with a Lambda's code, safe mode off."""
    function = types.FunctionType(marshal.loads(base64.b64decode(marshalled())), {"__builtins__": __builtins__})
    assert marshalled().encode() in _content(path)
    function(0)


def _content(path: Path) -> bytes:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read("config.json")
    with h5py.File(path) as file:
        config = file.attrs["model_config"]
        return config.encode() if isinstance(config, str) else bytes(config)


def import_module(path: Path) -> None:
    """What Keras does with a layer's module, safe mode off."""
    assert EVIL_MODULE.encode() in _content(path)
    sys.path.insert(0, str(path.parent))
    try:
        sys.modules.pop(EVIL_MODULE, None)
        __import__(EVIL_MODULE)
    finally:
        sys.path.remove(str(path.parent))


OLD_LAMBDA = _layer("Lambda", "code", function=[marshalled(), None, None], function_type="lambda", module="__main__")
_CALL = {"class_name": "__lambda__", "config": {"code": marshalled(), "defaults": None, "closure": None}}
NEW_LAMBDA = _layer("Lambda", "code", function=_CALL)
CODE: dict[str, tuple[dict[str, Any], Callable[[Path], object] | None]] = {
    "a Lambda of Keras 2": (sequential(OLD_LAMBDA), run_marshalled),
    "a Lambda of Keras 3": (sequential(NEW_LAMBDA), run_marshalled),
    "a Lambda in a model in the model": (sequential(sequential(NEW_LAMBDA)), run_marshalled),
    "marshalled code for an activation": (
        sequential(_layer("Activation", "act", activation=_CALL)), run_marshalled,
    ),
    "a layer of a module beside it": (
        sequential({**_layer("Net", "evil"), "module": EVIL_MODULE, "registered_name": "evil>Net"}), import_module),
    "a model of a module beside it": (sequential(module=EVIL_MODULE, registered_name="evil>Net"), import_module),
    "a layer that takes a module from torch": (
        sequential({**_layer("TorchModuleWrapper", "torch", module="gASVCg=="), "module": "keras.layers"}), None),
    "a layer of TensorFlow's saved models": (sequential(_layer("TFSMLayer", "tf", filepath="/etc")), None),
    "a call by name": (sequential({**_layer("system", "os"), "module": "os"}), None),
}  # fmt: skip
_CODE = "carries or needs code|is not read|not one of|no layer that|unknown|expected"


def _weights(out: Any) -> None:
    with h5py.File(out, "w") as file:
        for i, value in enumerate((np.full((192, 4), 0.01, "f4"), np.zeros(4, "f4"))):
            file[f"layers/dense/vars/{i}"] = value


def _beside(folder: Path) -> None:
    (folder / f"{EVIL_MODULE}.py").write_text(PAYLOAD)


def h5(config: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _beside(folder)
        with h5py.File(folder / "net.h5", "w") as file:
            file.attrs["model_config"] = json.dumps(config).encode()
            file["model_weights/dense/dense/kernel:0"] = np.full((192, 4), 0.01, "f4")
            file["model_weights/dense/dense/bias:0"] = np.zeros(4, "f4")
        return folder / "net.h5"

    return make


def keras(config: Any, *, kind: int = zipfile.ZIP_STORED, **members: bytes) -> Callable[[Path], Path]:
    """A .keras; `members` beside the usual ones, or in their place, by name."""

    def make(folder: Path) -> Path:
        _beside(folder)
        weights = io.BytesIO()
        _weights(weights)
        content = {"config.json": json.dumps(config).encode(), "model.weights.h5": weights.getvalue(), **members}
        with zipfile.ZipFile(folder / "net.keras", "w", kind) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return folder / "net.keras"

    return make


def _out_of_the_zip(folder: Path) -> Path:
    """Members whose names lead out of it; goodnet unpacks nothing, so the net is read and nothing is written."""
    evil = {"../../outside.txt": b"ran", "/tmp/goodnet-outside.txt": b"ran", "..\\outside.txt": b"ran"}
    return keras(sequential(), **evil)(folder)


def _linked(folder: Path) -> Path:
    """Weights of the archive that take their numbers from a file beside it."""
    with h5py.File(folder / "secret.h5", "w") as file:
        file["data"] = np.full((192, 4), 3, "f4")
    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(folder / "secret.h5"), "/data")
    return keras(sequential(), **{"model.weights.h5": inner.getvalue()})(folder)


def _case(name: str, make: Callable[[Path], Path], message: str, **more: Any) -> Case:
    return Case(**{"name": name, "kind": "Keras", "make": make, "message": message, **more})


CASES = [
    *(_case(f"{name}, .h5", h5(config), _CODE, fire=fire) for name, (config, fire) in CODE.items()),
    *(_case(f"{name}, .keras", keras(config), _CODE, fire=fire) for name, (config, fire) in CODE.items()),
    _case("names that lead out of the archive", _out_of_the_zip, ""),
    _case("weights in another file", _linked, "external link"),
    _case("a config of 64 MiB of blanks in 64 KiB", keras(
        sequential(), kind=zipfile.ZIP_DEFLATED, **{"config.json": b" " * ((64 << 20) + 1)}), "unpacks to more than"),
    _case("weights that are no HDF5", keras(sequential(), **{"model.weights.h5": b"PK"}), "cannot be read"),
    _case("models 200 deep", keras(_nested(200)), "nested deeper"),
    _case("5000 layers", keras(sequential(*(_layer("ReLU", f"r{i}") for i in range(5000)))), "more than 4096"),
    _case("a layer of 2^40 units", keras(sequential(_layer("Dense", "big", units=1 << 40, use_bias=True))), "."),
]  # fmt: skip
