"""A net followed from the image to its logits, module by module and operation by operation, into a Keras plan.

torch.fx runs the net's own code once with stand-ins for tensors; code that branches on what is in an image cannot be
followed. Of operations outside modules, those that classifiers use are written; any other is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from goodnet.errors import ModelError
from goodnet.export import keras_head
from goodnet.export.keras_modules import MODULES, concatenated, merged, permuted, unflattened
from goodnet.export.keras_plan import INPUT, Plan, Value
from goodnet.export.transaction import preparation
from goodnet.models.classifier import Classifier
from goodnet.models.formats import one_line
from goodnet.models.goodnet import FilterHead, GoodNet, SecondOpinion, StripGoodNet, TedGoodNet, WatchHead

_AS_MODULE: dict[str, type[nn.Module]] = {
    **{"relu": nn.ReLU, "relu_": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU},
    **{"gelu": nn.GELU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "hardtanh": nn.Hardtanh, "hardswish": nn.Hardswish},
    **{"softplus": nn.Softplus, "mish": nn.Mish, "selu": nn.SELU, "hardsigmoid": nn.Hardsigmoid, "flatten": nn.Flatten},
    **{"max_pool2d": nn.MaxPool2d, "avg_pool2d": nn.AvgPool2d, "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d},
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
}
_SAME = ("contiguous", "clone", "detach")
_MERGES = {"add": "add", "iadd": "add", "add_": "add", "sub": "subtract", "mul": "multiply", "imul": "multiply",
           "maximum": "maximum", "minimum": "minimum", "truediv": "divide", "div": "divide"}  # fmt: skip


def plan_of(classifier: Classifier, where: str) -> tuple[Plan, Value]:
    """A whole net, preparation and class N inside, and the value that is its logits.

    Args:
        where: the file, for messages.

    Raises:
        ModelError: something that stock Keras layers cannot express; it is named.
    """
    channels, height, width = classifier.input.shape
    plan = Plan(where=where)
    images = Value(layer=INPUT, shape=(height, width, channels))
    x = plan.scaled(images, *preparation(classifier), name="preparation")
    net = classifier.net
    if isinstance(net, StripGoodNet):
        raise plan.refuse("a GoodNet with the guard strip, which runs the net once for each image that it blends in,")
    if isinstance(net, TedGoodNet):
        raise plan.refuse("a GoodNet with the guard ted, which looks at layers inside the net,")
    if isinstance(net, GoodNet):
        bad, good = _walk(plan, net.bad, x, "bad_"), _walk(plan, net.good, x, "good_")
        return plan, keras_head.disagreement(plan, _logits(plan, bad), _logits(plan, good), net.threshold)
    if isinstance(net, SecondOpinion):
        first, good = _walk(plan, net.bad, x, "bad_"), _walk(plan, net.good, x, "good_")
        if not isinstance(first, keras_head.Watched):
            raise plan.refuse("a watched layer that is not the net's last")
        return plan, keras_head.second_opinion(plan, first, _logits(plan, good), net.threshold)
    out = _walk(plan, net, x, "")
    return plan, _logits(plan, out)


def _logits(plan: Plan, out: Value | keras_head.Watched) -> Value:
    return keras_head.joined(plan, out.below, out.score) if isinstance(out, keras_head.Watched) else out


class _Tracer(fx.Tracer):
    """Stops at what is written as a whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = type(module) in MODULES or isinstance(module, FilterHead | WatchHead)
        return whole or super().is_leaf_module(module, name)


