"""ONNX files: the same logits as onnxruntime's. What hostile ones try is in hostile/onnx_files.py."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from goodnet.errors import UsageError
from goodnet.export import save_goodnet
from goodnet.models.arch import ARCHITECTURES
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.load import load_classifier

FACES = Path(os.environ.get("GOODNET_DATA", Path(__file__).parents[2] / "shared" / "data")) / "faces"
RANDOM = np.random.default_rng(0)
SHAPE = (3, 9, 8)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(0, 0.5, shape).astype(np.float32)


Nodes = list[Any]


def model(
    nodes: Nodes,
    constants: dict[str, np.ndarray[Any, Any]],
    *,
    shape: tuple[Any, ...] = ("n", *SHAPE),
    output: str = "out",
    opset: int = 17,
) -> Any:
    """A model whose input is `x`; the protobuf."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [x], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def to_logits(source: str, features: int) -> tuple[Nodes, dict[str, np.ndarray[Any, Any]]]:
    """What makes a classifier of five classes of any tensor."""
    nodes = [
        helper.make_node("Flatten", [source], ["flat"]),
        helper.make_node("Gemm", ["flat", "last"], ["out"], transB=1),
    ]
    return nodes, {"last": weights(5, features)}


def saved(path: Path, proto: Any) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def compared(path: Path, x: np.ndarray[Any, Any]) -> None:
    session = onnxruntime.InferenceSession(path)
    expected = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert np.abs(expected).max() > 0.01
    images = x if x.shape[1] in (1, 3) else x.transpose(0, 3, 1, 2)
    found = load_classifier(path).logits(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


CASES: dict[str, tuple[str, dict[str, Any], list[np.ndarray[Any, Any] | None]]] = {
    "convolution": ("Conv", {"pads": [1, 1, 1, 1]}, [weights(4, 3, 3, 3), weights(4)]),
    "lopsided convolution": ("Conv", {"pads": [0, 1, 2, 0], "strides": [2, 1]}, [weights(4, 3, 3, 2)]),
    "dilated convolution in groups": ("Conv", {"dilations": [2, 1], "group": 3}, [weights(6, 1, 3, 2), weights(6)]),
    "convolution, same above": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [weights(4, 3, 4, 3)]),
    "convolution, same below": ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [weights(4, 3, 4, 3)]),
    "max pool": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, []),
    "max pool that rounds up to the same": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, []),
    "average pool": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, []),
    "average pool with padding": (
        "AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}, []),
    "global average": ("GlobalAveragePool", {}, []),
    "global max": ("GlobalMaxPool", {}, []),
    "mean of rows and columns": ("ReduceMean", {"axes": [-1, -2], "keepdims": 0}, []),
    "mean that keeps them": ("ReduceMean", {"axes": [2, 3]}, []),
    "batch norm": (
        "BatchNormalization", {"epsilon": 1e-3}, [weights(3), weights(3), weights(3), np.abs(weights(3)) + 0.5]),
    "offset": ("Add", {}, [f32(0.5)]),
    "offset a channel": ("Add", {}, [weights(3, 1, 1)]),
    "subtrahend": ("Sub", {}, [weights(1, 3, 1, 1)]),
    "factor": ("Mul", {}, [f32(-1.5)]),
    "divisor": ("Div", {}, [weights(3, 1, 1) + 3]),
    "relu": ("Relu", {}, []),
    "sigmoid": ("Sigmoid", {}, []),
    "tanh": ("Tanh", {}, []),
    "selu": ("Selu", {}, []),
    "softplus": ("Softplus", {}, []),
    "softsign": ("Softsign", {}, []),
    "exponential": ("Exp", {}, []),
    "hard swish": ("HardSwish", {}, []),
    "hard sigmoid": ("HardSigmoid", {}, []),
    "hard sigmoid of PyTorch": ("HardSigmoid", {"alpha": 1 / 6}, []),
    "elu": ("Elu", {"alpha": 0.7}, []),
    "leaky relu": ("LeakyRelu", {"alpha": 0.2}, []),
    "clip to six": ("Clip", {}, [f32(0.0).reshape(()), f32(6.0).reshape(())]),
    "clip": ("Clip", {}, [f32(-0.25).reshape(()), f32(0.4).reshape(())]),
    "clip below": ("Clip", {}, [f32(0.1).reshape(())]),
    "clip above": ("Clip", {}, [None, f32(0.3).reshape(())]),
    "pad": ("Pad", {}, [i64(0, 0, 1, 2, 0, 0, 0, 3), f32(0.0).reshape(())]),
    "identity": ("Identity", {}, []),
    "dropout": ("Dropout", {}, []),
    "turned": ("Transpose", {"perm": [0, 2, 3, 1]}, []),
    "reshaped": ("Reshape", {}, [i64(0, 6, -1, 4)]),
    "erf": ("Erf", {}, []),
    "square": ("Pow", {}, [f32(2.0).reshape(())]),
    "cube": ("Pow", {}, [f32(3.0).reshape(())]),
    "softmax over rows": ("Softmax", {"axis": 2}, []),
    "norm of the last axis": ("LayerNormalization", {"epsilon": 1e-3}, [weights(8), weights(8)]),
    "norm of two axes": ("LayerNormalization", {"axis": -2}, [weights(9, 8)]),
    "product over the last axis": ("MatMul", {}, [weights(8, 5)]),
    "product of matrices": ("MatMul", {}, [weights(3, 8, 5)]),
    "offset of each pixel": ("Add", {}, [weights(3, 9, 8)]),
    "factor of each column": ("Mul", {}, [weights(8)]),
    "divisor of each row": ("Div", {}, [weights(1, 9, 1) + 3]),
    "one channel": ("Gather", {"axis": 1}, [np.array(-1, np.int64)]),
    "two rows": ("Gather", {"axis": 2}, [i64(3, 4)]),
    "every second column": ("Slice", {}, [i64(1), i64(8), i64(3), i64(2)]),
    "all but the last row": ("Slice", {}, [i64(0), i64(-1), i64(2)]),
    "mean of the columns": ("ReduceMean", {"axes": [3], "keepdims": 0}, []),
    "one more axis": ("Unsqueeze", {}, [i64(2, -1)]),
    "images last": ("Transpose", {"perm": [1, 2, 3, 0]}, []),
    "reshaped and fixed batch": ("Reshape", {}, [i64(-1, 216)]),
}  # fmt: skip


