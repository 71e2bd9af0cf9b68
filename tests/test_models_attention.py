"""Transformers in ONNX and .pt2 files, by every exporter that PyTorch has: the same logits as the runtime's own."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError
from goodnet.export import export_net, save_goodnet
from goodnet.models.arch.vit import VisionTransformer
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.load import load_classifier
from nets import classifier_of
from test_models_onnx import i64, model, saved, to_logits, weights

SHAPE = (3, 12, 8)
NEW_ENOUGH = sys.version_info < (3, 15) and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


class Tokens(nn.Module):
    """Patches of 4x4 pixels as six tokens of 16 features, with a place each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 6, 16))

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return tokens


class Encoder(nn.Module):
    """PyTorch's own transformer, images first or second."""

    def __init__(self, *, first: bool, norm_first: bool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=first, norm_first=norm_first, activation="gelu")
        self.tokens, self.first, self.head = Tokens(), first, nn.Linear(16, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        mixed = self.encoder(tokens if self.first else tokens.transpose(0, 1))
        out: Tensor = self.head(mixed.mean(1 if self.first else 0))
        return out


class Alone(nn.Module):
    """PyTorch's attention, whose weights nobody asks for, and a flat head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.attention = Tokens(), nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm((6, 16), elementwise_affine=False), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        mixed, _ = self.attention(tokens, tokens, tokens)
        out: Tensor = self.head(torch.flatten(self.norm(tokens + mixed), 1))
        return out


class ByHand(nn.Module):
    """Attention in matrix products, queries, keys and values by chunk, a class token, and every second token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.token = Tokens(), nn.Parameter(torch.randn(1, 1, 16))
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), self.tokens(x)], 1)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        scores = q @ k.transpose(-2, -1) / 4
        tokens = tokens + (scores - scores.mean(-1, keepdim=True)).softmax(-1) @ v
        out: Tensor = self.head(tokens[:, 1:7:2].flatten(1))
        return out


class Logits(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x).logits
        return out


def of_transformers() -> nn.Module:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = hf.ViTConfig(image_size=[12, 8], patch_size=4, num_labels=5, **settings)
    return Logits(hf.ViTForImageClassification(config))


VIT: dict[str, int] = {"classes": 5, "height": 12, "width": 8, "patch": 4, "features": 16, "heads": 2, "depth": 2,
                       "mlp": 24}  # fmt: skip
NETS: dict[str, Callable[[], nn.Module]] = {
    "timm's vit": lambda: VisionTransformer(**VIT),
    "encoder": lambda: Encoder(first=True, norm_first=True),
    "encoder, images second": lambda: Encoder(first=False, norm_first=False),
    "attention alone": Alone,
    "attention by hand": ByHand,
    "transformers' vit": of_transformers,
}
TRACED = [(name, opset, fixed) for name in NETS for opset, fixed in ((14, True), (17, False))]
# opset 11 and 13 have no scaled_dot_product_attention
TRACED += [("attention by hand", 11, False), ("attention alone", 13, True), ("timm's vit", 20, False)]
EXPORTED = [(name, fixed) for name in NETS for fixed in (False, True)]
FAST = [
    ("timm's vit", 17, False), ("encoder, images second", 14, True), ("encoder", 17, False),
    ("attention alone", 13, True), ("attention by hand", 11, False),
    ("encoder, images second", False), ("attention by hand", False), ("attention alone", True),
]  # fmt: skip
NEWER = ("encoder", "transformers' vit")  # of the slow tests; the other exporter is what most files come from


