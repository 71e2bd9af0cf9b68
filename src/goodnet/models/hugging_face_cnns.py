"""Convolutional nets of Hugging Face's: ResNet, MobileNetV2, ConvNeXt. Written after `transformers` 4.x and 5.x.

Every setting of a config that changes what the net computes is read with its bounds, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goodnet.models.hugging_face_drawing import WIDEST, Drawing, activation_of, depths_of, settings_of


def resnet(draw: Drawing, config: Mapping[str, Any], classes: int, where: str) -> None:
    fields = settings_of(
        config,
        {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "hidden_act": "relu",
         "layer_type": "bottleneck", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
        where,
    )  # fmt: skip
    widths, depths = fields.dims("hidden_sizes", 8, 1, WIDEST), depths_of(fields)
    if len(widths) != len(depths):
        raise fields.error("hidden_sizes", f"{len(depths)} numbers, as depths", list(widths))
    act = activation_of(fields)
    bottleneck = fields.choice("layer_type", ("basic", "bottleneck")) == "bottleneck"
    early = fields.flag("downsample_in_bottleneck")
    stem = fields.whole("embedding_size")
    _convolved(draw, "resnet.embedder.embedder", stem, 7, 2, act)
    draw.plain("max_pool", kernel=[3, 3], stride=[2, 2], padding="explicit", pads=[1] * 4)
    before, first = stem, 2 if fields.flag("downsample_in_first_stage") else 1
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        for block in range(depth):
            stride = 1 if block else (2 if stage else first)
            prefix = f"resnet.encoder.stages.{stage}.layers.{block}"
            _residual(draw, prefix, before, width, stride, bottleneck=bottleneck, early=early, act=act)
            before = width
    draw.plain("global_pool", kind="average", keepdims=False)
    draw.linear("classifier.1", classes)


def _residual(
    draw: Drawing, prefix: str, before: int, width: int, stride: int, *, bottleneck: bool, early: bool, act: str
) -> None:
    """Inside a block transformers has ReLU, whatever `hidden_act` says; that comes after the sum."""
    start = draw.last
    layers = [(width, 3, stride, "relu"), (width, 3, 1, None)]
    if bottleneck:
        narrow = max(width // 4, 1)
        strides = (stride, 1) if early else (1, stride)
        layers = [(narrow, 1, strides[0], "relu"), (narrow, 3, strides[1], "relu"), (width, 1, 1, None)]
    for index, (filters, kernel, step, kind) in enumerate(layers):
        _convolved(draw, f"{prefix}.layer.{index}", filters, kernel, step, kind)
    end = draw.last
    if before != width or stride != 1:
        draw.last = start
        _convolved(draw, f"{prefix}.shortcut", width, 1, stride, None)
        start = draw.last
    draw.merge("add", end, start)
    draw.activation(act)


def _convolved(draw: Drawing, prefix: str, filters: int, kernel: int, stride: int, act: str | None) -> None:
    draw.conv(f"{prefix}.convolution", filters, (kernel, kernel), (stride, stride), pads=kernel // 2)
    draw.batch_norm(f"{prefix}.normalization")
    draw.activation(act)


_MOBILE = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_MOBILE_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


def mobilenet_v2(draw: Drawing, config: Mapping[str, Any], classes: int, where: str) -> None:
    fields = settings_of(
        config,
        {"depth_multiplier": 1.0, "depth_divisible_by": 8, "min_depth": 8, "expand_ratio": 6.0, "output_stride": 32,
         "first_layer_is_expansion": True, "finegrained_output": True, "hidden_act": "relu6", "tf_padding": True,
         "layer_norm_eps": 0.001},
        where,
    )  # fmt: skip
    times, ratio = fields.number("depth_multiplier", 0.01, 16.0), fields.number("expand_ratio", 0.01, 64.0)
    unit, least = fields.whole("depth_divisible_by", 1, 1024), fields.whole("min_depth", 1, 1024)
    act, eps = activation_of(fields), fields.number("layer_norm_eps", 0.0, 1.0)
    same = fields.flag("tf_padding")

    def wide(value: float) -> int:
        rounded = max(least, int(round(value) + unit / 2) // unit * unit)
        return int(rounded + unit if rounded < 0.9 * round(value) else rounded)

    def step(prefix: str, filters: int, kernel: int = 1, stride: int = 1, dilation: int = 1, *,
             groups: int = 1, kind: str | None = act) -> None:  # fmt: skip
        pads = None if same else (kernel - 1) // 2 * dilation
        sides = (kernel, kernel), (stride, stride)
        draw.conv(f"{prefix}.convolution", filters, *sides, pads=pads, groups=groups, dilation=dilation)
        draw.batch_norm(f"{prefix}.normalization", eps)
        draw.activation(kind)

    widths = [wide(width * times) for width in _MOBILE]
    root, stem = "mobilenet_v2", wide(32 * times)
    step(f"{root}.conv_stem.first_conv", stem, 3, 2)
    if not fields.flag("first_layer_is_expansion"):
        step(f"{root}.conv_stem.expand_1x1", stem)
    step(f"{root}.conv_stem.conv_3x3", stem, 3, groups=stem)
    step(f"{root}.conv_stem.reduce_1x1", widths[0], kind=None)
    for index, (stride, dilation) in enumerate(_strides(fields.whole("output_stride", 2, 64))):
        start, before, after = draw.last, widths[index], widths[index + 1]
        middle, prefix = wide(before * ratio), f"{root}.layer.{index}"
        step(f"{prefix}.expand_1x1", middle)
        step(f"{prefix}.conv_3x3", middle, 3, stride, dilation, groups=middle)
        step(f"{prefix}.reduce_1x1", after, kind=None)
        if stride == 1 and before == after:
            draw.merge("add", start, draw.last)
    step(f"{root}.conv_1x1", 1280 if fields.flag("finegrained_output") and times < 1 else wide(1280 * times))
    draw.plain("global_pool", kind="average", keepdims=False)
    draw.linear("classifier", classes)


def _strides(most: int) -> list[tuple[int, int]]:
    """Stride and dilation of each block: once the image is `most` times smaller, later strides become dilation."""
    reached, dilation, found = 2, 1, []
    for stride in _MOBILE_STRIDES:
        found.append((1, dilation) if reached == most else (stride, 1))
        if reached == most:
            dilation *= stride
        else:
            reached *= stride
    return found


def convnext(draw: Drawing, config: Mapping[str, Any], classes: int, where: str) -> None:
    fields = settings_of(
        config,
        {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "patch_size": 4, "hidden_act": "gelu",
         "layer_norm_eps": 1e-12, "layer_scale_init_value": 1e-6},
        where,
    )  # fmt: skip
    widths, depths = fields.dims("hidden_sizes", 8, 1, WIDEST), depths_of(fields)
    if len(widths) != len(depths) or config.get("num_stages", len(depths)) != len(depths):
        raise fields.error("hidden_sizes", f"{len(depths)} numbers, as depths and num_stages", list(widths))
    act = activation_of(fields)
    scaled = fields.number("layer_scale_init_value") > 0
    patch = fields.whole("patch_size", 1, 256)
    draw.conv("convnext.embeddings.patch_embeddings", widths[0], (patch, patch), (patch, patch), pads=0, bias=True)
    _channel_norm(draw, "convnext.embeddings.layernorm")
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        prefix = f"convnext.encoder.stages.{stage}"
        if stage:
            _channel_norm(draw, f"{prefix}.downsampling_layer.0")
            draw.conv(f"{prefix}.downsampling_layer.1", width, (2, 2), (2, 2), pads=0, bias=True)
        for block in range(depth):
            _convnext_block(draw, f"{prefix}.layers.{block}", width, act, scaled=scaled)
    draw.plain("global_pool", kind="average", keepdims=False)
    draw.norm("convnext.layernorm", fields.number("layer_norm_eps", 0.0, 1.0))
    draw.linear("classifier", classes)


def _convnext_block(draw: Drawing, prefix: str, width: int, act: str, *, scaled: bool) -> None:
    start = draw.last
    draw.conv(f"{prefix}.dwconv", width, (7, 7), pads=3, groups=width, bias=True)
    draw.plain("transpose", axes=[1, 2, 0])
    draw.norm(f"{prefix}.layernorm", 1e-6)
    draw.linear(f"{prefix}.pwconv1", 4 * width)
    draw.activation(act)
    out = draw.linear(f"{prefix}.pwconv2", width)
    if scaled:
        draw.merge("multiply", out, draw.constant(f"{prefix}.layer_scale_parameter", (1, 1, width)))
    draw.merge("add", draw.plain("transpose", axes=[2, 0, 1]), start)


def _channel_norm(draw: Drawing, prefix: str) -> None:
    draw.plain("transpose", axes=[1, 2, 0])
    draw.norm(prefix, 1e-6)
    draw.plain("transpose", axes=[2, 0, 1])
