"""A net as a torch.export program (`.pt2`), preparation and class N inside; it opens with torch.export.load.

The program takes float32 (N, C, H, W) in [0, 1], any number of images at a time, and gives logits (N, classes), for a
GoodNet (N, classes + 1), of which the last is class N.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from goodnet.errors import ModelError
from goodnet.export.transaction import Format, Whole
from goodnet.models.classifier import Classifier
from goodnet.models.formats import one_line
from goodnet.models.goodnet import StripGoodNet, TedGoodNet

_RUN = """
import torch
def load(file):
    return torch.export.load(file).module()
def run(net, images):
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()
"""


def write_pt2(classifier: Classifier, images: Tensor, path: Path) -> bytes:
    """Raises ModelError where torch.export cannot trace the net."""
    if isinstance(classifier.net, StripGoodNet):
        raise ModelError(
            f"{path}: a GoodNet with the guard strip blends in as many images at a time as fit, which torch.export "
            "does not trace; repair with --guard watch or disagreement, which it does"
        )
    if isinstance(classifier.net, TedGoodNet):
        raise ModelError(
            f"{path}: a GoodNet with the guard ted looks at layers inside the net, which is not "
            "traced by torch.export; repair with --guard watch or disagreement, which are"
        )
    about = {"input": PT2.input_of(classifier), "classes": classifier.classes, "name": classifier.name}
    about |= {"refused_class": classifier.classes} if classifier.refuses else {}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                Whole(classifier).eval(), (images[:2],), dynamic_shapes={"x": {0: torch.export.Dim("n")}}
            )
            program.example_inputs = None  # the format would keep them, pickled, images and all
            torch.export.save(program, file, extra_files={"goodnet.json": json.dumps(about)})
    except Exception as error:  # the tracer raises what each operator raises
        raise ModelError(f"{path}: this net cannot be written as torch.export ({one_line(error)})") from error
    return file.getvalue()


PT2 = Format(name="torch.export", runtime="torch.export.load", write=write_pt2, run=_RUN)
