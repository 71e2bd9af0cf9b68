"""Keras configs written by hand: old dialects, code in disguise, and what is unknown or does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models.load import load_classifier

os.environ.setdefault("KERAS_BACKEND", "torch")


def _write(path: Path, config: Any, weights: dict[str, Any], **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        for key, value in attributes.items():
            file.attrs[key] = value.encode()
        for key, value in weights.items():
            file[f"model_weights/{key}"] = np.asarray(value, dtype=np.float32)
    return path


def test_keras_1_dialect(tmp_path: Path) -> None:
    """Written by hand as Keras 1.2 did; the oracle is the same net in today's Keras."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 3, 4)), rng.normal(size=4)
    norm = [rng.normal(size=4), rng.normal(size=4), rng.normal(size=4), rng.random(4) + 0.5]
    dense, offset = rng.normal(size=(4 * 4 * 4 * 2, 5)), rng.normal(size=5)
    conv = {"name": "convolution2d_1", "nb_filter": 4, "nb_row": 3, "nb_col": 3, "border_mode": "same"}
    conv |= {"subsample": [2, 2], "dim_ordering": "tf", "bias": True, "activation": "relu"}

    def layer(kind: str, name: str, settings: dict[str, Any], *sources: str) -> dict[str, Any]:
        nodes = [[[source, 0, 0] for source in sources]] if sources else []
        return {"class_name": kind, "name": name, "config": {"name": name, **settings}, "inbound_nodes": nodes}

    layers = [
        layer("InputLayer", "in", {"batch_input_shape": [None, 8, 8, 3]}),
        layer("Convolution2D", "convolution2d_1", conv, "in"),
        layer("BatchNormalization", "bn", {"epsilon": 0.001, "axis": -1, "mode": 0}, "convolution2d_1"),
        layer("Merge", "m", {"mode": "concat", "concat_axis": -1}, "bn", "convolution2d_1"),
        layer("Flatten", "f", {}, "m"),
        layer("Dropout", "drop", {"p": 0.5}, "f"),
        layer("Dense", "dense_1", {"output_dim": 5, "bias": True, "activation": "hard_sigmoid"}, "drop"),
    ]
    ends = {"input_layers": [["in", 0, 0]], "output_layers": [["dense_1", 0, 0]]}
    names = ("bn_gamma", "bn_beta", "bn_running_mean", "bn_running_std")
    weights = {
        "convolution2d_1/convolution2d_1_W": kernel,
        "convolution2d_1/convolution2d_1_b": bias,
        **{f"bn/{name}": value for name, value in zip(names, norm)},
        "dense_1/dense_1_W": dense,
        "dense_1/dense_1_b": offset,
    }
    config = {"class_name": "Model", "config": {"name": "m", "layers": layers, **ends}}
    classifier = load_classifier(_write(tmp_path / "one.h5", config, weights, keras_version="1.2.2"))
    keras = pytest.importorskip("keras")
    L = keras.layers
    start = keras.Input((8, 8, 3))
    c = L.Conv2D(4, 3, 2, padding="same", activation="relu", name="c")(start)
    x = L.Concatenate()([L.BatchNormalization(name="n")(c), c])
    model = keras.Model(start, L.Dense(5, name="d")(L.Flatten()(x)))
    for name, values in (("c", [kernel, bias]), ("n", norm), ("d", [dense, offset])):
        model.get_layer(name).set_weights(values)
    images = rng.random((3, 8, 8, 3), dtype=np.float32)
    theirs = np.clip(0.2 * keras.ops.convert_to_numpy(model(images)) + 0.5, 0, 1)
    ours = classifier.logits(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert theirs.min() > 0 or theirs.max() < 1 or len(np.unique(theirs)) > 3
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def _dense_net(**changes: Any) -> dict[str, Any]:
    layers = [
        {"class_name": "InputLayer", "config": {"name": "i", "batch_input_shape": [None, 4, 4, 1]}},
        {"class_name": "Flatten", "config": {"name": "f"}},
        {"class_name": "Dense", "config": {"name": "d", "units": 3, "activation": "linear", "use_bias": True}},
    ]
    layers.insert(2, {"class_name": "Activation", "config": {"name": "extra", "activation": "relu"}, **changes})
    return {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}


_WEIGHTS = {"d/d/kernel:0": np.ones((16, 3)), "d/d/bias:0": np.zeros(3)}
CODE = [
    {"class_name": "Lambda", "config": {"name": "extra", "function": ["4wEAAAA=", None, None]}},
    {"class_name": "TFOpLambda", "config": {"name": "extra", "function": "math.multiply"}},
    {"class_name": "Activation", "config": {"name": "extra"}, "registered_name": "evil>Activation"},
    {"class_name": "Activation", "config": {"name": "extra"}, "module": "os"},
    {"config": {"name": "extra", "activation": {"class_name": "__lambda__", "config": {"value": "x"}}}},
    {"config": {"name": "extra", "activation": {"class_name": "function", "config": "f", "registered_name": "my>f"}}},
]


@pytest.mark.parametrize("change", CODE)
def test_code_is_refused_by_name(change: dict[str, Any], tmp_path: Path) -> None:
    path = _write(tmp_path / "net.h5", _dense_net(**change), _WEIGHTS, keras_version="2.4.0")
    with pytest.raises(UnsafeFileError, match="extra") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


UNKNOWN = [
    {"class_name": "Conv3D"},
    {"class_name": "MyLayer"},
    {"config": {"name": "extra", "activation": "my_function"}},
    {"class_name": "ReLU", "config": {"name": "extra", "threshold": 0.5}},
    {"class_name": "ELU", "config": {"name": "extra", "alpha": "1"}},
    {"class_name": "BatchNormalization", "config": {"name": "extra", "axis": 1}},
    {"class_name": "Dense", "config": {"name": "extra", "units": 10**9}},
    {"class_name": "Dense", "config": {"name": "extra", "units": -1}},
    {"class_name": "Reshape", "config": {"name": "extra", "target_shape": [17]}},
    {"class_name": None},
]


@pytest.mark.parametrize("change", UNKNOWN)
def test_unknown_is_one_clear_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = _write(tmp_path / "net.h5", _dense_net(**change), _WEIGHTS, keras_version="2.4.0")
    with pytest.raises(ModelError) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)
    assert "extra" in str(caught.value)


