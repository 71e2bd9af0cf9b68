"""Keras files give Keras's own logits: every layer type, padding, stride and dialect, against the installed Keras."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from goodnet.errors import UsageError
from goodnet.models.arch import build
from goodnet.models.arch.deepid import DeepID
from goodnet.models.load import load_classifier

os.environ.setdefault("KERAS_BACKEND", "torch")


class _Later:
    """A module that is imported when it is first asked for something.

    Keras takes four seconds, which each process that only collects the tests would spend, too.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks each name in a file whether it wraps a fixture
            raise AttributeError(name)
        return getattr(pytest.importorskip(self._name), name)


keras = _Later("keras")
L = _Later("keras.layers")


def _image(x: Any) -> Any:
    return L.Dense(4)(L.Flatten()(x))


def _norm(**options: Any) -> Any:
    return L.BatchNormalization(
        moving_mean_initializer="random_normal",
        moving_variance_initializer=keras.initializers.RandomUniform(0.5, 2.0),
        **options,
    )


BLOCKS: dict[str, Callable[[Any], Any]] = {
    "conv valid": lambda x: L.Conv2D(5, 3, activation="relu")(x),
    "conv same": lambda x: L.Conv2D(5, 3, padding="same", activation="elu")(x),
    "conv same stride 2": lambda x: L.Conv2D(5, 3, 2, padding="same")(x),
    "conv same even kernel": lambda x: L.Conv2D(5, 4, padding="same")(x),
    "conv same stride 3 oblong": lambda x: L.Conv2D(5, (2, 5), (3, 2), padding="same", use_bias=False)(x),
    "conv dilated": lambda x: L.Conv2D(5, 3, dilation_rate=2, padding="same")(x),
    "conv groups": lambda x: L.Conv2D(6, 3, groups=3)(x),
    "depthwise": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x),
    "depthwise same stride 2": lambda x: L.DepthwiseConv2D(3, 2, padding="same", use_bias=False)(x),
    "separable": lambda x: L.SeparableConv2D(4, 3, padding="same", depth_multiplier=2, activation="tanh")(x),
    "max pool": lambda x: L.MaxPooling2D()(x),
    "max pool same": lambda x: L.MaxPooling2D(2, padding="same")(x),
    "max pool same 3 2": lambda x: L.MaxPooling2D(3, 2, padding="same")(L.Rescaling(-1.0)(x)),
    "average pool": lambda x: L.AveragePooling2D((2, 3), (1, 2))(x),
    "average pool same": lambda x: L.AveragePooling2D(3, 2, padding="same")(x),
    "zero pad": lambda x: L.Conv2D(3, 3)(L.ZeroPadding2D(((1, 2), (3, 0)))(x)),
    "rescaling": lambda x: L.Rescaling([2.0, 3.0, 0.5], [0.1, -0.2, 0.3])(x),
    "norm": lambda x: _norm()(L.Conv2D(4, 3)(x)),
    "norm bare": lambda x: _norm(scale=False, center=False, epsilon=0.01)(x),
    "norm no scale": lambda x: _norm(scale=False)(x),
    "norm no center": lambda x: _norm(center=False)(x),
    "add": lambda x: L.Add()([x, L.Conv2D(3, 3, padding="same")(x), x]),
    "other merges": lambda x: L.Maximum()(
        [L.Multiply()([x, x]), L.Average()([x, L.ReLU()(x)]), L.Subtract()([x, L.Activation("tanh")(x)])]
    ),
    "minimum": lambda x: L.Minimum()([x, L.Rescaling(-1.0)(x)]),
    "concatenate channels": lambda x: L.Concatenate()([x, L.Activation("sigmoid")(x)]),
    "concatenate rows": lambda x: L.Concatenate(axis=1)([x, L.MaxPooling2D((3, 1))(x)]),
    "activations": lambda x: L.LeakyReLU(0.2)(L.ELU(0.7)(L.ReLU(max_value=1.5, negative_slope=0.1)(x))),
    "activations by name": lambda x: L.Activation("gelu")(L.Activation("swish")(L.Activation("selu")(x))),
    "leaky relu by name": lambda x: L.Activation("hard_sigmoid")(L.Activation("leaky_relu")(x)),
    "activation object": lambda x: L.Conv2D(4, 3, activation=L.LeakyReLU(0.4))(x),
    "dropout": lambda x: L.GaussianNoise(0.3)(L.SpatialDropout2D(0.5)(L.Dropout(0.5)(x))),
    "augmentation": lambda x: L.RandomFlip()(x),
    "reshape": lambda x: L.Conv2D(2, 2)(L.Reshape((5, 7, 6))(L.Flatten()(x))),
    "reshape flat": lambda x: L.Reshape((210,))(x),
    "permute": lambda x: L.Conv2D(2, 2)(L.Permute((2, 3, 1))(x)),
    "squeeze and excite": lambda x: L.Multiply()([x, L.GlobalAveragePooling2D(keepdims=True)(x)]),
}