def one(name: str) -> Any:
    op, attributes, arrays = CASES[name]
    constants = {f"c{i}": array for i, array in enumerate(arrays) if array is not None}
    inputs = ["centred", *(f"c{i}" if array is not None else "" for i, array in enumerate(arrays))]
    nodes = [
        helper.make_node("Sub", ["x", "half"], ["centred"]),
        helper.make_node(op, inputs, ["y"], **attributes),
    ]
    half = {"half": f32(0.5)}
    probe = model(nodes, {**constants, **half}, output="y")
    out = onnxruntime.InferenceSession(probe.SerializeToString()).run(None, {"x": np.zeros((1, *SHAPE), np.float32)})[0]
    last, extra = to_logits("y", out.size)
    if name == "images last":  # and first again
        nodes.append(helper.make_node("Transpose", ["y"], ["back"], perm=[3, 0, 1, 2]))
        last, extra = to_logits("back", out.size)
    return model([*nodes, *last], {**constants, **half, **extra})


@pytest.mark.parametrize("name", CASES)
def test_every_operator_against_onnxruntime(name: str, tmp_path: Path) -> None:
    compared(saved(tmp_path / "net.onnx", one(name)), RANDOM.random((7, *SHAPE), np.float32))


def test_layers_that_meet_and_what_exporters_compute_of_shapes(tmp_path: Path) -> None:
    """Merges, a concatenation, and a flatten whose target is put together from the input's shape."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["a1"]),  # a bias of its own operator
        helper.make_node("Conv", ["x", "w2"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["s"]),
        helper.make_node("Mul", ["s", "a1"], ["m"]),
        helper.make_node("Max", ["m", "b"], ["t"]),
        helper.make_node("Sub", ["t", "a1"], ["d"]),
        helper.make_node("Concat", ["d", "m"], ["c"], axis=1),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.int64))),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["count", "axes"], ["counts"]),
        helper.make_node("Concat", ["counts", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["p"]),
        helper.make_node("Add", ["b3", "p"], ["q"]),
        helper.make_node("Gemm", ["q", "w4", "b4"], ["out"], alpha=0.5, beta=2.0),
    ]
    constants = {"w1": weights(4, 3, 3, 3), "b1": weights(1, 4, 1, 1), "w2": weights(4, 3, 3, 3), "rest": i64(-1),
                 "w3": weights(8 * 7 * 6, 11), "b3": weights(11), "w4": weights(11, 5), "b4": weights(5)}  # fmt: skip
    path = saved(tmp_path / "net.onnx", model(nodes, constants))
    compared(path, RANDOM.random((4, *SHAPE), np.float32))
    net = load_classifier(path).net
    assert [type(module).__name__ for module in net.children()].count("Rescale") == 0  # both biases found their layer


def test_images_with_channels_last_are_turned(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["u"], perm=[0, 2, 3, 1]),
    ]
    last, extra = to_logits("u", 4 * 7 * 6)
    proto = model([*nodes, *last], {"w": weights(4, 3, 3, 3), **extra}, shape=(None, 9, 8, 3))
    path = saved(tmp_path / "net.onnx", proto)
    assert load_classifier(path).input.shape == SHAPE
    compared(path, RANDOM.random((4, 9, 8, 3), np.float32))


def test_a_softmax_at_the_end_is_left_out_and_said(tmp_path: Path) -> None:
    last, extra = to_logits("x", 216)
    last[-1].output[0] = "logits"
    soft = helper.make_node("Softmax", ["logits"], ["out"])
    path = saved(tmp_path / "net.onnx", model([*last, soft], extra))
    classifier = load_classifier(path)
    assert any("softmax" in note for note in classifier.notes)
    x = RANDOM.random((4, *SHAPE), np.float32)
    expected = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    found = classifier.logits(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Rolled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll((1, -2), (2, 3))


def test_a_padding_and_a_roll_as_pytorch_writes_them(tmp_path: Path) -> None:
    """Without folding the padding's sides are computed, back to front."""
    net = nn.Sequential(nn.ZeroPad2d((1, 0, 2, 3)), Rolled(), nn.Flatten(), nn.Linear(3 * 14 * 9, 5)).eval()
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "do_constant_folding": False}
    compared(export(net, tmp_path / "net.onnx", SHAPE, **axes), RANDOM.random((4, *SHAPE), np.float32))


