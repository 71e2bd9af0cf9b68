"""Nets and GoodNets in other runtimes' formats: the same answers there, and no file that was not checked."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from cli_support import Shell, block_net, save_net
from docs_blocks import all_blocks
from goodnet.errors import ModelError, UsageError
from goodnet.export import export_net, save_goodnet, transaction
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.inspect_file import inspect_file
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


def under_export(path: Path, images: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = torch.export.load(path).module()(images).numpy()
    return logits


KERAS = """
import sys
sys.modules["goodnet"] = None
import keras, numpy as np
net = keras.models.load_model(sys.argv[1], safe_mode=True)
images = np.load(sys.argv[2])
np.save(sys.argv[2], np.concatenate([keras.ops.convert_to_numpy(net(x)) for x in (images[:1], images[1:])]))
print(sorted({type(layer).__module__.split(".")[0] for layer in net.layers}))
"""


def under_keras(path: Path, images: torch.Tensor) -> np.ndarray[Any, Any]:
    """In a process with stock Keras, channels last."""
    file = path.with_suffix(".images.npy")
    np.save(file, images.permute(0, 2, 3, 1).contiguous().numpy())
    command = [sys.executable, "-I", "-c", KERAS, str(path), str(file)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": "torch"}
    )
    assert done.stdout.strip() == "['keras']"
    return np.asarray(np.load(file))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", pytest.param("wrn-16-1", marks=pytest.mark.slow)])
def test_the_same_decisions_under_onnxruntime(kind: str, name: str, tmp_path: Path) -> None:
    """wrn's input has mean and std, which are inside; any number of images at a time."""
    net = made(kind, name)
    done = export_net(net, tmp_path / "net.onnx")
    images = torch.rand(40, *net.input.shape, generator=torch.Generator().manual_seed(5))
    for part in (images, images[:1]):
        logits = under_onnxruntime(tmp_path / "net.onnx", part)
        np.testing.assert_allclose(logits, net.logits(part).numpy(), atol=1e-4, rtol=1e-4)
        assert (logits.argmax(1) == net.predict(part).numpy()).all()
    assert done.largest_difference < 1e-4
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert about["goodnet.classes"] == str(net.classes)
    assert about.get("goodnet.refused_class") == (str(net.classes) if net.refuses else None)


def check_alike(net: Classifier, logits: np.ndarray[Any, Any], images: torch.Tensor) -> None:
    np.testing.assert_allclose(logits, net.logits(images).numpy(), atol=1e-4, rtol=1e-4)
    assert (logits.argmax(1) == net.predict(images).numpy()).all()


def sides(net: Classifier) -> torch.Tensor:
    """Noise, and what the probe has found on the other side of class N."""
    noise = torch.rand(20, *net.input.shape, generator=torch.Generator().manual_seed(6))
    return torch.cat([noise, transaction.probe_images(net, noise)])


# Each starts processes that import Keras or PyTorch: one is slow, the rest are run when asked for.
IN_CI = {("wrn-16-1", "second-opinion")}
EACH = [
    pytest.param(name, kind, marks=pytest.mark.slow if (name, kind) in IN_CI else pytest.mark.thorough)
    for name in ("mlp", "wrn-16-1")
    for kind in KINDS
]


@pytest.mark.parametrize(("name", "kind"), EACH)
def test_the_same_decisions_under_stock_keras(name: str, kind: str, tmp_path: Path) -> None:
    net, path = made(kind, name), tmp_path / "net.keras"
    done = export_net(net, path)
    assert done.input.endswith(f"{net.input.shape[0]}) in [0, 1]")
    images = sides(net)
    check_alike(net, under_keras(path, images), images)


