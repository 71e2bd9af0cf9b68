"""docs/formats.md's table of what is read, row by row: each file is made by the library that owns its format, and
goodnet gives that library's logits."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cli_support import Shell
from goodnet.models.arch import build
from goodnet.models.classifier import Recipe
from goodnet.models.load import load_classifier

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
Numbers = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] -> what the foreign library answers."""
SHAPE = (3, 55, 47)
DOCS = Path(__file__).resolve().parents[1] / "docs" / "formats.md"


@dataclass(frozen=True, kw_only=True)
class Row:
    """`title` is how the row of the table begins, `format` what goodnet calls the file."""

    title: str
    format: str
    make: Callable[[Path], Numbers]
    suffix: str = ""
    arch: str | None = None


def needed(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name}, which makes the file, is not installed")


def ours() -> nn.Module:
    """A DeepID of seven classes, as its owner would have it: a module of his own."""
    return build(Recipe(arch="deepid", options={"classes": 7})).eval()


def of(net: nn.Module) -> Numbers:
    return lambda x: net(x).detach()


def keras_model() -> Any:
    """The same net in Keras, its layers named as the competition has them."""
    layers = needed("keras").layers
    x = inputs = layers.Input((55, 47, 3))
    for i, (width, kernel) in enumerate(((20, 4), (40, 3), (60, 3)), 1):
        x = layers.Conv2D(width, kernel, activation="relu", bias_initializer="random_normal", name=f"conv_{i}")(x)
        x = layers.MaxPooling2D(2)(x)
    ends = [layers.Dense(160, name="fc_1")(layers.Flatten()(x))]
    x = layers.Conv2D(80, 2, activation="relu", bias_initializer="random_normal", name="conv_4")(x)
    ends.append(layers.Dense(160, name="fc_2")(layers.Flatten()(x)))
    out = layers.Dense(7, name="output")(layers.ReLU()(layers.Add()(ends)))
    return needed("keras").Model(inputs, out)


def keras(save: str) -> Callable[[Path], Numbers]:
    def make(path: Path) -> Numbers:
        ops, model = needed("keras").ops, keras_model()
        getattr(model, save)(path)
        return lambda x: torch.from_numpy(np.array(ops.convert_to_numpy(model(x.permute(0, 2, 3, 1).numpy()))))

    return make


def saved(wrap: Callable[[dict[str, Tensor]], Any], **options: Any) -> Callable[[Path], Numbers]:
    def make(path: Path) -> Numbers:
        net = ours()
        torch.save(wrap(net.state_dict()), path, **options)
        return of(net)

    return make


def safetensors(path: Path) -> Numbers:
    net = ours()
    save_file(net.state_dict(), path)
    return of(net)


def onnx(path: Path) -> Numbers:
    session = needed("onnxruntime").InferenceSession
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = {"dynamic_axes": {"x": {0: "n"}}, "input_names": ["x"], "dynamo": False}
        torch.onnx.export(ours(), (torch.rand(2, *SHAPE),), path, **sides)
    return lambda x: torch.from_numpy(session(path).run(None, {"x": x.numpy()})[0])


def export(path: Path) -> Numbers:
    if sys.version_info >= (3, 15) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip("torch.export writes this format from PyTorch 2.8 on")
    sides = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(ours(), (torch.rand(2, *SHAPE),), dynamic_shapes=sides), path)
    return lambda x: torch.export.load(path).module()(x).detach()


def hugging_face(path: Path) -> Numbers:
    hf = needed("transformers")
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], image_size=list(SHAPE[1:]))
    config.num_labels = 7
    net = hf.ResNetForImageClassification(config).eval()
    net.save_pretrained(path)
    return lambda x: net(pixel_values=x).logits.detach()


