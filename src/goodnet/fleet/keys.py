"""What a net's row depends on, so that a later run knows which rows it may take over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goodnet.data.readers import read_images
from goodnet.errors import DataError, GoodnetError
from goodnet.fleet.nets import Net, size_of
from goodnet.fleet.worker import Settings
from goodnet.models import user_code
from goodnet.models.load import file_sha256
from goodnet.models.sandbox import wanted


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a net before any process reads it. `problem`: why none will, in one line."""

    key: str = ""
    model_sha256: str | None = None
    data_sha256: str | None = None
    size: int = 0
    problem: str = ""


class DataSets:
    """The hashes of all sets of clean images, each read once."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, str | None], str | GoodnetError] = {}

    def sha256(self, net: Net) -> str:
        """Of the net's images: pixels and labels. Raises DataError and its like, the same each time."""
        at = (net.clean, net.data_range)
        if at not in self._found:
            try:
                self._found[at] = read_images(net.clean, data_range=net.data_range).sha256()
            except GoodnetError as error:
                self._found[at] = error
            except OSError as error:
                self._found[at] = DataError(f"{net.clean}: cannot be read ({error.strerror})")
        found = self._found[at]
        if isinstance(found, GoodnetError):
            raise found
        return found

    def check(self, nets: Sequence[Net]) -> None:
        """Raises where no net has images that can be read: then nothing can be scanned, and no row says more."""
        for net in nets:
            try:
                self.sha256(net)
                return
            except GoodnetError as error:
                last = error
        if nets:
            raise last


def known(net: Net, settings: Settings, data: DataSets) -> Known:
    """Hashes net and images; runs nothing, and opens of the net no more than its bytes."""
    if net.path is None:
        return Known(problem=net.problem)
    try:
        model, images = file_sha256(net.path), data.sha256(net)
        size = size_of(net.path)
        key = _key(net, settings, model, images)
    except GoodnetError as error:
        return Known(problem=str(error))
    except OSError as error:
        return Known(problem=f"{net.path}: {error.strerror or error}")
    return Known(key=key, model_sha256=model, data_sha256=images, size=size)


def _key(net: Net, settings: Settings, model: str, images: str) -> str:
    """As `about.fingerprint`, without reading the net; the time limit stands in the row itself."""
    depends: dict[str, Any] = {
        "model": model,
        "images": images,
        "load": asdict(net.load),
        "code": _code(net.load.arch),
        "labels": None if net.labels is None else sorted(set(net.labels)),
        "data_range": net.data_range,
        "method": [type(settings.method).__name__, asdict(settings.method)],
        "seed": settings.seed,
        "check_input": settings.check_input,
        "device": settings.device,
        "sandbox": settings.sandbox,
        "memory": settings.memory,
        "versions": [metadata.version("goodnet"), torch.__version__, np.__version__],
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _code(arch: str | None) -> str | None:
    """The hash of the user's own code; None where there is none. Raises OSError."""
    if arch is None or not user_code.is_user_code(arch):
        return None
    return hashlib.sha256(Path(arch.rpartition(":")[0]).read_bytes()).hexdigest()


def sandboxed(sandbox: bool | None) -> bool:
    """What every process of the fleet is told, for each may have an environment of its own. Raises UsageError."""
    return wanted(sandbox)
