"""A net as ONNX (opset 17, any number of images at a time), preparation and class N inside.

Input `images`: float32 (N, C, H, W) in [0, 1]; output `logits`: (N, classes), for a GoodNet (N, classes + 1), of which
the last is class N.
"""

from __future__ import annotations

import inspect
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodnet.errors import ModelError
from goodnet.export.transaction import Format, Whole
from goodnet.models.classifier import Classifier
from goodnet.models.formats import one_line
from goodnet.models.goodnet import StripGoodNet, TedGoodNet

OPSET = 17
INPUT, OUTPUT = "images", "logits"
_RUN = f"""
import onnxruntime
def load(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
def run(net, images):
    return net.run(["{OUTPUT}"], {{"{INPUT}": images}})[0]
"""


def write_onnx(classifier: Classifier, images: Tensor, path: Path) -> bytes:
    """Raises ModelError where the net cannot be expressed in ONNX."""
    if isinstance(classifier.net, StripGoodNet):
        raise ModelError(
            f"{path}: a GoodNet with the guard strip runs the net once for each image that it blends in, which is not "
            "written as ONNX; repair with --guard watch or disagreement, which are"
        )
    if isinstance(classifier.net, TedGoodNet):
        raise ModelError(
            f"{path}: a GoodNet with the guard ted looks at layers inside the net, which is not "
            "written as ONNX; repair with --guard watch or disagreement, which are"
        )
    import onnx

    model = onnx.load_model_from_string(_exported(classifier, images, path))
    onnx.helper.set_model_props(model, _about(classifier))
    written: bytes = model.SerializeToString()
    return written


def _exported(classifier: Classifier, images: Tensor, path: Path) -> bytes:
    options: dict[str, Any] = {"dynamic_axes": {INPUT: {0: "n"}, OUTPUT: {0: "n"}}, "opset_version": OPSET}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the other exporter needs packages of its own
    file: Any = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Whole(classifier).eval(), (images[:2],), file, input_names=[INPUT], output_names=[OUTPUT], **options
            )
    except Exception as error:  # the exporter raises what each operator's translation raises
        raise ModelError(f"{path}: this net cannot be written as ONNX ({one_line(error)})") from error
    return bytes(file.getvalue())


def _about(classifier: Classifier) -> dict[str, str]:
    about = {
        "goodnet.input": ONNX.input_of(classifier),
        "goodnet.classes": str(classifier.classes),
        "goodnet.name": classifier.name,
        "goodnet.notes": json.dumps(list(classifier.notes)),
    }
    return {**about, "goodnet.refused_class": str(classifier.classes)} if classifier.refuses else about


ONNX = Format(
    name="ONNX",
    runtime="onnxruntime",
    packages=("onnx", "onnxruntime"),
    install="pip install 'goodnet[onnx]'",
    write=write_onnx,
    run=_RUN,
)
