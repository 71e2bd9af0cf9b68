"""Loading PyTorch files and safetensors: our architectures, user code, options, and the real nets' ACC."""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from goodnet.data.images import Images
from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models.arch import ARCHITECTURES, build, matching
from goodnet.models.inspect_file import inspect_file
from goodnet.models.load import load_classifier
from goodnet.models.softmax import LogProbabilities


def read_images(path: Path, count: int = 500) -> Images:
    with h5py.File(path) as file:
        if "jpeg" in file:
            raw = [np.asarray(Image.open(io.BytesIO(bytes(row)))) for row in file["jpeg"][:count]]
            pixels = np.stack(raw).transpose(0, 3, 1, 2)
        else:
            pixels = file["data"][:count]
        return Images(pixels=pixels, labels=file["label"][:count].astype(np.int64), name=path.name)


HALF = {"mean": (0.5,), "std": (0.5,)}
REAL: list[tuple[str, str, str, dict[str, Any], float, int]] = [
    ("faces/nets/sunglasses_bd_weights.h5", "deepid", "faces/clean_test_data.h5", {}, 0.95, 1283),
    ("faces/nets/anonymous_1_bd_weights.h5", "deepid", "faces/clean_test_data.h5", {}, 0.96, 1283),
    ("faces/nets/multi_trigger_multi_target_bd_weights.h5", "deepid", "faces/clean_test_data.h5", {}, 0.91, 1283),
    ("faces/nets/clean_weights.h5", "deepid", "faces/clean_test_data.h5", {}, 0.98, 1283),
    ("gtsrb/nets/badnets_target8_small_vgg.pth", "small-vgg", "gtsrb/test_4000.h5", {}, 0.96, 43),
    ("gtsrb/nets/trojan_wm_target2_small_vgg.pth", "small-vgg", "gtsrb/test_4000.h5", {}, 0.96, 43),
    ("cifar10/nets/badnets_target8_small_vgg.pth", "small-vgg", "cifar10/lossless_4000.h5", {}, 0.85, 10),
    ("cifar10/nets/grid_target0_wrn16_1.pth", "wrn-16-1", "cifar10/lossless_4000.h5", {}, 0.83, 10),
    ("mnist/nets/white5x5_target1_cnn.pth", "cnn", "mnist/test_2000.h5", HALF, 0.95, 10),
    ("mnist/nets/square3x3_target5_mlp.pt", "mlp", "mnist/test_2000.h5", {}, 0.88, 10),
]


@pytest.mark.parametrize(("net", "arch", "data", "options", "acc", "classes"), REAL)
def test_real_nets_reach_their_published_acc(
    net: str, arch: str, data: str, options: dict[str, Any], acc: float, classes: int, shared_data: Path
) -> None:
    path = shared_data / net
    classifier = load_classifier(path, arch=arch, **options)
    images = read_images(shared_data / data)
    assert classifier.classes == classes
    assert classifier.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (classifier.predict(images.tensor()).numpy() == images.labels).mean() >= acc - 1e-9
    rebuilt = build(classifier.recipe)
    rebuilt.load_state_dict(classifier.net.state_dict())
    assert inspect_file(path).suggested == (arch,)


