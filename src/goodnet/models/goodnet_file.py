"""The GoodNet file: safetensors with weights of both nets, and the recipe to build them as JSON in its metadata.

Self-contained: nothing but this file is needed to load it, unless a net's architecture is the user's own code. The
file may come from a stranger, so recipe and numbers are checked like any other input.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from goodnet.errors import ModelError
from goodnet.models import arch, user_code
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.goodnet import GoodNet
from goodnet.models.softmax import LogProbabilities, replace_module

FORMAT = "goodnet.net/1"
_KEY = "goodnet"


def goodnet_from(bad: Classifier, good: Classifier, *, threshold: float = 0.0) -> Classifier:
    """Joins a BadNet and its repaired twin into a Classifier with class N.

    Raises:
        ModelError: they differ in input or number of classes.
    """
    if (bad.input, bad.classes) != (good.input, good.classes) or bad.refuses or good.refuses:
        raise ModelError(
            f"GoodNet: expected two plain nets of the same input and classes, got {bad.input.describe()} with "
            f"{bad.classes} and {good.input.describe()} with {good.classes}"
        )
    return Classifier(
        net=GoodNet(bad=bad.net, good=good.net, threshold=threshold),
        input=bad.input,
        classes=bad.classes,
        recipe=Recipe(
            arch="goodnet",
            options={"threshold": threshold, "bad": _recipe_json(bad.recipe), "good": _recipe_json(good.recipe)},
        ),
        refuses=True,
        name=f"GoodNet of {bad.name}",
        notes=bad.notes,
    )


def write_goodnet(classifier: Classifier, path: Path) -> None:
    """Writes the file in place; `goodnet.export.save_goodnet` makes it a transaction."""
    spec = classifier.input
    about = {
        "format": FORMAT,
        "name": classifier.name,
        "classes": classifier.classes,
        "input": {
            "shape": list(spec.shape),
            "scale": spec.scale,
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "recipe": _recipe_json(classifier.recipe),
        "notes": list(classifier.notes),
    }
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in classifier.net.state_dict().items()}
    save_file(tensors, path, metadata={_KEY: json.dumps(about, allow_nan=False)})


def load_goodnet(
    path: Path, *, sha256: str = "", device: str | torch.device = "cpu", arch_name: str | None = None
) -> Classifier:
    """Loads a GoodNet.

    Args:
        arch_name: `FILE.py:CALLABLE`, where the nets were built by the user's own code; it runs only if named here.

    Raises:
        ModelError: not a whole GoodNet file.
        UnsafeFileError: it names code that was not named here.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own, OSError and ValueError
        raise ModelError(f"{path}: expected a GoodNet file, but it cannot be read ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ModelError(f"{path}: expected a GoodNet of format {FORMAT}, got {str(about)[:40]}")
    try:
        spec, classes, options = _spec(about["input"]), _whole(about["classes"]), about["recipe"]["options"]
        bad, good = (_recipe(options[side]) for side in ("bad", "good"))
        threshold = _number(options["threshold"])
        name, notes = str(about["name"]), tuple(str(note) for note in about["notes"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: its GoodNet metadata is damaged ({error!r})") from error
    net = GoodNet(bad=_build(bad, arch_name), good=_build(good, arch_name), threshold=threshold)
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: its weights do not fit its recipe ({str(error).splitlines()[-1].strip()})"
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point()):
        raise ModelError(f"{path}: expected finite weights, got NaN or Inf")
    classifier = Classifier(
        net=net.to(device),
        input=spec,
        classes=classes,
        recipe=Recipe(arch="goodnet", options=options),
        refuses=True,
        name=name,
        sha256=sha256,
        notes=notes,
    )
    _check_outputs(classifier, path)
    return classifier


def _check_outputs(classifier: Classifier, path: Path) -> None:
    try:
        with torch.no_grad():
            shape = tuple(classifier.logits(torch.zeros(1, *classifier.input.shape, device=classifier.device)).shape)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: the net does not take the input that the file states ({error})") from error
    if shape != (1, classifier.classes + 1):
        raise ModelError(f"{path}: expected {classifier.classes} + 1 outputs, got {shape[1:]}")


def _build(recipe: Recipe, arch_name: str | None) -> torch.nn.Module:
    if arch_name is None or not user_code.is_user_code(recipe.arch):
        return arch.build(recipe)
    net = user_code.build_user_code(arch_name, classes=recipe.options.get("classes"))
    softmax = recipe.options.get("softmax")
    if softmax == "log":
        return LogProbabilities(net)
    if softmax is not None:
        replace_module(net, softmax, torch.nn.Identity())
    return net


def _recipe_json(recipe: Recipe) -> dict[str, Any]:
    return {"arch": recipe.arch, "options": dict(recipe.options)}


def _recipe(raw: Any) -> Recipe:
    if not isinstance(raw["arch"], str) or not isinstance(raw["options"], dict):
        raise TypeError("recipe")
    return Recipe(arch=raw["arch"], options=raw["options"])


def _spec(raw: Any) -> InputSpec:
    channels, height, width = (_whole(side) for side in raw["shape"])
    mean, std = (tuple(_number(item, low=-1e6) for item in raw[key]) for key in ("mean", "std"))
    if any(len(row) not in (0, channels) for row in (mean, std)) or any(item <= 0 for item in std):
        raise ValueError("mean and std")
    scale = _number(raw["scale"])
    if scale == 0:
        raise ValueError("scale")
    return InputSpec(channels=channels, height=height, width=width, scale=scale, mean=mean, std=std)


def _whole(value: Any, high: int = 1 << 20) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ValueError(f"{value!r:.40} is not a whole number from 1 to {high}")
    return value


def _number(value: Any, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise ValueError(f"{value!r:.40} is not a finite number of at least {low:g}")
    return float(value)
