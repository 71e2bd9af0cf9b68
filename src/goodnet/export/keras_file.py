"""A net as Keras 3's `.keras`, in stock layers alone: it opens with keras.models.load_model as it comes, safe mode on.

The model takes float32 (N, H, W, C) in [0, 1], channels last, and gives logits (N, classes), for a GoodNet
(N, classes + 1), of which the last is class N. Keras itself writes the file, in a process of its own: goodnet hands it
the layers as JSON and the weights as arrays, and never imports it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from goodnet.export.keras_plan import INPUT, Plan, Value
from goodnet.export.keras_walk import plan_of
from goodnet.export.transaction import Format, elsewhere
from goodnet.models.classifier import Classifier

_WRITE = f"""
import json, sys
import keras
import numpy as np
plan = json.load(open(sys.argv[1], encoding="utf-8"))
arrays = np.load(sys.argv[2])
images = keras.Input(shape=plan["shape"], name="{INPUT}", dtype="float32")
values = {{"{INPUT}": images}}
layers = []
for number, step in enumerate(plan["layers"]):
    layer = getattr(keras.layers, step["kind"])(name=step["name"], dtype="float32", **step["settings"])
    inputs = [values[name] for name in step["inputs"]]
    values[step["name"]] = layer(inputs if len(inputs) > 1 else inputs[0])
    if step["weights"]:
        layer.set_weights([arrays[f"{{number}}_{{i}}"] for i in range(step["weights"])])
keras.Model(images, values[plan["output"]], name=plan["name"]).save(sys.argv[3])
"""
_RUN = """
import keras
def load(file):
    return keras.models.load_model(file, compile=False)
def run(net, images):
    return keras.ops.convert_to_numpy(net(images, training=False))
"""


def write_keras(classifier: Classifier, images: Tensor, path: Path) -> bytes:
    """Raises ModelError where stock Keras layers cannot express the net, or Keras does not take them."""
    plan, output = plan_of(classifier, str(path))
    name = f"refuses_as_class_{classifier.classes}" if classifier.refuses else "classifier"
    with tempfile.TemporaryDirectory() as folder:
        layers, weights, written = (Path(folder) / part for part in ("plan.json", "weights.npz", "net.keras"))
        layers.write_text(json.dumps(_as_json(plan, output, classifier, name), allow_nan=False), encoding="utf-8")
        steps = enumerate(plan.steps.values())
        arrays = {f"{n}_{i}": array for n, step in steps for i, array in enumerate(step.weights)}
        np.savez(weights, **arrays)  # type: ignore[arg-type]
        elsewhere(_WRITE, [layers, weights, written], path, "Keras")
        return written.read_bytes()


def _as_json(plan: Plan, output: Value, classifier: Classifier, name: str) -> dict[str, Any]:
    channels, height, width = classifier.input.shape
    layers = [
        {
            "kind": step.kind,
            "name": step.name,
            "inputs": [value.layer for value in step.inputs],
            "settings": dict(step.settings),
            "weights": len(step.weights),
        }
        for step in plan.steps.values()
    ]
    return {"shape": [height, width, channels], "layers": layers, "output": output.layer, "name": name}


KERAS = Format(
    name="Keras",
    runtime="Keras",
    packages=("keras",),
    install="pip install 'goodnet[keras]'",
    write=write_keras,
    run=_RUN,
    channels_last=True,
)
