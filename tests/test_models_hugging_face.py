"""Hugging Face folders: the logits of `transformers` and of nets that people ported; and what hostile folders try."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cli_support import Shell
from goodnet.data.readers import read_images
from goodnet.errors import DataError, GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.export import save_goodnet
from goodnet.models.arch import ARCHITECTURES
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.inspect_file import inspect_file
from goodnet.models.load import load_classifier

Json = dict[str, Any]
# of transformers' classes: the config's class, the net's, and the config's settings
TINY: dict[str, tuple[str, str, Json]] = {
    "resnet with bottlenecks": (
        "ResNetConfig", "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16, 32],
                                                         "depths": [1, 2, 1], "image_size": 48}),
    "resnet that halves early": (
        "ResNetConfig", "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "downsample_in_first_stage": True,
         "downsample_in_bottleneck": True, "hidden_act": "silu", "image_size": 48}),
    "resnet with basic blocks": (
        "ResNetConfig", "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic", "num_channels": 1}),
    "vit": (
        "ViTConfig", "ViTForImageClassification",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "image_size": 24, "patch_size": 8}),
    "vit with settings": (
        "ViTConfig", "ViTForImageClassification",
        {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24,
         "image_size": [16, 24], "patch_size": 4, "qkv_bias": False, "layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    "deit": (
        "DeiTConfig", "DeiTForImageClassification",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
         "image_size": 16, "patch_size": 8}),
    "deit with its teacher": (
        "DeiTConfig", "DeiTForImageClassificationWithTeacher",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
         "image_size": 16, "patch_size": 8}),
    "swin": (
        "SwinConfig", "SwinForImageClassification",
        {"image_size": 24, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3}),
    "swin whose windows do not fit": (
        "SwinConfig", "SwinForImageClassification",
        {"image_size": [29, 21], "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2],
         "window_size": 4, "use_absolute_embeddings": False, "qkv_bias": False, "mlp_ratio": 1.5}),
    "swin with places": (
        "SwinConfig", "SwinForImageClassification",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4,
         "use_absolute_embeddings": True, "layer_norm_eps": 0.01}),
    "mobilenet_v2": (
        "MobileNetV2Config", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.35, "image_size": 33}),
    "mobilenet_v2 with settings": (
        "MobileNetV2Config", "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.6, "image_size": 64, "tf_padding": False, "output_stride": 8, "expand_ratio": 3,
         "first_layer_is_expansion": False, "finegrained_output": False, "layer_norm_eps": 0.01}),
    "convnext": (
        "ConvNextConfig", "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32, "layer_scale_init_value": 0.5}),
    "convnext without scales": (
        "ConvNextConfig", "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32, "layer_scale_init_value": 0.0}),
}  # fmt: skip


def stirred(net: nn.Module, shape: tuple[int, int, int] = (3, 64, 64)) -> nn.Module:
    """Weights and statistics of which none is at its default, and logits of about 1 that depend on the image."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for key, value in net.named_parameters():
            scale = 0.4 if value.ndim < 2 else value[0].numel() ** -0.5
            value.copy_(torch.randn_like(value) * scale + ("norm" in key))
        for module in norms:
            module.weight.copy_(torch.rand_like(module.weight) + 0.5)
            module.momentum = 1.0
        if norms:
            net.train()(torch.rand(8, *shape))
        for module in norms:
            module.running_mean.add_(torch.randn_like(module.running_mean) / 10)
            module.running_var.mul_(torch.rand_like(module.running_var) + 0.5)
    return net.eval()


@pytest.mark.parametrize("name", TINY)
def test_the_logits_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hf = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
    config, kind, settings = TINY[name]
    net = getattr(hf, kind)(getattr(hf, config)(num_labels=5, **settings))
    net = stirred(net, (settings.get("num_channels", 3), 64, 64))
    net.save_pretrained(tmp_path / "net")
    loaded = load_classifier(tmp_path / "net", input_shape=(1, 32, 40) if "basic" in name else None)
    assert loaded.classes == 5
    x = torch.rand(4, *loaded.input.shape)
    with torch.no_grad():
        expected = net(pixel_values=x).logits
        torch.testing.assert_close(loaded.logits(x), expected, atol=1e-5, rtol=1e-4)
    assert expected.std(0).max() > 1e-3  # the images make a difference


