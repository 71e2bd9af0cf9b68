"""Looking into a net and cutting out of it: layers by name, their outputs, channels set to zero.

Cuts are made in place, so make them on a `clone`. No hook outlives the call that set it, whatever is raised meanwhile.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models.classifier import Classifier

LAYER_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def clone(classifier: Classifier) -> Classifier:
    """The same Classifier with a net of its own: no tensor is shared with the original."""
    return replace(classifier, net=copy.deepcopy(classifier.net))


def layer_names(net: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers, in the order in which the net lists them."""
    return [name for name, module in net.named_modules() if isinstance(module, LAYER_TYPES)]


def resolve_layer(net: nn.Module, name: str) -> nn.Module:
    """The convolution or linear layer `name`. Raises UsageError listing those that there are."""
    if name not in layer_names(net):
        raise UsageError(f"layer: expected one of {', '.join(layer_names(net)) or 'none'}; got {name!r}")
    return net.get_submodule(name)


def last_convolution(net: nn.Module) -> str | None:
    """The last convolution in the order of the net's modules, None where there is none; DeepID's is conv_3.

    DeepID's conv_4 sees only part of what the dense layers see: conv_3 feeds both branches, so nothing of a backdoor
    gets past it, and the competition prunes there.
    """
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if {"conv_3", "conv_4", "fc_1", "fc_2"} <= set(layer_names(net)):
        return "conv_3"
    return names[-1] if names else None


@contextmanager
def record_output(net: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Yields a list that gets the output of the module `name` at every forward pass inside the `with`.

    Gradients flow through what is recorded. Any module will do, not only those of `layer_names`.

    Raises:
        UsageError: there is no such module.
    """
    recorded: list[Tensor] = []
    handle = _module(net, name).register_forward_hook(lambda _module, _inputs, output: recorded.append(output))
    try:
        yield recorded
    finally:
        handle.remove()


@contextmanager
def record_input(net: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """As `record_output`, of the first input of the module `name`: the features that an output layer sees."""
    recorded: list[Tensor] = []
    handle = _module(net, name).register_forward_pre_hook(lambda _module, inputs: recorded.append(inputs[0]))
    try:
        yield recorded
    finally:
        handle.remove()


def _module(net: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(net.named_modules())
    if name not in modules:
        raise UsageError(f"layer: expected a module of the net, such as {', '.join(layer_names(net))}; got {name!r}")
    return modules[name]


@torch.no_grad()
def output_layer(classifier: Classifier) -> str:
    """Name of the linear layer whose output is the logits: its input is the net's features.

    Found by running a grey image: the very tensor that comes out of the layer must be what the net gives.

    Raises:
        ModelError: the net ends otherwise, for example in a convolution or in the code of its `forward`.
    """
    outputs: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.append((name, out)))
        for name, module in classifier.net.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        logits = classifier.logits(torch.full((1, *classifier.input.shape), 0.5, device=classifier.device))
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name, out in outputs if out.data_ptr() == logits.data_ptr() and out.shape == logits.shape]
    if not found or not found[-1]:
        raise ModelError(
            f"{classifier.name}: expected a net whose last layer is linear, and it is not; use a method that needs no "
            "class N of its own, such as fine-pruning"
        )
    return found[-1]


@torch.no_grad()
def features(classifier: Classifier, layer: str, images: Tensor) -> Tensor:
    """(N, F) what the linear layer `layer` sees for images (N, C, H, W) in [0, 1]; on the CPU."""
    with record_input(classifier.net, layer) as recorded:
        for part in classifier.parts(images):
            classifier.logits(part)
    return torch.cat([part.cpu() for part in recorded])


@torch.no_grad()
def following_batch_norm(classifier: Classifier, name: str, x: Tensor) -> str | None:
    """Name of the batch norm that takes the very output of layer `name`, None where there is none.

    Found by running the images `x` (N, C, H, W) in [0, 1]: the tensor that goes into the norm must be the one that
    came out of the layer. A ReLU or anything else between them means None.

    Raises:
        UsageError: there is no such layer.
    """
    layer = resolve_layer(classifier.net, name)
    outputs: list[Tensor] = []
    takers: list[str] = []
    handles = [layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))]

    def watch(norm: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if any(value is output for value in inputs for output in outputs):
                takers.append(norm)

        return hook

    try:
        for norm, module in classifier.net.named_modules():
            if isinstance(module, NORM_TYPES):
                handles.append(module.register_forward_pre_hook(watch(norm)))
        classifier.logits(x.to(classifier.device))
    finally:
        for handle in handles:
            handle.remove()
    return takers[0] if takers else None


@torch.no_grad()
def zero_channels(net: nn.Module, name: str, channels: Sequence[int], *, batch_norm: str | None = None) -> None:
    """Makes output channels of layer `name` exactly 0, in place: filter and bias, and those of `batch_norm`.

    A norm after a zeroed channel would give beta - gamma * mean / std, so its weight and bias are zeroed too.

    Args:
        net: changed in place.
        name: a convolution or linear layer.
        channels: output channels, from 0.
        batch_norm: the norm that takes the layer's output, as `following_batch_norm` finds it.

    Raises:
        UsageError: no such layer, channel, or norm; a norm without weights, whose output cannot be zeroed.
    """
    layer: Any = resolve_layer(net, name)
    width = layer.weight.shape[0]
    wrong = [channel for channel in channels if not 0 <= channel < width]
    if wrong:
        raise UsageError(f"layer {name}: expected channels from 0 to {width - 1}, got {wrong[0]}")
    parts = [layer]
    if batch_norm is not None:
        norm = dict(net.named_modules()).get(batch_norm)
        if not isinstance(norm, NORM_TYPES) or norm.weight is None or norm.num_features != width:
            raise UsageError(f"{batch_norm!r}: expected a batch norm of {width} channels with weights of its own")
        parts.append(norm)
    index = torch.as_tensor(list(channels), dtype=torch.long, device=layer.weight.device)
    for part in parts:
        part.weight[index] = 0.0
        if part.bias is not None:
            part.bias[index] = 0.0


def replace_module(net: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` in the place of the submodule `name`, in place."""
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, new)


@torch.no_grad()
def zero_inputs(net: nn.Module, name: str, units: Sequence[int]) -> None:
    """Makes the linear layer `name` deaf to input units, in place: what prunes the neurons in front of it.

    Raises:
        UsageError: no such linear layer or unit.
    """
    layer = resolve_layer(net, name)
    if not isinstance(layer, nn.Linear):
        raise UsageError(f"layer {name}: expected a linear layer, got {type(layer).__name__}")
    wrong = [unit for unit in units if not 0 <= unit < layer.in_features]
    if wrong:
        raise UsageError(f"layer {name}: expected input units from 0 to {layer.in_features - 1}, got {wrong[0]}")
    layer.weight[:, torch.as_tensor(list(units), dtype=torch.long, device=layer.weight.device)] = 0.0
