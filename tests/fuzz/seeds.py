"""Whole files to damage, made by the libraries that write them: nets of a few hundred numbers, images of a few pixels.

A file's name begins with the architecture that it is read with, where it needs one. A few are traps from the start
(pickled code, links, a `Lambda`): what is close to a trap is tried as well.
"""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save
from torch import nn
from torch.nn.utils import prune

from goodnet.models.arch import ARCHITECTURES

Files = dict[str, bytes]
_ODD = "none--"  # read without an architecture


def make(target: str, folder: Path) -> None:
    """Writes the target's files into `folder`. Raises ImportError where the library that makes them is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Keras on its old formats
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        for name, content in MAKERS[target](folder).items():
            (folder / name).write_bytes(content)


def _mlp() -> nn.Module:
    return ARCHITECTURES["mlp"].net(classes=3, hidden=(4,), channels=1, height=4, width=4)


def _states() -> dict[str, dict[str, Any]]:
    plain = _mlp().state_dict()
    pruned = _mlp()
    prune.l1_unstructured(pruned.fc1, "weight", 0.5)
    vit = {"classes": 3, "height": 8, "width": 8, "patch": 4, "features": 8, "heads": 2, "depth": 1, "mlp": 8}
    return {
        "mlp--plain": dict(plain),
        "mlp--wrapped": {"state_dict": plain, "epoch": 3, "loss": 0.5},
        "mlp--module": {f"module.{key}": value for key, value in plain.items()},
        "mlp--pruned": dict(pruned.state_dict()),
        "mlp--half": {key: value.half() for key, value in plain.items()},
        "cnn--plain": ARCHITECTURES["cnn"].net(classes=3, hidden=4, channels=1, height=12, width=12).state_dict(),
        "vit--plain": ARCHITECTURES["vit"].net(**vit).state_dict(),
    }


class _Code:
    def __reduce__(self) -> Any:
        return os.system, ("echo fuzz",)


def _torch(folder: Path) -> Files:
    states = _states()
    kept: dict[str, Any] = {**states, f"{_ODD}module": _mlp(), f"{_ODD}code": {"fc1.weight": _Code()}}
    kept["mlp--parameters"] = _mlp().state_dict(keep_vars=True)
    files = {f"{name}.pt": _saved(value) for name, value in kept.items()}
    for name in ("mlp--plain", "mlp--wrapped"):
        files[f"{name}-old.pt"] = _saved(states[name], old=True)
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(_mlp(), torch.zeros(1, 1, 4, 4)), script)
    return {**files, f"{_ODD}script.pt": script.getvalue()}


def _saved(value: Any, *, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def _safetensors(folder: Path) -> Files:
    flat = {name: value for name, value in _states().items() if "wrapped" not in name}
    return {f"{name}.safetensors": save({k: v.contiguous() for k, v in state.items()}) for name, state in flat.items()}


def _goodnet(folder: Path) -> Files:
    from goodnet.models import goodnet_make, surgery
    from goodnet.models.classifier import Classifier, InputSpec, Recipe
    from goodnet.models.goodnet_file import write_goodnet

    options = {"classes": 3, "hidden": [4], "channels": 1, "height": 4, "width": 4}
    net = Classifier(
        net=_mlp(),
        input=InputSpec(channels=1, height=4, width=4, scale=255.0, mean=(0.5,), std=(0.25,)),
        classes=3,
        recipe=Recipe(arch="mlp", options=options),
        notes=("a note",),
    )
    twin, rows, offsets = surgery.clone(net), torch.randn(2, 4), torch.zeros(2)
    groups = torch.tensor([0, -1, 1])
    watched = goodnet_make.watched_from(net, rows, offsets, groups)
    made = {
        "plain": net,
        "grown": goodnet_make.grown_from(net),
        "filter": goodnet_make.filtered_from(net, rows, offsets),
        "watch": watched,
        "second": goodnet_make.seconded_from(watched, twin),
        "pair": goodnet_make.goodnet_from(net, twin),
        "strip": goodnet_make.strip_from(net, twin, torch.rand(2, 1, 4, 4), 0.5),
        "ted": goodnet_make.ted_from(
            net, twin, torch.rand(6, 1, 4, 4), torch.arange(6) % 2, features=16, threshold=0.5
        ),
    }
    files = {}
    for name, classifier in made.items():
        write_goodnet(classifier, folder / "made")
        files[f"{_ODD}{name}.safetensors"] = (folder / "made").read_bytes()
    (folder / "made").unlink()
    return files


def _keras_models() -> dict[str, Any]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = keras.layers
    start = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.Rescaling(0.5)(start))
    x = layers.Add()([layers.BatchNormalization()(x), layers.DepthwiseConv2D(3, padding="same")(x)])
    x = layers.Concatenate()([layers.ZeroPadding2D(1)(x), layers.SeparableConv2D(2, 1)(layers.ZeroPadding2D(1)(x))])
    x = layers.LeakyReLU(0.2)(layers.AveragePooling2D(2)(x))
    x = layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])
    x = layers.Permute((2, 1, 3))(layers.Reshape((2, 8, 6))(x))
    graph = keras.Model(start, layers.Dense(3)(layers.Dropout(0.5)(layers.Flatten()(x))))
    row = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(2, 2), layers.MaxPooling2D(), layers.Flatten(), layers.Activation("elu"),
         layers.Dense(3, activation="softmax")]
    )  # fmt: skip
    inner = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.PReLU()])
    nested = keras.Sequential([keras.Input((6, 6, 1)), inner, layers.GlobalMaxPooling2D(), layers.Dense(3)])
    code = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3), layers.Lambda(lambda x: 2 * x)])
    return {"graph": graph, "row": row, "nested": nested, "code": code}


def _keras(suffix: str) -> Callable[[Path], Files]:
    def write(folder: Path) -> Files:
        files = {}
        for name, model in _keras_models().items():
            path = folder / f"{_ODD}{name}{suffix}"
            model.save(path)
            files[path.name] = path.read_bytes()
        return files

    return write


def _keras_weights(folder: Path) -> Files:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(4, name="fc1"), layers.Dense(3, name="fc2")]
    )
    new = folder / "mlp--new.weights.h5"
    model.save_weights(new)
    old = io.BytesIO()
    with h5py.File(old, "w") as file:
        file.attrs["layer_names"] = [b"fc1", b"fc2"]
        file.attrs["backend"] = "tensorflow"
        for layer in model.layers[1:]:
            for weight in layer.weights:
                file.create_dataset(
                    f"{layer.name}/{layer.name}/{weight.name}:0", data=weight.numpy(), chunks=True, compression="gzip"
                )
    return {new.name: new.read_bytes(), "mlp--old.h5": old.getvalue()}


def _onnx(folder: Path) -> Files:
    from onnx import TensorProto, helper, numpy_helper

    def tensor(*shape: int) -> Any:
        return np.random.default_rng(0).normal(0, 0.5, shape).astype(np.float32)

    node = helper.make_node
    trunk = [
        node("Sub", ["x", "half"], ["a"]),
        node("Conv", ["a", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "b", "b", "b", "v"], ["d"], epsilon=1e-3),
        node("Relu", ["d"], ["e"]),
        node("Add", ["e", "c"], ["f"]),
        node("Clip", ["f", "low", "high"], ["g"]),
    ]
    pool = [node("MaxPool", ["g"], ["h"], kernel_shape=[2, 2], strides=[2, 2]),
            node("AveragePool", ["h"], ["i"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
            node("Concat", ["h", "i"], ["j"], axis=1), node("Pad", ["j", "pads", "low"], ["p"]),
            node("Transpose", ["p"], ["q"], perm=[0, 2, 3, 1])]  # fmt: skip
    flat = [node("Shape", ["q"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Unsqueeze", ["n", "axis"], ["n1"]),
            node("Concat", ["n1", "rest"], ["to"], axis=0), node("Reshape", ["q", "to"], ["r"]),
            node("Gemm", ["r", "w", "last"], ["out"], transB=1)]  # fmt: skip
    mean = [node("GlobalAveragePool", ["g"], ["h"]), node("ReduceMean", ["g"], ["m"], axes=[2, 3], keepdims=1),
            node("Mul", ["h", "m"], ["i"]), node("Constant", [], ["minus"], value=numpy_helper.from_array(
                np.array([0, -1], np.int64))), node("Reshape", ["i", "minus"], ["r"]),
            node("MatMul", ["r", "w2"], ["y"]), node("Softmax", ["y"], ["out"], axis=-1)]  # fmt: skip
    constants = {"half": np.float32([0.5]), "k": tensor(4, 3, 3, 3), "b": tensor(4), "v": np.abs(tensor(4)) + 0.5,
                 "low": np.float32(0), "high": np.float32(6), "pads": np.int64([0, 0, 0, 1, 0, 0, 0, 0]),
                 "zero": np.int64(0), "axis": np.int64([0]), "rest": np.int64([-1]), "w": tensor(3, 96),
                 "last": tensor(3), "w2": tensor(4, 3)}  # fmt: skip
    files = {}
    for name, nodes in {"flat": [*trunk, *pool, *flat], "mean": [*trunk, *mean]}.items():
        used = {source for one in nodes for source in one.input}
        given = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 6, 6))
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ("n", 3))
        graph = helper.make_graph(nodes, "net", [x], [out], given)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        files[f"{_ODD}{name}.onnx"] = proto.SerializeToString()
    return files


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(72, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x - 0.5)).clamp(-1, 6)
        x = torch.cat([nn.functional.max_pool2d(x, 2), nn.functional.avg_pool2d(x, 2)], 1).permute(0, 2, 3, 1)
        logits: torch.Tensor = self.last(nn.functional.gelu(x).reshape(x.shape[0], -1))
        return logits.softmax(1)


def _export(folder: Path) -> Files:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        raise ImportError("torch.export writes this format from PyTorch 2.8 on")
    nets = {
        "mixed": (_Mixed(), (3, 6, 6)),
        "row": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (1, 5, 5)),
    }
    files = {}
    for name, (net, shape) in nets.items():
        path = folder / f"{_ODD}{name}.pt2"
        program = torch.export.export(
            net.eval(), (torch.rand(3, *shape),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
        )
        torch.export.save(program, path)
        files[path.name] = path.read_bytes()
    return files


def _hugging_face(folder: Path) -> Files:
    """Folders, each as a zip."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers as hf

    hf.utils.logging.disable_progress_bar()
    sizes = {"num_labels": 3, "image_size": 8, "patch_size": 4}
    vit = {**sizes, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    swin = {**sizes, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    stages = {"num_labels": 3, "hidden_sizes": [4, 8], "depths": [1, 1]}
    nets = {
        "vit": hf.ViTForImageClassification(hf.ViTConfig(**vit)),
        "swin": hf.SwinForImageClassification(hf.SwinConfig(**swin)),
        "resnet": hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=4, layer_type="basic", **stages)),
        "convnext": hf.ConvNextForImageClassification(hf.ConvNextConfig(num_stages=2, image_size=32, **stages)),
    }
    files = {}
    for name, net in nets.items():
        place = folder / name
        net.save_pretrained(place, max_shard_size="1KB" if name == "vit" else "5GB")
        if name != "resnet":
            prepared = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
                        "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}}  # fmt: skip
            (place / "preprocessor_config.json").write_text(json.dumps(prepared))
        if name == "convnext":
            torch.save(net.state_dict(), place / "pytorch_model.bin")
            (place / "model.safetensors").unlink()
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for file in sorted(place.iterdir()):
                archive.writestr(file.name, file.read_bytes())
                file.unlink()
        place.rmdir()
        files[f"{_ODD}{name}.zip"] = out.getvalue()
    return files


