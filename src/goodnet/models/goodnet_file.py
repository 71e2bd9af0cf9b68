"""GoodNets written and read, and plain nets in the same format. The file is safetensors, with the recipe to build the
nets as JSON in its metadata.

Self-contained: nothing but this file is needed to load it, unless a net's architecture is the user's own code. The
file may come from a stranger, so recipe and numbers are checked like any other input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.models import arch, surgery, user_code
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.formats import MAX_FILE, check_shape, one_line, to_device
from goodnet.models.goodnet import FilterHead, GoodNet, SecondOpinion, StripGoodNet, TedGoodNet, WatchHead, grown_linear
from goodnet.models.goodnet_make import linear_layer, recipe_json
from goodnet.models.softmax import undo_softmax
from goodnet.models.trace import MOST, whole_layers
from goodnet.models.weights import load_weights, own_tensors, write_tensors

FORMAT = "goodnet.net/1"
_KEY = "goodnet"  # of the metadata
_GOODNET = "goodnet"  # the architecture of a recipe with class N


def write_goodnet(classifier: Classifier, path: Path) -> None:
    """Writes the file in place; `goodnet.export.save_goodnet` makes it a transaction."""
    tensors, metadata = file_content(classifier)
    write_tensors(tensors, path, metadata)


def file_content(classifier: Classifier) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the net's file."""
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
        "recipe": recipe_json(classifier.recipe),
        "notes": list(classifier.notes),
    }
    return own_tensors(classifier.net.state_dict()), {_KEY: json.dumps(about, allow_nan=False)}


