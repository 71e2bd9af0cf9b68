"""Swin of Hugging Face's (Liu et al., ICCV 2021). Written after `transformers` 4.x and 5.x.

Tokens attend to each other inside windows, which are shifted in every second block. What a head adds for two tokens
depends on how far they lie apart: it is read out of a table here, once, together with the mask that keeps apart what a
shift has brought into one window.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from goodnet.models.hugging_face_drawing import WIDEST, Drawing, activation_of, depths_of, pair, settings_of

_APART = -100.0
_WIDEST_WINDOW = 32


def swin(draw: Drawing, config: Mapping[str, Any], classes: int, where: str) -> None:
    fields = settings_of(
        config,
        {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0,
         "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_absolute_embeddings": False},
        where,
    )  # fmt: skip
    width, depths, heads = fields.whole("embed_dim"), depths_of(fields), fields.dims("num_heads", 8, 1, 1024)
    if len(heads) != len(depths) or any(width * 2**stage % count for stage, count in enumerate(heads)):
        raise fields.error("num_heads", f"{len(depths)} numbers that divide the widths, {width} and its doubles", heads)
    window, ratio = fields.whole("window_size", 1, _WIDEST_WINDOW), fields.number("mlp_ratio", 0.01, 64)
    act, eps, bias = activation_of(fields), fields.number("layer_norm_eps", 0.0, 1.0), fields.flag("qkv_bias")
    patch = pair(fields, config, "patch_size", 4)
    rows, columns = _embedded(draw, width, patch, places=fields.flag("use_absolute_embeddings"))
    for stage, (depth, count) in enumerate(zip(depths, heads)):
        if min(rows, columns) < window:
            raise fields.error(
                "window_size", f"at most {min(rows, columns)}, the tokens of a side in stage {stage}", window
            )
        for block in range(depth):
            shift = window // 2 if block % 2 and min(rows, columns) > window else 0
            prefix = f"swin.encoder.layers.{stage}.blocks.{block}"
            start = draw.last
            draw.norm(f"{prefix}.layernorm_before", eps)
            _windows(draw, f"{prefix}.attention", rows, columns, window, shift, count, bias=bias)
            middle = draw.merge("add", draw.last, start)
            draw.norm(f"{prefix}.layernorm_after", eps)
            draw.linear(f"{prefix}.intermediate.dense", min(max(int(ratio * width), 1), WIDEST))
            draw.activation(act)
            draw.merge("add", draw.linear(f"{prefix}.output.dense", width), middle)
        if stage < len(depths) - 1:
            rows, columns = _halved(draw, f"swin.encoder.layers.{stage}.downsample", rows, columns, width)
            width *= 2
    draw.norm("swin.layernorm", eps)
    draw.plain("mean", axes=[0], keepdims=False)
    draw.linear("classifier", classes)


def _embedded(draw: Drawing, width: int, patch: tuple[int, int], *, places: bool) -> tuple[int, int]:
    """Patches as tokens; how many lie below and beside each other."""
    _, height, across = draw.shape
    _padded(draw, -height % patch[0], -across % patch[1])
    draw.conv("swin.embeddings.patch_embeddings.projection", width, patch, patch, pads=0, bias=True)
    _, rows, columns = draw.shape
    draw.plain("view", shape=[width, rows * columns])
    draw.plain("transpose", axes=[1, 0])
    tokens = draw.norm("swin.embeddings.norm", 1e-5)
    if places:
        draw.merge("add", tokens, draw.constant("swin.embeddings.position_embeddings", (rows * columns, width)))
    return rows, columns


def _windows(
    draw: Drawing, prefix: str, rows: int, columns: int, window: int, shift: int, heads: int, *, bias: bool
) -> None:
    """Attention inside windows: tokens (rows * columns, width) in and out."""
    width = draw.shape[-1]
    below, beside = -rows % window, -columns % window
    draw.plain("view", shape=[rows, columns, width])
    if below or beside:
        _padded(draw, below, beside, last=True)
    down, along = (rows + below) // window, (columns + beside) // window
    if shift:
        draw.plain("roll", axes=[0, 1], shifts=[-shift, -shift])
    draw.plain("view", shape=[down, window, along, window, width])
    draw.plain("transpose", axes=[0, 2, 1, 3, 4])
    cut = draw.plain("view", shape=[down * along, window**2, width])
    split = []
    for name in ("query", "key", "value"):
        draw.linear(f"{prefix}.self.{name}", width, cut, bias=bias)
        draw.plain("view", shape=[down * along, window**2, heads, width // heads])
        split.append(draw.plain("transpose", axes=[0, 2, 1, 3]))
    shape = (down * along if shift else 1, heads, window**2, window**2)
    read = partial(_biases, down=down, along=along, window=window, shift=shift, heads=heads)
    apart = draw.constant(f"{prefix}.self.relative_position_bias_table", shape, read)
    draw.plain("attention", *split, apart, scale=(width // heads) ** -0.5)
    draw.plain("transpose", axes=[0, 2, 1, 3])
    draw.plain("view", shape=[down * along, window**2, width])
    draw.linear(f"{prefix}.output.dense", width)
    draw.plain("view", shape=[down, along, window, window, width])
    draw.plain("transpose", axes=[0, 2, 1, 3, 4])
    draw.plain("view", shape=[down * window, along * window, width])
    if shift:
        draw.plain("roll", axes=[0, 1], shifts=[shift, shift])
    for axis, side, more in ((0, rows, below), (1, columns, beside)):
        if more:
            draw.plain("slice", axis=axis, start=0, stop=side, step=1)
    draw.plain("view", shape=[rows * columns, width])


def _mask(down: int, along: int, window: int, shift: int) -> Tensor:
    """(windows, 1, tokens, tokens): 0 for tokens that lay side by side before the shift, -100 for others; one window
    for all where nothing is shifted."""
    if not shift:
        return torch.zeros(1, 1, window**2, window**2)
    first, second = (_regions(count * window, window, shift) for count in (down, along))
    regions = (first[:, None] * 3 + second[None, :]).view(down, window, along, window)
    tokens = regions.transpose(1, 2).reshape(down * along, window**2)
    return torch.where(tokens[:, None] == tokens[:, :, None], 0.0, _APART).unsqueeze(1)


def _regions(side: int, window: int, shift: int) -> Tensor:
    """Which of three strips each row or column belongs to."""
    places = torch.arange(side)
    return (places >= side - window).long() + (places >= side - shift).long()


def _biases(table: Tensor, *, down: int, along: int, window: int, shift: int, heads: int) -> Tensor:
    """A table ((2 window - 1)^2, heads) -> what is added for each pair of tokens, the mask included."""
    if table.shape != ((2 * window - 1) ** 2, heads):
        return table  # refused for its shape
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    between = places[:, None] - places[None, :] + window - 1
    index = between[..., 0] * (2 * window - 1) + between[..., 1]
    return table[index].permute(2, 0, 1).unsqueeze(0) + _mask(down, along, window, shift)


def _halved(draw: Drawing, prefix: str, rows: int, columns: int, width: int) -> tuple[int, int]:
    """Four neighbours become one token of twice the width."""
    whole = draw.plain("view", shape=[rows, columns, width])
    if rows % 2 or columns % 2:
        whole = _padded(draw, rows % 2, columns % 2, last=True)
    down, along = draw.shape[0], draw.shape[1]
    parts = []
    for column in range(2):
        for row in range(2):
            draw.plain("slice", whole, axis=0, start=row, stop=down, step=2)
            parts.append(draw.plain("slice", axis=1, start=column, stop=along, step=2))
    draw.plain("join", *parts, axis=2)
    draw.plain("view", shape=[down // 2 * (along // 2), 4 * width])
    draw.norm(f"{prefix}.norm", 1e-5)
    draw.linear(f"{prefix}.reduction", 2 * width, bias=False)
    return down // 2, along // 2


def _padded(draw: Drawing, below: int, beside: int, *, last: bool = False) -> str:
    """Noughts below and beside a picture (C, H, W), or (H, W, C) if channels are `last`."""
    if not below and not beside:
        return draw.last
    if last:
        draw.plain("transpose", axes=[2, 0, 1])
    draw.plain("zero_pad", pads=[0, beside, 0, below])
    return draw.plain("transpose", axes=[1, 2, 0]) if last else draw.last