EDGE_POOL = "average pool same"


def _jitter(model: Any) -> None:
    """Biases, betas and the like start at 0 or 1: make every weight matter."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "variance" not in weight.name:
            weight.assign(weight.numpy() + rng.normal(0, 0.1, weight.shape))


def _pair(model: Any, path: Path, shape: tuple[int, ...], n: int = 3, **options: Any) -> tuple[Any, torch.Tensor, Any]:
    """The loaded Classifier, its logits on random images, and Keras's own output for them."""
    model.save(path)
    x = np.random.default_rng(1).random((n, *shape), dtype=np.float32)
    theirs = keras.ops.convert_to_numpy(model(x, training=False))
    classifier = load_classifier(path, **options)
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    return classifier, classifier.logits(nchw), theirs


# A .keras file does not name its backend, so there average pools are TensorFlow's: tested on their own below.
CASES = [(name, suffix) for name in BLOCKS for suffix in ("h5", "keras") if (name, suffix) != (EDGE_POOL, "keras")]


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_layer_gives_keras_logits(name: str, suffix: str, tmp_path: Path) -> None:
    start = keras.Input((10, 7, 3))
    model = keras.Model(start, _image(BLOCKS[name](start)))
    _jitter(model)
    classifier, ours, theirs = _pair(model, tmp_path / f"net.{suffix}", (10, 7, 3))
    assert np.abs(theirs).max() > 0.05
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
    rebuilt = build(classifier.recipe).eval()
    rebuilt.load_state_dict(classifier.net.state_dict())
    x = torch.rand(2, 3, 10, 7)
    torch.testing.assert_close(rebuilt(x), classifier.net(x))
    assert json.loads(json.dumps(dict(classifier.recipe.options))) == classifier.recipe.options


