"""Vision transformers of Hugging Face's: ViT and DeiT. Written after `transformers` 4.x and 5.x.

Every setting of a config that changes what the net computes is read with its bounds, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goodnet.models.hugging_face_drawing import MAX_DEPTH, Drawing, activation_of, pair, settings_of


def vit(draw: Drawing, config: Mapping[str, Any], classes: int, where: str, *, root: str = "vit") -> None:
    fields = settings_of(
        config,
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True},
        where,
    )  # fmt: skip
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads", 1, 1024)
    if width % heads or config.get("head_dim", width // heads) != width // heads:
        raise fields.error("num_attention_heads", f"a number that divides hidden_size, {width}", heads)
    patch = pair(fields, config, "patch_size", 16)
    draw.conv(f"{root}.embeddings.patch_embeddings.projection", width, patch, patch, pads=0, bias=True)
    channels, height, columns = draw.shape
    draw.plain("view", shape=[channels, height * columns])
    tokens = [draw.plain("transpose", axes=[1, 0])]
    leading = ("cls_token", "distillation_token") if root == "deit" else ("cls_token",)
    tokens = [*(draw.constant(f"{root}.embeddings.{name}", (1, width)) for name in leading), *tokens]
    joined = draw.plain("join", *tokens, axis=0)
    draw.merge("add", joined, draw.constant(f"{root}.embeddings.position_embeddings", draw.shapes[joined]))
    eps, act = fields.number("layer_norm_eps", 0.0, 1.0), activation_of(fields)
    hidden, bias = fields.whole("intermediate_size"), fields.flag("qkv_bias")
    for index in range(fields.whole("num_hidden_layers", 1, MAX_DEPTH)):
        _encoder_block(draw, f"{root}.encoder.layer.{index}", heads, hidden, eps=eps, act=act, bias=bias)
    draw.norm(f"{root}.layernorm", eps)
    _vit_head(draw, config, classes, root, where)


def _encoder_block(
    draw: Drawing, prefix: str, heads: int, hidden: int, *, eps: float, act: str, bias: bool
) -> None:  # fmt: skip
    start = draw.last
    tokens, width = draw.shape
    normed = draw.norm(f"{prefix}.layernorm_before", eps)
    split = []
    for name in ("query", "key", "value"):
        draw.linear(f"{prefix}.attention.attention.{name}", width, normed, bias=bias)
        draw.plain("view", shape=[tokens, heads, width // heads])
        split.append(draw.plain("transpose", axes=[1, 0, 2]))
    draw.plain("attention", *split, scale=(width // heads) ** -0.5)
    draw.plain("transpose", axes=[1, 0, 2])
    draw.plain("view", shape=[tokens, width])
    middle = draw.merge("add", draw.linear(f"{prefix}.attention.output.dense", width), start)
    draw.norm(f"{prefix}.layernorm_after", eps)
    draw.linear(f"{prefix}.intermediate.dense", hidden)
    draw.activation(act)
    draw.merge("add", draw.linear(f"{prefix}.output.dense", width), middle)


def _vit_head(draw: Drawing, config: Mapping[str, Any], classes: int, root: str, where: str) -> None:
    """On the class token; DeiT with its teacher has a second one on the distillation token, and means both."""
    normed, (_, width) = draw.last, draw.shape

    def token(index: int) -> None:
        draw.plain("slice", normed, axis=0, start=index, stop=index + 1, step=1)
        draw.plain("view", shape=[width])

    names = config.get("architectures")
    token(0)
    if root == "deit" and isinstance(names, list) and "DeiTForImageClassificationWithTeacher" in names:
        first = draw.linear("cls_classifier", classes)
        token(1)
        draw.merge("average", first, draw.linear("distillation_classifier", classes))
    else:
        draw.linear("classifier", classes)


def deit(draw: Drawing, config: Mapping[str, Any], classes: int, where: str) -> None:
    vit(draw, config, classes, where, root="deit")