@pytest.mark.parametrize(("name", "kind"), EACH)
def test_the_same_decisions_under_torch_export(name: str, kind: str, tmp_path: Path) -> None:
    net, path = made(kind, name), tmp_path / "net.pt2"
    export_net(net, path)
    images = sides(net)
    for part in (images, images[:1]):
        check_alike(net, under_export(path, part), part)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "ending", ["safetensors", "onnx", *(pytest.param(late, marks=pytest.mark.slow) for late in ("pt2", "keras"))]
)
def test_a_plain_net_is_read_back(ending: str, tmp_path: Path) -> None:
    net, path = net_of("wrn-16-1"), tmp_path / f"net.{ending}"
    export_net(net, path)
    back = load_classifier(path)
    images = torch.rand(10, *net.input.shape, generator=torch.Generator().manual_seed(7))
    assert back.refuses is False
    assert inspect_file(path).format != "GoodNet"
    check_alike(net, back.logits(images).numpy(), images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_guard_that_is_not_read_back_is_called_what_it_is(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, path = made("watch", "mlp"), tmp_path / f"net.{ending}"

    def here(part: Path, images: np.ndarray[Any, Any], *_: object) -> np.ndarray[Any, Any]:
        return net.logits(torch.from_numpy(np.concatenate([images, images[:1]]))).numpy()

    monkeypatch.setattr(transaction, "_elsewhere", here)  # no process for a check that others test
    export_net(net, path)
    with pytest.raises(ModelError, match=r"a GoodNet that goodnet export wrote, give the \.safetensors file"):
        load_classifier(path)


def test_a_goodnet_is_copied_into_its_own_format(tmp_path: Path) -> None:
    net = made("second-opinion", "mlp")
    export_net(net, tmp_path / "net.safetensors")
    images = sides(net)
    back = load_goodnet(tmp_path / "net.safetensors")
    assert back.refuses
    check_alike(net, back.logits(images).numpy(), images)


def test_the_probe_reaches_both_sides_of_class_n() -> None:
    """Else a guard that an export lost would not be missed."""
    for kind in ("watch", "second-opinion"):
        net = made(kind, "mlp")
        refused = net.predict(transaction.probe_images(net, None)) == net.classes
        assert refused.any(), kind
        assert not refused.all(), kind


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_full_disk_or_a_kill_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = net_of("mlp"), tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*net\.onnx"):
            export_net(net, path, overwrite=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.onnx", b"old")]
    program = (
        "import os, signal, sys, pathlib; from goodnet.outputs import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as part:\n"
        "    part.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_unchecked_takes_the_name_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = net_of("mlp"), tmp_path / "net.onnx"
    export_net(net, path)
    whole = path.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        export_net(net, path)
    zeros = np.zeros((33, net.classes), np.float32)
    for patch, kind, message in (
        ((transaction, "_elsewhere", lambda part, images, path, form: zeros), ModelError, "otherwise, logits differ"),
        ((transaction, "_CHECK", "raise SystemExit('no')"), ModelError, "does not run what was written"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            with pytest.raises(kind, match=message):
                export_net(net, path, overwrite=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"goodnet\[onnx\]"):
        export_net(net, path, overwrite=True)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_format_cannot_express_is_refused(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x.flatten(2))[:, 0] + x.mean((1, 2, 3))[:, None]

    net = net_of("mlp")
    for ending in ("onnx", "keras", "pt2"):
        with pytest.raises(ModelError, match="guard strip"):
            export_net(made("strip", "mlp"), tmp_path / f"net.{ending}")
        with pytest.raises(ModelError, match="guard ted"):
            export_net(made("ted", "mlp"), tmp_path / f"net.{ending}")
    odd = Classifier(net=Odd(), input=net.input, classes=3, recipe=net.recipe)
    with pytest.raises(ModelError, match="cannot be written as ONNX"):
        export_net(odd, tmp_path / "net.onnx")
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
        (("-o", tmp_path / "good.pb"), "ends in .onnx, .keras, .pt2 or .safetensors"),
        (("-o", tmp_path / "good.onnx"), "is there already"),
        (("-o", tmp_path / "no" / "good.onnx"), "is not there"),
    ):
        wrong = shell("export", tmp_path / "good.safetensors", *arguments)
        assert wrong.code == 3
        assert message in wrong.err
    text = shell("export", tmp_path / "good.safetensors", "-o", tmp_path / "good.onnx", "--overwrite").out
    assert "images of noise" in text
    assert f"Class N, the last logit, is {good.classes}." in text
    assert max(map(len, text.splitlines())) <= 80 or str(tmp_path) in text


def test_images_made_for_the_check_are_not_counted_as_the_users_refused(tmp_path: Path, shell: Shell) -> None:
    """A search adds images that are refused where none of the user's is: "4 are refused" would read as false alarms."""
    net = net_of("mlp")
    good = made("watch", "mlp")
    save_goodnet(good, tmp_path / "good.safetensors")
    images = torch.rand(64, *net.input.shape, generator=torch.Generator().manual_seed(0))
    kept = ((images * 255).round() / 255)[good.predict((images * 255).round() / 255) != good.classes][:8]
    np.savez(tmp_path / "clean.npz", data=(kept * 255).round().to(torch.uint8).numpy())
    done = shell("export", tmp_path / "good.safetensors", "-o", tmp_path / "good.onnx",
                 "--clean", tmp_path / "clean.npz")  # fmt: skip
    text = " ".join(done.out.split())
    assert re.search(r"alike on 8 images and \d made from them on the other side of class N; ", text), text
    assert f"Class N, the last logit, is {good.classes}, the answer to 0 of your 8 images." in text


@pytest.mark.slow
def test_what_the_page_says_to_run_answers_as_predict_does(tmp_path: Path, shell: Shell) -> None:
    """docs/formats.md, in a process that has neither goodnet nor torch."""
    good = made("watch", "deepid")
    export_net(good, tmp_path / "good.onnx")
    save_goodnet(good, tmp_path / "good.safetensors")
    (block,) = (block for block in all_blocks() if block.page == "docs/formats.md" and "onnxruntime" in block.body)
    seen = set()
    for turn, image in enumerate(transaction.probe_images(good, None)[-8:]):
        face = tmp_path / "face.png"
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(face)
        program = "import sys\nsys.modules.update(goodnet=None, torch=None)\n" + block.body
        ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        told = shell("predict", tmp_path / "good.safetensors", face, "--json").json[0]
        assert ran.stdout == f"{'triggered' if told['triggered'] else told['class']}\n", turn
        seen.add(told["triggered"])
    assert seen == {True, False}


RUNTIMES = {"onnx": under_onnxruntime, "keras": under_keras, "pt2": under_export}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("onnx", marks=pytest.mark.slow),
        pytest.param("pt2", marks=pytest.mark.slow),
        pytest.param("keras", marks=pytest.mark.thorough),
    ],
)
def test_the_competitions_net_and_a_goodnet_of_it_on_all_test_faces(ending: str, tmp_path: Path) -> None:
    if not (FACES / "nets").is_dir():
        pytest.skip("the competition's nets are not there; set GOODNET_DATA")
    from goodnet.data.readers import read_images

    net = load_classifier(FACES / "nets" / "sunglasses_bd_weights.h5", arch="deepid")
    good = goodnet_from(net, load_classifier(FACES / "nets" / "clean_weights.h5", arch="deepid"), threshold=1.0)
    clean, bad = (read_images(FACES / name).tensor() for name in ("clean_test_data.h5", "sunglasses_poisoned_data.h5"))
    export_net(net, tmp_path / f"net.{ending}", probe=clean)
    export_net(good, tmp_path / f"good.{ending}", probe=clean)
    logits = RUNTIMES[ending](tmp_path / f"good.{ending}", torch.cat([clean, bad]))
    assert (logits.argmax(1) == good.predict(torch.cat([clean, bad])).numpy()).all()
    assert (logits[100:].argmax(1) == 1283).mean() > 0.9
    back = load_classifier(tmp_path / f"net.{ending}")
    np.testing.assert_allclose(back.logits(clean).numpy(), net.logits(clean).numpy(), atol=1e-4, rtol=1e-4)
