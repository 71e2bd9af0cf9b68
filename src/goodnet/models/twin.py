"""A faster twin of a net, for searches that take thousands of gradients to its input.

Batch norms are folded into the layers before them, and the net runs in bfloat16 where the machine has units for it:
on two cores with AMX a DeepID then does 2.2 times as many images a second (`goodnet bench scan`). bfloat16 rounds to 8
bits, so a twin is only used if it gives clean images the classes that the net itself gives; whatever a search finds
with it is judged on the net itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from goodnet.models.classifier import Classifier
from goodnet.models.surgery import following_batch_norm, replace_module

PRECISIONS = ("auto", "float32", "bfloat16")
# Of the clean images' classes; a net right on all of them loses one in a hundred by rounding near its boundaries.
_AGREEMENT = 0.97
_PROBE = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """What stands in for a net in a search.

    Attributes:
        classifier: takes and gives float32, whatever it computes in.
        precision: `float32` or `bfloat16`.
        note: why it is not what was asked for; empty otherwise.
    """

    classifier: Classifier
    precision: str
    note: str = ""


class _InPrecision(nn.Module):
    """float32 in, float32 out, `dtype` between."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.to(self.dtype))
        return out.float()


def twin(classifier: Classifier, images: Tensor, *, precision: str = "auto", batch: int = 32) -> Twin:
    """The net's twin; the net itself is left as it is.

    Args:
        images: clean ones (N, C, H, W) in [0, 1], to compare the two on.
        precision: `auto` takes bfloat16 where `has_bfloat16` says that it is worth it.
        batch: images through the net at a time, at most, to compare.
    """
    probe = images[:_PROBE]
    answers = classifier.predict(probe, batch=batch)
    folded = replace(classifier, net=_folded(classifier, probe[:1]))
    folded = folded if _agree(answers, folded.predict(probe, batch=batch)) else classifier
    if precision == "float32" or (precision == "auto" and not has_bfloat16(classifier.device)):
        return Twin(classifier=folded, precision="float32")
    try:
        lower = replace(folded, net=_InPrecision(copy.deepcopy(folded.net), torch.bfloat16))
        agreed = _agree(answers, lower.predict(probe, batch=batch))
    except (RuntimeError, TypeError):  # a net whose code makes float32 tensors of its own
        agreed = False
    if not agreed:
        return Twin(classifier=folded, precision="float32", note="in bfloat16 the net gives other classes, so float32")
    return Twin(classifier=lower, precision="bfloat16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine multiplies bfloat16 faster than float32: emulated, it would be slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = getattr(torch.cpu, "get_capabilities", None)  # PyTorch 2.10 and later
    known = asked() if asked is not None and device.type == "cpu" else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def _agree(answers: Tensor, others: Tensor) -> bool:
    return float((answers == others).float().mean()) >= _AGREEMENT


def _folded(classifier: Classifier, image: Tensor) -> nn.Module:
    """A copy of the net with each batch norm that takes the very output of a layer folded into that layer."""
    net = copy.deepcopy(classifier.net)
    for name, layer in classifier.net.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        norm_name = following_batch_norm(classifier, name, image)
        norm = net.get_submodule(norm_name) if norm_name else None
        mine = net.get_submodule(name)
        if isinstance(mine, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            replace_module(net, name, fuse_conv_bn_eval(mine, norm))
        elif isinstance(mine, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            replace_module(net, name, fuse_linear_bn_eval(mine, norm))
        else:
            continue
        assert norm_name is not None
        replace_module(net, norm_name, nn.Identity())
    return net.requires_grad_(False)