def test_shards_as_transformers_cuts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hf = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
    net = stirred(hf.ViTForImageClassification(hf.ViTConfig(num_labels=5, **TINY["vit"][2])))
    net.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = load_classifier(tmp_path)
    x = torch.rand(2, *loaded.input.shape)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(x), net(pixel_values=x).logits, atol=1e-4, rtol=1e-4)


# What follows needs no transformers: the folders are written here, the oracle is a net of torchvision's or timm's keys.

VIT: Json = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
             "image_size": 16, "patch_size": 8, "layer_norm_eps": 1e-6}  # fmt: skip


def vit_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's keys -> Hugging Face's."""
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    found = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
        **{f"vit.embeddings.patch_embeddings.projection.{end}": state[f"patch_embed.proj.{end}"] for end in ENDS},
        **{f"vit.layernorm.{end}": state[f"norm.{end}"] for end in ENDS},
        **{f"classifier.{end}": state[f"head.{end}"] for end in ENDS},
    }
    for i in range(2):
        for end in ENDS:
            prefix = f"vit.encoder.layer.{i}"
            found |= {f"{prefix}.{theirs}.{end}": state[f"blocks.{i}.{ours}.{end}"] for ours, theirs in names.items()}
            for name, part in zip(("query", "key", "value"), state[f"blocks.{i}.attn.qkv.{end}"].chunk(3)):
                found[f"{prefix}.attention.attention.{name}.{end}"] = part.clone()
    return found


ENDS = ("weight", "bias")


def resnet_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's keys of ResNet-18 -> Hugging Face's."""
    found = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if first in ("conv1", "bn1"):
            theirs = f"resnet.embedder.embedder.{'convolution' if first == 'conv1' else 'normalization'}.{rest}"
        elif first == "fc":
            theirs = f"classifier.1.{rest}"
        else:
            block, part, *end = rest.split(".")
            part = "shortcut" if part == "downsample" else part
            kind = "normalization" if part.startswith("bn") or (part, end[0]) == ("shortcut", "1") else "convolution"
            middle = "shortcut" if part == "shortcut" else f"layer.{int(part[-1]) - 1}"
            theirs = f"resnet.encoder.stages.{int(first[-1]) - 1}.layers.{block}.{middle}.{kind}.{end[-1]}"
        found[theirs] = value
    return found


def folder(path: Path, config: Json, state: dict[str, Tensor], preprocessor: Json | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    save_file({key: value.contiguous() for key, value in state.items()}, path / "model.safetensors")
    return path


def vit() -> nn.Module:
    options = {"height": 16, "width": 16, "patch": 8, "features": 16, "heads": 2, "depth": 2, "mlp": 24}
    return stirred(ARCHITECTURES["vit"].net(classes=3, **options))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return folder(tmp_path / "net", {"model_type": "vit", **VIT}, vit_keys(vit().state_dict()))


def test_a_vit_that_was_ported_from_timm(tmp_path: Path) -> None:
    net = vit()
    loaded = load_classifier(folder(tmp_path, {"model_type": "vit", **VIT}, vit_keys(net.state_dict())))
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(x), net(x), atol=1e-5, rtol=1e-4)
    assert loaded.input.shape == (3, 16, 16)