ROWS = [
    Row(title="Keras HDF5, whole model", format="Keras HDF5", make=keras("save"), suffix=".h5"),
    Row(title="Keras HDF5, weights alone", format="Keras HDF5", make=keras("save_weights"), suffix=".weights.h5",
        arch="deepid"),
    Row(title="Keras 3 `.keras`", format="Keras 3 zip", make=keras("save"), suffix=".keras"),
    Row(title="PyTorch state dict", format="PyTorch", make=saved(dict), arch="deepid"),
    Row(title="PyTorch state dict", format="PyTorch", make=saved(dict, _use_new_zipfile_serialization=False),
        arch="deepid"),
    Row(title="PyTorch state dict or checkpoint", format="PyTorch", arch="deepid",
        make=saved(lambda state: {"epoch": 9, "state_dict": {f"module.{key}": value for key, value in state.items()}})),
    Row(title="safetensors", format="safetensors", make=safetensors, arch="deepid"),
    Row(title="ONNX", format="ONNX", make=onnx),
    Row(title="torch.export `.pt2`", format="torch.export", make=export),
    Row(title="Hugging Face folder", format="Hugging Face folder", make=hugging_face),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.title}{row.suffix}" for row in ROWS])
def test_a_file_of_the_librarys_own_gives_its_logits(row: Row, tmp_path: Path) -> None:
    from goodnet.models.load import file_format

    path = tmp_path / f"net{row.suffix}"
    answer = row.make(path)
    assert file_format(path) == row.format
    loaded = load_classifier(path, arch=row.arch, input_shape=SHAPE)
    assert loaded.classes == 7
    x = torch.rand(4, *SHAPE)
    expected = answer(x)
    assert expected.std(0).min() > 1e-4  # the images make a difference
    torch.testing.assert_close(loaded.logits(x), expected, atol=1e-4, rtol=1e-4)


def test_every_row_of_the_table_is_here() -> None:
    table = DOCS.read_text(encoding="utf-8").split("## Read", 1)[1].split("\n## ")[0]
    titles = [line.split("|")[1].strip() for line in re.findall(r"^\|.*\|$", table, re.MULTILINE)[2:]]
    named = {title for title in titles if any(title.startswith(row.title) for row in ROWS)}
    assert set(titles) - named == {"GoodNet"}  # goodnet's own: tests/test_goodnet_kinds.py
    assert all(any(title.startswith(row.title) for title in titles) for row in ROWS)


WRITTEN = (".onnx", ".pt2", ".safetensors", ".keras")
SCANS = [
    pytest.param("0-3", (".onnx",), marks=pytest.mark.slow),
    pytest.param("0-7", WRITTEN, marks=pytest.mark.thorough),
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("labels", "written"), SCANS)
def test_a_scan_says_the_same_of_a_net_in_every_format(
    labels: str, written: tuple[str, ...], shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The competition's sunglasses net, of some labels: which is flagged, and by what trigger."""
    shell, faces = Shell(capsys), shared_data / "faces"
    net = [str(faces / "nets" / "sunglasses_bd_weights.h5"), "--arch", "deepid"]
    files = {".h5": net, **{suffix: [str(tmp_path / f"net{suffix}")] for suffix in written}}
    for suffix in written:
        assert shell("export", *net, "-o", *files[suffix]).code == 0
    found: dict[str, tuple[Any, np.ndarray[Any, Any], float]] = {}
    for suffix, file in files.items():
        out = tmp_path / suffix[1:]
        done = shell(
            "scan", *file, "--clean", faces / "clean_validation_data.h5", "--labels", labels, "--no-preflight",
            "--out", out,
        )  # fmt: skip
        assert done.code == 1, done.err
        record = json.loads((out / "scan.json").read_text())
        (row,) = [row for row in record["labels"] if row["label"] == 0]
        with np.load(out / "triggers.npz") as triggers:
            (at,) = np.flatnonzero(triggers["labels"] == 0)
            found[suffix] = (record["flagged_labels"], triggers["masks"][at], row["mask_norm"])
    flagged, mask, norm = found[".h5"]
    assert flagged == [0]
    for suffix in written:
        again, other, own = found[suffix]
        assert again == flagged, suffix
        assert own == pytest.approx(norm, rel=0.05), suffix
        alike = float((mask * other).sum() / np.linalg.norm(mask) / np.linalg.norm(other))
        assert alike > 0.98, (suffix, alike)
