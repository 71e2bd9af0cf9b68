"""Operators on tensors of any rank -> GraphNet layers: what ONNX's and torch.export's walks have in common.

Every function takes tensors of the file by name, axes and shapes as the file counts them, and notes which layer gives
the result and where images are counted in it (graph_walk.Layout). What would mix images is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from goodnet.models.arch.graph import INPUT
from goodnet.models.graph_walk import BATCH, FIRST, Array, Layout, Node, Walk


def dims_of(walk: Walk, node: Node, name: str) -> list[int]:
    """A tensor's shape in the file, BATCH for the number of images."""
    layer, layout = walk.value(node, name)
    shape, at = walk.shapes[layer], layout.axis
    return [*shape[:at], BATCH * layout.each, *shape[at + layout.inner :]]


def axis_of(walk: Walk, node: Node, name: str, axis: int) -> int:
    """An axis of the file, which may be negative, as the layer counts it. ModelError for the axis of images."""
    layout = walk.value(node, name)[1]
    rank = len(dims_of(walk, node, name))
    if not -rank <= axis < rank or axis % rank == layout.axis:
        raise walk.refuse(node, "an axis", axis)
    axis %= rank
    return axis + (layout.inner - 1 if axis > layout.axis else 0)


def reshape(walk: Walk, node: Node, name: str, target: Sequence[int], output: str) -> None:
    """To a shape with BATCH, or the number of images that the file is fixed to, or -1 where images are counted."""
    layer, layout = walk.value(node, name)
    dims = dims_of(walk, node, name)
    before = math.prod(dims[: layout.axis]) * layout.major
    after = layout.times * math.prod(dims[layout.axis + 1 :])
    split = _split(list(target), before, after, walk.batch)
    if split is None:
        raise walk.refuse(node, "a shape", list(target))
    new, shape = split
    ours = walk.shapes[layer]
    if not shape:
        raise walk.refuse(node, "a shape", list(target))
    if shape == ours:
        walk.gives(output, layer, new)
    elif new == FIRST and len(shape) == 1 and len(ours) == 3:
        walk.join(node, "flatten", [layer], output=output, order="chw")
    elif new == FIRST and len(shape) == 3 and len(ours) in (1, 3):
        walk.join(node, "reshape", [layer], output=output, shape=list(shape), order="chw")
    else:
        walk.join(node, "view", [layer], layout=new, output=output, shape=list(shape))


def _split(target: list[int], before: int, after: int, batch: int | None) -> tuple[Layout, tuple[int, ...]] | None:
    """How images are counted in `target`, and the layer's shape; None if it does not fit.

    `before` and `after` are how many numbers of an image lie on either side of where images are counted in the tensor
    that is reshaped: what lies before stays before, so that no image gets another's numbers.
    """
    if target.count(-1) > 1 or any(side < -1 and (side > BATCH or side % BATCH) for side in target):
        return None
    places = [place for place, side in enumerate(target) if side <= BATCH] or list(range(len(target)))
    found = [_counted(target, place, before, after, batch) for place in places]
    fitting = [one for one in found if one is not None]
    plain = [one for one in fitting if one[0].major == 1]
    return next(iter([*plain, *fitting]), None)