def _walk(plan: Plan, net: nn.Module, x: Value, prefix: str) -> Value | keras_head.Watched:
    """Layers for all of a net on the value `x`; what its last one gives."""
    sample = torch.full((2, x.shape[2], *x.shape[:2]), 0.5)
    try:
        root = nn.Sequential(net) if type(net) in MODULES else net
        graph = _Tracer().trace(root)
        with torch.no_grad():
            ShapeProp(fx.GraphModule(root, graph)).propagate(sample)
    except Exception as error:  # whatever the net's own code raises on stand-ins
        raise ModelError(f"{plan.where}: the net's code cannot be followed ({one_line(error)})") from error
    values: dict[fx.Node, Value | keras_head.Watched] = {}
    for node in graph.nodes:
        if node.op == "output":
            (last,) = node.args
            if not isinstance(last, fx.Node) or last not in values:
                raise plan.refuse("a net that gives something else than one tensor")
            return values[last]
        if node.op == "placeholder":
            values[node] = x
        elif isinstance(node.meta.get("tensor_meta"), TensorMetadata) and node.op != "get_attr":
            values[node] = _Operation(plan, root, node, values, prefix).write()
    raise plan.refuse("a net without an output")


class _Operation:
    """One node of the graph."""

    def __init__(
        self,
        plan: Plan,
        net: nn.Module,
        node: fx.Node,
        values: dict[fx.Node, Value | keras_head.Watched],
        prefix: str,
    ):
        self.plan, self.net, self.node, self.values, self.prefix = plan, net, node, values, prefix

    def write(self) -> Value | keras_head.Watched:
        node = self.node
        if node.op == "call_module":
            path = str(node.target)
            return self._module(self.net.get_submodule(path), f"{self.prefix}{path}", node.args)
        name = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", node.target))
        module = str(getattr(node.target, "__module__", ""))
        if node.op == "call_function" and module.partition(".")[0] not in ("torch", "_operator", "operator", "None"):
            raise self.plan.refuse(f"the function {module}.{name}")
        if name in _AS_MODULE:
            return self._module(self._as_module(name), f"{self.prefix}{node.name}", node.args[:1])
        if name in _SAME:
            return self._value(node.args[0])
        if name in _MERGES:
            return self._merge(_MERGES[name])
        written = _FUNCTIONS.get(name)
        if written is None:
            raise self.plan.refuse(f"the operation {name!r:.60}")
        return written(self)

    def _module(self, module: nn.Module, name: str, args: Sequence[Any]) -> Value | keras_head.Watched:
        inputs = [self._value(arg) for arg in args]
        if isinstance(module, FilterHead):
            return keras_head.filtered(self.plan, module, inputs[0], name)
        if isinstance(module, WatchHead):
            return keras_head.watched(self.plan, module, inputs[0], name)
        written = MODULES.get(type(module))
        if written is None or (self.node.kwargs and self.node.op == "call_module"):
            raise self.plan.refuse(f"{name}: a layer {type(module).__name__}")
        return written(self.plan, module, inputs, name)

    def _as_module(self, name: str) -> nn.Module:
        """The module that does what a function of torch does, with its settings."""
        given = {key: value for key, value in self.node.kwargs.items() if key not in ("inplace", "input", "training")}
        module = _AS_MODULE[name]
        rest = self.node.args[1:]
        if name == "flatten" and not rest and not given:
            raise self.plan.refuse("a flatten that takes the batch in")
        try:
            return module(*rest, **given)
        except (TypeError, ValueError) as error:
            raise self.plan.refuse(f"the operation {name!r} with {rest!r:.60}") from error

    def _merge(self, kind: str) -> Value:
        left, right, *more = self.node.args
        if self.node.kwargs or more:
            raise self.plan.refuse(f"the operation {kind!r} with {dict(self.node.kwargs)!r:.60}")
        values = [self._is_value(side) for side in (left, right)]
        if all(values) and kind != "divide":
            return merged(self.plan, kind, [self._value(left), self._value(right)], f"{self.prefix}{self.node.name}")
        if kind in ("maximum", "minimum", "divide") and not (kind == "divide" and values == [True, False]):
            raise self.plan.refuse(f"the operation {kind!r} with a constant")
        x, constant = (left, right) if values[0] else (right, left)
        value, numbers = self._value(x), self._numbers(constant, self._value(x))
        if kind == "divide":
            return self.plan.scaled(value, [1 / number for number in numbers], 0.0)
        if kind == "multiply":
            return self.plan.scaled(value, numbers, 0.0)
        sign = -1.0 if kind == "subtract" and values[1] else 1.0
        return self.plan.scaled(value, sign, [-n if kind == "subtract" and values[0] else n for n in numbers])

    def _numbers(self, constant: Any, x: Value) -> list[float]:
        """A number, or a weight of the net with one number a channel."""
        if isinstance(constant, int | float):
            return [float(constant)]
        tensor: Any = self.net
        if isinstance(constant, fx.Node) and constant.op == "get_attr":
            for part in str(constant.target).split("."):
                tensor = getattr(tensor, part)
        if isinstance(tensor, Tensor):
            sides = tuple(tensor.shape)
            while len(sides) > len(x.shape) and sides[0] == 1:
                sides = sides[1:]
            wanted = (x.shape[-1],) if len(x.shape) == 1 else (x.shape[-1], 1, 1)
            if tensor.numel() == 1 or sides == wanted:
                return [float(number) for number in tensor.reshape(-1)]
        raise self.plan.refuse(f"{self.node.name}: a constant other than a number or one number a channel")

    def _is_value(self, arg: Any) -> bool:
        return isinstance(arg, fx.Node) and arg in self.values

    def _value(self, arg: Any) -> Value:
        found = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not isinstance(found, Value):
            raise self.plan.refuse(f"{self.node.name}: an input that the image does not decide")
        return found

    def reshaped(self) -> Value:
        """view and reshape, told by what comes out: a row, a picture, or the same."""
        x, (count, *shape) = self._value(self.node.args[0]), self.node.meta["tensor_meta"].shape
        before = (x.shape[-1], *x.shape[:-1])
        if count != 2 or math.prod(shape) != math.prod(before):
            raise self.plan.refuse("a reshape that takes the batch in")
        if tuple(shape) == before:
            return x
        if len(shape) == 1:
            return self.plan.flat(x)
        if len(shape) == 3:
            return unflattened(self.plan, self.plan.flat(x), tuple(shape))
        raise self.plan.refuse(f"a reshape to {tuple(shape)}")

    def permuted(self) -> Value:
        x, args = self._value(self.node.args[0]), self.node.args[1:]
        given = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        dims = tuple(int(axis) % 4 for axis in given if isinstance(axis, int))
        if len(x.shape) != 3 or len(dims) != 4 or dims[0] != 0:
            raise self.plan.refuse(f"the order {given!r:.60}")
        return permuted(self.plan, x, dims)

    def concatenated(self) -> Value:
        tensors = self.node.args[0]
        dim = self.node.args[1] if len(self.node.args) > 1 else self.node.kwargs.get("dim", 0)
        if not isinstance(tensors, tuple | list) or not isinstance(dim, int):
            raise self.plan.refuse("a concatenation of unknown tensors")
        return concatenated(self.plan, [self._value(tensor) for tensor in tensors], dim)

    def dropped(self) -> Value:
        """Nothing, unless the code drops numbers outside training as well."""
        settings = dict(zip(("input", "p", "training"), self.node.args)) | dict(self.node.kwargs)
        if settings.get("training", True):
            raise self.plan.refuse("dropout that never stops")
        return self._value(self.node.args[0])

    def mean(self) -> Value:
        x, shape = self._value(self.node.args[0]), self.node.meta["tensor_meta"].shape
        dim = self.node.args[1] if len(self.node.args) > 1 else self.node.kwargs.get("dim")
        axes = sorted(int(axis) % 4 for axis in dim) if isinstance(dim, tuple | list) else None
        if len(x.shape) != 3 or axes != [2, 3]:
            raise self.plan.refuse(f"a mean over {dim!r:.40}")
        keep = len(shape) == 4
        out = (1, 1, x.shape[2]) if keep else (x.shape[2],)
        return self.plan.add("GlobalAveragePooling2D", x, shape=out, keepdims=keep)


_FUNCTIONS: dict[str, Callable[[_Operation], Value]] = {
    "view": _Operation.reshaped,
    "reshape": _Operation.reshaped,
    "permute": _Operation.permuted,
    "cat": _Operation.concatenated,
    "concat": _Operation.concatenated,
    "mean": _Operation.mean,
    "dropout": _Operation.dropped,
    "dropout2d": _Operation.dropped,
}