def test_the_untouched_dense_net_loads(tmp_path: Path) -> None:
    path = _write(tmp_path / "net.h5", _dense_net(), _WEIGHTS, keras_version="2.4.0")
    x = torch.rand(2, 1, 4, 4)
    expected = x.flatten(1).sum(1, keepdim=True).expand(2, 3)
    torch.testing.assert_close(load_classifier(path).logits(x), expected)


def test_theano_kernels_are_flipped(tmp_path: Path) -> None:
    layers = [
        {"class_name": "Conv2D", "config": {"name": "c", "filters": 2, "kernel_size": [3, 3], "padding": "valid",
         "strides": [1, 1], "data_format": "channels_last", "activation": "linear", "use_bias": False,
         "batch_input_shape": [None, 3, 3, 1]}},
        {"class_name": "Flatten", "config": {"name": "f"}},
    ]  # fmt: skip
    kernel = np.arange(18).reshape(3, 3, 1, 2)
    config = {"class_name": "Sequential", "config": layers}
    x = torch.rand(1, 1, 3, 3)
    for backend, own in (("theano", kernel[::-1, ::-1]), ("tensorflow", kernel)):
        path = _write(
            tmp_path / f"{backend}.h5", config, {"c/c/kernel:0": kernel}, keras_version="2.0.8", backend=backend
        )
        expected = torch.tensor([[(own[:, :, 0, k] * x[0, 0].numpy()).sum() for k in range(2)]])
        torch.testing.assert_close(load_classifier(path).logits(x), expected.float())


def test_shared_layers_cycles_and_two_outputs_are_refused(tmp_path: Path) -> None:
    base: list[dict[str, Any]] = [
        {
            "class_name": "InputLayer",
            "name": "i",
            "config": {"batch_input_shape": [None, 4, 4, 1]},
            "inbound_nodes": [],
        },
        {"class_name": "Flatten", "name": "f", "config": {}, "inbound_nodes": [[["i", 0, 0, {}]]]},
        {"class_name": "Dense", "name": "d", "config": {"units": 3}, "inbound_nodes": [[["f", 0, 0, {}]]]},
    ]
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [["d", 0, 0]]}
    cases = {
        "shared": (2, {"inbound_nodes": [[["f", 0, 0, {}]], [["f", 0, 0, {}]]]}, ends),
        "itself": (1, {"inbound_nodes": [[["d", 0, 0, {}]]]}, ends),
        "no layer": (1, {"inbound_nodes": [[["nowhere", 0, 0, {}]]]}, ends),
        "output": (1, {}, {**ends, "output_layers": [["d", 0, 0], ["f", 0, 0]]}),
        "same name": (1, {"name": "d"}, ends),
    }
    for message, (index, change, both) in cases.items():
        layers = [{**layer, **change} if at == index else layer for at, layer in enumerate(base)]
        config = {"class_name": "Functional", "config": {"name": "m", "layers": layers, **both}}
        with pytest.raises(ModelError, match=message):
            load_classifier(_write(tmp_path / "net.h5", config, _WEIGHTS))


def test_whole_model_takes_no_arch(tmp_path: Path) -> None:
    path = _write(tmp_path / "net.h5", _dense_net(), _WEIGHTS)
    with pytest.raises(UsageError, match="leave it out"):
        load_classifier(path, arch="mlp")