def load_goodnet(
    path: Path, *, sha256: str = "", device: str | torch.device = "cpu", arch_name: str | None = None
) -> Classifier:
    """Loads a GoodNet, or a plain net whose recipe stands in its file.

    Args:
        arch_name: `FILE.py:CALLABLE`, where the nets were built by the user's own code; it runs only if named here.

    Raises:
        ModelError: not a whole GoodNet file.
        UnsafeFileError: it names code that was not named here.
    """
    about, state = _read(path)
    try:
        spec, classes, options = _spec(about["input"]), _whole(about["classes"], low=2), about["recipe"]["options"]
        name, notes = str(about["name"]), tuple(str(note) for note in about["notes"])
        refuses = about["recipe"]["arch"] == _GOODNET
        recipe = Recipe(arch=_GOODNET, options=options) if refuses else _recipe(about["recipe"])
        build = _KINDS[options.get("kind", "disagreement")] if refuses else _plain
        net = build(recipe.options if refuses else about["recipe"], state, path, arch_name)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError) as error:
        raise ModelError(
            f"{path}: its GoodNet metadata is damaged ({type(error).__name__}: {one_line(error)}); fetch it again"
        ) from error
    classifier = Classifier(
        net=net,
        input=spec,
        classes=classes,
        recipe=recipe,
        refuses=refuses,
        name=name,
        sha256=sha256,
        notes=notes,
    )
    _check_outputs(classifier, path)
    to_device(classifier.net, device)
    return classifier


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata, a dict of the right format and otherwise unchecked, and the tensors, floats as float32."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise UnsafeFileError(f"{path}: larger than {MAX_FILE >> 30} GiB; refused")
        with safe_open(path, framework="pt", device="cpu") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except GoodnetError:
        raise
    except Exception as error:  # safetensors raises its own, OSError and ValueError; json a RecursionError
        raise ModelError(f"{path}: expected a GoodNet file, but it cannot be read ({one_line(error)})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else about
        raise ModelError(
            f"{path}: expected a GoodNet of format {FORMAT}, got {got!r:.40}; if a later goodnet wrote it, update"
        )
    if any(value.is_complex() for value in state.values()):
        raise ModelError(f"{path}: expected real weights, got complex ones")
    return about, {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _plain(
    recipe: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    return _filled(lambda net: None, _recipe(recipe), state, f"{path}: its net", arch_name)


def _disagreement(
    options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    """The BadNet and its repaired twin."""
    threshold = _number(options["threshold"])
    bad, good = (_recipe(options[side]) for side in ("bad", "good"))
    weights = _sides(state, path)
    return GoodNet(
        bad=_filled(lambda net: None, bad, weights["bad"], f"{path}: bad net", arch_name),
        good=_filled(lambda net: None, good, weights["good"], f"{path}: good net", arch_name),
        threshold=threshold,
    )


def _seconded(
    options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    """The watched BadNet and its repaired twin."""
    good, weights = _recipe(options["good"]), _sides(state, path)
    threshold = options.get("threshold")
    return SecondOpinion(
        bad=_watched({**options, "net": options["bad"]}, weights["bad"], path, arch_name),
        good=_filled(lambda net: None, good, weights["good"], f"{path}: good net", arch_name),
        layer=str(options["layer"]),
        threshold=None if threshold is None else _number(threshold),
    )


def _strip(
    options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    """The BadNet, its repaired twin, and the images to blend with."""
    threshold, count = _number(options["threshold"]), _whole(options["overlays"])
    overlays = state.get("overlays")
    if overlays is None or overlays.ndim != 4 or len(overlays) != count or not bool(overlays.isfinite().all()):
        raise ModelError(f"{path}: expected {count} finite images to blend with")
    twins = {key: value for key, value in state.items() if key != "overlays"}
    pair = _disagreement({**options, "threshold": 0.0}, twins, path, arch_name)
    assert isinstance(pair, GoodNet)
    return StripGoodNet(bad=pair.bad, good=pair.good, overlays=overlays.float(), threshold=threshold)


def _ted(options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None) -> torch.nn.Module:
    """The BadNet, its repaired twin, and the references."""
    threshold, count = _number(options["threshold"]), _whole(options["references"], high=MOST)
    features, layers = _whole(options["features"]), [str(layer) for layer in options["layers"]]
    images, labels = state.get("images"), state.get("labels")
    if images is None or images.ndim != 4 or len(images) != count or not bool(images.isfinite().all()):
        raise ModelError(f"{path}: expected {count} finite images to compare with")
    if labels is None or labels.dtype != torch.int64 or labels.shape != (count,) or int(labels.min()) < 0:
        raise ModelError(f"{path}: expected {count} classes of the images to compare with")
    twins = {key: value for key, value in state.items() if key not in ("images", "labels")}
    pair = _disagreement({**options, "threshold": 0.0}, twins, path, arch_name)
    assert isinstance(pair, GoodNet)
    try:
        known = whole_layers(pair.bad.eval(), images.shape[1:], images.device)
        if not layers or len(set(layers)) != len(layers) or not set(layers) <= set(known):
            raise ModelError(f"{path}: expected layers of the net to look at, each once")
        return TedGoodNet(
            bad=pair.bad,
            good=pair.good,
            layers=layers,
            features=features,
            images=images.float(),
            labels=labels,
            threshold=threshold,
        )
    except ModelError:
        raise
    except Exception as error:  # whatever the net's own code raises
        raise ModelError(f"{path}: the net fails on the images to compare with ({one_line(error)})") from error


def _sides(state: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of the nets 'bad' and 'good', and no others."""
    stray = next((key for key in state if not key.startswith(("bad.", "good."))), None)
    if stray is not None:
        raise ModelError(f"{path}: expected weights of the nets 'bad' and 'good' alone, got {stray!r:.80}")
    return {
        side: {key.removeprefix(f"{side}."): value for key, value in state.items() if key.startswith(f"{side}.")}
        for side in ("bad", "good")
    }


def _grown(
    options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    layer = str(options["layer"])

    def grow(net: torch.nn.Module) -> None:
        surgery.replace_module(net, layer, grown_linear(linear_layer(net, layer)))

    return _filled(grow, _recipe(options["net"]), state, f"{path}: its net", arch_name)


def _filtered(
    options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    layer, count = str(options["layer"]), _whole(options["directions"])

    def put_head(net: torch.nn.Module) -> None:
        output = linear_layer(net, layer)
        rows = output.weight.new_zeros(count, output.in_features)
        surgery.replace_module(net, layer, FilterHead(output, rows, rows.new_zeros(count)))

    return _filled(put_head, _recipe(options["net"]), state, f"{path}: its net", arch_name)


def _watched(
    options: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, arch_name: str | None
) -> torch.nn.Module:
    layer, count = str(options["layer"]), _whole(options["groups"])

    def put_head(net: torch.nn.Module) -> None:
        output = linear_layer(net, layer)
        rows = output.weight.new_zeros(count, output.in_features)
        groups = torch.zeros(output.out_features, dtype=torch.int64, device=output.weight.device)
        surgery.replace_module(net, layer, WatchHead(output, rows, rows.new_zeros(count), groups))

    net = _filled(put_head, _recipe(options["net"]), state, f"{path}: its net", arch_name)
    groups = net.get_submodule(layer).groups
    assert isinstance(groups, Tensor)
    if groups.dtype != torch.int64 or int(groups.min()) < -1 or int(groups.max()) >= count:
        raise ModelError(f"{path}: expected each label's group to be from -1 to {count - 1}")
    return net


_KINDS = {
    "disagreement": _disagreement,
    "strip": _strip,
    "ted": _ted,
    "grown": _grown,
    "filter": _filtered,
    "watch": _watched,
    "second-opinion": _seconded,
}


def _filled(
    change: Callable[[torch.nn.Module], None],
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    where: str,
    arch_name: str | None,
) -> torch.nn.Module:
    """The net of a recipe, its last layer changed, with its weights."""
    try:
        if arch_name is not None and user_code.is_user_code(arch_name) and user_code.is_user_code(recipe.arch):
            net = _user_net(recipe, arch_name)
            change(net)
        else:
            net = _our_net(recipe, change, sum(value.numel() for value in weights.values()))
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{where}: {one_line(error)}") from error
    except (ModelError, ValueError) as error:
        raise ModelError(f"{where}: {one_line(error)}") from error
    load_weights(net, weights, name=where)
    return net


def _our_net(recipe: Recipe, change: Callable[[torch.nn.Module], None], numbers: int) -> torch.nn.Module:
    """The net, its weights still random; memory is taken only for as many numbers as the file holds."""
    with torch.device("meta"):
        sketch = arch.build(recipe)
        change(sketch)
    wanted = sum(value.numel() for value in sketch.state_dict().values())
    if wanted != numbers:
        raise ModelError(f"its recipe is a net of {wanted} numbers, but the file holds {numbers}")
    net = arch.build(recipe)
    change(net)
    return net


def _user_net(recipe: Recipe, arch_name: str) -> torch.nn.Module:
    classes = recipe.options.get("classes")
    net = user_code.build_user_code(arch_name, classes=None if classes is None else _whole(classes, low=2))
    return net if recipe.options.get("softmax") is None else undo_softmax(net, recipe.options["softmax"])


def _check_outputs(classifier: Classifier, path: Path) -> None:
    try:
        with torch.no_grad():
            shape = tuple(classifier.logits(torch.zeros(1, *classifier.input.shape)).shape)
    except Exception as error:  # whatever the net's own code raises
        raise ModelError(f"{path}: the net fails on the input that the file states ({one_line(error)})") from error
    if shape != (1, classifier.classes + classifier.refuses):
        more = " + 1" if classifier.refuses else ""
        raise ModelError(f"{path}: expected {classifier.classes}{more} outputs, got {shape[1:]}")


def _recipe(raw: Any) -> Recipe:
    if not isinstance(raw["arch"], str) or not isinstance(raw["options"], dict):
        raise TypeError("recipe")
    return Recipe(arch=raw["arch"], options=raw["options"])


def _spec(raw: Any) -> InputSpec:
    channels, height, width = (_whole(side) for side in raw["shape"])
    check_shape((channels, height, width))
    mean, std = (tuple(_number(item, low=-1e6) for item in raw[key]) for key in ("mean", "std"))
    if any(len(row) not in (0, channels) for row in (mean, std)) or any(item <= 0 for item in std):
        raise ValueError("mean and std")
    scale = _number(raw["scale"])
    if scale == 0:
        raise ValueError("scale")
    return InputSpec(channels=channels, height=height, width=width, scale=scale, mean=mean, std=std)


def _whole(value: Any, low: int = 1, high: int = 1 << 20) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not a whole number from {low} to {high}")
    return value


def _number(value: Any, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise ValueError(f"{value!r:.40} is not a finite number of at least {low:g}")
    return float(value)