def test_a_resnet_18_that_was_ported_from_torchvision(tmp_path: Path) -> None:
    """The config is microsoft/resnet-18's."""
    net = stirred(ARCHITECTURES["resnet-18"].net(classes=4))
    config = {"model_type": "resnet", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512],
              "depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_act": "relu",
              "downsample_in_first_stage": False}  # fmt: skip
    prepared = {"crop_pct": 0.875, "do_resize": True, "size": {"shortest_edge": 64}, "do_normalize": True,
                "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    loaded = load_classifier(folder(tmp_path, config, resnet_keys(net.state_dict()), prepared))
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(prepared[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(x), net((x - mean) / std), atol=1e-4, rtol=1e-4)
    assert any("64x64" in note for note in loaded.notes)
    again = tmp_path / "good.safetensors"  # and written as goodnet's own, it needs no folder
    save_goodnet(loaded, again)
    assert torch.equal(load_goodnet(again).predict(x), loaded.predict(x))


PREPARED: dict[str, tuple[Json, Callable[[Tensor], Tensor]]] = {
    "-1..1": ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, lambda x: (x - 0.5) / 0.5),
    "0..1": ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, lambda x: x),
    "0..255": ({"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [64.0] * 3},
               lambda x: (255 * x - 127) / 64),
    "0..2": ({"do_rescale": True, "rescale_factor": 2 / 255}, lambda x: 2 * x),
    "one number": ({"image_mean": 0.25, "image_std": 0.5, "rescale_factor": 0.00392156862745098},
                   lambda x: (x - 0.25) / 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPARED)
def test_pixels_are_prepared_as_the_folder_says(name: str, tmp_path: Path) -> None:
    said, prepare = PREPARED[name]
    net = vit()
    path = folder(tmp_path, {"model_type": "vit", **VIT}, vit_keys(net.state_dict()), said)
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(path).logits(x), net(prepare(x)), atol=1e-4, rtol=1e-4)
        mine = load_classifier(path, input_range="0..255", mean=(3.0,))
        torch.testing.assert_close(mine.logits(x), net(255 * x - 3), atol=1e-4, rtol=1e-4)
    assert any("stand instead of" in note for note in mine.notes)


def test_half_floats_classes_and_what_is_left(tmp_path: Path) -> None:
    net = vit()
    state = {key: value.to(torch.bfloat16) for key, value in vit_keys(net.state_dict()).items()}
    names = {"id2label": {"0": "cat", "1": "\x1b[31mdog", "2": "cow"}, "auto_map": {"AutoModel": "evil.Net"}}
    path = folder(tmp_path, {"model_type": "vit", **VIT, **names}, {**state, "vit.pooler.dense.bias": torch.ones(16)})
    (path / "modeling_evil.py").write_text("raise SystemExit('this ran')")
    loaded = load_classifier(path)
    said = " ".join(loaded.notes)
    assert loaded.net.classifier.weight.dtype == torch.float32
    assert "names 3 classes: 0 'cat', 1 '\\x1b[31mdog'" in said
    assert "modeling_evil.py; none of it runs" in said
    assert "left 1 weights" in said


def test_a_pytorch_file_of_tensors_alone(whole: Path) -> None:
    state = load_file(whole / "model.safetensors")
    before = load_classifier(whole)
    (whole / "model.safetensors").unlink()
    torch.save(state, whole / "pytorch_model.bin")
    x = torch.rand(2, 3, 16, 16)
    after = load_classifier(whole)
    assert torch.equal(before.logits(x), after.logits(x))
    assert before.sha256 != after.sha256
    torch.save(nn.Linear(2, 2), whole / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="wants to run code"):
        load_classifier(whole)


def test_the_hash_is_that_of_what_sha256sum_prints(whole: Path) -> None:
    (whole / "preprocessor_config.json").write_text("{}")
    names = ["config.json", "preprocessor_config.json", "model.safetensors"]
    lines = "".join(f"{hashlib.sha256((whole / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    digest = load_classifier(whole).sha256
    assert digest == hashlib.sha256(lines.encode()).hexdigest() == inspect_file(whole).sha256
    (whole / "README.md").write_text("not read, not hashed")
    assert load_classifier(whole).sha256 == digest


def test_the_command_line_and_folders_in_each_others_place(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Shell(capsys)("inspect", str(whole), "--json")
    told = json.loads(done.out)
    assert (done.code, told["format"], told["classes"], told["refused"]) == (0, "Hugging Face folder", 3, None)
    (tmp_path / "images").mkdir()
    with pytest.raises(ModelError, match="a folder of images goes to --clean"):
        load_classifier(tmp_path / "images")
    with pytest.raises(DataError, match="expected PNG or JPEG images"):
        read_images(whole)
    with pytest.raises(UsageError, match="--arch vit has no place"):
        load_classifier(whole, arch="vit")
    with pytest.raises(UsageError, match="as in its config"):
        load_classifier(whole, input_shape=(3, 32, 32))


@pytest.mark.slow
def test_nothing_imports_transformers(whole: Path) -> None:
    code = f"import sys; from goodnet.models.load import load_classifier; load_classifier({str(whole)!r}); "
    code += "assert not any(name.split('.')[0] in ('transformers', 'huggingface_hub') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**raw, **changes}))

    return change


def prepared(**said: Any) -> Callable[[Path], None]:
    return lambda path: (path / "preprocessor_config.json").write_text(json.dumps(said)) and None


def text(content: str) -> Callable[[Path], None]:
    return lambda path: (path / "config.json").write_text(content) and None


def index(weight_map: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "model.safetensors").rename(path / "a.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        state = load_file(path / "model.safetensors")
        change(state)
        save_file(state, path / "model.safetensors")

    return edit


def pipe(path: Path) -> None:
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


WRONG: dict[str, tuple[Callable[[Path], Any], type[GoodnetError], str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), ModelError, "a folder without config.json"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), ModelError, "found none"),
    "a pipe": (pipe, UnsafeFileError, "no plain file"),
    "a missing shard": (index({"a": "a.safetensors", "b": "b.safetensors"}), ModelError, "b.safetensors is missing"),
    "a shard outside": (index({"a": "../x.safetensors"}), UnsafeFileError, "beside it"),
    "a shard at the root": (index({"a": "/etc/x.safetensors"}), UnsafeFileError, "beside it"),
    "a shard that is another file": (index({"a": "config.json"}), UnsafeFileError, "beside it"),
    "a shard that is no name": (index({"a": ["x"]}), ModelError, "weight_map"),
    "a thousand shards": (index({str(i): f"{i}.safetensors" for i in range(1000)}), UnsafeFileError, "1000 shards"),
    "an index of other weights": (index({"a": "a.safetensors"}), ModelError, "differ"),
    "another net": (config(model_type="bert"), ModelError, "resnet, vit.*'bert'.*ONNX"),
    "no type of net": (config(model_type=None), ModelError, "got None"),
    "a list for a type": (config(model_type=["vit"]), ModelError, "model_type"),
    "classes that differ": (config(id2label={"0": "a", "1": "b"}), ModelError, "names 2 classes.* has 3"),
    "classes that are no names": (config(id2label=7), ModelError, "id2label"),
    "a string for a number": (config(hidden_size="16"), ModelError, "hidden_size to be a whole number.*'16'"),
    "a fraction for a number": (config(hidden_size=16.0), ModelError, "hidden_size to be a whole number"),
    "a flag for a number": (config(num_hidden_layers=True), ModelError, "num_hidden_layers"),
    "less than nothing": (config(intermediate_size=-24), ModelError, "intermediate_size"),
    "endless layers": (config(num_hidden_layers=10**9), ModelError, "num_hidden_layers.* from 1 to 256"),
    "a wide net": (config(hidden_size=65536, num_attention_heads=1, intermediate_size=65536, num_hidden_layers=4),
                   GoodnetError, "expected|parameters|refused"),
    "a huge image": (config(image_size=10**6), ModelError, "image_size|input shape"),
    "many tokens": (config(image_size=4096, patch_size=1), GoodnetError, "refused|pairs of tokens|fit"),
    "no patch": (config(patch_size=0), ModelError, "patch_size"),
    "a patch beyond the image": (config(patch_size=64), ModelError, "expected it to give|fit"),
    "heads that do not share": (config(num_attention_heads=3), ModelError, "num_attention_heads"),
    "an unknown activation": (config(hidden_act="evil"), ModelError, "hidden_act"),
    "a layer too many": (config(num_hidden_layers=3), ModelError, "missing vit.encoder.layer.2"),
    "a layer too few": (config(num_hidden_layers=1), ModelError, "unknown vit.encoder.layer.1"),
    "other widths": (config(intermediate_size=25), ModelError, r"is \(24, 16\), expected \(25, 16\)"),
    "two channels": (config(num_channels=2), ModelError, "C 1 or 3"),
    "no head": (weights(lambda state: (state.pop("classifier.weight"), state.pop("classifier.bias"))), ModelError,
                "none, as a net without a head"),
    "another shape": (weights(lambda state: state.update({"vit.layernorm.bias": torch.zeros(17)})), ModelError,
                      "another shape"),
    "places that lie across": (
        weights(lambda state: state.update({"vit.embeddings.position_embeddings": torch.zeros(1, 16, 5)})), ModelError,
        "another shape"),
    "NaN": (weights(lambda state: state["vit.layernorm.bias"].fill_(float("nan"))), ModelError, "NaN"),
    "not JSON": (text("{model_type: vit}"), ModelError, "expected JSON"),
    "not an object": (text("[]"), ModelError, "a JSON object"),
    "NaN in JSON": (text('{"model_type": "vit", "layer_norm_eps": NaN}'), ModelError, "NaN is no number"),
    "a key twice": (text('{"model_type": "vit", "model_type": "resnet"}'), ModelError, "twice"),
    "nested without end": (text('{"a":' * 200_000), UnsafeFileError, "nested too deeply"),
    "a huge config": (text(" " * (9 << 20)), UnsafeFileError, "larger than 8 MiB"),
    "a number without end": (text('{"model_type": "vit", "hidden_size": ' + "9" * 10_000 + "}"), ModelError, "JSON"),
    "not text": (lambda path: (path / "config.json").write_bytes(b"\xff\xfe{}"), ModelError, "JSON"),
    "std of nothing": (prepared(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.0] * 3), ModelError, "above 0"),
    "two means": (prepared(image_mean=[0.5] * 2, image_std=[0.5] * 3), ModelError, "1 or 3 numbers"),
    "words for means": (prepared(image_mean="0.5", image_std=[0.5] * 3), ModelError, "a list of numbers"),
    "channels swapped": (prepared(do_flip_channel_order=True), ModelError, "swaps channels"),
    "a word for a flag": (prepared(do_rescale="yes"), ModelError, "true or false"),
}  # fmt: skip


SWIN: Json = {"model_type": "swin", "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2],
              "window_size": 4}  # fmt: skip
WRONG |= {
    "windows wider than the image": (config(**{**SWIN, "window_size": 9}), ModelError, "window_size to be at most 8"),
    "endless windows": (config(**{**SWIN, "window_size": 4096}), ModelError, "window_size"),
    "tables that grow": (
        config(**{**SWIN, "image_size": 512, "window_size": 16, "depths": [16], "num_heads": [1]}), UnsafeFileError,
        "tables and places; refused"),
    "windows that weigh too much": (
        config(**{**SWIN, "image_size": 2048, "window_size": 32}), ModelError, "pairs of tokens"),
    "heads that do not share Swin's widths": (config(**{**SWIN, "num_heads": [3]}), ModelError, "num_heads"),
    "a negative ratio": (config(**{**SWIN, "mlp_ratio": -4}), ModelError, "mlp_ratio"),
    "ConvNeXt of other depths": (config(model_type="convnext", depths=[1], hidden_sizes=[8, 8]), ModelError, "hidden_"),
    "MobileNetV2 without end": (config(model_type="mobilenet_v2", depth_multiplier=1e9), ModelError, "depth_multi"),
    "a ResNet of a thousand layers": (config(model_type="resnet", depths=[256] * 4), ModelError, "at most 256"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_folder_is_refused_in_one_line(name: str, whole: Path) -> None:
    change, kind, message = WRONG[name]
    change(whole)
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(kind, match=message) as caught:
        load_classifier(whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begun < 10
    assert peak < 64 << 20
    assert "\n" not in str(caught.value)
    assert str(whole) in str(caught.value)
    assert inspect_file(whole).refused == str(caught.value)


@pytest.mark.slow
def test_a_config_that_claims_memory_gets_none(whole: Path) -> None:
    """Measured in a process of its own."""
    config(hidden_size=4096, num_attention_heads=1, intermediate_size=4096, num_hidden_layers=4)(whole)
    code = f"""
import resource
from goodnet.errors import ModelError
from goodnet.models.load import load_classifier
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_classifier({str(whole)!r})
except ModelError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 200 << 10  # KiB; the net would take 1.6 GiB