def _counted(
    target: list[int], place: int, before: int, after: int, batch: int | None
) -> tuple[Layout, tuple[int, ...]] | None:
    """The same, if it is the side at `place` that counts images."""
    head, side, tail = target[:place], target[place], target[place + 1 :]
    known = math.prod(head)
    major = before // known if -1 not in head and 0 < known <= before and before % known == 0 else 1
    if side == -1:
        known = math.prod(tail)
        each = major * (after // known) if known > 0 else 0
    elif side <= BATCH:
        each = side // BATCH
    elif batch is None:
        each = int(side == 1)  # written for one image at a time
    else:
        each = side // batch if side % batch == 0 else 0
    times = each // major
    if times < 1 or each % major or after % times:
        return None
    first, last = _filled(head, before // major), _filled(tail, after // times)
    if first is None or last is None:
        return None
    layout = Layout(axis=place, major=major, times=times)
    return layout, (*first, *(count for count in (major, times) if count > 1), *last)


def _filled(sides: list[int], count: int) -> list[int] | None:
    """The sides with -1 worked out, if they make `count` numbers."""
    known = math.prod(side for side in sides if side != -1)
    found = [count // known if side == -1 and known > 0 else side for side in sides]
    return found if math.prod(found) == count and all(side > 0 for side in found) else None


def flatten(walk: Walk, node: Node, name: str, start: int, end: int, output: str) -> None:
    """Joins the axes from `start` to `end`, both included."""
    dims = dims_of(walk, node, name)
    reshape(walk, node, name, [*dims[:start], math.prod(dims[start : end + 1]), *dims[end + 1 :]], output)


def unsqueeze(walk: Walk, node: Node, name: str, axes: Sequence[int], output: str) -> None:
    dims = dims_of(walk, node, name)
    rank = len(dims) + len(axes)
    places = {axis % rank for axis in axes}
    left = iter(dims)
    if len(places) != len(axes) or not all(-rank <= axis < rank for axis in axes):
        raise walk.refuse(node, "axes", list(axes))
    reshape(walk, node, name, [1 if axis in places else next(left) for axis in range(rank)], output)


def squeeze(walk: Walk, node: Node, name: str, axes: Sequence[int], output: str) -> None:
    """Without `axes`, whose sides must be 1."""
    dims = dims_of(walk, node, name)
    places = {axis % len(dims) for axis in axes}
    if any(dims[axis] != 1 for axis in places) or not places:
        raise walk.refuse(node, "axes", list(axes))
    reshape(walk, node, name, [side for axis, side in enumerate(dims) if axis not in places], output)


def transpose(walk: Walk, node: Node, name: str, order: Sequence[int], output: str) -> None:
    layer, layout = walk.value(node, name)
    rank = len(dims_of(walk, node, name))
    order = [axis % rank for axis in order]
    if sorted(order) != list(range(rank)):
        raise walk.refuse(node, "an order of axes", list(order))
    inner = {axis: axis_of(walk, node, name, axis) for axis in range(rank) if axis != layout.axis}
    counted = list(range(layout.axis, layout.axis + layout.inner))
    ours = [place for axis in order for place in (counted if axis == layout.axis else [inner[axis]])]
    new = replace(layout, axis=order.index(layout.axis))
    if ours == sorted(ours):
        walk.gives(output, layer, new)
    elif new == layout == FIRST and len(ours) == 3:
        walk.join(node, "permute", [layer], output=output, dims=[axis + 1 for axis in ours])
    else:
        walk.join(node, "transpose", [layer], layout=new, output=output, axes=ours)


def cut(walk: Walk, node: Node, name: str, axis: int, start: int, stop: int, output: str, step: int = 1) -> None:
    """Entries from `start` to before `stop`; negative ones count from the end. Along images only all of them."""
    dims = dims_of(walk, node, name)
    layer, layout = walk.value(node, name)
    axis %= len(dims)
    if axis == layout.axis:
        everyone = stop >= (1 << 31) - 1 or stop in (dims[axis], (walk.batch or -1) * layout.each)
        if start != 0 or not everyone or step != 1:
            raise walk.refuse(node, "a cut through the images", (start, stop, step))
        return walk.gives(output, layer, layout)
    side = dims[axis]
    first, last = (min(max(place + side if place < 0 else place, 0), side) for place in (start, stop))
    if (first, last, step) == (0, side, 1):
        return walk.gives(output, layer, layout)
    if step < 1 or first >= last:
        raise walk.refuse(node, "a cut", (start, stop, step))
    place = axis_of(walk, node, name, axis)
    walk.join(node, "slice", [layer], layout=layout, output=output, axis=place, start=first, stop=last, step=step)
    return None


def select(walk: Walk, node: Node, name: str, axis: int, index: int, output: str) -> None:
    """One entry along an axis, which goes."""
    dims = dims_of(walk, node, name)
    if not -len(dims) <= axis < len(dims) or not -dims[axis] <= index < dims[axis]:
        raise walk.refuse(node, "an index", (axis, index))
    axis, index, one = axis % len(dims), index % dims[axis], f"one of {output}"
    while one in walk.values or one in walk.constants:
        one += "_"
    cut(walk, node, name, axis, index, index + 1, one)
    squeeze(walk, node, one, [axis], output)
    walk.values.pop(one)  # no tensor of the file


def split(walk: Walk, node: Node, name: str, axis: int, sizes: Sequence[int], outputs: Sequence[str]) -> None:
    dims = dims_of(walk, node, name)
    if not -len(dims) <= axis < len(dims) or len(sizes) != len(outputs) or sum(sizes) != dims[axis] or min(sizes) < 1:
        raise walk.refuse(node, "a split", list(sizes))
    start = 0
    for size, output in zip(sizes, outputs):
        cut(walk, node, name, axis, start, start + size, output)
        start += size


def concatenate(walk: Walk, node: Node, names: Sequence[str], axis: int, output: str) -> None:
    """Layers that lie alike, and constants that are the same for all images."""
    first = next((name for name in names if name not in walk.constants), names[0])
    layout, rank = walk.value(node, first)[1], len(dims_of(walk, node, first))
    place = axis_of(walk, node, first, axis)
    constant = [walk.constants.get(name) for name in names]
    if any(one is None and walk.value(node, name)[1] != layout for name, one in zip(names, constant)):
        raise walk.refuse(node, "a join of tensors that count images by different axes", list(names))
    layers = [
        walk.value(node, name)[0] if array is None else constant_like(walk, node, array, layout, rank)
        for name, array in zip(names, constant)
    ]
    flat_or_image = all(len(walk.shapes[layer]) in (1, 3) for layer in layers)
    if layout == FIRST and place == 0 and flat_or_image:
        walk.join(node, "concatenate", layers, output=output, axis=1, order="chw")
    else:
        walk.join(node, "join", layers, layout=layout, output=output, axis=place)


def constant_like(walk: Walk, node: Node, array: Array, layout: Layout, rank: int) -> str:
    """A layer that gives a constant to every image, its axes those of a tensor of `rank` axes in that layout."""
    sides: tuple[int, ...] = (1,) * (rank - array.ndim) + array.shape
    if len(sides) != rank or array.dtype.kind not in "fiu":
        raise walk.refuse(node, "a constant", array.shape)
    full = array.reshape(sides)
    if sides[layout.axis] != 1:
        alike = sides[layout.axis] == walk.batch and bool((full == np.take(full, [0], layout.axis)).all())
        if not alike or layout.inner:
            raise walk.refuse(node, "a constant that differs from image to image", array.shape)
        full = np.take(full, [0], layout.axis)
    shape = [*full.shape[: layout.axis], *(1,) * layout.inner, *full.shape[layout.axis + 1 :]]
    if not np.isfinite(full).all():
        raise walk.refuse(node, "a constant that is not finite", array.shape)
    return walk.layer(node, "constant", [INPUT], weights={"value": full.reshape(-1)}, shape=shape)


def merged(walk: Walk, node: Node, kind: str, names: Sequence[str], output: str) -> None:
    """Adds, multiplies, divides ... layers and constants, sides of 1 stretched as the file does.

    Args:
        kind: `divide`, or one of arch.layers.MERGES.
    """
    first = next((name for name in names if name not in walk.constants), names[0])
    layout, rank = walk.value(node, first)[1], len(dims_of(walk, node, first))
    for name in names:
        if name not in walk.constants:
            other, own = walk.value(node, name)[1], len(dims_of(walk, node, name))
            if other != layout or own != rank:
                raise walk.refuse(node, "tensors that count images by different axes", list(names))
    layers = [
        constant_like(walk, node, walk.constants[name], layout, rank) if name in walk.constants else walk.values[name]
        for name in names
    ]
    if kind == "divide":
        walk.join(node, "divide", layers, layout=layout, output=output)
    else:
        walk.join(node, "merge", layers, layout=layout, output=output, kind=kind)


def rescaled(walk: Walk, node: Node, name: str, scale: float, offset: float, output: str) -> None:
    """Every number times `scale` plus `offset`."""
    layer, layout = walk.value(node, name)
    walk.join(node, "rescale", [layer], layout=layout, output=output, scale=[scale], offset=[offset])


def linear(walk: Walk, node: Node, name: str, weight: Array, bias: Array | None, output: str) -> None:
    """x W^T + b over the last axis; `weight` (units, features)."""
    layer, layout = walk.value(node, name)
    rank = len(dims_of(walk, node, name))
    if weight.ndim != 2 or layout.axis == rank - 1 or (bias is not None and bias.shape != (len(weight),)):
        raise walk.refuse(node, "weights", weight.shape)
    op = "linear" if layout == FIRST and rank == 2 else "linear_last"
    weights: Mapping[str, Array] = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    walk.join(
        node, op, [layer], layout=layout, output=output, weights=weights, units=len(weight), bias=bias is not None
    )


def product(walk: Walk, node: Node, names: Sequence[str], output: str) -> None:
    """The matrix product of two tensors, over their last two axes; a constant one of two axes makes a linear layer."""
    first, second = names
    weight = walk.constants.get(second)
    if weight is not None and weight.ndim >= 2 and math.prod(weight.shape[:-2]) == 1 and first not in walk.constants:
        return linear(walk, node, first, weight.reshape(weight.shape[-2:]).T, None, output)
    one = first if first not in walk.constants else second
    layout, rank = walk.value(node, one)[1], len(dims_of(walk, node, one))
    layers = []
    for name in names:
        array = walk.constants.get(name)
        if array is not None:
            layers.append(constant_like(walk, node, array, layout, rank))
        elif walk.value(node, name)[1] != layout or len(dims_of(walk, node, name)) != rank or layout.axis > rank - 3:
            raise walk.refuse(node, "a product that mixes images, or of tensors that count them differently", first)
        else:
            layers.append(walk.values[name])
    walk.join(node, "matmul", layers, layout=layout, output=output)
    return None


def attention(
    walk: Walk, node: Node, names: Sequence[str], scale: float | None, mask: Array | None, output: str
) -> None:
    """Scaled dot-product attention of queries, keys and values; a `mask` of booleans must hide nothing."""
    layouts = {walk.value(node, name)[1] for name in names}
    ranks = {len(dims_of(walk, node, name)) for name in names}
    if len(layouts) != 1 or len(ranks) != 1:
        raise walk.refuse(node, "queries, keys and values that count images by different axes", list(names))
    layout, rank = layouts.pop(), ranks.pop()
    if layout.axis > rank - 3:
        raise walk.refuse(node, "an attention that mixes images", list(names))
    layers = [walk.values[name] for name in names]
    if mask is not None and mask.dtype.kind == "b":
        if not mask.all():
            raise walk.refuse(node, "a mask that hides tokens", mask.shape)
        mask = None
    if mask is not None:
        layers.append(constant_like(walk, node, mask, layout, rank))
    features = walk.shapes[layers[0]][-1]
    walk.join(node, "attention", layers, layout=layout, output=output, scale=features**-0.5 if scale is None else scale)


def softmax(walk: Walk, node: Node, name: str, axis: int, output: str) -> None:
    layer, layout = walk.value(node, name)
    place = axis_of(walk, node, name, axis)
    if layout == FIRST and len(walk.shapes[layer]) == 1:
        walk.join(node, "activation", [layer], output=output, kind="softmax")
    else:
        walk.join(node, "softmax", [layer], layout=layout, output=output, axis=place)


def mean(walk: Walk, node: Node, name: str, axes: Sequence[int], keepdims: bool, output: str) -> None:
    layer, layout = walk.value(node, name)
    rank = len(dims_of(walk, node, name))
    places = sorted({axis_of(walk, node, name, axis) for axis in axes})
    if not places:
        raise walk.refuse(node, "axes", list(axes))
    if layout == FIRST and rank == 4 and places == [1, 2]:
        walk.join(node, "global_pool", [layer], output=output, kind="average", keepdims=keepdims)
        return
    gone = 0 if keepdims else sum(axis % rank < layout.axis for axis in set(axes))
    new = replace(layout, axis=layout.axis - gone)
    walk.join(node, "mean", [layer], layout=new, output=output, axes=places, keepdims=keepdims)


def layer_norm(
    walk: Walk, node: Node, name: str, axes: int, weight: Array | None, bias: Array | None, eps: float, output: str
) -> None:
    """Over the last `axes` axes; without weights they are ones and noughts."""
    layer, layout = walk.value(node, name)
    rank = len(dims_of(walk, node, name))
    if not 1 <= axes < rank or layout.axis >= rank - axes:
        raise walk.refuse(node, "axes", axes)
    shape = walk.shapes[layer][-axes:]
    weights = {
        "weight": np.ones(shape) if weight is None else weight,
        "bias": np.zeros(shape) if bias is None else bias,
    }
    if any(array.shape != shape for array in weights.values()):
        raise walk.refuse(node, "weights", [array.shape for array in weights.values()])
    walk.join(node, "layer_norm", [layer], layout=layout, output=output, weights=weights, axes=axes, eps=eps)
