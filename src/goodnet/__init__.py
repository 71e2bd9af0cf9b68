"""goodnet: finds backdoors in image classifiers, shows the trigger, repairs the net, and proves it.

`load`, `scan`, `repair`, `evaluate` and `report` are the functions of `goodnet.api`, imported when first used: goodnet
itself imports neither torch nor anything else.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodnet.api import evaluate, load, repair, report, scan

__all__ = ["evaluate", "load", "repair", "report", "scan"]


class _Callable(ModuleType):
    """The modules goodnet.scan, goodnet.repair and goodnet.report, which are called as the function of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(importlib.import_module("goodnet.api"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


class _Package(ModuleType):
    """Import binds a submodule's name here and so would hide the function; the module itself takes the call instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'goodnet' has no attribute {name!r}")
    function = getattr(importlib.import_module("goodnet.api"), name)
    return globals().get(name, function)  # the module of that name, which is bound by now, where there is one


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