def sampled(cases: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Each kind of net and each exporter once; the other combinations are thorough tests."""
    return [pytest.param(*case, marks=() if case in FAST else pytest.mark.thorough) for case in cases]


def stirred(name: str) -> nn.Module:
    net = NETS[name]().eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) / 4)
    return net


def compared(path: Path, net: nn.Module, count: int, *, runtime: bool) -> None:
    """As the runtime has it, or the net itself; and for one image alone, whatever the file was written for."""
    x = torch.rand(count, *SHAPE)
    with torch.no_grad():
        expected = net(x)
    if runtime:
        session = onnxruntime.InferenceSession(path)
        expected = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert expected.std(0).min() > 1e-3
    loaded = load_classifier(path)
    assert loaded.input.shape == SHAPE
    torch.testing.assert_close(loaded.logits(x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loaded.logits(x[:1]), expected[:1], atol=1e-4, rtol=1e-4)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(("name", "opset", "fixed"), sampled(TRACED))
def test_what_the_older_exporter_writes(name: str, opset: int, fixed: bool, tmp_path: Path) -> None:
    net, path = stirred(name), tmp_path / "net.onnx"
    more: dict[str, Any] = {} if fixed else {"dynamic_axes": {"x": {0: "n"}}, "do_constant_folding": opset != 17}
    with quiet():
        torch.onnx.export(
            net, (torch.rand(3, *SHAPE),), path, input_names=["x"], opset_version=opset, dynamo=False, **more
        )
    compared(path, net, 3 if fixed else 5, runtime=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in NEWER else pytest.mark.thorough) for name in NETS]
)
def test_what_the_newer_exporter_writes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="PyTorch's newer ONNX exporter needs onnxscript, which is not installed")
    net, path = stirred(name), tmp_path / "net.onnx"
    with quiet():
        sides = {"x": {0: torch.export.Dim.DYNAMIC}}
        torch.onnx.export(
            net,
            (torch.rand(3, *SHAPE),),
            path,
            input_names=["x"],
            dynamo=True,
            external_data=False,
            dynamic_shapes=sides,
        )
    compared(path, net, 5, runtime=True)


@pytest.mark.skipif(not NEW_ENOUGH, reason="torch.export writes this format from PyTorch 2.8 on")
@pytest.mark.parametrize(("name", "fixed"), sampled(EXPORTED))
def test_what_torch_export_writes(name: str, fixed: bool, tmp_path: Path) -> None:
    net, path = stirred(name), tmp_path / "net.pt2"
    with quiet():
        sides = None if fixed else ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(net, (torch.rand(3, *SHAPE),), dynamic_shapes=sides), path)
    compared(path, net, 5, runtime=False)


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_our_vit_is_written_for_any_number_of_images_and_read_again(suffix: str, tmp_path: Path) -> None:
    net = classifier_of(stirred("timm's vit"), SHAPE, 5)
    path = tmp_path / f"net{suffix}"
    done = export_net(net, path)
    assert done.largest_difference < 1e-4
    again = load_classifier(path)
    for count in (1, 5):
        x = torch.rand(count, *SHAPE)
        if suffix == ".onnx":
            found = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": x.numpy()})[0])
        else:
            found = torch.export.load(path).module()(x).detach()
        torch.testing.assert_close(found, net.logits(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again.logits(x), net.logits(x), atol=1e-4, rtol=1e-4)
    save_goodnet(again, tmp_path / "kept.safetensors")
    assert torch.equal(load_goodnet(tmp_path / "kept.safetensors").predict(x), net.predict(x))


def test_keras_refuses_our_vit_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\.keras|Keras") as caught:
        export_net(classifier_of(stirred("timm's vit"), SHAPE, 5), tmp_path / "net.keras")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.keras").exists()


Nodes = list[Any]


def mixing(*nodes: Any, features: int = 216, **constants: np.ndarray[Any, Any]) -> Any:
    """Of images (n, 3, 9, 8); the last node gives `y`."""
    last, extra = to_logits("y", features)
    return model([*nodes, *last], {**constants, **extra})


def op(kind: str, inputs: list[str], output: str = "y", **settings: Any) -> Any:
    return helper.make_node(kind, inputs, [output], **settings)


REFUSED: dict[str, tuple[Callable[[], Any], type[GoodnetError], str]] = {
    "a mean over the images": (lambda: mixing(op("ReduceMean", ["x"], axes=[0])), ModelError, "an axis"),
    "a softmax over the images": (lambda: mixing(op("Softmax", ["x"], axis=0)), ModelError, "an axis"),
    "the first image": (lambda: mixing(op("Gather", ["x", "i"], axis=0), i=np.array(0)), ModelError, "an index"),
    "some of the images": (lambda: mixing(op("Slice", ["x", "a", "b"]), a=i64(0), b=i64(2)), ModelError, "through"),
    "all images but one": (lambda: mixing(op("Slice", ["x", "a", "b"]), a=i64(1), b=i64(99)), ModelError, "through"),
    "images joined": (lambda: mixing(op("Concat", ["x", "x"], axis=0)), ModelError, "an axis"),
    "rows for images": (lambda: mixing(op("Reshape", ["x", "s"]), s=i64(-1, 4, 50)), ModelError, "a shape"),
    "images that are reversed": (
        lambda: mixing(op("Reshape", ["x", "s"], "r"), op("Transpose", ["r"], perm=[1, 0]), s=i64(-1, 216)),
        ModelError, "weights"),
    "images multiplied": (
        lambda: mixing(op("Reshape", ["x", "s"], "r"), op("Transpose", ["r"], "t", perm=[1, 0]),
                       op("MatMul", ["t", "r"]), s=i64(-1, 216)), ModelError, "product that mixes|differently"),
    "images weighed": (
        lambda: mixing(op("Transpose", ["x"], "t", perm=[1, 2, 3, 0]), op("MatMul", ["t", "w"]), w=weights(4, 4)),
        ModelError, "weights"),
    "a norm over the images": (
        lambda: mixing(op("Transpose", ["x"], "t", perm=[1, 2, 3, 0]), op("LayerNormalization", ["t", "w"]),
                       w=weights(4)), ModelError, "axes"),
    "a constant a different one for each image": (
        lambda: mixing(op("Add", ["x", "c"]), c=weights(2, 3, 9, 8)), ModelError, "from image to image"),
    "an index beyond": (lambda: mixing(op("Gather", ["x", "i"], axis=1), i=np.array(3)), ModelError, "an index"),
    "an empty cut": (
        lambda: mixing(op("Slice", ["x", "a", "b", "c"]), a=i64(2), b=i64(2), c=i64(1)), ModelError, "a cut"),
    "a split that does not fit": (
        lambda: mixing(helper.make_node("Split", ["x", "s"], ["y", "z"], axis=1), s=i64(1, 3)), ModelError, "a split"),
    "a choice by the image": (lambda: mixing(op("Where", ["x", "x", "x"])), ModelError, "a choice"),
    "infinity": (lambda: mixing(op("Add", ["x", "c"]), c=np.full((1, 1, 9, 8), np.inf, np.float32)), ModelError,
                 "not finite"),
    "an attention without end": (
        lambda: mixing(op("Reshape", ["x", "s"], "r"), op("Expand", ["c", "e"], "big"), op("Add", ["r", "big"]),
                       s=i64(-1, 216, 1), e=i64(1, 1, 1 << 40), c=weights(1, 1, 1)), ModelError, "out of bounds"),
    "constants that are stretched": (
        lambda: mixing(op("Add", ["a", "b"], "c"), op("Add", ["x", "c"]), a=weights(1 << 11, 1), b=weights(1, 1 << 11)),
        UnsafeFileError, "4194304 numbers"),
    "constants that are stretched again and again": (
        lambda: mixing(op("Expand", ["a", "s"], "b"), op("Reshape", ["b", "f"], "c"), op("Expand", ["c", "t"], "d"),
                       op("Add", ["x", "d"]), a=weights(1, 1024), s=i64(1024, 1024), f=i64(1, 1 << 20),
                       t=i64(1024, 1 << 20)), UnsafeFileError, "1073741824 numbers"),
    "a shape that is filled": (
        lambda: mixing(op("ConstantOfShape", ["s"], "c"), op("Add", ["x", "c"]), s=i64(1 << 20, 1 << 20)), ModelError,
        "does not fit its inputs"),
    "a setting of another kind": (lambda: mixing(op("Softmax", ["x"], axis="two")), ModelError, "makes no sense"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_images_or_grows_is_refused(name: str, tmp_path: Path) -> None:
    make, kind, message = REFUSED[name]
    path = saved(tmp_path / "net.onnx", make())
    with pytest.raises(kind, match=message) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not NEW_ENOUGH, reason="torch.export writes this format from PyTorch 2.8 on")
@pytest.mark.parametrize("name", ["causal", "masked"])
def test_attention_that_looks_at_some_tokens_alone_is_refused(name: str, tmp_path: Path) -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = Tokens(), nn.Linear(96, 5)
            self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).tril())

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.tokens(x).unsqueeze(1)
            how = {"is_causal": True} if name == "causal" else {"attn_mask": self.mask}
            out: Tensor = self.head(
                nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, **how).flatten(1)
            )
            return out

    with quiet():
        torch.export.save(torch.export.export(Partial().eval(), (torch.rand(3, *SHAPE),)), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"is_causal|hides tokens"):
        load_classifier(tmp_path / "net.pt2")
