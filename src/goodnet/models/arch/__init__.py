"""Our architectures by name, and building a net from a Recipe that may come from a stranger's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models.arch import cnn, deepid, graph, mlp, small_vgg, wrn
from goodnet.models.classifier import Recipe
from goodnet.models.softmax import undo_softmax

MAX_PARAMETERS = 1 << 29
"""2 GiB of float32: more than any net that goodnet is for, less than what would hurt."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of our architectures.

    Attributes:
        net: makes the module; keyword arguments are the recipe's options.
        options_from_state: reads those options off a state dict; KeyError where a key is missing.
        options: names of the options that `net` takes.
        shape: (C, H, W) of the nets that are published, for options that leave it open.
    """

    net: Callable[..., nn.Module]
    options_from_state: Callable[[Mapping[str, Tensor]], Mapping[str, Any]]
    options: frozenset[str]
    shape: tuple[int, int, int]

    def input_shape(self, options: Mapping[str, Any]) -> tuple[int, int, int]:
        """(C, H, W) of the net with `options`."""
        channels, height, width = self.shape
        return (options.get("channels", channels), options.get("height", height), options.get("width", width))


_SIZED = frozenset({"classes", "channels", "height", "width"})
ARCHITECTURES: dict[str, Architecture] = {
    "deepid": Architecture(
        net=deepid.DeepID,
        options_from_state=deepid.options_from_state,
        options=_SIZED | {"embed"},
        shape=(3, 55, 47),
    ),
    "small-vgg": Architecture(
        net=small_vgg.SmallVGG,
        options_from_state=small_vgg.options_from_state,
        options=_SIZED,
        shape=(3, 32, 32),
    ),
    "cnn": Architecture(
        net=cnn.CNN, options_from_state=cnn.options_from_state, options=_SIZED | {"hidden"}, shape=(1, 28, 28)
    ),
    "mlp": Architecture(
        net=mlp.MLP, options_from_state=mlp.options_from_state, options=_SIZED | {"hidden"}, shape=(1, 28, 28)
    ),
}
for _depth, _widen in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2)):
    ARCHITECTURES[f"wrn-{_depth}-{_widen}"] = Architecture(
        net=partial(wrn.WideResNet, blocks=(_depth - 4) // 6, widen=_widen),
        options_from_state=wrn.options_from_state,
        options=frozenset({"classes", "channels"}),
        shape=(3, 32, 32),
    )
GRAPH = "keras-graph"
NOTES = {"cnn": "the published cnn ends in softmax; it is left out here, so that the net gives logits"}


def build(recipe: Recipe) -> nn.Module:
    """The net that `recipe` describes, with weights still to be loaded. The recipe may be hostile.

    Raises:
        UnsafeFileError: it names user code, which runs only when named on the command line.
        ModelError: unknown architecture, or options that do not belong or are out of bounds.
    """
    if "softmax" in recipe.options:
        rest = {name: value for name, value in recipe.options.items() if name != "softmax"}
        return undo_softmax(build(Recipe(arch=recipe.arch, options=rest)), recipe.options["softmax"])
    if recipe.arch == GRAPH:
        return graph.build_graph(recipe.options)
    if ".py:" in recipe.arch:
        raise UnsafeFileError(f"the net needs the code {recipe.arch!r}, which a file cannot run; name it with --arch")
    known = ARCHITECTURES.get(recipe.arch)
    if known is None:
        raise ModelError(f"expected an architecture out of {', '.join(ARCHITECTURES)}; got {recipe.arch!r}")
    for name, value in recipe.options.items():
        _check_option(recipe.arch, known, name, value)
    if "classes" not in recipe.options:
        raise ModelError(f"{recipe.arch}: expected the option 'classes' in its recipe, got none")
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in known.net(**recipe.options).parameters())
        if size > MAX_PARAMETERS:
            raise UnsafeFileError(f"{recipe.arch}: {size} parameters, more than {MAX_PARAMETERS} are not built")
        return known.net(**recipe.options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"{recipe.arch}: cannot be built with {dict(recipe.options)} ({error})") from error


def architecture(name: str) -> Architecture:
    """Raises UsageError naming ours where there is no such one."""
    if name not in ARCHITECTURES:
        ours = ", ".join(ARCHITECTURES)
        raise UsageError(f"--arch: expected one of {ours}, or FILE.py:CALLABLE; got {name!r}")
    return ARCHITECTURES[name]


def matching(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of those of our architectures whose keys and shapes are exactly those of `state`."""
    shapes = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return tuple(name for name, known in ARCHITECTURES.items() if _shapes(known, state) == shapes)


def _shapes(known: Architecture, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]] | None:
    try:
        with torch.device("meta"):
            net = known.net(**known.options_from_state(state))
    except (KeyError, ValueError, IndexError, RuntimeError, TypeError):
        return None
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    return {key: shape for key, shape in ours.items() if not key.endswith("num_batches_tracked")}


def _check_option(arch: str, known: Architecture, name: str, value: object) -> None:
    if name not in known.options:
        raise ModelError(f"{arch}: expected options out of {', '.join(sorted(known.options))}; got {name!r}")
    values = list(value) if isinstance(value, list | tuple) and name == "hidden" else [value]
    whole = all(isinstance(item, int) and not isinstance(item, bool) and 1 <= item <= 1 << 20 for item in values)
    if not whole or len(values) > 64:
        raise ModelError(f"{arch}: expected {name} to be a whole number from 1 to {1 << 20}, got {value!r:.80}")
