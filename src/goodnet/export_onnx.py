"""A net as ONNX, preparation and class N inside, and proof that it decides the same where goodnet is not."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.formats import one_line
from goodnet.models.goodnet import StripGoodNet
from goodnet.models.load import file_sha256
from goodnet.outputs import check_file, replacing

OPSET = 17
INPUT, OUTPUT = "images", "logits"
_PROBES = 32
_SECONDS = 300
_INSTALL = "writing ONNX needs the packages onnx and onnxruntime: pip install 'goodnet[onnx]'"
# Runs in a process of its own, with no way to goodnet: what a user's server will do.
_CHECK = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
parts = [session.run(None, {session.get_inputs()[0].name: part})[0] for part in (images, images[:1])]
np.save(sys.argv[3], np.concatenate(parts))
assert "goodnet" not in sys.modules and "torch" not in sys.modules
"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how far its logits are from goodnet's on `probes` images."""

    file: str
    sha256: str
    probes: int
    largest_difference: float


class _Whole(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> logits, class N last where there is one."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.net = classifier.net
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.logits(x)


def save_onnx(classifier: Classifier, path: Path, *, probe: Tensor | None = None, overwrite: bool = False) -> Exported:
    """Writes a net or a GoodNet as ONNX (opset 17, any number of images at a time).

    Input `images`: float32 (N, C, H, W) in [0, 1]; output `logits`: (N, classes), for a GoodNet (N, classes + 1), of
    which the last is class N. The file is written under a temporary name, run by onnxruntime in a process that has
    never seen goodnet, compared, and renamed.

    Args:
        probe: images (N, C, H, W) in [0, 1] to compare on; 32 of noise where there are none.

    Raises:
        UsageError: the file is there already, its folder is not, or onnx and onnxruntime are not installed.
        ModelError: the net cannot be expressed in ONNX, or decides otherwise there; nothing is kept.
    """
    check_file(path, overwrite=overwrite)
    if isinstance(classifier.net, StripGoodNet):
        raise ModelError(
            f"{path}: a GoodNet with the guard strip runs the net once for each image that it blends in, which is not "
            "written as ONNX; repair with --guard watch or disagreement, which are"
        )
    try:
        import onnx
    except ImportError as error:
        raise UsageError(f"{path}: {_INSTALL}") from error
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError(f"{path}: {_INSTALL}")
    copy = surgery.clone(classifier)
    copy.net.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = _noise(classifier) if probe is None else probe.cpu()
    with replacing(path) as part:
        _write(copy, part, images, path)
        model = onnx.load(part)
        onnx.helper.set_model_props(model, _about(classifier))
        onnx.save(model, part)
        difference = _check(copy, part, images, path)
        digest = file_sha256(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
    return Exported(file=str(path), sha256=digest, probes=len(images), largest_difference=difference)


def _noise(classifier: Classifier) -> Tensor:
    return torch.rand(_PROBES, *classifier.input.shape, generator=torch.Generator().manual_seed(0))


def _write(classifier: Classifier, part: Path, images: Tensor, path: Path) -> None:
    options: dict[str, Any] = {"dynamic_axes": {INPUT: {0: "n"}, OUTPUT: {0: "n"}}, "opset_version": OPSET}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the other exporter needs packages of its own
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Whole(classifier).eval(), (images[:2],), part, input_names=[INPUT], output_names=[OUTPUT], **options
            )
    except Exception as error:  # the exporter raises what each operator's translation raises
        raise ModelError(f"{path}: this net cannot be written as ONNX ({one_line(error)})") from error


def _about(classifier: Classifier) -> dict[str, str]:
    about = {
        "goodnet.input": f"float32 (N, {', '.join(map(str, classifier.input.shape))}) in [0, 1]",
        "goodnet.classes": str(classifier.classes),
        "goodnet.name": classifier.name,
        "goodnet.notes": json.dumps(list(classifier.notes)),
    }
    return {**about, "goodnet.refused_class": str(classifier.classes)} if classifier.refuses else about


def _check(classifier: Classifier, part: Path, images: Tensor, path: Path) -> float:
    """Largest difference of logits, over the larger of 1 and their size. Raises ModelError beyond 1e-4."""
    with torch.no_grad():
        wanted = torch.cat([classifier.logits(images), classifier.logits(images[:1])]).numpy()
    got = _elsewhere(part, images.numpy(), path)
    if got.shape != wanted.shape or not bool(np.isfinite(got).all()):
        raise ModelError(f"{path}: under onnxruntime the net gives {got.shape}, not {wanted.shape}, or no numbers")
    difference = float((np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))).max())
    differ = int((got.argmax(1) != wanted.argmax(1)).sum())
    if difference > 1e-4 or differ:
        raise ModelError(
            f"{path}: under onnxruntime the net answers {differ} of {len(wanted)} images otherwise, logits differ by "
            f"{difference:.2g}; not kept"
        )
    return difference


def _elsewhere(part: Path, images: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder) / "images.npy", Path(folder) / "answers.npy"
        np.save(given, np.ascontiguousarray(images))
        command = [sys.executable, "-I", "-c", _CHECK, str(part.absolute()), str(given), str(answers)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"{path}: onnxruntime took longer than {_SECONDS} s on {len(images)} images") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise ModelError(f"{path}: onnxruntime does not run what was written ({last[:200]})")
        loaded: npt.NDArray[np.float32] = np.load(answers)
    return loaded
