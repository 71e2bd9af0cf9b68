"""Our architectures by name, and building a net from a Recipe that may come from a stranger's file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models.arch import cnn, deepid, graph, mlp, mobilenet_v2, resnet, small_vgg, vgg16, vit, wrn
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
        if options.get("kernel") == 3:  # a first convolution for images of CIFAR-10's size
            height, width = 32, 32
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
for _depth, _widen in ((16, 1), (16, 2), (28, 4), (28, 10), (40, 1), (40, 2)):
    ARCHITECTURES[f"wrn-{_depth}-{_widen}"] = Architecture(
        net=partial(wrn.WideResNet, blocks=(_depth - 4) // 6, widen=_widen),
        options_from_state=wrn.options_from_state,
        options=frozenset({"classes", "channels"}),
        shape=(3, 32, 32),
    )
_RESNETS: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], tuple[int, ...]]] = {
    "resnet-18": (resnet.BasicBlock, (2, 2, 2, 2)),
    "resnet-34": (resnet.BasicBlock, (3, 4, 6, 3)),
    "resnet-50": (resnet.Bottleneck, (3, 4, 6, 3)),
}
for _name, (_block, _blocks) in _RESNETS.items():
    ARCHITECTURES[_name] = Architecture(
        net=partial(resnet.ResNet, block=_block, blocks=_blocks),
        options_from_state=resnet.options_from_state,
        options=frozenset({"classes", "channels", "kernel"}),
        shape=(3, 224, 224),
    )
ARCHITECTURES["preact-resnet-18"] = Architecture(
    net=resnet.PreActResNet,
    options_from_state=resnet.preact_options_from_state,
    options=frozenset({"classes", "channels"}),
    shape=(3, 32, 32),
)
for _name, _batch_norm in (("vgg-16", False), ("vgg-16-bn", True)):
    ARCHITECTURES[_name] = Architecture(
        net=partial(vgg16.VGG16, batch_norm=_batch_norm),
        options_from_state=vgg16.options_from_state,
        options=frozenset({"classes", "channels", "hidden"}),
        shape=(3, 224, 224),
    )
ARCHITECTURES["mobilenet-v2"] = Architecture(
    net=mobilenet_v2.MobileNetV2,
    options_from_state=mobilenet_v2.options_from_state,
    options=frozenset({"classes", "channels"}),
    shape=(3, 224, 224),
)
ARCHITECTURES["vit"] = Architecture(
    net=vit.VisionTransformer,
    options_from_state=vit.options_from_state,
    options=_SIZED | {"patch", "features", "heads", "depth", "mlp"},
    shape=(3, 224, 224),
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
        raise ModelError(f"{recipe.arch!r:.80} is no architecture of goodnet's; these are {', '.join(ARCHITECTURES)}")
    for name, value in recipe.options.items():
        _check_option(recipe.arch, known, name, value)
    if "classes" not in recipe.options:
        raise ModelError(f"{recipe.arch}: expected the option 'classes' in its recipe, got none")
    try:
        with _quiet(), torch.device("meta"):
            size = sum(parameter.numel() for parameter in known.net(**recipe.options).parameters())
        if size > MAX_PARAMETERS:
            raise UnsafeFileError(f"{recipe.arch}: {size} parameters, more than {MAX_PARAMETERS} are not built")
        with _quiet():
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
        with _quiet(), torch.device("meta"):
            net = known.net(**known.options_from_state(state))
    except (KeyError, ValueError, IndexError, RuntimeError, TypeError):
        return None
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    return {key: shape for key, shape in ours.items() if not key.endswith("num_batches_tracked")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's words on layers of width 0, which options from a damaged file may give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_option(arch: str, known: Architecture, name: str, value: object) -> None:
    if name not in known.options:
        raise ModelError(f"{arch}: expected options out of {', '.join(sorted(known.options))}; got {name!r}")
    values = list(value) if isinstance(value, list | tuple) and name == "hidden" else [value]
    whole = all(isinstance(item, int) and not isinstance(item, bool) and 1 <= item <= 1 << 20 for item in values)
    if not whole or len(values) > 64:
        raise ModelError(f"{arch}: expected {name} to be a whole number from 1 to {1 << 20}, got {value!r:.80}")