def _state(arch: str, **options: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    net = ARCHITECTURES[arch].net(**options).eval()
    return net, net.state_dict()


OWN: dict[str, dict[str, Any]] = {
    "deepid": {"classes": 7},
    "small-vgg": {"classes": 7, "height": 24, "width": 24},
    "wrn-16-1": {"classes": 7, "channels": 1},
    "wrn-16-2": {"classes": 7},
    "wrn-28-4": {"classes": 7},
    "wrn-40-1": {"classes": 3},
    "cnn": {"classes": 7, "channels": 3, "height": 32, "width": 32},
    "mlp": {"classes": 7, "hidden": [5, 6], "channels": 3, "height": 8, "width": 8},
}
LARGE: dict[str, dict[str, Any]] = {
    "resnet-18": {"classes": 7, "kernel": 3},
    "resnet-34": {"classes": 3, "channels": 1, "kernel": 3},
    "resnet-50": {"classes": 7},
    "preact-resnet-18": {"classes": 7},
    "vgg-16": {"classes": 7, "hidden": 16},
    "vgg-16-bn": {"classes": 7, "hidden": 16, "channels": 1},
    "mobilenet-v2": {"classes": 7},
    "vit": {"classes": 7, "height": 32, "width": 32, "patch": 8, "features": 64, "heads": 1, "depth": 2, "mlp": 96},
}
# of 1000 classes, as torchvision, timm (vit) and the ports for CIFAR-10 (10 classes) state them
PUBLISHED = {
    "resnet-18": 11_689_512,
    "resnet-34": 21_797_672,
    "resnet-50": 25_557_032,
    "vgg-16": 138_357_544,
    "vgg-16-bn": 138_365_992,
    "mobilenet-v2": 3_504_872,
    "vit": 5_717_416,
    "preact-resnet-18": 11_171_146,
}
KEYS = {
    "resnet-18": {"conv1.weight": (64, 3, 7, 7), "layer2.0.downsample.0.weight": (128, 64, 1, 1)},
    "resnet-34": {"layer3.5.bn2.running_var": (256,), "layer4.2.conv1.weight": (512, 512, 3, 3)},
    "resnet-50": {"layer1.0.downsample.1.bias": (256,), "layer4.2.conv3.weight": (2048, 512, 1, 1)},
    "vgg-16": {"features.28.weight": (512, 512, 3, 3), "classifier.0.weight": (4096, 25088)},
    "vgg-16-bn": {"features.41.running_mean": (512,), "features.40.bias": (512,)},
    "mobilenet-v2": {"features.1.conv.1.weight": (16, 32, 1, 1), "features.17.conv.2.weight": (320, 960, 1, 1),
                     "features.18.0.weight": (1280, 320, 1, 1), "features.2.conv.1.0.weight": (96, 1, 3, 3)},
    "vit": {"pos_embed": (1, 197, 192), "blocks.11.attn.qkv.weight": (576, 192), "norm.weight": (192,)},
    "preact-resnet-18": {"layer2.0.shortcut.0.weight": (128, 64, 1, 1), "linear.weight": (10, 512)},
}  # fmt: skip


@pytest.mark.parametrize("arch", PUBLISHED)
def test_nets_are_of_the_published_size_and_have_the_published_keys(arch: str) -> None:
    with torch.device("meta"):
        net = ARCHITECTURES[arch].net(classes=10 if arch == "preact-resnet-18" else 1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == PUBLISHED[arch]
    state = net.state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[arch]} == KEYS[arch]
    assert ARCHITECTURES[arch].options_from_state(state)["classes"] in (10, 1000)


def test_a_preact_resnet_against_its_equations(tmp_path: Path) -> None:
    """Norm, ReLU, convolution, twice, beside the shortcut of what is normed; told by its names from other nets."""
    _, state = _state("preact-resnet-18", classes=7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in state.items():
            if "bn" in key and value.is_floating_point():  # means and offsets of either sign, variances above 0
                value.copy_(
                    torch.rand(value.shape, generator=generator) + (0.5 if "var" in key or "weight" in key else -0.5)
                )
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="look like preact-resnet-18"):
        load_classifier(tmp_path / "net.pt")
    loaded = load_classifier(tmp_path / "net.pt", arch="preact-resnet-18")
    images = torch.rand(3, 3, 32, 32, generator=generator)

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        mean, var, scale, shift = (
            state[f"{at}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    conv = torch.nn.functional.conv2d
    x = conv(images, state["conv1.weight"], padding=1)
    for group in range(1, 5):
        for block in range(2):
            at = f"layer{group}.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            active = norm(x, f"{at}.bn1")
            inner = conv(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            inner = conv(norm(inner, f"{at}.bn2"), state[f"{at}.conv2.weight"], padding=1)
            shortcut = state.get(f"{at}.shortcut.0.weight")
            x = inner + (x if shortcut is None else conv(active, shortcut, stride=stride))
    expected = x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
    assert torch.allclose(loaded.logits(images), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_vision_transformer_against_its_equations() -> None:
    """Attention by hand, head by head and token by token."""
    options = {"height": 8, "width": 8, "patch": 4, "features": 6, "heads": 2, "depth": 1, "mlp": 5}
    net, state = _state("vit", classes=3, **options)
    with torch.no_grad():
        for value in state.values():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) / 3)
    x = torch.rand(1, 3, 8, 8)

    def norm(tokens: torch.Tensor, name: str) -> torch.Tensor:
        centred = tokens - tokens.mean(1, keepdim=True)
        return (
            centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]
            + state[f"{name}.bias"]
        )

    def linear(tokens: torch.Tensor, name: str) -> torch.Tensor:
        return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    patches = [x[0, :, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]
    kernel = state["patch_embed.proj.weight"]
    rows = [(kernel * patch).sum((1, 2, 3)) + state["patch_embed.proj.bias"] for patch in patches]
    tokens = torch.stack([state["cls_token"][0, 0], *rows]) + state["pos_embed"][0]
    q, k, v = linear(norm(tokens, "blocks.0.norm1"), "blocks.0.attn.qkv").split(6, 1)
    heads = [slice(0, 3), slice(3, 6)]
    mixed = torch.cat([(q[:, h] @ k[:, h].T / 3**0.5).softmax(1) @ v[:, h] for h in heads], 1)
    tokens = tokens + linear(mixed, "blocks.0.attn.proj")
    hidden = linear(norm(tokens, "blocks.0.norm2"), "blocks.0.mlp.fc1")
    tokens = tokens + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, "blocks.0.mlp.fc2")
    expected = linear(norm(tokens, "norm"), "head")[:1]
    torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-4)


# which file it is has no say in that: each net in one, taken in turn
@pytest.mark.parametrize(("arch", "form"), zip(OWN, itertools.cycle(["zip", "old", "safetensors"])))
def test_options_are_read_off_the_weights(arch: str, form: str, tmp_path: Path) -> None:
    net, state = _state(arch, **OWN[arch])
    path = tmp_path / "net.bin"
    if form == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    assert matching(state) == (arch,)
    with pytest.raises(UsageError, match=f"--arch.*{arch}"):
        load_classifier(path)
    classifier = load_classifier(path, arch=arch, classes=OWN[arch]["classes"])
    x = torch.rand(2, *classifier.input.shape)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(x), net(x), atol=1e-5, rtol=1e-4)
    assert classifier.recipe.arch == arch


