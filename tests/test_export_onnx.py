"""Nets and GoodNets as ONNX: the same answers where goodnet is not, and no file that was not checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cli_support import Shell, block_net, save_net
from goodnet import export_onnx
from goodnet.errors import ModelError, UsageError
from goodnet.export import save_goodnet
from goodnet.export_onnx import save_onnx
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.load import load_classifier
from test_goodnet_kinds import made_of, net_of, twin_of

FACES = Path(os.environ.get("GOODNET_DATA", Path(__file__).parents[2] / "shared" / "data")) / "faces"
KINDS = ("plain", "disagreement", "grown", "filter", "watch", "second-opinion", "combined")


def made(kind: str, name: str) -> Classifier:
    net = net_of(name)
    if kind == "plain":
        return net
    return goodnet_from(net, twin_of(net), threshold=0.05) if kind == "disagreement" else made_of(kind, net)


def under_onnxruntime(path: Path, images: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "wrn-16-1"])
def test_the_same_decisions_under_onnxruntime(kind: str, name: str, tmp_path: Path) -> None:
    """wrn's input has mean and std, which are inside; any number of images at a time."""
    net = made(kind, name)
    done = save_onnx(net, tmp_path / "net.onnx")
    images = torch.rand(40, *net.input.shape, generator=torch.Generator().manual_seed(5))
    for part in (images, images[:1]):
        logits = under_onnxruntime(tmp_path / "net.onnx", part)
        np.testing.assert_allclose(logits, net.logits(part).numpy(), atol=1e-4, rtol=1e-4)
        assert (logits.argmax(1) == net.predict(part).numpy()).all()
    assert done.largest_difference < 1e-4
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert about["goodnet.classes"] == str(net.classes)
    assert about.get("goodnet.refused_class") == (str(net.classes) if net.refuses else None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_unchecked_takes_the_name_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = net_of("mlp"), tmp_path / "net.onnx"
    save_onnx(net, path)
    whole = path.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        save_onnx(net, path)
    zeros = np.zeros((33, net.classes), np.float32)
    for patch, kind, message in (
        ((export_onnx, "_elsewhere", lambda part, images, path: zeros), ModelError, "otherwise, logits differ"),
        ((export_onnx, "_CHECK", "raise SystemExit('no')"), ModelError, "does not run what was written"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            with pytest.raises(kind, match=message):
                save_onnx(net, path, overwrite=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"goodnet\[onnx\]"):
        save_onnx(net, path, overwrite=True)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_net_that_onnx_cannot_express_says_so(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x.flatten(2))[:, 0] + x.mean((1, 2, 3))[:, None]

    net = net_of("mlp")
    with pytest.raises(ModelError, match="guard strip"):
        save_onnx(made("strip", "mlp"), tmp_path / "net.onnx")
    odd = Classifier(net=Odd(), input=net.input, classes=3, recipe=net.recipe)
    with pytest.raises(ModelError, match="cannot be written as ONNX"):
        save_onnx(odd, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    net = load_classifier(save_net(tmp_path / "bad.pt", block_net(1)), arch="mlp")
    save_goodnet(goodnet_from(net, twin_of(net), threshold=0.1), tmp_path / "good.safetensors")
    good = load_goodnet(tmp_path / "good.safetensors")
    done = shell("export", tmp_path / "good.safetensors", "-o", tmp_path / "good.onnx", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["probes"] == 32
    images = torch.rand(16, *good.input.shape)
    answers = under_onnxruntime(tmp_path / "good.onnx", images).argmax(1)
    assert (answers == good.predict(images).numpy()).all()
    for arguments, message in (
        (("-o", tmp_path / "good.pb"), "ends in .onnx"),
        (("-o", tmp_path / "good.onnx"), "is there already"),
        (("-o", tmp_path / "no" / "good.onnx"), "is not there"),
    ):
        wrong = shell("export", tmp_path / "good.safetensors", *arguments)
        assert wrong.code == 3
        assert message in wrong.err
    text = shell("export", tmp_path / "good.safetensors", "-o", tmp_path / "good.onnx", "--overwrite").out
    assert "class N = " in text
    assert max(map(len, text.splitlines())) <= 80 or str(tmp_path) in text


@pytest.mark.slow
def test_a_goodnet_of_the_competitions_net_on_all_test_faces(tmp_path: Path) -> None:
    if not (FACES / "nets").is_dir():
        pytest.skip("the competition's nets are not there; set GOODNET_DATA")
    from goodnet.data.readers import read_images

    net = load_classifier(FACES / "nets" / "sunglasses_bd_weights.h5", arch="deepid")
    good = goodnet_from(net, load_classifier(FACES / "nets" / "clean_weights.h5", arch="deepid"), threshold=1.0)
    clean, bad = (read_images(FACES / name).tensor() for name in ("clean_test_data.h5", "sunglasses_poisoned_data.h5"))
    save_onnx(good, tmp_path / "good.onnx", probe=clean)
    for images in (clean, bad):
        answers = under_onnxruntime(tmp_path / "good.onnx", images).argmax(1)
        assert (answers == good.predict(images).numpy()).all()
    assert (answers == 1283).mean() > 0.9
    script = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1]); assert 'goodnet' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", script, tmp_path / "good.onnx"], check=True)
