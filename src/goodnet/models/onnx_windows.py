"""ONNX operators that slide a window over an image, and their padding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from goodnet.models.graph_walk import Node, Walk


def conv(walk: Walk, node: Node) -> None:
    weight, bias = walk.constant(node, 1), walk.constant(node, 2)
    if weight is None or weight.ndim != 4:
        raise walk.refuse(node, "weights", None if weight is None else weight.shape)
    kernel = list(weight.shape[2:])
    settings = _windows(walk, node, kernel, ("dilations", "group"))
    dilation, groups = list(node.attributes.get("dilations", (1, 1))), int(node.attributes.get("group", 1))
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    walk.add(
        node,
        "conv2d",
        weights=weights,
        filters=weight.shape[0],
        groups=groups,
        dilation=dilation,
        bias=bias is not None,
        **settings,
    )


def max_pool(walk: Walk, node: Node) -> None:
    settings = _windows(walk, node, None, ("dilations", "storage_order", "ceil_mode"))
    if tuple(node.attributes.get("dilations", (1, 1))) != (1, 1) or _rounds_up(walk, node, settings):
        raise walk.refuse(node, "dilations or ceil_mode", dict(node.attributes))
    walk.add(node, "max_pool", **settings)


def average_pool(walk: Walk, node: Node) -> None:
    settings = _windows(walk, node, None, ("dilations", "count_include_pad", "ceil_mode"))
    if tuple(node.attributes.get("dilations", (1, 1))) != (1, 1) or _rounds_up(walk, node, settings):
        raise walk.refuse(node, "dilations or ceil_mode", dict(node.attributes))
    walk.add(node, "average_pool", count_pad=bool(node.attributes.get("count_include_pad", 0)), **settings)


def _rounds_up(walk: Walk, node: Node, settings: Mapping[str, Any]) -> bool:
    """Whether ceil_mode gives another size than rounding down, which torch's modules here do."""
    if not node.attributes.get("ceil_mode", 0):
        return False
    _, height, width = walk.shape_of(node)
    left, right, top, bottom = settings["pads"]
    sizes = (height + top + bottom, width + left + right)
    return any((size - k) % s for size, k, s in zip(sizes, settings["kernel"], settings["stride"]))


def _windows(walk: Walk, node: Node, kernel: list[int] | None, others: tuple[str, ...]) -> dict[str, Any]:
    """Kernel, stride and padding of what slides over an image."""
    walk.done(node, "kernel_shape", "strides", "pads", "auto_pad", *others)
    shape = walk.shape_of(node)
    if len(shape) != 3:
        raise walk.refuse(node, "an input", shape)
    kernel = kernel if kernel is not None else list(node.attributes.get("kernel_shape", ()))
    stride = list(node.attributes.get("strides", (1, 1)))
    if len(kernel) != 2 or len(stride) != 2 or list(node.attributes.get("kernel_shape", kernel)) != kernel:
        raise walk.refuse(node, "kernel_shape and strides", (kernel, stride))
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(shape, kernel, stride, node.attributes.get("dilations", (1, 1)), upper=auto == "SAME_UPPER")
    elif auto in ("NOTSET", "VALID"):
        pads = _pads(walk, node, node.attributes.get("pads", (0, 0, 0, 0)))
    else:
        raise walk.refuse(node, "auto_pad", auto)
    return {"kernel": kernel, "stride": stride, "padding": "explicit", "pads": pads}


def _same(shape: tuple[int, ...], kernel: list[int], stride: list[int], dilation: Any, *, upper: bool) -> list[int]:
    sides = []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        few, many = total // 2, total - total // 2
        sides.append((few, many) if upper else (many, few))
    (top, bottom), (left, right) = sides
    return [left, right, top, bottom]


def _pads(walk: Walk, node: Node, pads: Any) -> list[int]:
    """ONNX's (top, left, bottom, right) -> left, right, top, bottom."""
    if len(pads) != 4:
        raise walk.refuse(node, "pads", pads)
    top, left, bottom, right = (int(side) for side in pads)
    return [left, right, top, bottom]


def pad(walk: Walk, node: Node) -> None:
    walk.done(node, "mode")
    pads, value = walk.constant(node, 1), walk.constant(node, 2)
    shape = walk.shape_of(node)
    sides = [] if pads is None else pads.reshape(-1).tolist()
    zero = value is None or float(value.reshape(-1)[0]) == 0.0
    plain = node.attributes.get("mode", "constant") == "constant" and walk.constant(node, 3) is None
    if not plain or not zero or len(shape) != 3 or len(sides) != 8 or any(sides[i] for i in (0, 1, 4, 5)):
        raise walk.refuse(node, "padding", sides)
    walk.add(node, "zero_pad", pads=_pads(walk, node, (sides[2], sides[3], sides[6], sides[7])))