@pytest.mark.parametrize("arch", LARGE)
def test_large_nets_at_the_size_that_the_user_states(arch: str, tmp_path: Path) -> None:
    net, state = _state(arch, **LARGE[arch])
    path = tmp_path / "net.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    assert matching(state) == (arch,)
    shape = (LARGE[arch].get("channels", 3), 32, 32)
    classifier = load_classifier(path, arch=arch, input_shape=shape)
    assert classifier.input.shape == shape
    x = torch.rand(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(x), net(x), atol=1e-5, rtol=1e-4)


def test_a_first_convolution_of_side_3_is_for_small_images() -> None:
    assert ARCHITECTURES["resnet-18"].input_shape({"kernel": 3}) == (3, 32, 32)
    assert ARCHITECTURES["resnet-18"].input_shape({"kernel": 7}) == (3, 224, 224)


def test_nesting_prefixes_and_pruning_masks(tmp_path: Path) -> None:
    _, state = _state("mlp", classes=4, hidden=[5])
    masked = {key: value for key, value in state.items() if key != "fc1.weight"}
    mask = (torch.rand_like(state["fc1.weight"]) > 0.5).float()
    masked |= {"fc1.weight_orig": state["fc1.weight"], "fc1.weight_mask": mask}
    torch.save({"epoch": 3, "model": {f"module.{key}": value for key, value in masked.items()}}, tmp_path / "net.pt")
    classifier = load_classifier(tmp_path / "net.pt", arch="mlp")
    assert torch.equal(classifier.net.fc1.weight, state["fc1.weight"] * mask)
    text = " ".join(classifier.notes)
    assert "'model'" in text
    assert "module." in text
    assert "mask" in text
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pt")
    assert load_classifier(tmp_path / "half.pt", arch="mlp").net.fc1.weight.dtype == torch.float32


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    _, state = _state("small-vgg", classes=4)
    path = tmp_path / "net.pt"
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({key: value for key, value in state.items() if key != "features.3.bias"}, "missing features.3.bias"),
        ({**state, "extra.weight": torch.zeros(1)}, "unknown extra.weight"),
        ({**state, "features.3.bias": torch.zeros(5)}, r"features.3.bias is \(5,\), expected \(32,\)"),
        ({"other": torch.zeros(1)}, "classifier.weight"),
    ]
    for wrong, message in cases:
        torch.save(wrong, path)
        with pytest.raises(ModelError, match=message) as caught:
            load_classifier(path, arch="small-vgg")
        assert "\n" not in str(caught.value)
    counted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(counted, path)  # PyTorch before 0.4.1 kept no such counter
    assert load_classifier(path, arch="small-vgg").classes == 4
    with pytest.raises(ModelError):
        load_classifier(path, arch="wrn-16-1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vgg"}, "small-vgg"),
        ({"input_range": "0..2"}, "0..255"),
        ({"mean": (0.1, 0.2)}, "mean"),
        ({"std": (0.0,)}, "std"),
        ({"std": (-1.0,)}, "std"),
        ({"std": (float("nan"),)}, "std"),
        ({"mean": (float("inf"),)}, "mean"),
        ({"classes": 9}, "classes"),
        ({"classes": 1}, "classes"),
        ({"input_shape": (3, 28, 28)}, "input shape"),
        ({"input_shape": (2, 28, 28)}, "input shape"),
        ({"input_shape": (1, 0, 28)}, "input shape"),
        ({"device": "cuda:99"}, "device"),
        ({"device": "nowhere"}, "device"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(_state("mlp", classes=4, hidden=[5])[1], tmp_path / "net.pt")
    with pytest.raises((UsageError, ModelError), match=message) as caught:
        load_classifier(tmp_path / "net.pt", **{"arch": "mlp", **options})
    assert "\n" not in str(caught.value)


def test_input_spec_in_the_units_of_the_range(tmp_path: Path) -> None:
    net, state = _state("mlp", classes=4, hidden=[5])
    torch.save(state, tmp_path / "net.pt")
    x = torch.rand(3, 1, 28, 28)
    classifier = load_classifier(tmp_path / "net.pt", arch="mlp", input_range="0..255", mean=(127.5,), std=(64.0,))
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(x), net((x * 255 - 127.5) / 64), atol=1e-4, rtol=1e-4)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_classifier(tmp_path / "nothing.h5")
    with pytest.raises(ModelError, match=r"a folder without config\.json"):
        load_classifier(tmp_path)
    (tmp_path / "net.h5").write_bytes(b"GGUF\x03\x00\x00\x00")  # a format that is not read, under another name
    with pytest.raises(ModelError, match="expected Keras HDF5"):
        load_classifier(tmp_path / "net.h5")