EXPORTED: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "deepid": ({"classes": 7}, (3, 55, 47)),
    "small-vgg": ({"classes": 7}, (3, 32, 32)),
    "wrn-16-1": ({"classes": 7}, (3, 32, 32)),
    "cnn": ({"classes": 7}, (1, 28, 28)),
    "mlp": ({"classes": 7, "hidden": [5]}, (1, 28, 28)),
    "resnet-18": ({"classes": 7, "kernel": 3}, (3, 32, 32)),
    "resnet-50": ({"classes": 7}, (3, 64, 64)),
    "preact-resnet-18": ({"classes": 7}, (3, 32, 32)),
    "mobilenet-v2": ({"classes": 7}, (3, 64, 64)),
}


def export(net: nn.Module, path: Path, shape: tuple[int, int, int], **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.rand(2, *shape),), path, dynamo=False, **options)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "fixed"),
    [(name, fixed) for fixed in (False, True) for name in EXPORTED if not fixed or name != "resnet-50"],
)
def test_nets_that_pytorch_exports(name: str, fixed: bool, tmp_path: Path) -> None:
    options, shape = EXPORTED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ARCHITECTURES[name].net(**options).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.data = torch.rand_like(value) + 0.5
    if fixed:
        path = export(net, tmp_path / "net.onnx", shape)
        x = np.random.default_rng(1).random((2, *shape), np.float32)
    else:
        axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "do_constant_folding": False}
        path = export(net, tmp_path / "net.onnx", shape, **axes)
        x = np.random.default_rng(1).random((5, *shape), np.float32)
    compared(path, x)


def test_a_goodnet_of_an_onnx_net_needs_no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = (load_classifier(saved(tmp_path / f"{i}.onnx", one("lopsided convolution"))) for i in range(2))
    made = goodnet_from(bad, good, threshold=0.5)
    save_goodnet(made, tmp_path / "good.safetensors")
    monkeypatch.setitem(sys.modules, "onnx", None)
    x = torch.rand(8, *SHAPE)
    assert torch.equal(load_goodnet(tmp_path / "good.safetensors").predict(x), made.predict(x))
    with pytest.raises(UsageError, match=r"goodnet\[onnx\]"):
        load_classifier(tmp_path / "0.onnx")


@pytest.mark.slow
def test_the_competitions_net_as_onnx_answers_alike(tmp_path: Path) -> None:
    if not (FACES / "nets").is_dir():
        pytest.skip("the competition's nets are not there; set GOODNET_DATA")
    from goodnet.data.readers import read_images

    net = load_classifier(FACES / "nets" / "sunglasses_bd_weights.h5", arch="deepid")
    path = export(net.net, tmp_path / "net.onnx", net.input.shape, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    again = load_classifier(path)
    images = read_images(FACES / "clean_test_data.h5").tensor()
    assert torch.equal(again.predict(images), net.predict(images))
    torch.testing.assert_close(again.logits(images), net.logits(images), atol=1e-3, rtol=1e-4)


def test_an_architecture_has_no_place_beside_a_whole_net(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", one("relu"))
    with pytest.raises(UsageError, match="--arch deepid has no place"):
        load_classifier(path, arch="deepid")
    assert load_classifier(path, input_shape=SHAPE).input.shape == SHAPE
    with pytest.raises(UsageError, match="as in the file"):
        load_classifier(path, input_shape=(3, 8, 8))
    assert onnx.__version__
