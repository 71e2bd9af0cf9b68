"""Nets that end in softmax: found, and turned back into nets that give logits.

Softmax squashes what inversion, tail fits and energy scores look at: its gradient dies where the net is sure. A last
`nn.Softmax` or `nn.LogSoftmax` is replaced by identity, which gives the very logits. A softmax in the code of
`forward` cannot be taken out; there log(p) is used, which is the logits up to a constant per image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import ModelError
from goodnet.models.classifier import InputSpec, Recipe
from goodnet.models.formats import one_line
from goodnet.models.surgery import replace_module

PROBES = 4
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Unwrapped:
    """A net that gives logits, its number of outputs, and what was done to it."""

    net: nn.Module
    recipe: Recipe
    outputs: int
    notes: tuple[str, ...] = ()


class LogProbabilities(nn.Module):
    """`net` gives probabilities (N, K); this gives their logarithm, clamped at 1e-30."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out.clamp_min(_TINY).log()


@torch.no_grad()
def unwrap_softmax(net: nn.Module, spec: InputSpec, recipe: Recipe, *, name: str) -> Unwrapped:
    """Runs `net` on a probe batch (what `spec` describes) and undoes a softmax at its end, in place.

    Raises:
        ModelError: the net fails on such a batch, or does not give finite outputs (N, K).
    """
    calls: list[tuple[str, Tensor]] = []
    modules = {key: module for key, module in net.named_modules() if isinstance(module, nn.Softmax | nn.LogSoftmax)}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, key=key: calls.append((key, out)))
        for key, module in modules.items()
    ]
    try:
        out = _probe(net, spec, name)
    finally:
        for handle in handles:
            handle.remove()
    last = [key for key, value in calls if value is out]
    if last and sum(key == last[0] for key, _ in calls) == 1 and last[0]:
        replace_module(net, last[0], nn.Identity())
        note = f"the net ends in softmax (module {last[0]!r}); it was taken out, so that the net gives logits"
        return Unwrapped(net=net, recipe=_with(recipe, {"softmax": last[0]}), outputs=out.shape[1], notes=(note,))
    if ends_in_probabilities(out):
        note = "the net's outputs are probabilities (a softmax in its code); their logarithm is used as logits"
        return Unwrapped(
            net=LogProbabilities(net), recipe=_with(recipe, {"softmax": "log"}), outputs=out.shape[1], notes=(note,)
        )
    return Unwrapped(net=net, recipe=recipe, outputs=out.shape[1])


def ends_in_probabilities(out: Tensor) -> bool:
    """True where outputs (N, K) are all >= 0 and every row sums to 1 within 1e-3."""
    sums = out.sum(1)
    return out.shape[1] > 1 and bool((out >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def undo_softmax(net: nn.Module, how: object) -> nn.Module:
    """Does again what `unwrap_softmax` noted in a recipe's `softmax`, which may come from a stranger's file.

    Args:
        net: freshly built; changed in place where `how` names a module.
        how: `log`, or the name of the softmax module to take out.

    Raises:
        ModelError: it names no softmax module.
    """
    if how == "log":
        return LogProbabilities(net)
    found = dict(net.named_modules()).get(how) if isinstance(how, str) and how else None
    if not isinstance(found, nn.Softmax | nn.LogSoftmax):
        raise ModelError(f"expected the recipe to name the net's softmax module or 'log', got {how!r:.60}")
    replace_module(net, str(how), nn.Identity())
    return net


def _probe(net: nn.Module, spec: InputSpec, name: str) -> Tensor:
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(PROBES, *spec.shape, generator=generator) * spec.scale
    for values, sign in ((spec.mean, -1), (spec.std, 0)):
        if values:
            column = x.new_tensor(values).view(1, -1, 1, 1)
            x = x + sign * column if sign else x / column
    try:
        out: Any = net(x.to(device))
    except Exception as error:  # whatever the net's own code raises
        shape = f"(N, {', '.join(map(str, spec.shape))})"
        raise ModelError(f"{name}: the net fails on images {shape}: {one_line(error)}; check --input-shape") from error
    if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != PROBES:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(f"{name}: expected the net to give one row of class scores an image (N, K), got {got}")
    if not bool(torch.isfinite(out).all()):
        raise ModelError(
            f"{name}: the net gives NaN or infinite outputs on a probe batch; check --input-range and --std"
        )
    return out


def _with(recipe: Recipe, more: Mapping[str, Any]) -> Recipe:
    return replace(recipe, options={**recipe.options, **more})