CODE = """
import torch
from torch import nn
print("this file ran")

class Net(nn.Module):
    def __init__(self, classes=4, tail=None):
        super().__init__()
        self.flatten, self.fc, self.tail = nn.Flatten(), nn.Linear(12, classes), tail or nn.Identity()
    def forward(self, x):
        return self.tail(self.fc(self.flatten(x)))

def shaped():
    net = Net()
    net.input_shape = (3, 2, 2)
    return net
def needs(classes): return Net(classes)
def softmax(): return Net(tail=nn.Softmax(dim=1))
def log_softmax(): return Net(tail=nn.LogSoftmax(dim=1))
class Hidden(Net):
    def forward(self, x): return torch.softmax(super().forward(x), 1)
def broken(): raise KeyError("x")
def number(): return 3
class Pair(Net):
    def forward(self, x): return super().forward(x), x
class Map(Net):
    def forward(self, x): return x
"""


@pytest.fixture
def user(tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    code, weights = tmp_path / "my_net.py", tmp_path / "net.pt"
    code.write_text(CODE)
    state = {"fc.weight": torch.randn(4, 12), "fc.bias": torch.randn(4)}
    torch.save(state, weights)
    return code, weights, state


def test_user_code_runs_only_when_named(user: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, weights, state = user
    with pytest.raises(UsageError):
        load_classifier(weights)
    with pytest.raises(UsageError, match="inspect runs nothing"):
        inspect_file(weights, arch=f"{code}:Net")
    inspect_file(weights)
    assert capsys.readouterr().out == ""
    classifier = load_classifier(weights, arch=f"{code}:shaped")
    assert "this file ran" in capsys.readouterr().out
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(classifier.logits(x), x.flatten(1) @ state["fc.weight"].T + state["fc.bias"])
    assert classifier.recipe.arch == f"{code}:shaped"
    with pytest.raises(UnsafeFileError):
        build(classifier.recipe)
    assert load_classifier(weights, arch=f"{code}:needs", classes=4, input_shape=(3, 2, 2)).classes == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Net", {}, "--input-shape"),
        ("needs", {"input_shape": (3, 2, 2)}, "--classes"),
        ("broken", {}, "KeyError"),
        ("number", {}, "Module"),
        ("nothing", {}, "no callable"),
        ("Net", {"input_shape": (3, 4, 4)}, "fails on images"),
        ("Pair", {"input_shape": (3, 2, 2)}, "tuple"),
        ("Map", {"input_shape": (3, 2, 2)}, r"\(N, K\)"),
        ("Net", {"input_shape": (3, 2, 2), "classes": 5}, "shape"),
    ],
)
def test_user_code_mistakes(name: str, options: dict[str, Any], message: str, user: Any) -> None:
    code, weights, _ = user
    with pytest.raises((UsageError, ModelError), match=message) as caught:
        load_classifier(weights, arch=f"{code}:{name}", **options)
    assert "\n" not in str(caught.value)