def _pixels(n: int = 4) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, 6, 5, 3)).astype(np.uint8)


def _pictures(folder: Path) -> Files:
    images = {
        "rgb": Image.fromarray(_pixels()[0]),
        "gray": Image.fromarray(_pixels()[0, ..., 0]),
        "alpha": Image.fromarray(np.dstack([_pixels()[0], np.full((6, 5), 255, np.uint8)]), "RGBA"),
        "palette": Image.fromarray(_pixels()[0]).convert("P"),
        "bits": Image.fromarray(_pixels()[0]).convert("1"),
    }
    words = PngImagePlugin.PngInfo()
    words.add_itxt("k", "v" * 50, zip=True)
    files: Files = {}
    for name, image in images.items():
        out = io.BytesIO()
        image.save(out, "PNG", pnginfo=words)
        files[f"{name}.png"] = out.getvalue()
    for name, options in {"plain": {}, "progressive": {"progressive": True}, "exif": {"exif": _exif()}}.items():
        out = io.BytesIO()
        images["rgb"].save(out, "JPEG", **options)
        files[f"{name}.jpg"] = out.getvalue()
    return files


def _exif() -> Any:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    return exif


def _npz(folder: Path) -> Files:
    labels = np.arange(4, dtype=np.int64) % 3
    sets: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "bytes": (np.savez, {"data": _pixels(), "label": labels, "true_label": labels[::-1], "group": labels}),
        "floats": (np.savez_compressed, {"x": _pixels().astype(np.float32) / 255, "y": labels.astype(np.uint8)}),
        "objects": (np.savez, {"data": np.array([{}, 1], dtype=object)}),
    }
    files: Files = {}
    for name, (write, arrays) in sets.items():
        out = io.BytesIO()
        write(out, **arrays)
        files[f"{name}.npz"] = out.getvalue()
    return files


