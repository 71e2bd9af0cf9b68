"""Running only the rest of a net, many times: what its modules in front of one layer give is computed once.

For any net, whatever its forward does between modules: the front's modules are not left out, they answer from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def replayed(net: nn.Module, layer: str, run: Callable[[], Any]) -> Iterator[None]:
    """Inside the `with`, `run()` and whatever passes the same images computes only from module `layer` on.

    Runs `run` once and keeps what every module without submodules gives before `layer` is first called; in later
    passes those calls give the same again. Exact for nets whose forward calls the same modules in the same order, on
    the very same images, and whose weights in front of `layer` stay as they are. No gradients in front of `layer`.

    Args:
        net: its forward passes change inside the `with` only.
        layer: name of a module; it and all that is called after it are computed anew.
        run: a forward pass over the images, in one batch.
    """
    last = net.get_submodule(layer)
    leaves = [module for module in net.modules() if not any(module.children())]
    tape = _record(leaves, last, run)
    place = {"next": 0}
    with ExitStack() as stack:
        stack.callback(net.register_forward_pre_hook(lambda *_: place.update(next=0)).remove)
        for module in {id(call.module): call.module for call in tape}.values():
            _answer_from(tape, place, module)
            stack.callback(module.__dict__.pop, "forward")
        yield


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """What a module gave, kept by copy if a later one has worked in place on it."""

    module: nn.Module
    output: Any
    spoilt: bool


@torch.no_grad()
def _record(leaves: list[nn.Module], last: nn.Module, run: Callable[[], Any]) -> list[_Call]:
    """The calls before the first one of `last`, in order."""
    noted: list[tuple[nn.Module, Any, Any, int]] = []
    reached: list[bool] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if not reached:
            tensor = isinstance(output, Tensor)
            noted.append((module, output, output.clone() if tensor else output, output._version if tensor else 0))

    with ExitStack() as stack:
        stack.callback(last.register_forward_pre_hook(lambda *_: reached.append(True)).remove)
        for module in leaves:
            stack.callback(module.register_forward_hook(note).remove)
        run()
    tape = []
    for module, output, copy, version in noted:
        spoilt = isinstance(output, Tensor) and output._version != version
        tape.append(_Call(module=module, output=copy if spoilt else output, spoilt=spoilt))
    return tape


def _answer_from(tape: list[_Call], place: dict[str, int], module: nn.Module) -> None:
    """Lets `module` give what is on the tape while the pass is in front of the layer, and compute behind it."""
    compute = module.forward

    def forward(*inputs: Any) -> Any:
        turn = place["next"]
        if turn < len(tape) and tape[turn].module is module:
            place["next"] = turn + 1
            return tape[turn].output.clone() if tape[turn].spoilt else tape[turn].output
        return compute(*inputs)

    module.forward = forward