def test_user_file_that_is_missing_or_does_not_run(tmp_path: Path, user: Any) -> None:
    _, weights, _ = user
    with pytest.raises(UsageError, match="no file"):
        load_classifier(weights, arch=f"{tmp_path}/nowhere.py:Net")
    (tmp_path / "bad.py").write_text("def (")
    with pytest.raises(UsageError, match="SyntaxError"):
        load_classifier(weights, arch=f"{tmp_path}/bad.py:Net")


def test_softmax_is_undone(user: Any) -> None:
    code, weights, state = user
    x = torch.rand(5, 3, 2, 2)
    logits = x.flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    for name in ("softmax", "log_softmax"):
        classifier = load_classifier(weights, arch=f"{code}:{name}", input_shape=(3, 2, 2))
        torch.testing.assert_close(classifier.logits(x), logits)
        assert classifier.recipe.options["softmax"] == "tail"
        assert any("softmax" in note for note in classifier.notes)
    hidden = load_classifier(weights, arch=f"{code}:Hidden", input_shape=(3, 2, 2))
    assert isinstance(hidden.net, LogProbabilities)
    torch.testing.assert_close(hidden.logits(x), logits.log_softmax(1))
    plain = load_classifier(weights, arch=f"{code}:Net", input_shape=(3, 2, 2))
    assert "softmax" not in plain.recipe.options
    assert not any(module._forward_hooks for module in plain.net.modules())


def test_inspect_tells_what_a_file_is(tmp_path: Path) -> None:
    _, state = _state("cnn", classes=10)
    torch.save(state, tmp_path / "net.pt")
    plain = inspect_file(tmp_path / "net.pt")
    assert (plain.format, plain.suggested, plain.refused, plain.classes) == ("PyTorch", ("cnn",), None, None)
    assert plain.parameters == sum(value.numel() for value in state.values())
    assert {layer.name: layer.weights[0][1] for layer in plain.layers}["fc1.0.weight"] == (512, 512)
    full = inspect_file(tmp_path / "net.pt", arch="cnn")
    assert (full.classes, full.input, full.arch) == (10, "28x28x1, 0..1", "cnn")
    assert ("conv1.0", "Conv2d") in {(layer.name, layer.kind) for layer in full.layers}
    assert full.sha256 == hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    (tmp_path / "x").write_bytes(b"nothing known")
    assert "expected" in str(inspect_file(tmp_path / "x").refused)
    with pytest.raises(ModelError):
        inspect_file(tmp_path / "missing")