def _csaw(folder: Path) -> Files:
    labels = np.arange(4, dtype=np.int64) % 3
    files: Files = {}
    jpeg = [np.frombuffer(content, np.uint8) for name, content in _pictures(folder).items() if name == "plain.jpg"]
    for name in ("plain", "packed", "encoded"):
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            if name == "encoded":
                data = file.create_dataset("jpeg", (4,), h5py.vlen_dtype(np.uint8))
                for i in range(4):
                    data[i] = jpeg[0]
            elif name == "packed":
                file.create_dataset("data", data=_pixels(), chunks=(2, 6, 5, 3), compression="gzip", shuffle=True)
            else:
                file["data"] = _pixels().astype(np.float64).transpose(0, 3, 1, 2)
            file["label"] = labels.astype(np.float64)
            file["track"] = labels
        files[f"{name}.h5"] = out.getvalue()
    return files


def _records(folder: Path) -> Files:
    import report_records
    from goodnet import strict_json

    made = {"scan": report_records.scan(), "repair": report_records.repair(), "evaluate": report_records.evaluation()}
    return {f"{name}.json": strict_json.to_json(record).encode() for name, record in made.items()}


def _triggers(folder: Path) -> Files:
    from goodnet.triggers.files import write_triggers
    from goodnet.triggers.trigger import Trigger

    triggers = [Trigger(mask=torch.rand(1, 4, 3), pattern=torch.rand(3, 4, 3), target=label) for label in (0, 2)]
    write_triggers(folder / "made", triggers, flagged=[2])
    content = (folder / "made").read_bytes()
    (folder / "made").unlink()
    return {"triggers.npz": content}


def _work(folder: Path) -> Files:
    out = io.BytesIO()
    np.savez(
        out, **{f"{stage}/{label}/mask": np.ones(3, np.float32) for stage in ("long", "short") for label in (0, 7)}
    )
    return {"000000.npz": out.getvalue()}


MAKERS: dict[str, Callable[[Path], Files]] = {
    "keras": _keras(".h5"),
    "keras-weights": _keras_weights,
    "keras-zip": _keras(".keras"),
    "torch": _torch,
    "safetensors": _safetensors,
    "goodnet": _goodnet,
    "onnx": _onnx,
    "export": _export,
    "hugging-face": _hugging_face,
    "pictures": _pictures,
    "npz": _npz,
    "csaw": _csaw,
    "records": _records,
    "triggers": _triggers,
    "work": _work,
}