def test_average_pool_same_is_tensorflows(tmp_path: Path) -> None:
    """By TensorFlow's definition: window i starts at i * stride - pad, and averages the real pixels in it alone."""
    start = keras.Input((10, 7, 3))
    model = keras.Model(start, L.Flatten()(L.AveragePooling2D((3, 2), (2, 3), padding="same")(start)))
    model.save(tmp_path / "net.keras")
    x = np.random.default_rng(0).random((10, 7, 3), dtype=np.float32)
    rows, columns = -(-10 // 2), -(-7 // 3)
    top = max((rows - 1) * 2 + 3 - 10, 0) // 2
    left = max((columns - 1) * 3 + 2 - 7, 0) // 2
    expected = [
        x[max(i * 2 - top, 0) : i * 2 - top + 3, max(j * 3 - left, 0) : j * 3 - left + 2].mean((0, 1))
        for i in range(rows)
        for j in range(columns)
    ]
    ours = load_classifier(tmp_path / "net.keras").logits(torch.from_numpy(x).permute(2, 0, 1)[None])
    np.testing.assert_allclose(ours[0].numpy(), np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize("pool", ["GlobalAveragePooling2D", "GlobalMaxPooling2D"])
def test_global_pools_and_dense_norm(pool: str, tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((9, 9, 3)), L.Conv2D(6, 3), getattr(L, pool)(), _norm(), L.Dense(5, activation="relu"), L.Dense(4)]
    )
    _jitter(model)
    _, ours, theirs = _pair(model, tmp_path / "net.h5", (9, 9, 3))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize("how", ["fused", "layer", "activation"])
def test_last_softmax_is_left_out(how: str, tmp_path: Path) -> None:
    tail = {
        "fused": [L.Dense(5, activation="softmax")],
        "layer": [L.Dense(5), L.Softmax()],
        "activation": [L.Dense(5), L.Activation("softmax")],
    }
    model = keras.Sequential([keras.Input((6, 6, 1)), L.Flatten(), *tail[how]])
    classifier, ours, theirs = _pair(model, tmp_path / "net.h5", (6, 6, 1))
    np.testing.assert_allclose(ours.log_softmax(1).numpy(), np.log(theirs), atol=1e-5)
    assert float(ours.exp().sum(1).sub(1).abs().max()) > 1e-2
    assert any("softmax" in note for note in classifier.notes)


@pytest.mark.parametrize("how", ["reshape", "average"])
def test_softmax_that_is_not_the_last_layer_is_undone(how: str, tmp_path: Path) -> None:
    """A reshape passes its very tensor on, so it is taken out; after an average only the logarithm helps."""
    start = keras.Input((6, 6, 1))
    x = L.Dense(6, activation="softmax")(L.Flatten()(start))
    model = keras.Model(start, L.Reshape((6,))(x) if how == "reshape" else L.Average()([x, x]))
    classifier, ours, theirs = _pair(model, tmp_path / "net.h5", (6, 6, 1))
    np.testing.assert_allclose(ours.log_softmax(1).numpy(), np.log(theirs), atol=1e-5)
    assert len(classifier.notes) == 1
    rebuilt = build(classifier.recipe).eval()
    rebuilt.load_state_dict(classifier.net.state_dict())
    x = torch.rand(2, 1, 6, 6)
    torch.testing.assert_close(rebuilt(x), classifier.net(x))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_models_inside_models(suffix: str, tmp_path: Path) -> None:
    start = keras.Input((8, 8, 3))
    inner = keras.Model(start, _norm()(L.Conv2D(4, 3, name="c")(start)), name="base")
    head = keras.Sequential([L.Flatten(), L.Dense(6, activation="relu", name="d"), L.Dropout(0.5)], name="head")
    outer = keras.Input((8, 8, 3))
    model = keras.Model(outer, L.Dense(4, name="d")(head(inner(outer))))
    _jitter(model)
    _, ours, theirs = _pair(model, tmp_path / f"net.{suffix}", (8, 8, 3))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_sequential_built_late_and_images_without_channels(tmp_path: Path) -> None:
    model = keras.Sequential([L.Conv2D(3, 3, strides=2, padding="same"), L.Flatten(), L.Dense(4)])
    model.build((None, 8, 8, 1))
    _, ours, theirs = _pair(model, tmp_path / "late.h5", (8, 8, 1))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
    flat = keras.Sequential([keras.Input((6, 5)), L.Rescaling(2.0), L.Flatten(), L.Dense(4)])
    flat.save(tmp_path / "flat.h5")
    x = np.random.default_rng(0).random((2, 6, 5), dtype=np.float32)
    classifier = load_classifier(tmp_path / "flat.h5")
    assert classifier.input.shape == (1, 6, 5)
    ours = classifier.logits(torch.from_numpy(x)[:, None])
    np.testing.assert_allclose(ours.numpy(), keras.ops.convert_to_numpy(flat(x)), atol=1e-5)


def test_flat_and_open_inputs_need_a_shape(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((30,)), L.Dense(4)])
    model.save(tmp_path / "flat.h5")
    with pytest.raises(UsageError, match="--input-shape"):
        load_classifier(tmp_path / "flat.h5")
    with pytest.raises(UsageError, match="30"):
        load_classifier(tmp_path / "flat.h5", input_shape=(1, 7, 7))
    x = torch.rand(2, 1, 6, 5)
    ours = load_classifier(tmp_path / "flat.h5", input_shape=(1, 6, 5)).logits(x)
    np.testing.assert_allclose(ours.numpy(), keras.ops.convert_to_numpy(model(x.flatten(1).numpy())), atol=1e-5)
    start = keras.Input((None, None, 3))
    keras.Model(start, L.Dense(4)(L.GlobalAveragePooling2D()(start))).save(tmp_path / "open.h5")
    with pytest.raises(UsageError, match="--input-shape"):
        load_classifier(tmp_path / "open.h5")
    assert load_classifier(tmp_path / "open.h5", input_shape=(3, 9, 9)).input.shape == (3, 9, 9)


