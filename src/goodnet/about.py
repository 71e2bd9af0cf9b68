"""What ran, on what: the parts of a record that describe the machine, the net, the data and the method."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from goodnet.data.images import Images
from goodnet.models.classifier import Classifier
from goodnet.models.twin import has_bfloat16
from goodnet.record import DataInfo, Environment, MethodInfo, ModelInfo

PACKAGES = ("numpy", "h5py", "safetensors", "pillow")
"""Libraries whose versions stand in each record, beside those of goodnet, Python and torch."""


def environment(classifier: Classifier, command: Sequence[str]) -> Environment:
    """Versions, device and threads; `command` as the user typed it, empty from the API."""
    return machine(str(classifier.device), command)


def machine(device: str, command: Sequence[str]) -> Environment:
    """`environment` where there is no single net."""
    return Environment(
        command=tuple(command),
        goodnet=metadata.version("goodnet"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=device,
        threads=torch.get_num_threads(),
        packages={name: metadata.version(name) for name in PACKAGES},
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def model_info(classifier: Classifier) -> ModelInfo:
    return ModelInfo(
        name=classifier.name,
        sha256=classifier.sha256,
        arch=classifier.recipe.arch,
        input=classifier.input.describe(),
        classes=classifier.classes,
        refuses=classifier.refuses,
        notes=classifier.notes,
    )


def data_info(images: Images) -> DataInfo:
    return DataInfo(name=images.name, sha256=images.sha256(), n=len(images), labelled=images.labels is not None)


def fingerprint(classifier: Classifier, images: Images, method: Any, seed: int, labels: Sequence[int] | None) -> str:
    """SHA-256 over all that a scan's results depend on: two scans with the same one find the same."""
    digest = hashlib.sha256()
    for name, tensor in classifier.net.state_dict().items():
        fresh = torch.cat([tensor.detach().cpu().reshape(-1)])  # whatever its strides were
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(fresh.view(torch.uint8).numpy().tobytes())
    settings = {
        "method": [type(method).__name__, _plain(dataclasses.asdict(method))],
        "arch": classifier.recipe.arch,
        "images": images.sha256(),
        "input": dataclasses.asdict(classifier.input),
        "seed": seed,
        "labels": None if labels is None else sorted(set(labels)),
        "versions": [metadata.version("goodnet"), torch.__version__, np.__version__],
        "machine": [str(classifier.device), has_bfloat16(classifier.device)],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def method_info(name: str, method: Any, seed: int) -> MethodInfo:
    """A method is its config dataclass: `passed` are the fields that differ from the defaults."""
    resolved, default = (_plain(dataclasses.asdict(config)) for config in (method, type(method)()))
    passed = {key: value for key, value in resolved.items() if value != default[key]}
    return MethodInfo(name=name, passed=passed, resolved=resolved, seed=seed)
