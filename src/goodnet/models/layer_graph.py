"""Which layer of a net feeds which, found by running one grey image and following its tensors.

Hooks see what goes into and out of every module that does work; a function mode sees the operations that are in the
code of a `forward` and in no module (DeepID's add, a flatten). Whatever has no bearing on the output is left out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from goodnet.errors import ModelError
from goodnet.layers import LayerEdge, LayerGraph, LayerNode
from goodnet.models.arch import layers as arch_layers
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet import FilterHead, GoodNet

MAX_STEPS = 20_000
MAX_NUMBERS = 1 << 24
"""Of an image between two layers. A file of kilobytes can claim images of gigabytes, and one is run through here."""
GROUPS = {"good": "repaired net", "bad": "BadNet"}
# each ends by putting class N's logit beside the others
_HEADS: dict[type[nn.Module], str] = {GoodNet: "class N where the two differ", FilterHead: "class N by features"}
_PROPERTY = "__get__"


@dataclass(kw_only=True)
class _Step:
    """One node in the making. `sources` are earlier steps, `owner` the innermost module around an operation."""

    name: str
    kind: str
    role: str
    shape: tuple[int, ...]
    sources: list[int]
    parameters: int = 0
    detail: str = ""
    group: str = ""
    owner: nn.Module | None = None


class _Trace(TorchFunctionMode):
    """Writes down the steps. A tensor that no step made (weights, constants) is no source and makes no step."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.steps: list[_Step] = []
        self.makers: Any = WeakTensorKeyDictionary()
        self.stack: list[tuple[str, nn.Module]] = []
        self.net = net
        self.inside = 0

    def add(self, step: _Step, made: Sequence[Tensor]) -> None:
        if len(self.steps) >= MAX_STEPS:
            raise ModelError(f"the net runs more than {MAX_STEPS} steps an image; its layers are not followed")
        self.steps.append(step)
        if any(tensor.numel() > MAX_NUMBERS for tensor in made):
            raise ModelError(
                f"the net makes more than {MAX_NUMBERS:,} numbers of an image in a layer; its layers are not followed"
            )
        for tensor in made:
            self.makers[tensor] = len(self.steps) - 1

    def sources(self, *values: Any) -> list[int]:
        found = (self.makers.get(tensor) for tensor in _tensors(*values))
        return list(dict.fromkeys(index for index in found if index is not None))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        sources = [] if self.inside else self.sources(args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        made = _tensors(out) if sources else []
        if made:
            path, owner = self.stack[-1] if self.stack else ("", self.net)
            weights = sum(value.numel() for value in _tensors(args, kwargs or {}) if isinstance(value, nn.Parameter))
            kind = _operation(func)
            shape = tuple(made[0].shape[1:])
            step = _Step(name="", kind=kind, role="operation", shape=shape, sources=sources, parameters=weights)
            step.owner, step.group = owner, self.group(path)
            self.add(step, made)
        return out

    def group(self, path: str) -> str:
        return GROUPS.get(path.partition(".")[0], "") if isinstance(self.net, GoodNet) else ""

    def enter(self, path: str, module: nn.Module) -> None:
        self.stack.append((path, module))
        self.inside += _is_leaf(module)

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        """Writes a leaf down. One that hands on its very input gets a tensor of its own to be told apart by."""
        self.stack.pop()
        if not _is_leaf(module):
            return None
        replaced = None
        sources = [] if self.inside > 1 else self.sources(args, kwargs)
        if sources and _tensors(out):
            if isinstance(out, Tensor) and isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
                out = replaced = out.view_as(out)
            made = _tensors(out)
            step = _Step(
                name=path,
                kind=type(module).__name__,
                role="layer",
                shape=tuple(made[0].shape[1:]),
                sources=sources,
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                detail=_detail(module),
                group=self.group(path),
            )
            self.add(step, made)
        self.inside -= 1
        return replaced


@torch.no_grad()
def layer_graph(classifier: Classifier) -> LayerGraph:
    """The layers of a net from the image to the class scores. No hook is left behind, whatever is raised.

    Raises:
        ModelError: the net fails on a grey image, runs more than MAX_STEPS steps, has images or layers that are too
            large, or hides from torch how its output comes about (by way of numpy, for example).
    """
    net = classifier.net
    if 4 * math.prod(classifier.input.shape) > MAX_NUMBERS:
        raise ModelError(
            f"the net takes images of {classifier.input.describe()}, which is too large; its layers are not followed"
        )
    image = classifier.prepare(torch.full((1, *classifier.input.shape), 0.5, device=classifier.device)).clone()
    trace = _Trace(net)
    trace.add(_Step(name="", kind="image", role="input", shape=classifier.input.shape, sources=[]), [image])
    handles: list[Any] = []
    try:
        for path, module in net.named_modules():
            _watch(trace, path, module, handles)
        with trace:
            out = net(image)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ModelError(f"{classifier.name}: its layers cannot be followed, for it fails on a grey image") from error
    finally:
        for handle in handles:
            handle.remove()
    last = trace.sources(out)
    if not last:
        raise ModelError(f"{classifier.name}: its layers cannot be followed from the image to the class scores")
    classes = f"{classifier.classes:,} classes" + (" and class N" if classifier.refuses else "")
    trace.steps.append(_Step(name="", kind=classes, role="output", shape=tuple(out.shape[1:]), sources=last))
    return _graph(_merged(_used(trace.steps)), classifier)


def _watch(trace: _Trace, path: str, module: nn.Module, handles: list[Any]) -> None:
    handles.append(module.register_forward_pre_hook(lambda _module, _args: trace.enter(path, module)))
    hook = module.register_forward_hook(
        lambda _module, args, kwargs, out: trace.leave(path, module, args, kwargs, out), with_kwargs=True
    )
    handles.append(hook)


def _is_leaf(module: nn.Module) -> bool:
    """Without children, or one of ours that stands for a single layer of Keras."""
    return type(module).__module__ == arch_layers.__name__ or next(module.children(), None) is None


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _operation(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "operation")
    if name == _PROPERTY:
        name = getattr(getattr(func, "__self__", None), "__name__", "operation")
    return {"__getitem__": "slice", "rsub": "sub"}.get(name, str(name).strip("_"))


def _detail(module: nn.Module) -> str:
    if isinstance(module, arch_layers.Merge):
        return module.kind
    kernel, stride = (_sides(getattr(module, key, None)) for key in ("kernel_size", "stride"))
    if not kernel:
        return ""
    usual = kernel if "Pool" in type(module).__name__ else "1x1"
    return kernel if stride in ("", usual) else f"{kernel}, stride {stride.partition('x')[0]}"


def _sides(value: Any) -> str:
    if isinstance(value, int):
        return f"{value}x{value}"
    return "x".join(str(side) for side in value) if isinstance(value, tuple) else ""


def _used(steps: list[_Step]) -> list[_Step]:
    """Those that the output depends on, and the image."""
    wanted = {0, len(steps) - 1}
    for index in range(len(steps) - 1, 0, -1):
        if index in wanted:
            wanted.update(steps[index].sources)
    places = {old: new for new, old in enumerate(sorted(wanted))}
    for index in places:
        steps[index].sources = [places[source] for source in steps[index].sources]
    return [steps[index] for index in places]


def _merged(steps: list[_Step]) -> list[_Step]:
    """Operations that follow each other with no layer between them, as one: permute and flatten, a GoodNet's head.

    `depth` counts the layers before a step, on the longest way. What is merged is connected and of one depth, and
    every way back to it would lead through a layer, thus deeper: no circle can come about, except by way of another
    group.
    """
    depth: list[int] = []
    home = list(range(len(steps)))
    for index, step in enumerate(steps):
        depth.append(max((depth[source] for source in step.sources), default=0) + (step.role != "operation"))
        for source in step.sources:
            other = steps[source]
            same = other.role == step.role == "operation" and depth[source] == depth[index]
            if same and other.group == step.group:
                home[_root(home, source)] = _root(home, index)
    members: dict[int, list[int]] = {}
    for index in range(len(steps)):
        members.setdefault(_root(home, index), []).append(index)
    needs = {
        place: {_root(home, source) for index in inside for source in steps[index].sources} - {place}
        for place, inside in members.items()
    }
    order = _order(needs, members)
    if len(order) < len(members):
        return steps
    places = {place: new for new, place in enumerate(order)}
    return [
        _one([steps[index] for index in members[place]], sorted(places[source] for source in needs[place]))
        for place in order
    ]


def _order(needs: Mapping[int, set[int]], members: Mapping[int, list[int]]) -> list[int]:
    """Each after all that it needs, else as they ran; what is in a circle is missing."""
    open_needs = {place: len(sources) for place, sources in needs.items()}
    users: dict[int, list[int]] = {}
    for place, sources in needs.items():
        for source in sources:
            users.setdefault(source, []).append(place)
    ready = [(members[place][-1], place) for place, count in open_needs.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, place = heapq.heappop(ready)
        order.append(place)
        for user in users.get(place, ()):
            open_needs[user] -= 1
            if not open_needs[user]:
                heapq.heappush(ready, (members[user][-1], user))
    return order


def _root(home: list[int], index: int) -> int:
    while home[index] != index:
        home[index] = home[home[index]]
        index = home[index]
    return index


def _one(steps: list[_Step], sources: list[int]) -> _Step:
    last = steps[-1]
    if len(steps) == 1:
        return _Step(**{**vars(last), "sources": sources})
    kinds = list(dict.fromkeys(step.kind for step in steps))
    heads = (text for kind, text in _HEADS.items() if isinstance(last.owner, kind) and last.kind == "cat")
    head = next(heads, "")
    kind = head or (", ".join(kinds) if len(kinds) <= 3 else f"{', '.join(kinds[:2])} and {len(kinds) - 2} more")
    weights = sum(step.parameters for step in steps)
    return _Step(**{**vars(last), "sources": sources, "kind": kind, "parameters": weights})


def _graph(steps: list[_Step], classifier: Classifier) -> LayerGraph:
    keys = ("name", "kind", "role", "shape", "parameters", "detail", "group")
    parameters = sum(parameter.numel() for parameter in classifier.net.parameters())
    return LayerGraph(
        title=classifier.name,
        summary=f"{classifier.recipe.arch}, {classifier.input.describe()}, {parameters:,} parameters",
        nodes=tuple(LayerNode(**{key: getattr(step, key) for key in keys}) for step in steps),
        edges=tuple(
            LayerEdge(source=source, target=target) for target, step in enumerate(steps) for source in step.sources
        ),
    )
