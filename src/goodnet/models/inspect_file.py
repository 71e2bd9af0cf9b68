"""What a model file is, without running anything from it and without trusting what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.layers import LayerGraph
from goodnet.models import load, user_code
from goodnet.models.arch import matching
from goodnet.models.formats import LoadOptions, Shape
from goodnet.models.layer_graph import layer_graph

_RANGE = "the file does not say how pixels are scaled: --input-range does, and scan tries the usual ones on your images"
_PLAIN = "safetensors with its net"  # `goodnet export` of a net without class N: no GoodNet


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer of a net, or one tensor of a weights-only file (`kind` is then its dtype).

    `weights` are the shapes of its own parameters and buffers, by name.
    """

    name: str
    kind: str
    weights: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What `inspect_file` found; None and empty where it could not tell.

    Attributes:
        format: of the file, by its first bytes; empty where it is none that goodnet knows.
        parameters: numbers that training sets, buffers not counted.
        input: in words (`55x47x3, 0..1`).
        read_in: where it was read, and what could not be done there (`goodnet.models.sandbox`).
        suggested: our architectures whose keys and shapes are exactly the file's, for `--arch`.
        notes: what a user should know of how it is read.
        refused: why it cannot be loaded, None where it can.
        graph: which layer feeds which; None where the file tells of no net, or it cannot be followed (see `notes`).
    """

    path: str
    format: str
    sha256: str
    read_in: str
    layers: tuple[LayerInfo, ...] = ()
    parameters: int | None = None
    input: str | None = None
    classes: int | None = None
    arch: str | None = None
    suggested: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str | None = None
    graph: LayerGraph | None = None


def inspect_file(
    path: str | Path,
    *,
    arch: str | None = None,
    input_range: str = "0..1",
    input_shape: Shape | None = None,
    sandbox: bool | None = None,
) -> FileInfo:
    """Reads a model file as far as it can be read safely. A file that is refused is described, not raised.

    Args:
        path: the file.
        arch: one of our architectures, for a file of weights alone. User code is not run.
        input_range, input_shape, sandbox: as for `load_classifier`.

    Raises:
        ModelError: there is no such file.
        UsageError: an unknown architecture, or user code.
    """
    path = Path(path)
    if arch is not None and user_code.is_user_code(arch):
        raise UsageError(f"inspect runs nothing, so --arch takes one of our architectures, not {arch!r}")
    options = LoadOptions(arch=arch, input_range=input_range, input_shape=input_shape)
    content = load.read_file(path, options, bare=arch is None, sandbox=sandbox)
    found = FileInfo(path=str(path), format=content.format, sha256=content.sha256, read_in=content.read_in)
    if isinstance(content.error, ModelError):  # UnsafeFileError is one
        return replace(found, refused=str(content.error))
    if content.error is not None:
        raise content.error
    if content.tensors is not None:
        return _tensors(found, content.tensors, content.notes)
    classifier = content.classifier
    if classifier is None:
        return replace(found, refused=f"{path}: neither a net nor weights came from it; refused")
    notes = classifier.notes
    if content.format not in (load.GOODNET, load.HUGGING_FACE):
        notes = (*notes, _RANGE)
    try:
        graph = layer_graph(classifier)
    except ModelError as error:
        graph, notes = None, (*notes, str(error))
    return replace(
        found,
        format=_PLAIN if content.format == load.GOODNET and not classifier.refuses else content.format,
        layers=_layers(classifier.net),
        parameters=sum(parameter.numel() for parameter in classifier.net.parameters()),
        input=classifier.input.describe(),
        classes=classifier.classes,
        arch=classifier.recipe.arch,
        notes=notes,
        graph=graph,
    )


def _tensors(found: FileInfo, state: Mapping[str, Tensor], notes: tuple[str, ...]) -> FileInfo:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    suggested = matching(state)
    hint = f"pass --arch {suggested[0]}" if suggested else "pass --arch FILE.py:CALLABLE with the code of its net"
    return replace(
        found,
        layers=tuple(
            LayerInfo(name=key, kind=str(value.dtype).removeprefix("torch."), weights=((key, tuple(value.shape)),))
            for key, value in state.items()
        ),
        parameters=sum(value.numel() for key, value in state.items() if not key.endswith(buffers)),
        suggested=suggested,
        notes=(*notes, f"weights alone, without their net: {hint}"),
    )


def _layers(net: nn.Module) -> tuple[LayerInfo, ...]:
    """The modules that do the work: those without children."""
    return tuple(
        LayerInfo(
            name=name,
            kind=type(module).__name__,
            weights=tuple((key, tuple(value.shape)) for key, value in _own(module).items()),
        )
        for name, module in net.named_modules()
        if name and not any(True for _ in module.children())
    )


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