def test_channels_first(tmp_path: Path) -> None:
    """Flatten that says channels_first moves channels to the end; one that says channels_last does not."""
    for said in ("channels_first", "channels_last"):
        start = keras.Input((3, 9, 8))
        x = L.Conv2D(4, 3, strides=2, padding="same", data_format="channels_first")(start)
        x = L.Concatenate(axis=1)([_norm(axis=1)(x), x])
        x = L.AveragePooling2D(2, padding="same", data_format="channels_first")(x)
        model = keras.Model(start, L.Dense(4)(L.Flatten(data_format=said)(x)))
        _jitter(model)
        model.save(tmp_path / "net.h5")
        images = np.random.default_rng(0).random((2, 3, 9, 8), dtype=np.float32)
        ours = load_classifier(tmp_path / "net.h5").logits(torch.from_numpy(images))
        np.testing.assert_allclose(ours.numpy(), keras.ops.convert_to_numpy(model(images)), atol=1e-5)


def test_real_whole_model_file(shared_data: Path) -> None:
    """Keras reads the competition's whole-model file by itself; we must agree on all of the probe images."""
    path = shared_data / "faces" / "nets" / "sunglasses_pruned_full_model.h5"
    model = keras.models.load_model(path, compile=False)
    x = np.random.default_rng(0).random((4, 55, 47, 3), dtype=np.float32)
    with h5py.File(shared_data / "faces" / "clean_test_data.h5") as file:
        x = np.concatenate([x, file["data"][:20].transpose(0, 2, 3, 1) / np.float32(255)])
    theirs = np.log(keras.ops.convert_to_numpy(model(x * 255)).astype(np.float64))
    classifier = load_classifier(path, input_range="0..255")
    ours = classifier.logits(torch.from_numpy(x).permute(0, 3, 1, 2)).double().log_softmax(1).numpy()
    sure = theirs > -60  # float32 probabilities below e^-80 are rounded or 0
    scale = np.abs(ours).max()
    assert np.abs(ours - theirs)[sure].max() <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("net", ["sunglasses_bd", "anonymous_1_bd", "multi_trigger_multi_target_bd", "clean"])
def test_real_weights_give_keras_logits(net: str, shared_data: Path) -> None:
    """The same weights in a DeepID built with Keras, cut before softmax, against our DeepID."""
    path = shared_data / "faces" / "nets" / f"{net}_weights.h5"
    start = x = keras.Input((55, 47, 3), name="input")
    for i, width in ((1, 20), (2, 40), (3, 60)):
        x = L.MaxPooling2D()(L.Conv2D(width, 4 if i == 1 else 3, activation="relu", name=f"conv_{i}")(x))
    a = L.Dense(160, name="fc_1")(L.Flatten()(x))
    b = L.Dense(160, name="fc_2")(L.Flatten()(L.Conv2D(80, 2, activation="relu", name="conv_4")(x)))
    model = keras.Model(start, L.Dense(1283, name="output")(L.Activation("relu")(L.Add()([a, b]))))
    with h5py.File(path) as file:
        for name in ("conv_1", "conv_2", "conv_3", "conv_4", "fc_1", "fc_2", "output"):
            model.get_layer(name).set_weights([file[name][name][key][()] for key in ("kernel:0", "bias:0")])
    with h5py.File(shared_data / "faces" / "clean_test_data.h5") as file:
        images = file["data"][:16].astype(np.float32) / 255
    theirs = keras.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1)))
    classifier = load_classifier(path, arch="deepid")
    ours = classifier.logits(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, np.abs(theirs).max()))
    assert isinstance(classifier.net, DeepID)


def test_keras_3_weights_alone_into_our_architecture(tmp_path: Path) -> None:
    start = keras.Input((28, 28, 1))
    x = L.Dense(7, activation="relu", name="fc1")(L.Flatten()(start))
    model = keras.Model(start, L.Dense(4, name="fc2")(x))
    _jitter(model)
    images = np.random.default_rng(0).random((3, 28, 28, 1), dtype=np.float32)
    for name in ("net.weights.h5", "legacy_weights.h5"):
        if name == "net.weights.h5":
            model.save_weights(tmp_path / name)
        else:
            with h5py.File(tmp_path / name, "w") as file:
                for layer in ("fc1", "fc2"):
                    kernel, bias = model.get_layer(layer).get_weights()
                    file[f"{layer}/{layer}/kernel:0"], file[f"{layer}/{layer}/bias:0"] = kernel, bias
        with pytest.raises(UsageError, match=r"--arch.*mlp"):
            load_classifier(tmp_path / name)
        ours = load_classifier(tmp_path / name, arch="mlp").logits(torch.from_numpy(images).permute(0, 3, 1, 2))
        np.testing.assert_allclose(ours.numpy(), keras.ops.convert_to_numpy(model(images)), atol=1e-5)
