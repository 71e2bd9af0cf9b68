"""Vision transformer (Dosovitskiy et al., ICLR 2021) of any size, with timm's keys (`blocks.0.attn.qkv`, `head`).

Patches of the image by one strided convolution, a class token before them, learned positions added; blocks of
LayerNorm, multi-head attention, LayerNorm, MLP with exact GELU, each added to its input; LayerNorm; a linear layer on
the class token. `vit` stands for all sizes: width, depth, patch and image are read off the weights. Heads are not to be
seen in weights: 64 features a head, as in all published sizes, unless the width is no multiple of that (then 3, as in
small nets for CIFAR-10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEAD = 64
_DEPTH = 64


class Patches(nn.Module):
    """Images -> (N, patches, width)."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over (N, tokens, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        return out


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Images (N, C, height, width) -> logits (N, classes).

    Args:
        classes: number of outputs.
        channels, height, width: of the input; its sides are multiples of `patch`.
        patch: side of a patch.
        features: width of a token.
        heads: of the attention; divides `features`.
        depth: blocks.
        mlp: hidden units of a block's MLP.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        height: int = 224,
        width: int = 224,
        patch: int = 16,
        features: int = 192,
        heads: int = 3,
        depth: int = 12,
        mlp: int = 768,
    ):
        super().__init__()
        if height % patch or width % patch or features % heads or depth > _DEPTH:
            raise ValueError(
                f"expected patches of {patch} to fill {height}x{width}, {heads} heads to share {features} features "
                f"and at most {_DEPTH} blocks, got {depth}"
            )
        self.patch_embed = Patches(channels, features, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, features))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width // patch**2, features))
        self.blocks = nn.Sequential(*(Block(features, heads, mlp) for _ in range(depth)))
        self.norm = nn.LayerNorm(features, eps=1e-6)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1) + self.pos_embed
        out: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return out


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor options read off a state dict's shapes; the image is taken to be square."""
    features, channels, patch = state["patch_embed.proj.weight"].shape[:3]
    side = math.isqrt(state["pos_embed"].shape[1] - 1) * patch
    return {
        "classes": state["head.weight"].shape[0],
        "channels": channels,
        "height": side,
        "width": side,
        "patch": patch,
        "features": features,
        "heads": features // _HEAD if features % _HEAD == 0 else 3,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp": state["blocks.0.mlp.fc1.weight"].shape[0],
    }
