"""`--arch FILE.py:CALLABLE`: the user's own code, which makes the net that the weights belong to.

This is the one place where goodnet runs code that is not its own, and it does so only for a file that the user named
on the command line: a model file, a GoodNet's recipe or a config never leads here.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from goodnet.errors import UsageError
from goodnet.models.classifier import Recipe
from goodnet.models.formats import Loaded, LoadOptions, Shape, check_shape, one_line
from goodnet.models.weights import load_weights


def is_user_code(arch: str) -> bool:
    """True for `FILE.py:CALLABLE`."""
    return ".py:" in arch


def load_user_code(state: Mapping[str, Tensor], options: LoadOptions, *, name: str) -> Loaded:
    """The user's net with `state` in it.

    The input shape is `--input-shape`, else the attribute `input_shape` = (C, H, W) of the module.

    Raises:
        UsageError: the file, the callable or `classes` is missing, or what it returns is no module.
        ModelError: the weights do not fit.
    """
    arch = options.arch or ""
    net = build_user_code(arch, classes=options.classes)
    load_weights(net, state, name=name)
    recipe = Recipe(arch=arch, options={} if options.classes is None else {"classes": options.classes})
    shape = options.input_shape or _own_shape(net, arch)
    if shape is None:
        raise UsageError(f"{arch}: nothing tells the input shape; pass --input-shape C,H,W or set net.input_shape")
    return Loaded(net=net, recipe=recipe, shape=shape, notes=(f"built by the user's own code, {arch}",))


def build_user_code(arch: str, *, classes: int | None = None) -> nn.Module:
    """Runs FILE.py and calls CALLABLE, with `classes` if it takes that. Raises UsageError."""
    make = _callable(arch)
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    takes = "classes" in parameters
    if takes and classes is None and parameters["classes"].default is inspect.Parameter.empty:
        raise UsageError(f"{arch} takes the number of classes; pass it with --classes")
    try:
        net = make(classes=classes) if takes and classes is not None else make()
    except Exception as error:
        raise UsageError(
            f"{arch} raised {type(error).__name__}: {one_line(error)}; it is called with nothing or "
            f"classes=K and returns the net"
        ) from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"{arch}: expected it to return a torch.nn.Module, got {type(net).__name__}")
    return net


def _callable(arch: str) -> Callable[..., Any]:
    file, _, name = arch.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--arch: expected FILE.py:CALLABLE, but there is no file {file!r}")
    spec = importlib.util.spec_from_file_location(f"_goodnet_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--arch: {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{file} raised {type(error).__name__} when run: {one_line(error)}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, name, None)
    if not callable(found):
        public = ", ".join(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise UsageError(f"{file} has no callable {name!r}; it has {public or 'none'}")
    made: Callable[..., Any] = found
    return made


def _own_shape(net: nn.Module, arch: str) -> Shape | None:
    declared = getattr(net, "input_shape", None)
    if declared is None:
        return None
    try:
        channels, height, width = (int(side) for side in declared)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{arch}: expected its input_shape to be (C, H, W), got {declared!r:.60}") from error
    check_shape((channels, height, width))
    return (channels, height, width)
